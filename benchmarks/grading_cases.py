r"""Hostile replies with their verdicts, and pairs of answers with what is true of them: for the tests and `grading`.

A verdict `not correct` is left open: a formula that one version of a library gives up on is `wrong`, one that takes
another to its limit is `timeout`. Neither is ever `correct`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.types import AnswerType, Question

MILLION = 1_000_000
COSTLY = ("tower", "nesting")
"""Kinds whose replies may take a worker to its limit of time."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A reply, what it answers, and its verdict: `correct`, `wrong`, `unparsable` or `not correct`."""

    kind: str
    response: str
    question: Question
    verdict: str


def boxed(answer: str) -> str:
    return f"So it is \\boxed{{{answer}}}."


def question(gold: str, answer_type: AnswerType = "math", choices: tuple[str, ...] = ()) -> Question:
    return Question(id=gold[:20], text="", answer=gold, answer_type=answer_type, metadata={"choices": choices})


def cases(kind: str, verdict: str, gold: str | Question, answers: list[str], form: str = "") -> Iterator[Case]:
    """Each answer in a box, or as `form` has it around `@`."""
    asked = question(gold) if isinstance(gold, str) else gold
    for answer in answers:
        response = form.replace("@", answer) if form else boxed(answer)
        yield Case(kind=kind, response=response, question=asked, verdict=verdict)


