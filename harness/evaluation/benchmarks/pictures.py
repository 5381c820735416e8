"""Questions about pictures: AI2D, BabyVision, EmbSpatial-Bench, MMMU-Pro, VisualPuzzles and VLMs Are Blind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from harness.config.evaluation import BenchmarkOptions
from harness.evaluation.benchmarks.recipe import Aggregate, Mark, Recipe, by_category, by_grade, mean_over, row_mean
from harness.evaluation.benchmarks.rows import Row, texts_of
from harness.rewards.choice import LETTERS, lettered, normal_text
from harness.rewards.rules import Grade
from harness.types import AnswerType, ImageRef, Question

NUM_PUZZLE_OPTIONS = 4
"""A puzzle of VisualPuzzles whose options are drawn has A to D."""
MAX_IMAGES = 7
"""MMMU-Pro has columns `image_1` to `image_7`."""
VISION_TEXT = "The picture shows a multiple-choice question with its options. Solve it."

GRIDS = "counting grid"
"""VLMs Are Blind counts its blank grids and its grids of words as one task."""

_MARK = re.compile(r"<image (\d+)>")
_VALUE = re.compile(r"[+-]?\d+(?:\.\d+)?|\(\s*[+-]?\d+(?:\s*,\s*[+-]?\d+)+\s*\)")
_DIRECTIVE = re.compile(
    r"\s*(?:\band\s+)?(?:\bplease\s+)?\b(?:answer\s+(?:with|is|in|only)|(?:put|provide|give|write)\s+your\s+answer)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_GRID_WORD = re.compile(r"(?P<row>rows?)|(?P<column>col(?:umn)?s?)|x|by|and|grid|table|a|the")
LONGEST_NUMBER = 18
"""Digits that are read of a grid's size. Python refuses to read thousands of them."""
_GRID_GLUE = re.compile(r"[\s,;:=()\[\]{}*\u00d7\\]*")


def ai2d(row: Row) -> list[Question]:
    return [_choice(row, row["question"], row["options"], int(row.gold("answer")))]


def babyvision(row: Row) -> list[Question]:
    """A choice, or an answer to fill in: a value or words."""
    if row["ansType"] == "choice":
        return [_choice(row, row["question"], row["options"], int(row.gold("choiceAns")))]
    answer = row.gold("blankAns").strip()
    return [row.question(_unmarked(row["question"]), answer, answer_type=_kind(answer), images=[row["image"]])]


def embspatial(row: Row) -> list[Question]:
    return [_choice(row, row["question"], row["answer_options"], row.gold("answer"))]


def mmmu_pro(row: Row) -> list[Question]:
    """Marks like `<image 2>` say where a picture belongs, in the question or as an option; `vision` is all picture."""
    options = texts_of(row["options"])
    text, images, numbers = VISION_TEXT, [], dict[int, int]()
    if row.config == "vision":
        images = [row["image"]]
    else:
        columns = {number: row[f"image_{number}"] for number in range(1, MAX_IMAGES + 1)}
        pictures = {number: image for number, image in columns.items() if image is not None}
        text, images, numbers = _placed(f"{row['question'].strip()}\n{lettered(options)}", pictures)
    choices = [_MARK.sub(lambda mark: _worded(mark, numbers), option).strip() for option in options]
    return [
        row.question(text.strip(), row.gold("answer").strip(), answer_type="choice", choices=choices, images=images)
    ]


def visualpuzzles(row: Row) -> list[Question]:
    options = row["options"] or LETTERS[:NUM_PUZZLE_OPTIONS]
    return [_choice(row, row["question"], options, LETTERS.index(row.gold("answer").strip().upper()))]


def vlmsareblind(row: Row) -> list[Question]:
    """The prompts, of two wordings a task, less what they say about the form of the answer."""
    text = _DIRECTIVE.sub("", row["prompt"].strip())
    if text[-1:].isalnum():
        text += "."
    answer, task = row.gold("groundtruth").strip(), row["task"].strip().casefold()
    category = GRIDS if task.startswith(GRIDS) else task
    kind = "text" if category == GRIDS else _kind(answer)
    return [row.question(text, answer, answer_type=kind, images=[row["image"]], category=category)]


