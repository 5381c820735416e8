from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

import conf
from harness.config import CHOICES, DataConfig
from harness.data.sources import LOADERS, NUM_MESSAGES, LoadedQuestions, load_questions
from harness.errors import UserError
from harness.types import Question

CONF = Path(conf.__file__).parent / "data"


def no_errors(questions: Sequence[Question]) -> list[str | None]:
    return [None] * len(questions)


def odd_answers_only(questions: Sequence[Question]) -> list[str | None]:
    return [None if int(q.answer) % 2 else f"cannot read {q.answer}" for q in questions]


def load(config: DataConfig, **options: Any) -> LoadedQuestions:
    return load_questions(config, **{"gold_errors": no_errors, **options})


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """Questions `q0?` to `q9?` with answers 0 to 9, in lines 1 to 10."""
    path = tmp_path / "ten.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}?", "answer": i}) + "\n" for i in range(10)))
    return path


def jsonl(path: Path, **options: Any) -> DataConfig:
    return DataConfig(source="jsonl", path=str(path), **options)


def test_every_source_loads(ten: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a?", "b?"], "answer": ["1", "2"]}), tmp_path / "two.parquet")
    configs = {
        "arithmetic": DataConfig(source="arithmetic", num_questions=6, levels=[1, 2]),
        "reasoning_gym": DataConfig(source="reasoning_gym", dataset="chain_sum", num_questions=5),
        "jsonl": jsonl(ten),
        "parquet": DataConfig(source="parquet", path=str(tmp_path / "two.parquet")),
    }
    assert {source: len(load(config).questions) for source, config in configs.items()} == {
        "arithmetic": 6,
        "reasoning_gym": 5,
        "jsonl": 10,
        "parquet": 2,
    }


def test_sources_configuration_and_conf_files_agree() -> None:
    assert set(LOADERS) == set(CHOICES["data.source"]) == {path.stem for path in CONF.glob("*.yaml")}


@pytest.mark.parametrize("source", sorted(LOADERS))
def test_conf_file_holds_only_differences(source: str) -> None:
    path = CONF / f"{source}.yaml"
    assert path.read_text().startswith("# ")
    options = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(options, dict)
    assert options["source"] == source
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), options))
    defaults = DataConfig(source="another")
    assert [key for key in options if getattr(merged, str(key)) == getattr(defaults, str(key))] == []


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
        DataConfig(source="arithmetic", num_questions=6, levels=[1]),
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
    loaded = load(jsonl(ten), keep=lambda q: int(q.answer) < 7)
    assert ([q.answer for q in loaded.questions], loaded.num_too_long) == ([str(i) for i in range(7)], 3)
    with pytest.raises(UserError, match=r"all 10 questions .*rollout.max_prompt_tokens"):
        load(jsonl(ten), keep=lambda q: False)


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
    loaded = load(config, gold_errors=odd_answers_only, keep=lambda q: int(q.answer) < 7)
    assert [q.answer for q in loaded.questions] == ["1", "3", "5"]


@pytest.mark.parametrize("size", [0, 11])
def test_pool_outside_the_data_is_refused(ten: Path, size: int) -> None:
    with pytest.raises(UserError, match=rf"pool_size={size} but the data have 10 usable questions: choose 1 to 10"):
        load(jsonl(ten, pool_size=size))
