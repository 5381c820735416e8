"""MathVerse, MathVision, MathVista and DynaMath: questions, scorers, and the library's faults beside them."""

from pathlib import Path

import datasets
import pytest

from harness.config.evaluation import BenchmarkOptions
from harness.evaluation.benchmarks.registry import recipe
from harness.evaluation.benchmarks.visual_maths import number
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import grade

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"


def docs_of(repository, split, config=None):
    return list(datasets.load_dataset(str(FIXTURES / repository), config, split=split))


def mark(name, question, answer):
    return recipe(name).scorer(question, grade(f"So it is \\boxed{{{answer}}}", question, "math_verify"))


def result(marked):
    return marked.score, marked.outcome


# --- MathVerse


def test_mathverse_asks_the_question_without_the_directive_of_the_query(questions_of):
    text, vision, interval, _ = questions_of("mathverse")
    assert text.text.startswith("In the right triangle") and text.text.endswith("D:14")
    assert vision.text == "The picture shows a mathematics problem. Solve it."
    assert vision.metadata["judge_question"] == text.text and "judge_question" not in text.metadata
    for question in (text, vision):
        assert question.answer == "B" and question.metadata["choices"] == ["9", "10", "12", "14"]
    assert interval.answer_type == "math" and interval.metadata == {"problem_version": "Vision Intensive"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(B)", (1.0, "match")),
        ("10", (1.0, "match")),
        ("C", (0.0, "other_option")),
        ("E", (0.0, "mismatch")),
        ("ten", (0.0, "mismatch")),
    ],
)
def test_mathverse_choices_are_known_where_only_the_picture_shows_them(questions_of, answer, expected):
    assert result(mark("mathverse", questions_of("mathverse")[1], answer)) == expected


@pytest.mark.parametrize(("answer", "score"), [("(-4, 1]", 1.0), ("(-4, 1)", 0.0)])
def test_mathverse_intervals_keep_their_brackets(questions_of, answer, score):
    assert mark("mathverse", questions_of("mathverse")[2], answer).score == score


def test_mathverse_rows_pass_the_library(monkeypatch):
    utils = upstream_module("lmms_eval.tasks.mathverse.utils")
    judged = []
    monkeypatch.setattr(utils.mathverse_evaluator, "score_answer", lambda *args, **_: judged.append(args) or True)
    docs = docs_of("CaraJ/MathVerse-lmmseval", "testmini", "testmini")
    for doc in docs:
        query = utils.mathverse_doc_to_text(doc, {"shot_type": "format-prompt", "query_type": "query_wo"})
        assert query.startswith("Please give the")
        assert [picture.size for picture in utils.mathverse_doc_to_visual(doc)] == [(64, 64)]
        assert utils.mathverse_process_results(doc, ["B"])["gpt_eval_score"] == 1
    assert [question for question, _, _ in judged] == [doc["question_for_eval"] for doc in docs]


# --- MathVision


def test_mathvision_options_and_picture_marks(questions_of):
    tower, twin, part, ratio = questions_of("mathvision")
    assert (tower.text, tower.answer, tower.answer_type) == ("How many cubes are in the tower?\n<image>", "17", "math")
    assert twin.text == "Which shape has no twin?\n<image>\nOptions: A, B, C, D, E"
    assert twin.metadata["choices"] == list("ABCDE")
    assert part.text == "What part is grey?\n<image>\nA. $\\frac{1}{2}$\nB. $\\frac{1}{3}$\nC. 0.4"
    assert ratio.text == "Does (picture 1) cover more than (picture 2), and by what ratio?"
    assert [len(question.images) for question in (tower, twin, part, ratio)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("position", "answer", "expected"),
    [
        (0, "17", (1.0, "match")),
        (1, "d", (1.0, "match")),
        (1, "E", (0.0, "other_option")),
        (2, "\\frac{1}{3}", (1.0, "match")),
        (2, "\\frac13", (1.0, "match")),
        (2, "\\frac14", (0.0, "mismatch")),
        (3, "1.5", (1.0, "match")),
    ],
)
def test_mathvision_scores(questions_of, position, answer, expected):
    assert result(mark("mathvision", questions_of("mathvision")[position], answer)) == expected


def test_mathvision_rows_pass_the_library():
    utils = upstream_module("lmms_eval.tasks.mathvision.utils")
    for doc in docs_of("MathLLMs/MathVision", "test"):
        assert doc["question"] in utils.mathvision_doc_to_text(doc)
        assert utils.mathvision_doc_to_visual(doc)[0].size == (64, 64)
        scored = utils.mathvision_process_results(doc, [f"\\boxed{{{doc['answer']}}}"])
        assert scored["mathvision_standard_eval"]["scores"] == [True]


