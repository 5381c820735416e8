from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

import conf
from harness.config.data import SOURCES, DataConfig
from harness.data.images import ImageFile, MediaError
from harness.data.sources import LOADERS, MAX_PENDING, NUM_MESSAGES, NUM_THREADS, LoadedQuestions, load_questions
from harness.errors import UserError
from harness.types import Question

CONF = Path(conf.__file__).parent / "data"


def no_errors(questions: Sequence[Question]) -> list[str | None]:
    return [None] * len(questions)


def odd_answers_only(questions: Sequence[Question]) -> list[str | None]:
    return [None if int(q.answer) % 2 else f"cannot read {q.answer}" for q in questions]


def load(config: DataConfig, **options: Any) -> LoadedQuestions:
    defaults: dict[str, Any] = {"gold_errors": no_errors, "measure": lambda q: 1, "max_prompt_tokens": 1}
    return load_questions(config, **{**defaults, **options})


def answer_as_length(question: Question) -> int:
    return int(question.answer)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """Questions `q0?` to `q9?` with answers 0 to 9, in lines 1 to 10."""
    path = tmp_path / "ten.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}?", "answer": i}) + "\n" for i in range(10)))
    return path


def jsonl(path: Path, **options: Any) -> DataConfig:
    return DataConfig(source="jsonl", path=str(path), **options)


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """Questions with answers 0 to 99, of which the even ones have two pictures that nobody opens."""
    path = tmp_path / "hundred.jsonl"
    records = [{"question": "q?", "answer": i, "images": ["a.png", "b.png"] if i % 2 == 0 else []} for i in range(100)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_source_loads(ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text(ten.read_text())
    pq.write_table(pa.table({"question": ["a?", "b?"], "answer": ["1", "2"]}), tmp_path / "two.parquet")
    configs = {
        "synthetic": DataConfig(source="synthetic", num_questions=6, levels=[1, 2]),
        "reasoning_gym": DataConfig(source="reasoning_gym", dataset="chain_sum", num_questions=5),
        "jsonl": jsonl(ten),
        "parquet": DataConfig(source="parquet", path=str(tmp_path / "two.parquet")),
        "hub": DataConfig(source="hub", path=str(tmp_path / "folder")),
    }
    assert {source: len(load(config).questions) for source, config in configs.items()} == {
        "synthetic": 6,
        "reasoning_gym": 5,
        "jsonl": 10,
        "parquet": 2,
        "hub": 10,
    }


OPTIONS = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in CONF.glob("*.yaml")}


def test_sources_configuration_and_conf_files_agree() -> None:
    sources = {options["source"] for options in OPTIONS.values() if isinstance(options, dict)}
    assert set(SOURCES.ours) == LOADERS.keys() == sources


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_conf_file_holds_only_differences(name: str) -> None:
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")
    options = OPTIONS[name]
    assert isinstance(options, dict)
    merged = DataConfig(**{str(key): value for key, value in options.items()})
    defaults = DataConfig(source="another")
    repeated = [key for key in options if getattr(merged, str(key)) == getattr(defaults, str(key))]
    assert repeated == (["pool_size"] if name in ("hub", "jsonl", "parquet") else [])  # against a recipe's


def test_questions_come_in_the_order_of_the_source(ten: Path) -> None:
    loaded = load(jsonl(ten))
    assert [q.text for q in loaded.questions] == [f"q{i}?" for i in range(10)]
    assert (loaded.num_bad, loaded.bad, loaded.num_too_long) == (0, [], 0)


def test_gold_answers_that_the_grader_refuses_are_bad_rows(ten: Path) -> None:
    loaded = load(jsonl(ten, max_bad_fraction=0.5), gold_errors=odd_answers_only)
    assert [q.answer for q in loaded.questions] == ["1", "3", "5", "7", "9"]
    assert loaded.num_bad == 5
    assert loaded.bad[1] == f"{ten}:3: cannot read 2"
    with pytest.raises(UserError) as error:
        load(jsonl(ten, max_bad_fraction=0.4), gold_errors=odd_answers_only)
    assert str(error.value) == (
        f"{ten}:1: cannot read 0 (5 of 10 rows are bad, data.max_bad_fraction=0.4): "
        "fix the rows or raise data.max_bad_fraction"
    )


def test_malformed_rows_and_bad_gold_answers_count_together(ten: Path) -> None:
    # lines 1 to 10 as before, lines 11 and 12 malformed: 2 of 12, with the even answers 7 of 12 = 0.583
    ten.write_text(ten.read_text() + "{\n[]\n")
    loaded = load(jsonl(ten, max_bad_fraction=0.6), gold_errors=odd_answers_only)
    assert loaded.num_bad == 7
    assert [message.split(":")[1] for message in loaded.bad] == ["1", "3", "5", "7", "9"][:NUM_MESSAGES]
    with pytest.raises(UserError, match=r"ten.jsonl:1: cannot read 0 \(7 of 12 rows"):
        load(jsonl(ten, max_bad_fraction=0.55), gold_errors=odd_answers_only)


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(source="synthetic", num_questions=6, levels=[1]),
        DataConfig(source="reasoning_gym", dataset="leg_counting", num_questions=6),
    ],
    ids=lambda config: config.source,
)
def test_generated_sources_obey_the_same_rule(config: DataConfig) -> None:
    def refuse_the_third(questions: Sequence[Question]) -> list[str | None]:
        return ["no number" if i == 2 else None for i in range(len(questions))]

    with pytest.raises(UserError, match=r":3: no number \(1 of 6 rows are bad"):
        load(config, gold_errors=refuse_the_third)


