from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config.data import ColumnsConfig, DataConfig
from harness.data.files import load_jsonl
from harness.data.pictures import LineImage
from harness.types import Question

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGP4z8AARAwQCgAf7gP9i18U1AAAAABJRU5ErkJggg=="  # 2x2 pixels
)


def load(tmp_path: Path, record: dict[str, Any], **columns: Any) -> Question:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return load_jsonl(DataConfig(source="jsonl", path=str(path), columns=ColumnsConfig(**columns))).questions[0]


def reason(tmp_path: Path, record: dict[str, Any], **columns: Any) -> str:
    path = tmp_path / "a.jsonl"
    good = {**record, "prompt": "q?", "question": "q?", "answer": "1"}
    path.write_text(f"{json.dumps(record)}\n{json.dumps(good)}\n", encoding="utf-8")
    made = DataConfig(source="jsonl", path=str(path), columns=ColumnsConfig(**columns), max_bad_fraction=0.9)
    return load_jsonl(made).bad[1]


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_the_last_user_turn_is_the_question_and_earlier_ones_stay(tmp_path: Path) -> None:
    prompt = [turn("system", "Be kind."), turn("user", "1+1?"), turn("assistant", "2"), turn("user", " 2+2? ")]
    question = load(tmp_path, {"prompt": prompt, "answer": "4"}, question="prompt")
    assert question.text == "2+2?"
    assert [(m["role"], m["content"]) for m in question.messages] == [
        ("system", "Be kind."), ("user", "1+1?"), ("assistant", "2"),
    ]  # fmt: skip


def test_sharegpt_has_question_and_answer_in_one_column(tmp_path: Path) -> None:
    record = {
        "id": "0001",
        "conversations": [
            {"from": "human", "value": "<image>\nHow many cats?"},
            {"from": "gpt", "value": "Two.\n#### 2"},
        ],
        "image": "cats.jpg",
    }
    question = load(tmp_path, record, question="conversations", answer="conversations", id="id")
    assert (question.id, question.text, question.answer, question.messages) == (
        "0001",
        "<image>\nHow many cats?",
        "2",
        (),
    )
    assert [image.name for image in question.images] == [f"{tmp_path}/cats.jpg"]


def test_trl_has_a_completion_in_messages(tmp_path: Path) -> None:
    record = {"prompt": [turn("user", "1+1?")], "completion": [turn("assistant", r"So \boxed{2}.")]}
    question = load(tmp_path, record, question="prompt", answer="completion")
    assert (question.text, question.answer) == ("1+1?", "2")


def test_parts_of_a_content_bring_their_pictures(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "text": "Between "},
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": " and "},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "text", "text": ": which?"},
    ]
    question = load(tmp_path, {"prompt": [turn("user", parts)], "answer": "1"}, question="prompt")
    assert question.text == "Between <image> and <image>: which?"
    first, second = question.images
    assert first.name == f"{tmp_path}/a.png"
    assert isinstance(second, LineImage) and second.open().size == (2, 2)
    marked = [{"type": "image"}, {"type": "text", "text": "What?"}]
    question = load(tmp_path, {"prompt": [turn("user", marked)], "answer": "1", "images": ["b.png"]}, question="prompt")
    assert (question.text, [i.name for i in question.images]) == ("<image>What?", [f"{tmp_path}/b.png"])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([turn("assistant", "2")], "'prompt' has no turn of a user"),
        ([turn("user", "")], "'prompt' has an empty turn of a user"),
        ([turn("referee", "1+1?")], "'prompt' has a turn of the role 'referee'"),
        ([turn("user", 3)], "'prompt' has a turn whose content is a int"),
        ([turn("user", [{"type": "audio"}])], "'prompt' has a part of the type 'audio'"),
        ([], "'prompt' is a list, not text or a number"),
        ([turn("user", "half \ud83d")], "'prompt' holds half a surrogate pair"),
    ],
)
def test_turns_that_give_no_question(tmp_path: Path, prompt: Any, said: str) -> None:
    assert reason(tmp_path, {"prompt": prompt, "answer": "1"}, question="prompt").startswith(said)


def test_a_conversation_without_a_reply_has_no_gold_answer(tmp_path: Path) -> None:
    record = {"question": [turn("user", "1+1?")], "answer": [turn("user", "?")]}
    assert reason(tmp_path, record) == "'answer' has no turn of an assistant"