TOWERS = [
    r"10^{10^{10}}", "5^(5^(5^(5^5)))", "5^{5^{5^{5^{5}}}}", "9**9**9**9", "2^{2^{2^{2^{2^{2}}}}}", "99999999999!",
    "((9!)!)!", r"\binom{10^{9}}{5 \cdot 10^{8}}", r"\sum_{k=1}^{10^{9}} \frac{1}{k^k}", r"\prod_{n=1}^{10^{9}} n",
    r"\int_{0}^{\infty} e^{-x^{x^{x}}} dx", r"\lim_{n \to \infty} n^{n^{n!}}", r"e^{e^{e^{79}}}", r"e^{-e^{e^{e^{9}}}}",
    r"\sin(10^{10^{10}})", r"10^{10^{10}} \bmod 7", r"\frac{10^{10^{10}}}{10^{10^{10}} + 1}",
    r"\sqrt[10^{9}]{10^{10^{9}}}", "1e999999999", "1e-999999999", r"(x+y+z)^{10000}",
    r"(x+1)^{100000} - (x-1)^{100000}",
    r"\log(10^{10^{10}})", r"10^{-10^{10^{10}}}", r"\int \sin(x^{x^{x}}) \cos(x^{x}) dx",
    r"\begin{pmatrix}" + r"9^{9^{9}} & 1 \\" * 9 + r"\end{pmatrix}", r"\{" + ",".join(["9^{9^{9}}"] * 9) + r"\}",
    r"x^{x^{x^{x^{x^{x^{x^{x^{x}}}}}}}}", r"\frac{1}{3^{3^{3^{3}}}}", "7^{7^{7^{7}}}!",
]  # fmt: skip
NESTING = [
    "(" * 1900, "(" * 200 + "0.6" + ")" * 200, "{" * 950 + "}" * 950, "[" * 900, "|" * 1000, "-" * 500 + "0.6",
    r"\frac{1}{" * 200 + "3" + "}" * 200, r"\sqrt{" * 300 + "2" + "}" * 300, r"\left(" * 200 + "1" + r"\right)" * 200,
    r"\text{" * 300 + "}" * 300, r"\begin{pmatrix}" * 50 + r"\end{pmatrix}" * 50, "x^" * 400 + "x", "1" + "!" * 60,
    r"\overline{" * 250 + "1" + "}" * 250, r"\{" * 300 + r"\}" * 300, "f(" * 400 + ")" * 400, "x=" * 300 + "1",
    "+".join(["1"] * 900), r"\frac{1}{3}" * 150, "1-" * 300 + "1",
]  # fmt: skip
LONG = ["7" * MILLION, "0." + "6" * MILLION, "1+" * (MILLION // 2) + "1", r"\frac{1}{3}" * 90_000, "x" * MILLION,
        "(" * MILLION, " " * MILLION + "7", "\\" * MILLION, "^" * MILLION, "\u00e9" * MILLION]  # fmt: skip
LOOKALIKES = [  # of 5: Arabic, Devanagari, full-width and bold digits, Cyrillic and Roman letters, invisible signs
    "\u0665", "\u096b", "\uff15", "\U0001d7d3", "\u0411", "V", "\u2164", "\u2075", "\u2464", "S", "5\u200b", "\u20605",
    "\u202e5", "5\u0000", "\ud835", "5\u0338", "\ufeff5", "\u01bc",
]  # fmt: skip
MACROS = [
    r"\def\x{\x\x}\x", r"\newcommand{\a}{\a\a}\a", r"\input{/etc/passwd}", r"\write18{ls}", r"\csname x\endcsname",
    r"\catcode`\%=12 5", r"\loop\iftrue\repeat", r"\let\a=\b 5", r"\expandafter\a\expandafter\b", r"\special{x}",
    r"\href{x}{y}", r"\verb|5|", r"\color{white}{6}", r"\phantom{5}6", r"\rule{5pt}{5pt}", r"\directlua{os.exit()}",
    "__import__('os').system('true')", "'; DROP TABLE grades; --", "<script>5</script>", "{{7*7}}", "${5}{6}",
    "%s%s%s%n", "\x1b[2J6", "../../../etc/passwd", "None", "True", "NotImplemented", "correct", r"\text{correct}",
]  # fmt: skip
INFINITIES = [
    r"-\infty", "nan", "NaN", "None", "1e308", r"\frac{1}{0}", r"\frac{0}{0}", r"\infty - \infty", r"0 \cdot \infty",
    "10^{308}", "undefined", r"\emptyset", "oo-oo", r"\pm\infty", r"\aleph_0",
]  # fmt: skip
UNITS_RIGHT = [
    r"5 \text{ cm}",
    "5 cm",
    "5cm",
    r"5\ \mathrm{cm}",
    "$5",
    r"\$5",
    r"5\%",
    r"5^\circ",
    "5°",
    r"5\text{ dollars}",
]
UNITS_WRONG = [
    r"6 \text{ cm}",
    r"0.5 \text{ dm}",
    "50 mm",
    r"-5\text{ cm}",
    r"\text{cm}",
    "cm 6",
    "5 or 6 cm",
    r"5\text{ to }6",
]
INTERVALS_RIGHT = [r"\left[0, 1\right)", "[0, 1)", "[0,1)", r"\left[0,1\right)", r"[ 0 , 1 )", r"[0, \frac{2}{2})"]
INTERVALS_WRONG = [
    "[0,1]",
    "(0,1)",
    "(0,1]",
    "[1,0)",
    "[0,2)",
    "[0,1",
    "0,1",
    r"\{0,1\}",
    r"[0,\infty)",
    r"[0,1) \cup [2,3)",
]
MATRIX = r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"
MATRICES_RIGHT = [
    r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    r"\begin{pmatrix}\frac{2}{2}&2\\3&2^2\end{pmatrix}", r"\left(\begin{matrix}1&2\\3&4\end{matrix}\right)",
    r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]", r"\begin{pmatrix}1.0&2\\3&4\end{pmatrix}",
]  # fmt: skip
MATRICES_WRONG = [
    r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}",
    r"\begin{pmatrix}1&2&3&4\end{pmatrix}",
    r"\begin{pmatrix}1\\2\\3\\4\end{pmatrix}", r"\begin{pmatrix}1&2\\3\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4",
    "1,2,3,4",
    r"\end{pmatrix}", r"\begin{pmatrix}\end{pmatrix}", r"\begin{pmatrix}" + "&" * 500 + r"\end{pmatrix}",
]  # fmt: skip
OPTIONS = ("Paris", "4", "the red one", "$x$")
LETTER_RIGHT = [
    "B", "b", " B ", "(B)", "B)", "B.", "B:", "[B]", "{B}", r"\text{B}", r"\textbf{B}", r"\mathbf{B}", r"\mathrm{(B)}",
    r"\boldsymbol{B}", r"\left(B\right)", "$B$", "$$B$$", "**B**", "`B`", '"B"', "Option B", "choice (b)", "Answer: B",
    "The correct answer is B.", "B) 4", "B. 4", "B: 4", "(B) 4", r"\text{(B)}~4", r"\textbf{(B)}\ 4", r"B\,", "\uff22",
    "\uff08B\uff09", "B\u30014", "4", r"\text{4}", "4.",
]  # fmt: skip
LETTER_WRONG = [
    "A", "(C)", "E", "(Z)", "", "5", "B or C", "A, B", "AB", "BB", "not B", "\u0412", "\u0392", "ABCD", "all", "none",
    "A) Paris B) 4", "\U0001f171", "B" * 1000, "(" * 1000 + "B" + ")" * 1000, "66", r"\boxed", "B?C", "Paris", "four",
]  # fmt: skip
RESPONSES = [  # the whole reply to a question with the answer 5, and its verdict: the last whole box counts
    ("", "unparsable"), ("5", "unparsable"), ("The answer is 5.", "unparsable"), (r"\boxed", "unparsable"),
    (r"\boxed{", "unparsable"), (r"\boxed{5", "unparsable"), (r"\boxed{\frac{5}{1}", "unparsable"),
    (r"boxed{5}", "unparsable"), (r"\boxed 5", "unparsable"), (r"\boxed(5)", "unparsable"), (r"\fbox{5}", "unparsable"),
    (r"\Boxed{5}", "unparsable"), ("\\boxed\uff5b5\uff5d", "unparsable"), (r"\boxed{5\}", "unparsable"),
    ("\\boxed{" * 100_000, "unparsable"), ("{" * MILLION, "unparsable"), ("<think>" * 100_000, "unparsable"),
    (r"\boxed{}", "wrong"), (r"\boxed{ }", "wrong"), (r"\boxed{\boxed{}}", "wrong"), (r"\boxed{5}}{", "correct"),
    (r"}}}\boxed{5}", "correct"), (r"\boxed{\boxed{5}}", "correct"), (r"\boxed{6} \boxed{5}", "correct"),
    (r"\boxed{5} \boxed{6}", "wrong"), (r"\boxed{5} \boxed{6", "correct"), (r"\boxed{6} \boxed{5", "wrong"),
    (r"\boxed{5}, \boxed{5}, \boxed{}", "wrong"), (r"\boxed{6}" * 50_000 + r"\boxed{5}", "correct"),
    (r"\boxed{5} or \boxed{5}", "correct"), (r"\boxed {5}", "correct"), ("\\boxed\n{5}", "correct"),
    (r"\boxed{{5}}", "correct"), (r"\boxed{5} \boxed{\text{}", "correct"), (r"\boxed{5\boxed{6}}", "wrong"),
    (r"<think>\boxed{6}</think>\boxed{5}", "correct"), (r"<think>\boxed{5}</think>\boxed{6}", "wrong"),
    (r"<think>\boxed{5}</think>The answer is 6.", "correct"), (r"<think>\boxed{5}", "correct"),
    (r"<think><think>\boxed{6}</think>\boxed{5}</think>", "correct"), (r"</think>\boxed{5}<think>", "correct"),
    ("x" * MILLION + r"\boxed{5}", "correct"), (r"\boxed{5}" + "x" * MILLION, "correct"),
    (r"\boxed{5}" + "}" * MILLION, "correct"), (r"\boxed{5}" + "\\boxed" * 100_000, "correct"),
    (r'{"answer": "\\boxed{5}"}', "correct"), (r"$$\boxed{5}$$", "correct"), ("\u202e\\boxed{5}", "correct"),
]  # fmt: skip


