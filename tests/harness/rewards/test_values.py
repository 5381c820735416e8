"""Mathematical answers as values: case files by their `want` through the command line, and each kind by property."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.app import main
from harness.rewards import latex, units
from harness.rewards.rules import gold_error, grade
from harness.types import Question

CASES = sorted((Path(__file__).parents[2] / "fixtures/grading").glob("*.jsonl"))


def is_right(gold: str, answer: str) -> bool:
    return grade(f"So \\boxed{{{answer}}}", Question(id="q", text="", answer=gold), "math_verify").verdict == "correct"


def test_there_are_case_files() -> None:
    assert [path.name.partition("_")[0] for path in CASES] == ["01", "01b", "03", "04", "05", "06"]


def test_the_verdicts_of_the_case_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All in one file: a worker takes a second to start."""
    lines = [line for path in CASES for line in path.read_text(encoding="utf-8").splitlines()]
    want = [json.loads(line) | {"id": f"{number}"} for number, line in enumerate(lines)]
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join(map(json.dumps, want)))
    assert main(["grade", str(file)]) == 0
    got = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(got) == len(lines)
    assert [w | {"verdict": g["verdict"]} for g, w in zip(got, want, strict=True) if g["verdict"] != w["want"]] == []


@pytest.mark.parametrize("names", ["tr", "rt", "da", "ad", "adb", "trx"])
def test_a_trace_and_a_differential_are_letters_after_a_number(names: str) -> None:
    assert is_right(f"2{names}", f"2{names[::-1]}") and not is_right(f"2{names}", f"2{names}z")


letters = st.sampled_from("abcdfghjklmnopqrstuvwxyz")  # e and i are constants
numbers = st.integers(2, 99)


@settings(max_examples=6, deadline=None)
@given(numbers, st.lists(letters, min_size=1, max_size=3, unique=True), st.sampled_from(["", " ", r"\,"]))
def test_no_letter_of_a_gold_answer_is_a_unit(number: int, names: list[str], space: str) -> None:
    assume(not {"".join(names), "".join(reversed(names))} & {"or", "and", "mod", "gcd", "det"})  # words
    gold = f"{number}{space}{''.join(names)}"
    assert not is_right(gold, str(number))
    assert not is_right(f"y={gold}", f"y={number}")
    assert is_right(gold, f"{number}{''.join(reversed(names))}")


@settings(max_examples=10, deadline=None)
@given(numbers, letters, letters)
def test_a_single_letter_of_an_answer_is_a_symbol(number: int, a: str, b: str) -> None:
    assert not is_right(str(number), f"{number}{a}")
    assert is_right(f"{number}{a}", f"{number}{b}") is (a == b)
    assert not is_right(f"{number}{a}", f"{number}{a.upper()}")


UNITS = ["cm", "mm", "kg", "meters", "hours", "dollars", "square feet", "m/s", "cm^2", "kilograms", "inches"]


@settings(max_examples=13, deadline=None)
@given(numbers, st.sampled_from(UNITS), st.sampled_from(UNITS))
def test_a_unit_may_be_left_out_but_not_be_another_one(number: int, a: str, b: str) -> None:
    gold = f"{number}\\text{{ {a}}}"
    same = units.of_gold(latex.tidy(gold)).unit == units.of_gold(latex.tidy(f"{number}\\text{{ {b}}}")).unit
    assert is_right(gold, str(number)) and is_right(str(number), gold)
    assert is_right(gold, f"{number}\\ \\mathrm{{{b}}}") is same
    assert not is_right(gold, f"{number + 1}\\text{{ {a}}}")


def test_kilograms_have_two_spellings() -> None:
    assert is_right(r"5\text{ kg}", r"5 kilograms") and not is_right(r"5\text{ kg}", "5 grams")