def test_long_prompts_are_dropped_and_counted(ten: Path) -> None:
    loaded = load(jsonl(ten), measure=answer_as_length, max_prompt_tokens=6)
    assert ([q.answer for q in loaded.questions], loaded.num_too_long) == ([str(i) for i in range(7)], 3)
    with pytest.raises(UserError, match=r"all 10 questions .*rollout.max_prompt_tokens"):
        load(jsonl(ten), measure=answer_as_length, max_prompt_tokens=-1)


def test_media_are_measured_by_a_few_threads_in_a_bounded_window(hundred: Path) -> None:
    lock = threading.Lock()
    busy, most, threads, started = 0, 0, set(), []

    def measure(question: Question) -> int:
        nonlocal busy, most
        if not question.images:
            assert threading.current_thread() is threading.main_thread()
            return 1
        with lock:
            busy += 1
            most = max(most, busy)
            threads.add(threading.get_ident())
            started.append(int(question.answer))
        # the first takes longest: the others wait for it in the window
        time.sleep(0.2 if question.answer == "0" else 0.001)
        if question.answer == "0":
            assert len(started) <= MAX_PENDING
        with lock:
            busy -= 1
        return int(question.answer)

    loaded = load(jsonl(hundred), measure=measure, max_prompt_tokens=50)
    assert [int(q.answer) for q in loaded.questions] == [i for i in range(100) if i % 2 or i <= 50]
    assert loaded.num_too_long == 24
    assert 1 < most <= NUM_THREADS and len(threads) <= NUM_THREADS
    assert threading.main_thread().ident not in threads
    assert [t for t in threading.enumerate() if t.name.startswith("media")] == []


def test_media_that_cannot_be_shown_are_bad_rows(hundred: Path) -> None:
    def measure(question: Question) -> int:
        if question.answer in ("4", "7"):
            raise MediaError(f"{len(question.images)} images but 3 <image>")
        return 1

    loaded = load(jsonl(hundred, max_bad_fraction=0.02), measure=measure)
    assert len(loaded.questions) == 98
    assert loaded.num_bad == 2
    assert loaded.bad == [f"{hundred}:5: 2 images but 3 <image>", f"{hundred}:8: 0 images but 3 <image>"]
    with pytest.raises(UserError, match=r"hundred.jsonl:5: 2 images but 3 <image> \(2 of 100 rows are bad"):
        load(jsonl(hundred, max_bad_fraction=0.01), measure=measure)


def test_bad_gold_answers_and_bad_media_count_together(hundred: Path) -> None:
    def even_ones_are_missing(question: Question) -> int:
        for image in question.images:
            image.open()
        return 1

    def first_only(questions: Sequence[Question]) -> list[str | None]:
        return ["odd" if q.answer == "1" else None for q in questions]

    options = {"gold_errors": first_only, "measure": even_ones_are_missing}
    loaded = load(jsonl(hundred, max_bad_fraction=0.51), **options)
    assert (len(loaded.questions), loaded.num_bad) == (49, 51)
    missing = hundred.parent / "a.png"
    assert loaded.bad[:2] == [f"{hundred}:1: image {missing} does not exist", f"{hundred}:2: odd"]
    with pytest.raises(UserError, match="51 of 100 rows are bad"):
        load(jsonl(hundred, max_bad_fraction=0.5), **options)


def test_another_error_in_a_thread_ends_the_loading(hundred: Path) -> None:
    calls = []

    def measure(question: Question) -> int:
        if question.images:
            calls.append(question)
            raise UserError("the model reads text only")
        return 1

    with pytest.raises(UserError, match="reads text only"):
        load(jsonl(hundred), measure=measure)
    assert len(calls) <= MAX_PENDING


def test_references_of_questions_stay_small(hundred: Path) -> None:
    question = load(jsonl(hundred)).questions[0]
    assert question.images == (ImageFile(str(hundred.parent / "a.png")), ImageFile(str(hundred.parent / "b.png")))


def test_pool_is_a_seeded_choice_in_order(ten: Path) -> None:
    def pool(size: int | None, seed: int) -> list[int]:
        return [int(q.answer) for q in load(jsonl(ten, pool_size=size, seed=seed)).questions]

    assert pool(None, 0) == pool(10, 3) == list(range(10))
    pools = [pool(4, seed) for seed in range(5)]
    assert all(len(set(p)) == 4 and p == sorted(p) for p in pools)
    assert pools[0] == pool(4, 0)
    assert len({tuple(p) for p in pools}) > 1


def test_pool_is_drawn_from_what_the_filters_leave(ten: Path) -> None:
    config = jsonl(ten, pool_size=3, max_bad_fraction=0.5)
    loaded = load(config, gold_errors=odd_answers_only, measure=answer_as_length, max_prompt_tokens=6)
    assert [q.answer for q in loaded.questions] == ["1", "3", "5"]


@pytest.mark.parametrize("size", [0, 11])
def test_pool_outside_the_data_is_refused(ten: Path, size: int) -> None:
    with pytest.raises(UserError, match=rf"pool_size={size} but the data have 10 usable questions: choose 1 to 10"):
        load(jsonl(ten, pool_size=size))
