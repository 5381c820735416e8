"""OCRBench v2: the official measures on the content of the box, and what they need."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import datasets
import pytest

from harness.config.evaluation import BenchmarkOptions
from harness.errors import UserError
from harness.evaluation.benchmarks import ocrbench
from harness.evaluation.benchmarks.columns import columns
from harness.evaluation.benchmarks.ocrbench import CATEGORIES, by_ability, gold_text, mark
from harness.evaluation.benchmarks.registry import recipe
from harness.evaluation.benchmarks.rows import Row
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import Grade
from harness.types import Question

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"

HTML = "<table><tr><td>a</td><td>7</td></tr><tr><td>b</td><td>9</td></tr></table>"
MARKDOWN = "| a | b |\n| --- | --- |\n| 7 | 9 |"
SQUARE = [0, 0, 10, 10]
PAGE = "the quick brown fox jumps over it"


def question(kind, answers, *, text="", how="None", **cells):
    cells = {"answers": answers, "eval": how, "bbox": None, "bbox_list": None, "content": None} | cells
    metadata = {"type": kind, "category": CATEGORIES[kind]} | cells
    column = "ocrbench_v2_en" if kind.endswith("en") else "ocrbench_v2_zh"
    gold = gold_text(kind, cells)
    return Question(id="q", text=text, answer=gold, answer_type="text", source=column, metadata=metadata)


def score(question, box):
    return mark(question, Grade.of(box, "wrong")).score


@pytest.fixture(scope="module")
def upstream():
    return upstream_module("lmms_eval.tasks.ocrbench_v2.utils")


def test_each_language_has_its_rows(questions_of):
    names = ("ocrbench_v2_en", "ocrbench_v2_zh")
    types = {name: {q.metadata["type"][-3:] for q in questions_of(name)} for name in names}
    assert types == {"ocrbench_v2_en": {" en"}, "ocrbench_v2_zh": {" cn"}}
    assert sum(len(questions_of(name)) for name in types) == 17


def test_upstream_reads_the_fixture(upstream, questions_of):
    questions = questions_of("ocrbench_v2_en") + questions_of("ocrbench_v2_zh")
    docs = datasets.load_dataset(str(FIXTURES / "ling99/OCRBench_v2"), split="test")
    for doc, ours in zip(docs, questions, strict=True):
        assert upstream.ocrbench_v2_doc_to_text(doc) == ours.text
        (picture,) = upstream.ocrbench_v2_doc_to_visual(doc)
        assert picture.tobytes() == ours.images[0].open().tobytes()
        result = upstream.ocrbench_v2_process_results(doc, [ours.answer])
        assert result["ocrbench_v2_accuracy"]["score"] == 1 == score(ours, ours.answer)


def test_types_belong_to_the_official_abilities(upstream):
    for kind, category in CATEGORIES.items():
        _, buckets = upstream._fill_score_buckets([{"question_type": kind, "score": 1}])
        assert [name for name, scores in buckets.items() if scores] == [f"{category}_{kind[-2:]}"]
    abilities = [{c for kind, c in CATEGORIES.items() if kind.endswith(tag)} for tag in (" en", " cn")]
    assert [len(members) for members in abilities] == [8, 5]


def test_an_unknown_type_is_reported():
    cells = {"type": "music reading en", "question": "?", "image": None}
    row = Row(
        column=columns()["ocrbench_v2_en"], config="", split="", position=7, cells=cells, options=BenchmarkOptions()
    )
    with pytest.raises(UserError, match="row 7 is of the unknown type 'music reading en'"):
        recipe("ocrbench_v2_en").questions(row)


@pytest.mark.parametrize(
    ("asked", "box", "expected"),
    [
        (question("text recognition en", ["EXIT"], how="case sensitive"), "exit", 0.0),
        (question("cognition VQA en", ["Dr Quill"]), "by Dr Quill", 1.0),
        (question("cognition VQA en", ["one two three four five"]), "one two three four fixe", 1 - 1 / 23),
        (question("science QA en", ["A"], how="multiple choice"), "(A)", 1.0),
        (question("science QA en", ["A"], how="multiple choice"), r"\text{A}", 1.0),
        (question("science QA en", ["A"], how="multiple choice"), "B", 0.0),
        (question("text counting en", ["12"], how="regression"), "about 9 words", 0.75),
        (question("text counting en", ["12"], how="regression"), "24", 0.0),
        (question("text grounding en", ["0", "0", "10", "10"]), "[0, 0, 10, 5]", 0.5),
        (question("VQA with position en", ["$3"], bbox=SQUARE), '{"answer": "$3", "bbox": "[0, 0, 10, 5]"}', 0.75),
        (question("VQA with position en", ["$3"], bbox=SQUARE), r'\{"answer": "\$3", "bbox": [0, 0, 10, 10]\}', 1.0),
        (question("key information extraction en", ['{"a": ["x", "y"], "b": "z"}']), '{"a": "y", "b": "?"}', 0.5),
        (question("key information mapping en", ['{"a": "x"}']), '{"a": "x", "c": "d"}', 0.5),
        (question("key information extraction cn", ["{'姓名': '王五'}"]), '{"姓名": "王五"}', 1.0),
        (question("table parsing en", [HTML], text="as HTML"), HTML.replace("9", "8"), 1 - 1 / 6),
        (question("table parsing en", [MARKDOWN], text="as markdown"), MARKDOWN, 1.0),
        (question("chart parsing en", ["{'a': {'b': '1'}}"]), "{'a': {'b': '1'}}", 1.0),
        (question("formula recognition en", [r"\frac{1}{2}"]), r"x = \frac {1} {2}", 1.0),
        (question("document parsing en", ["# T\nsome text"]), "# T\nother words", 1.0),  # officially, the structure
        (question("formula recognition cn", [r"50\%"]), r"50\%", 1.0),
        (question("handwritten answer extraction cn", ["BD"]), "B和D", 1.0),
    ],
)  # fmt: skip
def test_scores(asked, box, expected):
    assert score(asked, box) == pytest.approx(expected)


@pytest.mark.parametrize("box", [None, "", " "])
def test_an_empty_box_is_unparsed(box):
    assert mark(question("cognition VQA en", ["x"]), Grade.of(box, "unparsable")).outcome == "unparsed"


def test_upstream_gives_nothing_for_a_whole_response(upstream):
    asked = question("science QA en", ["A"], how="multiple choice")
    reply = r"<think>B?</think> The answer is \boxed{A}."
    document = asked.metadata | {"question": "?"}
    assert upstream.ocrbench_v2_process_results(document, [reply])["ocrbench_v2_accuracy"]["score"] == 0
    assert score(asked, "A") == 1.0


def test_upstream_raises_on_texts_that_are_no_answer(upstream):
    asked = question("text counting en", ["5"], how="regression")
    with pytest.raises(ValueError, match="digits"):
        upstream.ocrbench_v2_process_results(asked.metadata | {"question": "?"}, ["9" * 5000])
    assert score(asked, "9" * 5000) == 0.0


def test_answers_are_left_as_they_are():
    asked = question("cognition VQA en", ["x"])
    asked.metadata["answers"] = before = ["x", "y"]
    score(asked, "Y")
    assert before == ["x", "y"]


@pytest.mark.parametrize(
    ("kind", "gold", "text"),
    [
        ("cognition VQA en", "one two three four five six seven", "x" * 100_000),
        ("table parsing en", HTML, "<table>" + "<td>x" * 20_000),
        ("document parsing en", "# T\nsome text", "x\n" * 50_000),
        ("chart parsing en", "{'a': {'b': '1'}}", "{" * 100_000),
        ("text grounding en", "1", "(" + " " * 99_999),
        ("formula recognition cn", "x^2", r"\text{" * 16_000),
    ],
)
def test_only_the_beginning_of_a_runaway_answer_is_measured(kind, gold, text, upstream):
    asked = question(kind, [gold], text="as HTML")
    assert len(ocrbench.shortened(text, asked)) <= 5000  # of 100,000: the gold answers are short
    assert score(asked, text) < 0.1


class Rectangle:
    """What text spotting asks of the package Polygon, for boxes with horizontal and vertical sides."""

    def __init__(self, points):
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        self.sides = min(xs), min(ys), max(xs), max(ys)

    def area(self):
        left, top, right, bottom = self.sides
        return float(max(right - left, 0) * max(bottom - top, 0))

    def __and__(self, other):
        both = Rectangle([(0, 0)])
        (a, b, c, d), (e, f, g, h) = self.sides, other.sides
        both.sides = max(a, e), max(b, f), min(c, g), min(d, h)
        return both

    def __len__(self):
        return 1


SPOTTING = {
    "bbox_list": [[0, 0, 100, 0, 100, 50, 0, 50], [0, 60, 100, 60, 100, 90, 0, 90]],
    "content": ["EXIT", "OPEN"],
}


def test_text_spotting_counts_words_found_in_their_place(monkeypatch, capsys):
    polygon = ModuleType("Polygon")
    polygon.Polygon = Rectangle
    polygon.__spec__ = object()
    monkeypatch.setitem(sys.modules, "Polygon", polygon)
    asked = question("text spotting en", [], **SPOTTING)
    assert asked.answer == "[[0, 0, 100, 50, 'EXIT'], [0, 60, 100, 90, 'OPEN']]"
    assert score(asked, asked.answer) == 1.0
    assert score(asked, "[(0, 0, 100, 50, EXIT)]") == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert score(asked, "nothing") == 0.0
    assert capsys.readouterr() == ("", "")


def test_a_missing_package_is_no_wrong_answer(monkeypatch, upstream):
    monkeypatch.setitem(sys.modules, "Polygon", None)
    asked = question("text spotting en", [], **SPOTTING)
    result = upstream.ocrbench_v2_process_results(asked.metadata | {"question": "?"}, [asked.answer])
    assert result["ocrbench_v2_accuracy"]["score"] == 0
    with pytest.raises(UserError, match="pip install Polygon3"):
        mark(asked, Grade.of(asked.answer, "wrong"))


PAGES = [
    question("full-page OCR en", [PAGE]),
    question("full-page OCR cn", ["今天天气很好"]),
    question("fine-grained text recognition en", [PAGE]),
    question("text translation cn", ["今天天气很好"]),
    question("handwritten answer extraction cn", ["今天天气很好"], text="简答题"),
]


@pytest.mark.parametrize("asked", PAGES, ids=lambda q: q.metadata["type"])
def test_a_right_page_scores_high_without_wordnet(asked):
    assert score(asked, asked.answer) > 0.7


@pytest.mark.parametrize("asked", PAGES, ids=lambda q: q.metadata["type"])
def test_missing_wordnet_is_reported_and_not_tried_again(asked, monkeypatch, upstream):
    calls = []

    def missing(*args, **kwargs):
        calls.append(args)
        raise LookupError("Resource wordnet not found.")

    monkeypatch.setattr(upstream, "cal_per_metrics", missing)
    with pytest.raises(UserError, match=r"WordNet: python -m nltk.downloader wordnet$"):
        score(asked, "something else")
    assert len(calls) == 1  # not tried again


def test_the_mean_is_over_abilities_and_not_over_rows(upstream):
    kinds = ["text recognition en"] * 3 + ["math QA en"]
    scores = [(question(kind, ["x"]), value) for kind, value in zip(kinds, (1.0, 1.0, 1.0, 0.0), strict=True)]
    results = [{"question_type": q.metadata["type"], "score": value} for q, value in scores]
    assert upstream.ocrbench_v2_aggregate_accuracy_en(results, None) == 0.75
    assert by_ability(BenchmarkOptions())(scores).mean == 0.5
    assert by_ability(BenchmarkOptions(ocrbench_v2="rows"))(scores).mean == 0.75


def test_an_error_of_upstream_is_a_wrong_answer_only_where_the_gold_answer_is_read(monkeypatch):
    """Otherwise a row of another version of the data set would be a student's mistake."""

    def score(document, content):
        if content != "7" or document["type"] == "broken":
            raise ValueError("cannot read this")
        return 1.0

    monkeypatch.setattr(ocrbench, "_upstream_score", score)
    whole = question("math QA en", ["7"])
    wrong, right = (Grade(answer=answer, verdict="wrong", reward=0.0) for answer in ("((((", "7"))
    assert (mark(whole, wrong).score, mark(whole, right).score) == (0.0, 1.0)
    broken = replace(whole, metadata=whole.metadata | {"type": "broken"})
    with pytest.raises(UserError, match=r"fails on its own gold answer \(ValueError: cannot read this\)"):
        mark(broken, wrong)