forms = st.sampled_from([
    "{}", r"\frac{{1}}{{{}}}", r"1-\frac{{1}}{{{}}}", r"\sqrt{{2}}+\frac{{1}}{{{}}}", r"\pi\cdot(1+\frac{{1}}{{{}}})",
    r"\{{1,\frac{{1}}{{{}}}\}}", r"x=\frac{{1}}{{{}}}", r"\frac{{x}}{{{}}}", r"x+\frac{{1}}{{{}}}",
    r"(0,\frac{{1}}{{{}}})",
    r"\begin{{pmatrix}}1\\\frac{{1}}{{{}}}\end{{pmatrix}}", r"\sqrt{{1+\frac{{1}}{{{}}}}}",
])  # fmt: skip
constants = st.one_of(
    st.tuples(st.integers(2, 9), st.integers(40, 2500)).map(lambda pair: (f"{pair[0]}^{{{pair[1]}}}", pair)),
    st.integers(15, 300).map(lambda n: (f"{n}!", n)),
)


@settings(max_examples=10, deadline=None)
@given(forms, constants, st.integers(1, 3))
def test_exact_constants_are_told_apart(form: str, constant: tuple[str, object], more: int) -> None:
    text, value = constant
    other = f"{value + more}!" if isinstance(value, int) else f"{value[0]}^{{{value[1] + more}}}"  # type: ignore[index]
    assert not is_right(form.format(text), form.format(other))
    assert not is_right(form.format(other), form.format(text))


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 9), st.integers(1, 1200))
def test_an_exact_power_is_right_in_other_forms(base: int, exponent: int) -> None:
    assert is_right(f"\\frac{{1}}{{{base}^{{{2 * exponent}}}}}", f"{base**2}^{{-{exponent}}}")
    assert is_right(f"1-{base}^{{-{exponent}}}", f"\\frac{{{base}^{{{exponent}}}-1}}{{{base}^{{{exponent}}}}}")


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 12), st.integers(1, 9))
def test_decimals_are_compared_to_the_last_digit(digits: int, places: int, last: int) -> None:
    gold = f"{digits // 10**places}.{digits % 10**places:0{places}d}"
    assert is_right(gold, f"\\frac{{{digits}}}{{{10**places}}}")
    assert is_right(gold, f"{digits}e-{places}")
    assert not is_right(gold, f"{gold}000000{last}")


@settings(max_examples=4, deadline=None)  # half a second each
@given(st.integers(-50, 50), st.integers(1, 40), st.booleans(), st.booleans())
def test_an_interval_is_its_inequality(low: int, width: int, left_open: bool, right_open: bool) -> None:
    high = low + width
    interval = f"{'(' if left_open else '['}{low},{high}{')' if right_open else ']'}"
    left, right = "<" if left_open else r"\le", "<" if right_open else r"\leq"
    assert is_right(interval, f"{low} {left} x {right} {high}")
    assert not is_right(interval, f"{low} {left} x {right} {high + 1}")
    assert not is_right(interval, f"{low} {'<' if not left_open else chr(92) + 'le'} x {right} {high}")


