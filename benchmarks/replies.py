"""What reads replies takes time in proportion to them: `python -m benchmarks.replies [--length 20000]`.

Every reader gets texts that lead patterns astray, at one length and at four times that. It prints the worst of each
reader and ends with 1 where four times the text took more than `--most` times as long.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType

from harness.evaluation.benchmarks.pictures import grid_size
from harness.evaluation.benchmarks.visual_maths import number
from harness.rewards.boxed import last_boxed
from harness.rewards.choice import choice_letter, is_bare_letter, normal_text
from harness.rewards.judge.sections import data, read_object, student_section
from harness.rewards.rules import quick_check, quick_same
from harness.rollout.actors import between_tags
from harness.types import AnswerType, Question
from methods import registry
from methods.prompts import neutralize, response_text
from reports.runs.text import printable

CHOICES = ["red", "1/2", "x+1"]


def _question(kind: AnswerType, gold: str) -> Question:
    return Question(id="q", text="", answer=gold, answer_type=kind, metadata={"choices": CHOICES})


def _hint() -> ModuleType:
    """Imported with all methods, in the order of the registry, which the page of options keeps."""
    registry.built_in()
    return import_module("methods.hint")


READERS: dict[str, Callable[[str], object]] = {
    "last_boxed": last_boxed,
    "between_tags": lambda text: between_tags(text, "hint"),
    "neutralize": neutralize,
    "response_text": response_text,
    "normal_text": normal_text,
    "choice_letter": lambda text: choice_letter(text, CHOICES),
    "is_bare_letter": is_bare_letter,
    "quick_check math": lambda text: quick_check(text, _question("math", "50")),
    "quick_check text": lambda text: quick_check(text, _question("text", "oak")),
    "quick_check choice": lambda text: quick_check(text, _question("choice", "B")),
    "quick_same": lambda text: quick_same(text, "7"),
    "gives_answer": lambda text: _hint().gives_answer(text, "42"),
    "copies": lambda text: _hint().copies("Look at the sum.", text),
    "grid_size": grid_size,
    "number": number,
    "judge data": data,
    "judge verdict": lambda text: read_object(text, {"verdict"}),
    "judge response": lambda text: student_section(text, None),
    "printable": printable,
}
"""All that reads a complete reply, or a complete box, in the process of the run. The grading workers have limits."""

PIECES = (
    "a", "0", " ", "\n", "\t", "(", "{", "}", "[", "<", "\\", "$", ",", ".", "=", "'", "_", "-", "é", "答案", "\x1b",
    "\\boxed{", "\\boxed{}", "\\boxed{1} ", "\\boxed ", "<hint>", "</hint>", "</think>", "<think>", "</ ", "<| ",
    "\\text{", "\\text {", "\\text{a}", "\\frac{1}{", "\\left", "the answer is ", "option ", "answer ", "A ", "a. ",
    "1,", "0.", "1 ", "/0", "[INST ", "[/ ", "^ {",
)  # fmt: skip
AROUND = (("", ""), ("<hint>", ""), ("\\boxed{", ""), ("+", "x"), ("1", "!"), ("the answer is (", "]"))
"""What stands before and after the pieces: the beginning of a pattern, and an end that does not fit it."""


def texts(length: int) -> Iterator[tuple[str, str]]:
    """Hostile texts of about `length` characters, with a name each."""
    for piece in PIECES:
        for before, after in AROUND:
            yield f"{before}{piece}...{after}", before + piece * (length // len(piece)) + after


def seconds(read: Callable[[str], object], text: str) -> float:
    """CPU seconds of one reading."""
    started = time.process_time()
    read(text)
    return time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replies", description=__doc__)
    parser.add_argument("--length", type=int, default=5_000, help="characters of the shorter texts")
    parser.add_argument("--most", type=float, default=9.0, help="linear is 4, quadratic 16")
    options = parser.parse_args()
    too_slow = False
    for name, read in READERS.items():
        worst, of = 0.0, "none that takes 5 ms"
        for (label, small), (_, large) in zip(texts(options.length), texts(4 * options.length), strict=True):
            if (late := seconds(read, large)) > 0.005:
                ratio = min(late, seconds(read, large)) / max(seconds(read, small), 1e-4)
                worst, of = max((worst, of), (ratio, f"{label!r}, {late:.2f} s"))
        print(f"{name:20} {worst:6.1f} times: {of}", flush=True)
        too_slow |= worst > options.most
    return int(too_slow)


if __name__ == "__main__":
    sys.exit(main())