def hostile() -> list[Case]:
    """All of them. `COSTLY` kinds take a worker to its limit of time, each answer up to `reward.cpu_seconds`."""
    letter = question("B", "choice", OPTIONS)
    return [
        *cases("tower", "not correct", "1/2", TOWERS),
        *cases("nesting", "not correct", "1/2", NESTING),
        *cases("1 MB answer", "wrong", "1/2", LONG),
        *cases("look-alike", "wrong", "5", LOOKALIKES),
        *cases("macro", "wrong", "5", MACROS),
        *cases("infinity", "wrong", r"\infty", INFINITIES),
        *cases("unit", "correct", "5", UNITS_RIGHT),
        *cases("unit", "wrong", "5", UNITS_WRONG),
        *cases("interval", "correct", "[0,1)", INTERVALS_RIGHT),
        *cases("interval", "wrong", "[0,1)", INTERVALS_WRONG),
        *cases("matrix", "correct", MATRIX, MATRICES_RIGHT),
        *cases("matrix", "wrong", MATRIX, MATRICES_WRONG),
        *cases("multiple choice", "correct", letter, LETTER_RIGHT),
        *cases("multiple choice", "wrong", letter, LETTER_WRONG),
        *(Case(kind="box", response=text, question=question("5"), verdict=verdict) for text, verdict in RESPONSES),
    ]


