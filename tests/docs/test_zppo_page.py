"""`docs/zppo.md` shows the prompts that the methods write, and its numbers follow from each other."""

import re
import statistics
from pathlib import Path

import pytest

from harness.types import Question
from methods import prompts
from methods.zppo import ZPPOConfig

PAGE = (Path(__file__).parents[2] / "docs/zppo.md").read_text(encoding="utf-8")
QUESTION = Question(id="", text="Compute 34+2+6+8.", answer="50")
RIGHT = "34+2=36+6=42+8=50\n\\boxed{50}"
WRONG = ["34+2=36+6=44+8=62\n\\boxed{62}", "34+2=36+6=54+8=72\n\\boxed{72}", "34+2=36+6=44+8=52\n\\boxed{52}"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", prompts.plain_text(QUESTION)),
        ("bcq", prompts.bcq_text(QUESTION, [WRONG[0], RIGHT])),
        ("ncq", prompts.ncq_text(QUESTION, ["62", "72", "52"], WRONG)),
    ],
)
def test_a_prompt_of_the_page_is_the_methods_own(name: str, text: str) -> None:
    (shown,) = re.findall(rf"^```text {name}\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown == text


def test_the_advantages_follow_from_the_rewards() -> None:
    rows = re.findall(r"^\| (?:BCQ|NCQ) \| (\d) of 8 \| ([\d.]+) \| \+([\d.]+) \| -([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 2
    for right, mean, above, below in rows:
        rewards = [1.0] * int(right) + [0.0] * (8 - int(right))
        assert statistics.mean(rewards) == float(mean) == 1 - float(above) == float(below)
    sigma, best, worst = map(float, re.findall(r"\b0\.410\b|(?<=\+)0\.914|(?<=-)1\.524", PAGE))
    assert 0.375 / sigma == pytest.approx(best, abs=1e-3) and 0.625 / sigma == pytest.approx(worst, abs=1e-3)


def test_the_limits_of_the_page_are_the_defaults() -> None:
    assert ZPPOConfig().tau == 0.5 and ZPPOConfig().group_size == 8