def test_mathvision_library_reads_the_last_letter_of_the_reply(questions_of):
    utils = upstream_module("lmms_eval.tasks.mathvision.utils")
    doc = docs_of("MathLLMs/MathVision", "test")[1]
    reply = "It is \\boxed{D}, not C."
    assert utils.mathvision_process_results(doc, [reply])["mathvision_standard_eval"]["scores"] == [False]
    question = questions_of("mathvision")[1]
    assert recipe("mathvision").scorer(question, grade(reply, question, "math_verify")).score == 1.0


# --- MathVista


def test_mathvista_questions(questions_of):
    bar, count, parcel, years = questions_of("mathvista")
    assert bar.text == "Which bar is lowest?\nA. red\nB. green\nC. dark blue" and bar.answer == "B"
    assert (count.answer_type, count.metadata["kind"]) == ("math", "integer")
    assert parcel.text == "How heavy is the parcel? (Unit: kg)" and parcel.metadata["precision"] == 1
    assert (years.answer_type, years.answer) == ("text", "[2007, 2008]")


@pytest.mark.parametrize(
    ("position", "answer", "expected"),
    [
        (0, "B", (1.0, "match")),
        (0, "(b)", (1.0, "match")),
        (0, "Green", (1.0, "match")),
        (0, "dark blue", (0.0, "other_option")),
        (0, "greenish", (0.0, "mismatch")),
        (1, "4", (1.0, "match")),
        (1, "4.0", (1.0, "match")),
        (1, "\\frac{8}{2}", (1.0, "match")),
        (1, "4 \\text{ apples}", (1.0, "match")),
        (1, "4.9", (0.0, "mismatch")),
        (1, "3.99", (0.0, "mismatch")),
        (1, "\\frac{9}{2}", (0.0, "mismatch")),
        (1, "4\\pi/3", (0.0, "mismatch")),
        (1, "-4", (0.0, "mismatch")),
        (1, "5", (0.0, "mismatch")),
        (1, "four", (0.0, "unparsed")),
        (2, "1.2", (1.0, "match")),
        (2, "1.24 \\text{ kg}", (1.0, "match")),  # rounded to one place
        (2, "\\frac{6}{5}", (1.0, "match")),
        (2, "1.26", (0.0, "mismatch")),
        (2, "1.2 or 1.3", (0.0, "unparsed")),
        (3, "[2007,2008]", (1.0, "match")),
        (3, "[2007, 2009]", (0.0, "mismatch")),
    ],
)
def test_mathvista_scores(questions_of, position, answer, expected):
    assert result(mark("mathvista", questions_of("mathvista")[position], answer)) == expected


def test_mathvista_digits_beyond_a_float_stay_open(questions_of):
    assert mark("mathvista", questions_of("mathvista")[1], "9" * 400).outcome == "unparsed"


def test_mathvista_rows_pass_the_library():
    utils = upstream_module("lmms_eval.tasks.mathvista.utils")
    shown = {"shot": 0, "shot_type": "format-prompt", "use_caption": False, "use_ocr": False}
    for doc in docs_of("AI4Math/MathVista", "testmini"):
        assert doc["question"] in utils.mathvista_doc_to_text(doc, shown)
        assert utils.mathvista_doc_to_visual(doc)[0].size == (64, 64)
        if doc["answer_type"] in ("text", "integer"):
            assert utils.mathvista_process_results(doc, [doc["answer"]])["llm_as_judge_eval"]["true_false"]


def test_mathvista_library_takes_the_option_of_the_nearest_spelling(questions_of):
    evaluator = upstream_module("lmms_eval.tasks.mathvista.utils").mathvista_evaluator
    unread = "I cannot tell"
    guess = evaluator.normalize_extracted_answer(unread, ["red", "green", "dark blue"], "multi_choice", "text", 0)
    assert guess in ("red", "green", "dark blue")
    assert result(mark("mathvista", questions_of("mathvista")[0], unread)) == (0.0, "mismatch")


def test_mathvista_library_loses_every_decimal_number(questions_of):
    utils = upstream_module("lmms_eval.tasks.mathvista.utils")
    doc = docs_of("AI4Math/MathVista", "testmini")[2]
    assert doc["precision"] == 1.0  # the hub's type: round() takes no float
    assert not utils.mathvista_process_results(doc, ["1.2"])["llm_as_judge_eval"]["true_false"]
    assert mark("mathvista", questions_of("mathvista")[2], "1.2").score == 1.0


def test_mathvista_library_cuts_what_is_no_integer(questions_of):
    normalize = upstream_module("lmms_eval.tasks.mathvista.utils").mathvista_evaluator.normalize_extracted_answer
    cut = normalize("3.9", [], "free_form", "integer", None)
    assert (cut, normalize("7/2", [], "free_form", "integer", None)) == ("3", None)


