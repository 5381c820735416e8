"""Files in the shapes of published data sets, from the file to the grader's verdict on right replies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.config.data import ColumnsConfig, DataConfig, check_data
from harness.data.sources import LoadedQuestions, load_questions
from harness.errors import UserError
from harness.rewards.rules import gold_error, grade
from harness.types import Question

DATA = Path(__file__).parents[2] / "fixtures" / "data"
PENS = ["7", "15", "1234", "16", "23", "14", "42", "13"]
"""What Tom has in the end, in the order of the rows."""
TUTOR = ({"role": "system", "content": "You are a careful tutor."},)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def config(file: str, columns: dict[str, Any] | None = None, **options: Any) -> DataConfig:
    source = "parquet" if file.endswith(".parquet") or file in ("trainvaltest", "shards") else "jsonl"
    made = DataConfig(source=source, path=str(DATA / file), columns=ColumnsConfig(**(columns or {})), **options)
    check_data(made)
    return made


def load(grader: str, made: DataConfig) -> LoadedQuestions:
    def measure(question: Question) -> int:
        for image in question.images:
            assert image.open().size == (64, 64)
        return 1

    def gold_errors(questions: Sequence[Question]) -> list[str | None]:
        return [gold_error(question, grader) for question in questions]

    return load_questions(made, gold_errors=gold_errors, measure=measure, max_prompt_tokens=1)


def num_right(grader: str, loaded: LoadedQuestions, answers: list[str]) -> int:
    pairs = zip(loaded.questions, answers, strict=True)
    return sum(grade(f"So \\boxed{{{a}}}.", q, grader).verdict == "correct" for q, a in pairs)


READ: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    ("dapo.parquet", {"question": "prompt", "answer": "reward_model.ground_truth"}, {}, PENS),
    ("verl.parquet", {"question": "prompt.0.content", "answer": "reward_model.ground_truth"}, {}, PENS),
    ("verl.parquet", {"question": "extra_info.question", "answer": "extra_info.answer"}, {}, PENS),
    ("gsm8k.jsonl", {}, {}, PENS),
    ("math.jsonl", {"question": "problem", "answer": "solution"}, {}, PENS),
    ("answer_prose.jsonl", {}, {}, PENS),
    ("answer_prose.jsonl", {}, {"answer_pattern": r"answer is ([\d,.]+)\."}, PENS),
    ("trainvaltest", {}, {}, PENS),
    ("shards", {}, {}, PENS),
    ("gz.jsonl.gz", {}, {}, PENS),
    ("array.json", {}, {}, PENS),
    ("csv.csv", {}, {}, PENS),
    ("list_answer.parquet", {}, {}, PENS),
    ("answer_list.jsonl", {"answer": "answer.0"}, {}, PENS),
    ("saved_to_disk", {}, {}, [str(i) for i in range(8)]),
    ("mcq_choices.jsonl", {}, {"answer_type": "choice"}, ["B", "(b) 4", "5", "B. 6", "7", r"\text{B}"]),
    ("mcq_index.jsonl", {}, {}, ["n3", "B", "n5", "B", "n7", "B"]),
]


@pytest.mark.parametrize("grader", ["math_verify", "mathruler"])
@pytest.mark.parametrize(("file", "columns", "options", "answers"), READ, ids=lambda value: str(value)[:40])
def test_right_replies_are_rewarded(grader: str, file: str, columns: Any, options: Any, answers: list[str]) -> None:
    loaded = load(grader, config(file, columns, **options))
    assert (len(loaded.questions), loaded.num_bad) == (len(answers), 0)
    assert num_right(grader, loaded, answers) == len(answers)
    wrong = ["C" if one.answer_type == "choice" else "999" for one in loaded.questions]
    assert num_right(grader, loaded, wrong) == 0


REFUSED = [
    ("utf16.jsonl", {}, {}, r"utf16.jsonl is UTF-16: save it as UTF-8"),
    ("image_url.jsonl", {}, {}, r":1: 'images' holds the address https://example.org/x.png: pictures are not downl"),
    ("dapo.parquet", {}, {}, r"no column 'question': set data.columns.question to one it has. It has 'prompt'"),
    ("numina15.jsonl", {"question": "problem"}, {}, r":1: 'answer' 'proof' is a word, no mathematics.*4 of 8 rows"),
    ("mcq_choices.jsonl", {"choices": None}, {"answer_type": "choice"}, r"no options: set data.columns.choices"),
    ("mmk12.parquet", {"images": "picture"}, {}, r"no column 'picture': set data.columns.images"),
    ("answer_prose.jsonl", {}, {"answer_pattern": "x(y)"}, r"holds nothing that data.answer_pattern matches"),
]


@pytest.mark.parametrize(("file", "columns", "options", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_read_is_one_line(file: str, columns: Any, options: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        load("math_verify", config(file, columns, **options))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("file", ["mmk12.parquet", "image_base64.jsonl", "image_datauri.jsonl", "geometry3k.parquet"])
def test_pictures_are_found_and_opened(file: str) -> None:
    columns = {"question": "problem"} if file == "geometry3k.parquet" else {}
    loaded = load("math_verify", config(file, columns))
    assert [len(question.images) for question in loaded.questions] == [1] * 8
    assert all("iVBOR" not in image.name and len(image.name) < 200 for q in loaded.questions for image in q.images)
    content = {b"".join(image.content()) for question in loaded.questions for image in question.images}
    assert len(content) == 8 and all(one.startswith(b"\x89PNG") for one in content)


def test_a_list_of_videos_is_found() -> None:
    from harness.data.files import load_jsonl

    questions = load_jsonl(config("videos_list.jsonl")).questions
    assert {question.video.name for question in questions if question.video} == {str(DATA / "clip.mp4")}
    assert len(questions) == 8


@pytest.mark.parametrize(
    ("file", "columns", "options", "messages"),
    [
        ("verl_system.parquet", {"question": "prompt", "answer": "reward_model.ground_truth"}, {}, TUTOR),
        ("trl_prompt.jsonl", {"question": "prompt", "answer": "solution"}, {"system": "Not this."}, TUTOR),
        ("system.jsonl", {"system": "system"}, {}, TUTOR),
        ("system.jsonl", {}, {"system": "Be brief."}, ({"role": "system", "content": "Be brief."},)),
        ("system.jsonl", {}, {}, ()),
    ],
)
def test_system_messages_come_before_the_question(file: str, columns: Any, options: Any, messages: Any) -> None:
    loaded = load("math_verify", config(file, columns, **options))
    assert [q.messages for q in loaded.questions] == [messages] * 8
    assert loaded.questions[0].text == "Tom has 3 pens and buys 4 more. How many pens has he?"
    assert num_right("math_verify", loaded, PENS) == 8


def test_options_are_shown_with_letters() -> None:
    for file, last in (("mcq_choices.jsonl", "19\nD. 20"), ("mcq_options.jsonl", "9\nD. 0")):
        loaded = load("math_verify", config(file))
        assert loaded.questions[0].text == f"Which number is 2 plus 1?\n\nA. 2\nB. 3\nC. {last}"
        assert {q.answer_type for q in loaded.questions} == {"choice"}


def test_duplicates_other_splits_and_words_are_counted() -> None:
    assert load("math_verify", config("dup_questions.jsonl")).num_duplicates == 6
    assert load("math_verify", config("gsm8k.jsonl")).num_duplicates == 0
    loaded = load("math_verify", config("trainvaltest"))
    assert loaded.notes == [
        f"{DATA / 'trainvaltest'} has files of other splits, which are left out: test-00000-of-00001.parquet"
    ]
    loaded = load("math_verify", config("numina15.jsonl", {"question": "problem"}, max_bad_fraction=0.5))
    assert ([q.answer for q in loaded.questions], loaded.num_bad) == (["1234", "16", "42", "13"], 4)


def test_a_mark_without_a_picture_names_the_column_that_looks_like_it(tmp_path: Path) -> None:
    from harness.data.files import load_jsonl

    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "<image>What?", "answer": "7", "decoded_image": "a.png"}) + "\n")
    made = DataConfig(source="jsonl", path=str(path))
    with pytest.raises(UserError, match=r"<image> and the row no image: set data.columns.images .*'decoded_image'"):
        load_jsonl(made)
    plain = DataConfig(source="jsonl", path=str(path), columns=ColumnsConfig(images=None))
    assert load_jsonl(plain).questions[0].text == "<image>What?"
