"""The rules of each answer type, called directly (no worker process)."""

from __future__ import annotations

from typing import Any

import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rewards import rules
from harness.rewards.rules import Grade, gold_error, grade, same_answer
from harness.types import Question

GRADER = "math_verify"


def math(gold: str) -> Question:
    return Question(id="q", text="", answer=gold)


def is_right(gold: str, answer: str) -> bool:
    return grade(f"So \\boxed{{{answer}}}", math(gold), GRADER).verdict == "correct"


def gym_question(name: str, **config: Any) -> Question:
    entry = reasoning_gym.create_dataset(name, size=1, seed=3, **config)[0]
    metadata = {"dataset": name, "entry": entry, "config": config}
    return Question(id="g", text="", answer=entry["answer"], answer_type="reasoning_gym", metadata=metadata)


HALVES = ["1/2", "0.5", ".5", r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", r"\frac{2}{4}", "0.50", "2^{-1}", "$0.5$"]


@pytest.mark.clause("C049")
@pytest.mark.parametrize("answer", HALVES)
def test_all_ways_to_write_a_half_are_equal(answer: str) -> None:
    assert is_right("1/2", answer) and is_right(answer, "0.5") and is_right(r"\frac{1}{2}", answer)


RIGHT = [
    ("1,234", "1234"),
    ("1234", "1,234"),
    ("1234", "1{,}234"),
    ("5", "5."),
    ("7", "007"),
    ("5", "+5"),
    ("5", "x = 5"),
    ("x = 5", "5"),
    ("5", r"5 \text{ cm}"),
    ("3/2", "1 1/2"),
    ("-3/2", "-1 1/2"),
    ("3/2", r"1\frac{1}{2}"),
    (r"3 \times 10^8", "300000000"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\{1,2\}", "2, 1"),
    ("(1,2)", r"\left(1, 2\right)"),
    ("[0,1)", "[0, 1)"),
    ("(1,2,3)", "(1, 2, 3)"),
    (r"\text{yes}", "Yes"),
    # Second pass: degree and percent marks.
    ("90", r"90^\circ"),
    ("90", r"90^{\circ}"),
    (r"90^\circ", "90"),
    ("90", "90°"),
    ("90°", r"90\degree"),
    ("90", r"90 \deg"),
    ("1/2", r"0.5^\circ"),
    ("50", "50%"),
    ("50%", r"50\%"),
    (r"50\%", "50"),
    ("1/2", "0.5%"),
]
WRONG = [
    ("1/2", "0.51"),
    ("1/2", "1/3"),
    ("1", "1 1/2"),
    ("5", "-5"),
    ("5", ""),
    ("2", "2**3"),
    ("1234", "1, 234"),
    ("12345678901234567890", "12345678901234567891"),
    (r"\{1,2\}", r"\{1,3\}"),
    ("[0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"),
    ("90", "91°"),
    ("5", "5 or 6"),
    ("5", "about 5 or so"),
    ("0.5", "50%"),  # marks are dropped, not computed with
]


@pytest.mark.clause("C050")
@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right_answers(gold: str, answer: str) -> None:
    assert is_right(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_wrong_answers(gold: str, answer: str) -> None:
    assert not is_right(gold, answer)


@pytest.mark.clause("C047", "C048")
def test_grades_are_literal() -> None:
    assert grade("no box", math("5"), GRADER) == Grade(answer=None, verdict="unparsable", reward=0.0)
    assert grade(r"\boxed{5", math("5"), GRADER) == Grade(answer=None, verdict="unparsable", reward=0.0)
    assert grade(r"\boxed{4} \boxed{ 5 }", math("5"), GRADER) == Grade(answer="5", verdict="correct", reward=1.0)
    assert grade(r"\boxed{5} \boxed{4}", math("5"), GRADER) == Grade(answer="4", verdict="wrong", reward=0.0)


integers = st.integers(-(10**15) + 1, 10**15 - 1)
written_integers = st.builds(lambda n, form: form.format(n), integers, st.sampled_from(["{}", "{:+}", "{:05}", " {} "]))
fractions = st.builds(lambda a, b: f"\\frac{{{a}}}{{{b}}}", st.integers(-99, 99), st.integers(1, 99))
formulas = st.sampled_from(["x+1", r"\sqrt{3}", "(1,2)", r"\{1,2\}", "50%", "x=5", r"\text{no}", "**", "1/0", "é"])


@settings(max_examples=10, deadline=None)
@given(st.one_of(st.tuples(written_integers, written_integers), written_integers.map(lambda n: (n, n))))
def test_the_fast_path_agrees_with_the_library_on_integers(pair: tuple[str, str]) -> None:
    quick = rules.quick_check(pair[1], math(pair[0]))
    assert quick is rules._library(GRADER)(*pair)


@settings(max_examples=10, deadline=None)
@given(st.one_of(fractions, formulas, written_integers))
def test_the_library_agrees_that_equal_texts_are_equal(text: str) -> None:
    assert rules.quick_check(text, math(text)) is True
    assert rules._library(GRADER)(text, text)


def test_the_fast_path_leaves_the_rest_to_the_library() -> None:
    assert rules.quick_check("0.5", math("1/2")) is None
    assert rules.quick_check("1" * 4001, math("2")) is False  # far longer than the gold answer
    assert rules.quick_check("1" * 4001, math("2" * 600)) is None  # Python reads no longer integers
    assert rules.quick_check("", math("")) is False


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (None, None, True),
        (None, "5", False),
        ("5", None, False),
        ("5", " 5 ", True),
        ("5", "6", False),
        ("1/2", "0.5", True),
        ("x=5", "5", True),
        ("5", "x=5", True),
        (r"\text{B}", "b", True),
        ("90°", "90", True),
        ("1<x<2", "(1,2)", True),
        ("(1,2)", "[1,2]", False),
        ("", "", True),
    ],
)
def test_same_answer(a: str | None, b: str | None, same: bool) -> None:
    assert same_answer(a, b, GRADER) is same
    assert same_answer(b, a, GRADER) is same


def gym_score(question: Question, answer: str) -> str:
    return grade(f"\\boxed{{{answer}}}", question, GRADER).verdict


def test_reasoning_gym_chain_sum() -> None:
    question = gym_question("chain_sum", min_terms=2, max_terms=3)
    assert gym_score(question, question.answer) == "correct"
    assert gym_score(question, str(int(question.answer) + 1)) == "wrong"
    # The scorer gives partial credit to text around the answer; only full credit counts.
    assert gym_score(question, f"it is {question.answer}") == "wrong"
    outside = grade(f"{question.answer} \\boxed{{x}}", question, GRADER)
    assert outside.verdict == "wrong"


def test_a_reasoning_gym_scorer_sees_the_options_of_its_data_set() -> None:
    # decimal_arithmetic accepts differences below 10**-max_num_decimal_places: 10**-3 here, 10**-6 by default.
    entry = {"answer": "1.5", "metadata": {}}
    verdicts = {}
    for places in (3, 6):
        metadata = {"dataset": "decimal_arithmetic", "entry": entry, "config": {"max_num_decimal_places": places}}
        question = Question(id="g", text="", answer="1.5", answer_type="reasoning_gym", metadata=metadata)
        verdicts[places] = gym_score(question, "1.50001")
    assert verdicts == {3: "correct", 6: "wrong"}


def test_a_scorer_that_raises_means_wrong() -> None:
    metadata = {"dataset": "chain_sum", "entry": {"answer": None}, "config": {}}
    question = Question(id="g", text="", answer="", answer_type="reasoning_gym", metadata=metadata)
    with pytest.raises(TypeError):
        rules._scorer(metadata)("5", metadata["entry"])
    assert gym_score(question, "5") == "wrong"


@pytest.mark.parametrize("limit", [MemoryError, RecursionError])
def test_a_scorer_that_meets_a_limit_gives_no_verdict(limit: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(answer: str, entry: dict) -> float:
        raise limit

    monkeypatch.setattr(rules, "_scorer", lambda metadata: exhausted)
    metadata = {"dataset": "chain_sum", "entry": {}, "config": {}}
    question = Question(id="g", text="", answer="5", answer_type="reasoning_gym", metadata=metadata)
    with pytest.raises(limit):
        rules.is_correct("6", question, GRADER)


GYM = {"dataset": "chain_sum", "entry": {}, "config": {}}


@pytest.mark.parametrize(
    ("answer_type", "gold", "metadata", "error"),
    [
        ("math", "5", {}, None),
        ("math", r"\frac{1}{2}", {}, None),
        ("math", "50%", {}, None),
        ("math", "90°", {}, None),
        ("math", " ", {}, "the gold answer is empty"),
        ("math", "**", {}, "math_verify reads no value in the gold answer '**'"),
        ("math", r"\frac{", {}, "math_verify reads no value in the gold answer '\\\\frac{'"),
        ("text", "Paris", {}, None),
        ("text", "", {}, "the gold answer is empty"),
        ("text", "?!", {}, "the gold answer '?!' has nothing but punctuation"),
        ("choice", "B", {}, None),
        ("choice", "four", {"choices": ["three", "four"]}, None),
        ("choice", "12", {}, "the gold answer '12' is neither a letter nor an option"),
        ("choice", "C", {"choices": ["three", "four"]}, "the gold answer 'C' is neither a letter nor an option"),
        ("maths", "5", {}, "unknown answer type 'maths'. Did you mean 'math'?"),
        ("reasoning_gym", "5", GYM, None),
        ("reasoning_gym", "5", {}, "the question's metadata lack 'dataset'"),
        ("reasoning_gym", "5", {"dataset": "chain_sum", "entry": {}}, "the question's metadata lack 'config'"),
        (
            "reasoning_gym",
            "5",
            GYM | {"config": {"min_termz": 2}},
            "reasoning_gym refuses the options of 'chain_sum': "
            "ChainSumConfig.__init__() got an unexpected keyword argument 'min_termz'",
        ),
    ],
)
def test_gold_errors(answer_type: Any, gold: str, metadata: dict[str, Any], error: str | None) -> None:
    question = Question(id="q", text="", answer=gold, answer_type=answer_type, metadata=metadata)
    assert gold_error(question, GRADER) == error


def test_an_unknown_reasoning_gym_data_set_is_named_with_its_neighbours() -> None:
    question = Question(
        id="q", text="", answer="5", answer_type="reasoning_gym", metadata=GYM | {"dataset": "chain_sums"}
    )
    error = gold_error(question, GRADER)
    assert error is not None
    assert error.startswith("reasoning_gym has no data set 'chain_sums'. Did you mean 'chain_sum'")


@pytest.mark.clause("C049", "C050")
@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        ("90", r"90^{\circ}", True),
        ("90", "90°", True),
        ("50", r"50\%", True),
        ("1,234", "1234", True),
        ("5", "6", False),
    ],
)
def test_mathruler(gold: str, answer: str, correct: bool) -> None:
    assert (grade(f"\\boxed{{{answer}}}", math(gold), "mathruler").verdict == "correct") is correct
    assert gold_error(math(gold), "mathruler") is None


@pytest.mark.parametrize(("answer", "verdict"), [("9" * 20, "correct"), ("9" * 19 + "8", "wrong")])
def test_integers_are_compared_exactly_where_mathruler_compares_floats(answer: str, verdict: str) -> None:
    assert rules._library("mathruler")("9" * 20, "9" * 19 + "8")
    assert grade(f"\\boxed{{{answer}}}", math("9" * 20), "mathruler").verdict == verdict


def test_a_library_that_raises_means_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gold: str, answer: str) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(rules, "_library", lambda grader: broken)
    assert grade(r"\boxed{0.5}", math("1/2"), GRADER).verdict == "wrong"
    with pytest.raises(ZeroDivisionError):
        rules.load(GRADER)  # a library that never works is not taken for wrong answers


def test_an_answer_far_longer_than_the_gold_answer_is_wrong_without_reading_it():
    assert rules.quick_check("7" + " + 0" * 501, math("7")) is False  # 2005 characters; 2000 + 4 * 1 are the most
    assert rules.quick_check("7" + " + 0" * 500, math("7")) is None
    assert rules.quick_same("7 " * 1500, "8") is False
    assert rules.quick_same("8", "7 " * 1500) is False
