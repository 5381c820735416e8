"""OCRBench v2: the official measure of each of its task types, on the content of the box."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from harness.config.evaluation import BenchmarkOptions
from harness.errors import UserError
from harness.evaluation.benchmarks.recipe import Aggregate, Mark, by_category, mean_over, row_mean
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import Grade
from harness.types import Question

CATEGORIES = {
    "text recognition en": "text_recognition",
    "fine-grained text recognition en": "text_recognition",
    "full-page OCR en": "text_recognition",
    "text grounding en": "text_detection",
    "VQA with position en": "text_detection",
    "text spotting en": "text_spotting",
    "key information extraction en": "relationship_extraction",
    "key information mapping en": "relationship_extraction",
    "document parsing en": "element_parsing",
    "chart parsing en": "element_parsing",
    "table parsing en": "element_parsing",
    "formula recognition en": "element_parsing",
    "math QA en": "mathematical_calculation",
    "text counting en": "mathematical_calculation",
    "document classification en": "visual_text_understanding",
    "cognition VQA en": "visual_text_understanding",
    "diagram QA en": "visual_text_understanding",
    "reasoning VQA en": "knowledge_reasoning",
    "science QA en": "knowledge_reasoning",
    "APP agent en": "knowledge_reasoning",
    "ASCII art classification en": "knowledge_reasoning",
    "full-page OCR cn": "text_recognition",
    "key information extraction cn": "relationship_extraction",
    "handwritten answer extraction cn": "relationship_extraction",
    "document parsing cn": "element_parsing",
    "table parsing cn": "element_parsing",
    "formula recognition cn": "element_parsing",
    "cognition VQA cn": "visual_text_understanding",
    "reasoning VQA cn": "knowledge_reasoning",
    "text translation cn": "knowledge_reasoning",
}
"""The ability that a task type belongs to; the types of a language end in its tag."""

PAIRS = ("key information extraction en", "key information mapping en", "key information extraction cn")
LEAST_LENGTH = 5000
LEAST_PARTS = 100
"""An answer of this many characters, and of so many lines, cells or tags, is always measured in full."""


def gold_text(kind: str, cells: dict[str, Any]) -> str:
    """What a right answer looks like: the data set has it as boxes, parallel lists or alternatives for some types."""
    answers = cells["answers"] or []
    if kind == "text spotting en":
        return repr([[*_corners(box), text] for box, text in zip(cells["bbox_list"], cells["content"], strict=True)])
    if kind == "text grounding en":
        return f"({', '.join(answers)})"
    if kind == "VQA with position en":
        return json.dumps({"answer": answers[0], "bbox": str(cells["bbox"])}, ensure_ascii=False)
    if kind in PAIRS:
        pairs = _pairs(answers[0])
        first = {key: value[0] if isinstance(value, list) and value else value for key, value in pairs.items()}
        return json.dumps(first, ensure_ascii=False)
    return answers[0]


def mark(question: Question, grade: Grade) -> Mark:
    """The official score of the box.

    Only the beginning of a very long answer is measured (`shortened`), or a runaway one would take minutes.
    Raises UserError where the row's measure needs something that is not installed.
    """
    if grade.answer is None or not grade.answer.strip():
        return Mark(score=0.0, outcome="unparsed")
    content = shortened(as_text(grade.answer, question), question)
    score = min(max(_official(question, content), 0.0), 1.0)
    return Mark(score=score, outcome="match" if score > 0 else "mismatch")


def as_text(content: str, question: Question) -> str:
    r"""The content of a box without what LaTeX asks for: a `\text{}` around it, and `\%`, `\$`, `\&`, `\#`, `\_`, `\{`.

    As it is where a gold answer has a backslash itself: then LaTeX, or an escaped string, is what is asked for.
    """
    if any("\\" in gold for gold in (question.answer, *question.metadata["answers"])):
        return content
    inner = content.removeprefix("\\text{")
    if inner != content and inner.endswith("}") and "{" not in inner and inner.count("}") == 1:
        content = inner[:-1]
    for character in "%$&#_{}":
        content = content.replace(f"\\{character}", character)
    return content.strip()


def shortened(content: str, question: Question) -> str:
    """The first `LEAST_LENGTH` characters of an answer, or twice as many as the gold answer has, if that is more.

    The lines of a document and the cells or tags of a table are limited in the same way, `LEAST_PARTS` at least. Edit
    distances are quadratic in characters and tree distances worse than that in nodes, all in pure Python. An answer
    twice as long as the right one scores low either way.
    """
    golds = (question.answer, *question.metadata["answers"])
    content = content[: max(LEAST_LENGTH, 2 * max(map(len, golds)))]
    separator = None
    if question.metadata["type"].startswith("document parsing"):
        separator = "\n"
    elif question.metadata["type"].startswith("table parsing"):
        separator = "<" if "<" in question.answer else "|"
    if separator is None:
        return content
    most = max(LEAST_PARTS, 2 * max(gold.count(separator) for gold in golds))
    return separator.join(content.split(separator)[: most + 1])


def by_ability(options: BenchmarkOptions) -> Aggregate:
    """Officially the mean over the abilities of a language; lmms-eval weighs every row the same instead."""
    return mean_over(by_category) if options.ocrbench_v2 == "categories" else row_mean


def _official(question: Question, content: str) -> float:
    kind = question.metadata["type"]
    if kind == "text spotting en" and importlib.util.find_spec("Polygon") is None:
        # Upstream takes the missing package for an answer that matches nothing.
        raise UserError("ocrbench_v2_en: 'text spotting' needs the package 'Polygon': pip install Polygon3")
    document = {
        "question": question.text,
        "type": kind,
        "answers": question.metadata["answers"],
        **{name: question.metadata[name] for name in ("eval", "bbox", "bbox_list", "content")},
    }
    try:
        return _upstream_score(document, content)
    except LookupError as error:
        if type(error) is not LookupError:  # what nltk raises for data that are not there is no KeyError
            return _score_of_what_raised(question, document)
        raise UserError(
            f"{question.source}: METEOR ('{kind}') needs WordNet: python -m nltk.downloader wordnet"
        ) from error
    except Exception:  # upstream's readers raise on texts that are no answer to their task (nesting, huge numbers)
        return _score_of_what_raised(question, document)


def _score_of_what_raised(question: Question, document: dict[str, Any]) -> float:
    """0 for an answer that upstream cannot read. Where it cannot read the right answer either, the row is at fault."""
    try:
        _upstream_score(document, question.answer)
    except Exception as error:
        raise UserError(
            f"{question.source}: the official score of {question.id} fails on its own gold answer "
            f"({type(error).__name__}: {error}): is it another version of the data set?"
        ) from error
    return 0.0


def _upstream_score(document: dict[str, Any], content: str) -> float:
    upstream = upstream_module("lmms_eval.tasks.ocrbench_v2.utils")
    logging.getLogger("jieba").setLevel(logging.WARNING)
    document = document | {"answers": list(document["answers"])}  # upstream writes into it
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = upstream.ocrbench_v2_process_results(document, [content])
    return float(result["ocrbench_v2_accuracy"]["score"])


def _corners(box: list[int]) -> list[int]:
    """Left, top, right and bottom of a polygon `[x1, y1, x2, y2, ...]`."""
    xs, ys = box[0::2], box[1::2]
    return [min(xs), min(ys), max(xs), max(ys)]


def _pairs(answer: str) -> dict[str, Any]:
    """Keys and values of a gold answer that is a dictionary in JSON or in Python."""
    try:
        return json.loads(answer)
    except json.JSONDecodeError:
        return ast.literal_eval(answer)