def rows_and_columns(question: Question, grade: Grade) -> Mark:
    """Sizes of grids by their two numbers, however they are written; all else by the grade."""
    if question.metadata["category"] != GRIDS or grade.answer is None or not grade.answer.strip():
        return by_grade(question, grade)
    size = grid_size(grade.answer)
    if size is not None and size == grid_size(question.answer):
        return Mark(score=1.0, outcome="match")
    return Mark(score=0.0, outcome="mismatch")


def grid_size(text: str) -> tuple[int, int] | None:
    r"""Rows and columns: `3,4`, `(3, 4)`, `3 \times 4`, `3 rows, 4 columns`, `columns=4, rows=3`; None for all else."""
    plain = normal_text(text).replace("\\times", " x ")
    numbers = [int(number[:LONGEST_NUMBER]) for number in re.findall(r"[0-9]+", plain)]
    words = [_GRID_WORD.fullmatch(word) for word in re.findall(r"[^\W\d_]+", plain)]
    if len(numbers) != 2 or None in words or not _GRID_GLUE.fullmatch(re.sub(r"[0-9]+|[^\W\d_]+", "", plain)):
        return None
    labels = [word.lastgroup for word in words if word is not None and word.lastgroup is not None]
    if labels not in ([], ["row", "column"], ["column", "row"]):
        return None
    first, second = numbers
    return (second, first) if labels[:1] == ["column"] else (first, second)


def _choice(row: Row, question: str, options: Sequence[str], index: int) -> Question:
    """A question about one picture. Options that are nothing but their letters are drawn in it."""
    labels = list(LETTERS[: len(options)])
    listed = lettered(options)
    if [option.strip(" ().").upper() for option in options] == labels:
        listed = f"The options {', '.join(labels[:-1])} and {labels[-1]} are in the picture."
    return row.question(
        f"{_unmarked(question)}\n{listed}",
        LETTERS[index],
        answer_type="choice",
        choices=list(options),
        images=[row["image"]],
    )


def _kind(answer: str) -> AnswerType:
    return "math" if _VALUE.fullmatch(answer) else "text"


def _unmarked(text: str) -> str:
    """One picture stands before the text, wherever the data set has it."""
    return text.replace("<image>", "").strip()


def _placed(text: str, pictures: Mapping[int, ImageRef]) -> tuple[str, list[ImageRef], dict[int, int]]:
    """The text with its marks replaced, the pictures it names, and their numbers by those of the marks.

    Only pictures that are named are shown: others may belong to the solution. One that is named twice cannot be shown
    in both places, so all of them come before the text, which refers to them by number.
    """
    named = [int(number) for number in _MARK.findall(text) if int(number) in pictures]
    once = len(set(named)) == len(named)
    order = named if once else sorted(set(named))
    numbers = {number: position for position, number in enumerate(order, 1)}
    if once:
        text = _MARK.sub(lambda mark: "<image>" if int(mark[1]) in numbers else "", text)
    else:
        text = _MARK.sub(lambda mark: _worded(mark, numbers), text)
    return text, [pictures[number] for number in order or sorted(pictures)], numbers


def _worded(mark: re.Match[str], numbers: Mapping[int, int]) -> str:
    return f"(picture {numbers.get(int(mark[1]), int(mark[1]))})"


def _tasks_or_rows(options: BenchmarkOptions) -> Aggregate:
    return mean_over(by_category) if options.vlmsareblind == "tasks" else row_mean


RECIPES = {
    "ai2d": Recipe(questions=ai2d),
    "babyvision": Recipe(questions=babyvision),
    "embspatial": Recipe(questions=embspatial),
    "mmmu_pro": Recipe(questions=mmmu_pro),
    "visualpuzzles": Recipe(questions=visualpuzzles),
    "vlmsareblind": Recipe(questions=vlmsareblind, scorer=rows_and_columns, aggregate=_tasks_or_rows),
}