RIGHT = [
    ("5", r"\bm{5}"), ("5", r"\textbf{5}"), ("5", r"{\bf 5}"), ("5", r"\rm 5"), ("5", r"\text{5}"), ("5", "Answer: 5"),
    ("5", r"\text{The final answer is } 5."), ("12", r"12~\text{cm}^{2}"), ("12", r"\text{12 square meters}"),
    ("12", r"12\ \mathrm{m}/\mathrm{s}"), ("12", r"12\text{ marbles}"), ("720", "\u20b9720"),
    ("720", r"\text{Rs. 720}"),
    ("720.50", r"\$720.50"), ("0.00012", r"1.2\times10^-4"), ("0.00012", "1.2E-4"), (r"[2,\infty)", r"x \ge 2"),
    ("[-6,5)", r"x \in [-6,5)"), ("x>2", "2<x"), ("1<x<2", "2>x>1"), ("x<2", "2x<4"), (r"\emptyset", "\u2205"),
    ("5", r"\begin{aligned} x &= 2+3 \\ &= 5\end{aligned}"),
    ("x=1,y=2", r"\begin{align*} x &= 1 \\ y &= 2\end{align*}"), ("5000000", r"5\text{ million dollars}"),
    (r"12\text{ cm}", "12"), (r"12\text{ m}", "12 m"), ("12 cm", r"12 \text{ centimeters}"), (r"2x", r"2x\text{ cm}"),
    (r"\frac13", r"0.\overline{3}"), ("12000", r"12\,000"), ("1/2", "\u00bd"), ("-5", "\u22125"),
    (r"2\sqrt5", "2\u221a5"),
    ("x^2", "x\u00b2"), (r"90^\circ", "90 degrees"), (r"25^\circ C", "25"), ("50\\%", "50 percent"), ("6", "2(3)"),
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"), (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt5}{4}"), ("2i", "2 i"),
    ("f(x)=2x", "2x"), ("5", "a+b=5"), (r"e=\frac12", r"\frac12"), ("y'", r"y^{\prime}"), ("8", "2+6=8"),
    ("101_2", "101_{2}"), (r"\text{no solution}", r"\text{No solution}"), (r"x=1 \text{ or } x=2", "x=2, x=1"),
]  # fmt: skip
WRONG = [
    ("X", "x"), ("AB", "ab"), ("x+Y", "X+y"), (r"\text{AB}", r"\text{ab}"), (r"\Gamma", r"\gamma"),
    (r"\Delta", r"\delta"), ("y'", "y"), ("y''", "y'"), ("f'(x)", "f(x)"), ("x_a", "x_A"),
    (r"\mathcal{A}", r"\mathbb{A}"), (r"\text{CO}", r"\text{Co}"), ("E", "e"), ("101_2", "101_3"), ("101_2", "101"),
    ("5", "2(3)"), ("5", "2 3"), ("15", "10 5"), ("5", "(2)(3)"), ("1/3", "0.333333"), ("0.0000001", "0.0000002"),
    (r"\pi", "3.141592653589793"), (r"\text{not } 5", "5"), ("5", r"\text{not } 5"), ("5", r"5\text{ or more}"),
    (r"5\text{ cm}", r"5\text{ cm}^2"), (r"5\text{ m}", "5 s"), (r"25^\circ C", r"25^\circ F"), (r"\$5", "\u20ac5"),
    (r"90^\circ", r"90\text{ radians}"), ("3mg", "3"), (r"5\text{ million}", "5"), ("5", r"5\text{ million}"),
    ("2", r"2\text{ thirds}"), ("4", r"4\text{ squared}"), ("5", "2x=5"), ("5", "x+3=5"), ("5", "x=4=5"),
    ("x^2=-1", "x^2=-2"), ("(0,1)", r"\{0,1\}"), ("1,2", "(1,2)"), ("even", "neve"),
    (r"3\text{ apples}", r"3\text{ pears}"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right_answers_in_other_forms(gold: str, answer: str) -> None:
    assert is_right(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_answers_that_only_look_alike(gold: str, answer: str) -> None:
    assert not is_right(gold, answer)


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("None", "is null"), ("null", "is null"), (r"\text{NaN}", "is null"), ("All even integers", "is words"),
        (r"\text{the set of primes}", "is words"), ("1 if n is odd", "tells cases apart"),
        (r"\begin{cases} 1 & n>0 \\ 0 & n<0 \end{cases}", "tells cases apart"),
        (r"$f(x)=2x$ and $f(x)=0$", "has two formulas"), (r"f(x)=2x \text{ or } g(x)=0", "has two formulas"),
    ],
)  # fmt: skip
def test_a_gold_answer_that_the_rule_cannot_grade_is_refused(gold: str, reason: str) -> None:
    error = gold_error(Question(id="q", text="", answer=gold), "math_verify")
    assert error == f"the gold answer {gold!r} {reason}: give the question the type text"


@pytest.mark.parametrize(
    "gold",
    [r"\text{even}", "Tuesday", r"12\text{ square meters}", "1, 2", r"x=1 \text{ or } x=2", r"v_{\text{max}}=3",
     r"\sin x + \cos y", r"\operatorname{lcm}(4,6)", "12 cm", r"\emptyset", "y=2x+1", "abc", "12:30 a.m."],
)  # fmt: skip
def test_a_gold_answer_that_the_rule_can_grade(gold: str) -> None:
    assert gold_error(Question(id="q", text="", answer=gold), "math_verify") is None


@settings(max_examples=20, deadline=None)
@given(st.text(alphabet="0123456789abxyXY{}()[]^_+-*/=<>,. $\\|!'%", max_size=24))
def test_any_text_is_read_or_refused(text: str) -> None:
    assume("!" not in text and "^" not in text)  # towers of powers take a worker
    is_right("5", text)
    is_right(text, "5")