PAIRS: dict[str, list[tuple[str, str, bool]]] = {
    "integers": [
        ("5", "5", True),
        ("5", "+5", True),
        ("5", "007", False),
        ("7", "007", True),
        ("5", "-5", False),
        ("1,234", "1234", True),
        ("1234", "1,234", True),
        ("9" * 20, "9" * 19 + "8", False),
        ("1000", "10^3", True),
        ("120", "5!", True),
        ("5", "6", False),
    ],
    "fractions": [
        ("1/2", "0.5", True),
        ("1/2", r"\frac{1}{2}", True),
        (r"\frac{1}{2}", r"\frac12", True),
        (r"\frac{1}{2}", r"\dfrac{1}{2}", True),
        ("0.5", ".5", True),
        (r"\frac{1}{2}", r"\frac{2}{4}", True),
        ("3/2", "1 1/2", True),
        ("3/2", r"1\frac{1}{2}", True),
        ("1/2", "1/3", False),
        ("1/2", "0.51", False),
        (r"\frac{1}{3}", "0.3333", False),
        ("-1/2", r"-\frac{1}{2}", True),
        (r"\frac{-1}{2}", r"-\frac{1}{2}", True),
        ("1/2", "2", False),
    ],
    "formulas": [
        ("x^2+2x+1", "(x+1)^2", True),
        ("x+1", "1+x", True),
        ("x+1", "x-1", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        (r"2\pi", r"\pi \cdot 2", True),
        (r"\pi", "3.14", False),
        ("x=5", "5", True),
        ("5", "x = 5", True),
        ("ab", "ba", True),
        (r"\log_2 8", "3", True),
        ("2x+1", "y=2x+1", True),
        (r"3 \times 10^8", "300000000", True),
        ("2+3i", "3i+2", True),
    ],
    "sets, tuples, intervals": [
        ("(1,2)", r"\left(1, 2\right)", True),
        ("(1,2)", "(2,1)", False),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"\{1,2\}", r"\{1,3\}", False),
        ("[0,1)", "[0, 1)", True),
        ("[0,1)", "[0,1]", False),
        ("2,3", "3,2", True),
        (r"[1,2] \cup [3,4]", r"[3,4] \cup [1,2]", True),
        (r"(-\infty,3]", r"(-\infty, 3]", True),
        (r"\emptyset", r"\varnothing", True),
        ("(1,2,3)", "(1,2)", False),
    ],
    "matrices": [(MATRIX, answer, True) for answer in MATRICES_RIGHT]
    + [(MATRIX, answer, False) for answer in MATRICES_WRONG[:6]],
    "units and marks": [("5", answer, True) for answer in UNITS_RIGHT]
    + [
        ("90", r"90^{\circ}", True),
        ("90", "90°", True),
        ("50", "50%", True),
        ("50%", r"50\%", True),
        ("90", "91°", False),
        ("50", "51%", False),
    ],
    "words": [
        (r"\text{even}", "even", True),
        (r"\text{yes}", "Yes", True),
        ("even", "odd", False),
        ("A", "B", False),
        (r"\text{A}", "A", True),
        ("Tuesday", r"\text{Tuesday}", True),
    ],
}
"""By kind: gold answer, another answer, and whether that is right."""