def test_mathvista_library_has_no_score_where_all_is_wrong(questions_of):
    utils = upstream_module("lmms_eval.tasks.mathvista.utils")
    docs = docs_of("AI4Math/MathVista", "testmini")[:2]
    wrong = [
        utils.mathvista_process_results(doc, [answer])["llm_as_judge_eval"]
        for doc, answer in zip(docs, ["red", "7"], strict=True)
    ]
    assert utils.mathvista_aggregate_results(wrong, None) is None
    aggregate = recipe("mathvista").aggregate(BenchmarkOptions())
    assert aggregate([(question, 0.0) for question in questions_of("mathvista")]).mean == 0.0


# --- DynaMath


def test_dynamath_has_every_variant_of_every_seed_question(questions_of):
    questions = questions_of("dynamath")
    assert len(questions) == 40 and [q.metadata["seed"] for q in questions[:5]] == ["1", "2", "3", "4", "1"]
    area, longest, point, month = questions[:4]
    assert area.text == "What is the area of a circle of this radius?" and area.answer == "50.2655"
    assert longest.text.endswith("choice: (A) Yes (B) No") and longest.metadata["choices"] == ["Yes", "No"]
    assert point.text == "Where does the red point lie?" and (point.answer_type, month.answer_type) == ("math", "text")
    assert area.id == "dynamath/sample_variant1/0"


@pytest.mark.parametrize(
    ("position", "answer", "expected"),
    [
        (0, "50.2655", (1.0, "match")),
        (0, "16\\pi", (1.0, "match")),  # 50.26548...
        (0, "50.2665", (1.0, "match")),  # 0.001 off
        (0, "50.27", (0.0, "mismatch")),  # 0.0045 off
        (0, "50.266 \\text{ cm}^2", (1.0, "match")),
        (1, "B", (1.0, "match")),
        (1, "no", (1.0, "match")),
        (1, "A", (0.0, "other_option")),
        (2, "(4, 1)", (1.0, "match")),
        (2, "(1, 4)", (0.0, "mismatch")),
        (3, "nov", (1.0, "match")),
        (3, "November", (0.0, "mismatch")),
    ],
)
def test_dynamath_scores(questions_of, position, answer, expected):
    assert result(mark("dynamath", questions_of("dynamath")[position], answer)) == expected


def test_dynamath_average_and_worst(questions_of):
    """Seed 1 is right in all variants, seed 2 in all but the last, seed 3 in half of them, seed 4 in none."""
    right = {"1": 10, "2": 9, "3": 5, "4": 0}
    scored = [(q, float(i // 4 < right[q.metadata["seed"]])) for i, q in enumerate(questions_of("dynamath"))]
    assert recipe("dynamath").aggregate(BenchmarkOptions())(scored).mean == pytest.approx(24 / 40)
    worst = recipe("dynamath").aggregate(BenchmarkOptions(dynamath="worst"))(scored)
    assert worst.mean == pytest.approx(1 / 4) and worst.stderr == pytest.approx((3 / 16 / 4) ** 0.5)


def test_dynamath_rows_pass_the_library():
    utils = upstream_module("lmms_eval.tasks.dynamath.reasoning.utils")
    scored = []
    for variant in (1, 2):
        for doc in docs_of("DynaMath/DynaMath_Sample", f"sample_variant{variant}"):
            assert utils.dynamath_doc_to_text_cot(doc) == doc["question"]
            assert utils.dynamath_doc_to_visual(doc)[0].size == (64, 64)
            reply = f"<think>so</think><answer>{doc['ground_truth'] if variant == 1 else 'unknown'}</answer>"
            numbered = doc | {"question_id": f"{doc['id']}/{variant}"}
            scored.append(utils.dynamath_process_results(numbered, [reply])["dynamath_average"])
    assert utils.dynamath_aggregate_results_average(scored) == 0.5
    assert utils.dynamath_aggregate_results_worst(scored) == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3.5", -3.5), (".5", 0.5), ("1,234.5", 1234.5), ("x = 2", 2.0), ("\\frac{1}{4}", 0.25), ("3/4", 0.75),
        ("7 \\text{ cm}", 7.0), ("7 minutes", 7.0), ("52^\\circ", 52.0), ("12\\%", 12.0), ("$-4$", -4.0),
        ("\\$5", 5.0),
        ("9 cm^2", 9.0), ("9\\mathrm{~m}^{3}", 9.0), ("1{,}234", 1234.0), ("1\\,234", 1234.0),
        ("-\\pi", -3.141592653589793), ("\\frac{2\\pi}{3}", 2.0943951023931953), ("5.", 5.0),
    ],
)  # fmt: skip
def test_numbers(text, value):
    assert number(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "-", "12 or 13", "5x", "1/0", "1.2.3", "2 3", "2\\text{ or }3", "1\\,2", "[2, 3]", "two", "9" * 400]
)
def test_no_numbers(text):
    assert number(text) is None
