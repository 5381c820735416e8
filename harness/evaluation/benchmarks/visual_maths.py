"""Mathematics in pictures: MathVerse, MathVision, MathVista, DynaMath and We-Math."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from harness.config.evaluation import BenchmarkOptions
from harness.errors import UserError
from harness.evaluation.benchmarks.recipe import (
    Aggregate,
    Estimate,
    Mark,
    Recipe,
    by_grade,
    row_mean,
    worst_over,
)
from harness.evaluation.benchmarks.rows import Row
from harness.rewards.choice import LETTERS, choice_letter, lettered, normal_text
from harness.rewards.rules import Grade
from harness.types import ImageRef, Question

VISION_ONLY = "The picture shows a mathematics problem. Solve it."
"""Asked where MathVerse has the complete problem in its picture and no text."""

DYNAMATH_TOLERANCE = 0.001
"""Absolute, of the official evaluation: gold numbers are rounded to four decimals."""

_LINE_LABEL = re.compile(r"^[ \t]*([A-J])[ \t]*[:.\uff0e]", re.MULTILINE)
_BRACKET_LABEL = re.compile(r"\(([A-J])\)")
_SEMICOLON_LABEL = re.compile(r"(?:^|;)\s*([A-J])\s*[.\uff0e]")
_SPACE_LABEL = re.compile(r"(?:^|[;\s])\s*([A-J])\s*[.\uff0e]")
_CHOICES_FOLLOW = re.compile(r"\bchoices?\s*:", re.IGNORECASE)
_PICTURE_MARK = re.compile(r"<image\s*(\d+)>")
_FORM_DIRECTIVE = re.compile(
    r"\s*\b(?:please\s+)?answer\s+(?:the\s+question\s+)?"
    r"(?:in\s+(?:the\s+)?form(?:at)?\b|in\s+word\b|with\s+a\s+floating-point\b).*$",
    re.IGNORECASE,
)
_ORDER_AND_FORM = re.compile(r",\s*following the format like.*$", re.IGNORECASE)

_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\[,!])(?=\d{3}(?!\d))")
_UNIT = re.compile(
    r"(?:\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|(?<=\d)\s+[A-Za-z]{2,})(?:\s*\^\s*\{?[23]\}?|[²³])?"
    r"|\^?\s*\{?\\circ\}?|°|\\?%|\\[,;:! ]|\\?[$]"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<top>\d+(?:\.\d*)?|\.\d+)?\s*(?P<pi>π)?\s*(?:/\s*(?P<bottom>\d+(?:\.\d*)?|\.\d+))?"
)


def mathverse(row: Row) -> list[Question]:
    """Choices are lines of the question; a Vision Only row has them, and its question, only in the text for judges."""
    asked, told = (row["question"] or "").strip(), (row["question_for_eval"] or "").strip()
    extra: dict[str, Any] = {"problem_version": row["problem_version"]}
    if not asked:
        extra["judge_question"] = told
    choices = labelled_choices(asked or told, _LINE_LABEL) if row["question_type"] == "multi-choice" else []
    picture = [row["image"]]
    gold = row.gold("answer").strip()
    if row["question_type"] == "multi-choice" and (letter := choice_letter(gold, choices)):
        return [_choice(row, asked or VISION_ONLY, letter, choices, picture, **extra)]
    return [row.question(asked or VISION_ONLY, gold, answer_type="math", images=picture, **extra)]


def mathvision(row: Row) -> list[Question]:
    """Options are often only letters, which stand in the picture."""
    choices, gold = list(row["options"] or ()), row.gold("answer").strip()
    marks = _PICTURE_MARK.findall(row["question"] + "\n".join(choices))
    text = _place_pictures(row["question"], marks).strip()
    choices = [_place_pictures(choice, marks) for choice in choices]
    if choices and choices == list(LETTERS[: len(choices)]):
        text += f"\nOptions: {', '.join(choices)}"
    elif choices:
        text += f"\n{lettered(choices)}"
    letter = choice_letter(gold, choices) if choices else gold if gold in tuple("ABCDE") else None
    picture = [row["decoded_image"]]
    if letter:
        return [_choice(row, text, letter, choices, picture)]
    return [row.question(text, gold, answer_type="math", images=picture)]


def mathvista(row: Row) -> list[Question]:
    """Free-form answers are an integer, a decimal number of so many places, or a list."""
    text, gold = row["question"].strip(), row.gold("answer").strip()
    if row["unit"]:
        text += f" (Unit: {row['unit']})"
    choices, picture = list(row["choices"] or ()), [row["decoded_image"]]
    if row["question_type"] == "multi_choice" and gold in choices:
        text += f"\n{lettered(choices)}"
        return [_choice(row, text, LETTERS[choices.index(gold)], choices, picture)]
    kind = row["answer_type"]
    extra = {"kind": kind, "precision": int(row["precision"] or 0)}
    numeric = kind in ("integer", "float")
    return [row.question(text, gold, answer_type="math" if numeric else "text", images=picture, **extra)]


def dynamath(row: Row) -> list[Question]:
    """The id is that of the seed question, the same in every split of variants."""
    text, gold, kind = row["question"].strip(), row.gold("ground_truth").strip(), row["answer_type"]
    picture, extra = [row["decoded_image"]], {"seed": row["id"], "subject": row["subject"]}
    if kind == "multiple choice":
        listed = _CHOICES_FOLLOW.split(text)[-1]
        choices = labelled_choices(listed, _BRACKET_LABEL) or labelled_choices(listed, _LINE_LABEL)
        if letter := choice_letter(gold, choices):
            return [_choice(row, text, letter, choices, picture, **extra)]
    text = _ORDER_AND_FORM.sub(".", _FORM_DIRECTIVE.sub("", text)).strip()
    if kind != "text" and number(gold) is not None:
        return [row.question(text, gold, answer_type="math", images=picture, numeric=True, **extra)]
    formula = "=" in gold or bool(re.fullmatch(r"[(\[].*\d.*[)\]]", gold))
    return [row.question(text, gold, answer_type="math" if formula else "text", images=picture, **extra)]


def wemath(row: Row) -> list[Question]:
    """A problem of two or three steps is asked step by step and in one question, in rows of the same ID."""
    steps, _, step = row["key"].rpartition("_")
    options = row["option"].strip()
    choices = labelled_choices(options, _SEMICOLON_LABEL) or labelled_choices(options, _SPACE_LABEL)
    text = f"{row['question'].strip()}\n{lettered(choices) if choices else options}"
    extra = {"problem": f"{steps}/{row['ID']}", "steps": int(steps.removesuffix("steps")), "step": step}
    return [_choice(row, text, row.gold("answer").strip(), choices, [row["image_path"]], **extra)]


def labelled_choices(text: str, label: re.Pattern[str]) -> list[str]:
    """The texts after the labels A, B, C and so on; empty unless these labels stand there once each and in order."""
    found = list(label.finditer(text))
    if len(found) < 2 or "".join(match[1] for match in found) != LETTERS[: len(found)]:
        return []
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [text[match.end() : end].strip(" ;\n") for match, end in zip(found, ends, strict=True)]


def number(text: str) -> float | None:
    """A plain number, a fraction of numbers or a multiple of pi, its unit left out; None for anything else.

    Linear in the length of a reply: the patterns meet no long gaps, which they would go over again and again.
    """
    plain = _closed(re.split(r"=|\\approx|≈", text)[-1])
    plain = _closed(_UNIT.sub(" ", _THOUSANDS.sub("", plain.replace("\\pi", "π"))))
    match = _NUMBER.fullmatch(_FRACTION.sub(r"\1/\2", plain).rstrip("."))
    if match is None or not (match["top"] or match["pi"]):
        return None
    value = float(match["top"] or 1) * (math.pi if match["pi"] else 1)
    bottom = float(match["bottom"] or 1)
    value = math.nan if bottom == 0 else value / bottom
    return (-value if match["sign"] == "-" else value) if math.isfinite(value) else None


def _closed(text: str) -> str:
    """Without white space around it, and a single space in each gap."""
    return " ".join(text.split())


def mark_mathvista(question: Question, grade: Grade) -> Mark:
    """The benchmark's own normalisation: decimal numbers are rounded to the places of the gold answer.

    An integer is right by its value alone: the official code cuts 3.9 to 3. An answer that cannot be read stays open;
    the official code takes the option of the nearest spelling instead.
    """
    mark = by_grade(question, grade)
    kind = question.metadata.get("kind")
    if mark.outcome != "mismatch" or kind not in ("integer", "float", "list"):
        return mark
    assert grade.answer is not None
    if kind == "list":
        return _match_or(mark, _no_spaces(grade.answer) == _no_spaces(question.answer))
    value, gold = number(grade.answer), number(question.answer)
    if value is None:
        return Mark(score=0.0, outcome="unparsed")
    if gold is None or kind == "integer":
        return _match_or(mark, value == gold)
    places = question.metadata["precision"]
    return _match_or(mark, round(value, places) == round(gold, places))


def mark_dynamath(question: Question, grade: Grade) -> Mark:
    """Numbers are right within the official tolerance; all else is graded."""
    mark = by_grade(question, grade)
    if mark.outcome != "mismatch" or not question.metadata.get("numeric"):
        return mark
    assert grade.answer is not None
    value, gold = number(grade.answer), number(question.answer)
    # The slack is for decimal fractions: 0.301 - 0.3 is more than 0.001 in binary.
    close = value is not None and gold is not None and abs(value - gold) <= DYNAMATH_TOLERANCE + 1e-9
    return _match_or(mark, close)


def composite_score(scores: Sequence[tuple[Question, float]], *, strict: bool) -> Estimate:
    """We-Math's score over composite problems: 1 for complete mastery, 0.5 for inadequate generalisation, else 0.

    Mastery: the problem and every step right (strict), or the problem and any step (loose). The problem right without
    mastery is rote memorisation. Inadequate generalisation: every step right but not the problem. What is left is
    insufficient knowledge. Only problems with all their questions count.
    """
    problems: dict[str, dict[str, tuple[Question, float]]] = defaultdict(dict)
    for question, score in scores:
        problems[question.metadata["problem"]][question.metadata["step"]] = question, score
    values = []
    for parts in problems.values():
        names = [str(i + 1) for i in range(next(iter(parts.values()))[0].metadata["steps"])]
        if parts.keys() != {*names, "multi"}:
            continue
        steps = [parts[name][1] >= 1.0 for name in names]
        whole, score = parts["multi"]
        if score >= 1.0:
            values.append((whole, float(all(steps) if strict else any(steps))))
        else:
            values.append((whole, 0.5 if all(steps) else 0.0))
    if not values:
        raise UserError(
            "wemath: no composite problem has all its questions here: eval.options.wemath=accuracy, or no eval.limit"
        )
    return row_mean(values)


def _choice(
    row: Row, text: str, letter: str, choices: Sequence[str], images: Sequence[ImageRef | None], **metadata: Any
) -> Question:
    return row.question(text, letter, answer_type="choice", choices=choices, images=images, **metadata)


def _place_pictures(text: str, marks: Sequence[str]) -> str:
    """There is one picture: its only mark is its place; several marks are names of its parts."""
    if len(marks) == 1:
        return _PICTURE_MARK.sub("<image>", text)
    return _PICTURE_MARK.sub(lambda mark: f"(picture {mark[1]})", text)


def _match_or(mark: Mark, equal: bool) -> Mark:
    return Mark(score=1.0, outcome="match") if equal else mark


def _no_spaces(text: str) -> str:
    return "".join(normal_text(text).split())


def _average_or_worst(options: BenchmarkOptions) -> Aggregate:
    return worst_over(lambda question: question.metadata["seed"]) if options.dynamath == "worst" else row_mean


def _accuracy_or_composite(options: BenchmarkOptions) -> Aggregate:
    if options.wemath == "accuracy":
        return row_mean
    return lambda scores: composite_score(scores, strict=options.wemath == "strict")


RECIPES = {
    "mathverse": Recipe(questions=mathverse),
    "mathvision": Recipe(questions=mathvision),
    "mathvista": Recipe(questions=mathvista, scorer=mark_mathvista),
    "dynamath": Recipe(questions=dynamath, scorer=mark_dynamath, aggregate=_average_or_worst),
    "wemath": Recipe(questions=wemath, aggregate=_accuracy_or_composite),
}
