"""Teacher against student: what differs is named, from files of this machine alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.schema import ModelConfig
from harness.models.shapes import shape_of
from harness.models.tiny import tiny_path
from harness.preflight.plan.pairs import check_pair

Change = Callable[[Path], None]


def check(tmp_path: Path, *changes: Change) -> dict[str, list[str]]:
    """Texts by state; the teacher is a changed copy of a tiny model."""
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_path("m"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for change in changes:
        change(folder)
    student, teacher = ModelConfig(name="s", path="tiny:s"), ModelConfig(name="t", path=str(folder))
    found: dict[str, list[str]] = {"ok": [], "warn": [], "fail": []}
    for made in check_pair(student, teacher, (shape_of(student), shape_of(teacher))):
        found[made.state].append(made.text)
    return found


def edited(name: str, change: Callable[[dict], None]) -> Change:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return edit


def template(text: str) -> Change:
    return lambda folder: (folder / "chat_template.jinja").write_text(text, encoding="utf-8") and None


def test_a_family(tmp_path):
    found = check(tmp_path)
    assert not found["warn"] and not found["fail"]
    assert "one tokenizer: 292 ids mean the same to both" in found["ok"]
    assert "both heads have 292 rows" in found["ok"]


def test_ids_that_mean_something_else(tmp_path):
    def swap(content: dict) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    (text,) = check(tmp_path, edited("tokenizer.json", swap))["fail"]
    assert text.startswith("different tokenizers: id ") and "'a' in the first tokenizer and 'b' in the second" in text


def test_other_ends_of_a_reply(tmp_path):
    found = check(tmp_path, edited("generation_config.json", lambda content: content.update(eos_token_id=[1, 3])))
    assert found["warn"] == ["replies end with <|im_end|> for the student, <|endoftext|>, <|im_end|> for the teacher"]


def test_padded_rows(tmp_path):
    found = check(tmp_path, edited("config.json", lambda content: content["text_config"].update(vocab_size=320)))
    assert "the heads have 292 and 320 rows: only the tokenizer's ids are compared, the rest is padding" in found["ok"]
    assert any("0 rows of the student's head and 28 of the teacher's have no token" in text for text in found["ok"])


@pytest.mark.parametrize(
    ("body", "default"),
    [
        ("{% if enable_thinking is not defined or enable_thinking %}think {% endif %}", "thinks"),
        ("{% if enable_thinking is defined and enable_thinking %}think {% endif %}", "does not think"),
        ("other ", "knows no thinking"),
    ],
)
def test_templates_and_thinking(tmp_path, body, default):
    """The larger Qwen3.5 think where nobody says, the smaller ones do not."""
    found = check(tmp_path, template(body + "{{ messages[0]['content'] }}"))
    (text,) = found["warn"]
    assert text == (
        "the chat templates differ: the student's renders every prompt for both; student.enable_thinking=false is "
        f"given explicitly (by default the student's template knows no thinking, the teacher's {default})"
    )


def test_what_is_not_here_waits():
    student, teacher = ModelConfig(name="s", path="tiny:s"), ModelConfig(name="t", path="Qwen/Qwen3.5-27B")
    checks = check_pair(student, teacher, (shape_of(student), shape_of(teacher)))
    assert [made.state for made in checks] == ["ok", "warn"]
    assert checks[1].text.startswith("Qwen/Qwen3.5-27B is not on this machine: tokenizer by id and piece")
