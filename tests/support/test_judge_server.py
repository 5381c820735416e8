"""The loopback judge compares: for every form there is a right and a wrong answer."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from harness.evaluation.judge.formats import FORMATS
from harness.types import Question
from tests.support.judge_server import verdict

COLOURS = {"choices": ["red", "blue"]}
REASONING = {"kind": "reasoning", "category": 1}
RHYME = {"target_question": "Does the reply describe a garden fountain?", "pass_criteria": "NO"}


@pytest.mark.parametrize(
    ("form", "gold", "metadata", "response", "answer", "score"),
    [
        ("shared", "1 500", {}, "", "1  500.", 1.0),
        ("shared", "0.5", {}, "", "0.50", 1.0),
        ("shared", "0.5", {}, "", "10.5", 0.0),
        ("shared", "oak tree", {}, "First elm.\nNo: an oak tree, surely.", None, 1.0),
        ("shared", "oak tree", {}, "An oak tree?\nNo: an elm.", None, 0.0),
        ("shared", "oak", {}, "\\boxed{elm} then \\boxed{oak}\nI am done.", None, 1.0),
        ("shared", "B", COLOURS, "", "(b)", 1.0),
        ("shared", "B", COLOURS, "", "blue", 1.0),
        ("shared", "B", COLOURS, "", "A", 0.0),
        ("shared", "a", {}, "A word with a in it.", None, 0.0),
        ("shared", "oak", {}, "", "oaks", 0.0),
        ("shared", "oak", {}, "", None, 0.0),
        ("mmvet", "-1<AND>-5", {}, "", "x = -1", 0.5),
        ("mmvet", "-1<AND>-5", {}, "", "x = -1 or x = -5", 1.0),
        ("mmvet", "six<OR>half a dozen", {}, "", "Half a dozen", 1.0),
        ("mmvet", "six<OR>half a dozen", {}, "", "seven", 0.0),
        ("multichallenge", "", RHYME, "Water leaps from the garden fountain.", None, 0.0),
        ("multichallenge", "", RHYME, "Snow lies on the roofs.", None, 1.0),
        ("mmvu", "B", COLOURS, "\\boxed{B. blue}", "B. blue", 1.0),
        ("mmvu", "B", COLOURS, "\\boxed{red}", "red", 0.0),
        ("mmvu", "stack", {}, "\\boxed{a stack}", "a stack", 1.0),
        ("mmvu", "stack", {}, "", "", 0.0),
        ("hle", "17", {}, "<think>18</think>\\boxed{17}", "17", 1.0),
        ("hle", "17", {}, "<think>17</think>\\boxed{18}", "18", 0.0),
        ("charxiv", "Not Applicable", REASONING, "", "not applicable", 1.0),
        ("charxiv", "P-101", REASONING, "", "P=101", 0.0),
    ],
)
def test_it_compares(
    form: str, gold: str, metadata: dict[str, Any], response: str, answer: str | None, score: float
) -> None:
    question = Question(id="q", text="Which one?", answer=gold, metadata=metadata)
    reply = verdict(FORMATS[form].messages(question, response, answer))
    assert FORMATS[form].read(question, reply) == score


def test_another_harness_is_refused() -> None:
    with pytest.raises(ValueError, match="key"):
        verdict([{"role": "user", "content": "Is 7 the same as 8?"}])


@pytest.mark.slow
def test_the_command_serves() -> None:
    command = [sys.executable, "-m", "tests.support.judge_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().removeprefix("eval.judge.url=")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/models") as answer:
                assert json.load(answer)["data"][0]["id"] == "loopback-judge"
        finally:
            process.terminate()
