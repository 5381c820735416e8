"""Charts, infographics and documents: CharXiv, InfographicVQA, MM-Vet and OCRBench v2."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.errors import UserError
from harness.evaluation.benchmarks.ocrbench import CATEGORIES, as_text, by_ability, gold_text, mark
from harness.evaluation.benchmarks.recipe import Mark, Recipe
from harness.evaluation.benchmarks.rows import Row
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import Grade
from harness.types import Question

_NOT_APPLICABLE = "Where there is none, the question is not applicable."
_X_AXIS = "An axis that subplots share counts; of axes at the top and the bottom, the one at the bottom does."
_Y_AXIS = "An axis that subplots share counts; of axes at the left and the right, the one at the left does."
_TICK = "Units and factors that stand apart from the tick do not belong to it."
_STEP = "Without such numbers, or where the step varies, the question is not applicable."
_LINES = "Grid lines, tick marks and auxiliary lines do not count. Without lines the question is not applicable."
_LEGEND = "Only labels that concern this plot count, wherever the legend stands."
_COLOURS = f"Percent signs do not matter. {_NOT_APPLICABLE}"
DESCRIPTIVE = {
    1: f"what title is written for it? A single letter is no title. {_NOT_APPLICABLE}",
    2: f"how is the x-axis labeled? {_X_AXIS} {_NOT_APPLICABLE}",
    3: f"how is the y-axis labeled? {_Y_AXIS} {_NOT_APPLICABLE}",
    4: f"which labeled tick of the x-axis is leftmost? {_X_AXIS} {_TICK}",
    5: f"which labeled tick of the x-axis is rightmost? {_X_AXIS} {_TICK}",
    6: f"which labeled tick of the y-axis is lowest in position? {_Y_AXIS} {_TICK}",
    7: f"which labeled tick of the y-axis is highest in position? {_Y_AXIS} {_TICK}",
    8: f"by how much do neighboring numbers at the ticks of the x-axis differ? {_X_AXIS} {_TICK} {_STEP}",
    9: f"by how much do neighboring numbers at the ticks of the y-axis differ? {_Y_AXIS} {_TICK} {_STEP}",
    10: f"how many lines are drawn? {_LINES}",
    11: f"do lines cross each other? {_LINES}",
    12: f"how many separate labels does the legend have? {_LEGEND} {_NOT_APPLICABLE}",
    13: f"which labels does the legend have, from top to bottom, then from left to right? {_LEGEND} {_NOT_APPLICABLE}",
    14: f"how far apart are the largest and the smallest tick label of the color bar? {_COLOURS}",
    15: f"what is the largest tick label of the color bar? {_COLOURS}",
    16: "how do the data develop from left to right, in general?",
    17: "how many ticks have a label, on all axes together, shared axes included?",
    18: "How many rows and how many columns of subplots does the figure have? A figure without subplots is 1 by 1.",
    19: "How many subplots does the figure have? A figure without subplots has 1.",
}
"""What the data set's template numbers ask, with the conventions that its gold answers follow."""
WHOLE_FIGURE = (18, 19)

_PICTURE_MARK = re.compile(r"<image ?1>", re.IGNORECASE)


def charxiv(row: Row) -> list[Question]:
    """One question of a figure that needs reasoning, the four about what it shows, or all five.

    The judge's rubric goes by the type of the answer: `reasoning_q_source`, which lmms-eval reads, says who wrote the
    question.
    """
    questions = []
    if row.options.charxiv != "descriptive":
        questions.append(
            row.question(
                row["reasoning_q"].strip(),
                row.gold("reasoning_a"),
                images=[row["image"]],
                part="reasoning",
                kind="reasoning",
                category=int(row["reasoning_a_type"]),
            )
        )
    if row.options.charxiv != "reasoning":
        questions += [_descriptive(row, number) for number in (1, 2, 3, 4)]
    return questions


def _descriptive(row: Row, number: int) -> Question:
    template = int(row[f"descriptive_q{number}"])
    if template not in DESCRIPTIVE:
        raise UserError(f"{row.column.name}: row {row.id} has template {template}: there are {len(DESCRIPTIVE)}")
    wording = DESCRIPTIVE[template]
    return row.question(
        wording if template in WHOLE_FIGURE else f"{_place(row)}, {wording}",
        row.gold(f"descriptive_a{number}"),
        images=[row["image"]],
        part=f"descriptive{number}",
        kind="descriptive",
        template=template,
    )


def _place(row: Row) -> str:
    """Which subplot is meant: by its place in the grid, or in the data set's words where there is no grid."""
    if row["subplot_loc"]:
        return f"In {row['subplot_loc']}"
    if row["subplot_row"]:
        return f"In the subplot in row {int(row['subplot_row'])}, column {int(row['subplot_col'])}"
    return "In this plot"


def infovqa(row: Row) -> list[Question]:
    answers = list(row.gold("answers"))
    return [row.question(_one_picture(row["question"]), answers[0], images=[row["image"]], answers=answers)]


def anls(question: Question, grade: Grade) -> Mark:
    """The official similarity to the nearest gold answer; below one half it is 0.

    An answer longer than 1,000 characters and three gold answers is cut there: the score is 0 either way.
    """
    if grade.answer is None or not grade.answer.strip():
        return Mark(score=0.0, outcome="unparsed")
    answers = question.metadata["answers"]
    content = as_text(grade.answer, question)[: 1000 + 3 * max(map(len, answers))]
    score = float(upstream_module("lmms_eval.api.metrics").anls(answers, [content])["anls"])
    return Mark(score=score, outcome="match" if score > 0 else "mismatch")


def mmvet(row: Row) -> list[Question]:
    """Open questions. `<AND>` and `<OR>` in the gold answer are for the judge."""
    text, gold = _one_picture(row["question"]), row.gold("answer")
    return [row.question(text, gold, images=[row["image"]], capability=row["capability"])]


def ocrbench_v2(language: str) -> Callable[[Row], list[Question]]:
    """The rows of one language, "en" or "cn".

    What a question says about the form of a table, a dictionary or coordinates is its task, and stays.
    """

    def questions(row: Row) -> list[Question]:
        kind = row["type"]
        if kind not in CATEGORIES:
            raise UserError(f"{row.column.name}: row {row.id} is of the unknown type '{kind}': another data set?")
        if not kind.endswith(f" {language}"):
            return []
        cells = {name: row[name] for name in ("answers", "eval", "bbox", "bbox_list", "content")}
        return [
            row.question(
                _one_picture(row["question"]),
                gold_text(kind, cells),
                images=[row["image"]],
                category=CATEGORIES[kind],
                type=kind,
                **cells | {"answers": list(cells["answers"] or [])},
            )
        ]

    return questions


def in_language(language: str) -> Callable[[Row], bool]:
    """Whether a row is of the column of this language."""
    return lambda row: row["type"].endswith(f" {language}")


def _one_picture(text: str) -> str:
    """Keeps a mark for the picture only where there is one; the picture comes first without."""
    text = _PICTURE_MARK.sub("<image>", text)
    return (text if text.count("<image>") == 1 else text.replace("<image>", "")).strip()


RECIPES = {
    "charxiv": Recipe(questions=charxiv, judge="charxiv"),
    "infovqa": Recipe(questions=infovqa, scorer=anls, judge=None),
    "mmvet": Recipe(questions=mmvet, judge="mmvet"),
    **{
        f"ocrbench_v2_{name}": Recipe(
            questions=ocrbench_v2(language),
            scorer=mark,
            judge=None,
            aggregate=by_ability,
            of_column=in_language(language),
        )
        for name, language in (("en", "en"), ("zh", "cn"))
    },
}
