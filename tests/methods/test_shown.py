"""Which numbers and formulas are read in a text, as literals."""

import time

import pytest

from methods.shown import shown_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Simplify; you will get 0.5 in the end.", ["0.5"]),
        ("The result is one half.", ["1/2"]),
        ("It equals twelve.", ["12"]),
        ("It is 1,200 in total.", ["1,200"]),
        ("Add 3, 4 and 5.", ["3", "4", "5"]),
        ("so $x = 0.5$, not twelve", ["x = 0.5", "0.5", "12"]),
        (r"take \(\frac{1}{2}\) of \sqrt{3}", [r"\frac{1}{2}", r"\sqrt{3}", "1", "2", "3"]),
        ("begin with 8+7, then 8-3=5.", ["8+7", "8-3=5", "8-3", "5", "8", "7", "3"]),
        ("x = -3", ["x = -3", "-3"]),
        ("two thirds of twenty-one, three hundred and five, two thousand six", ["2/3", "21", "305", "2006"]),
        ("half of it; five eighths", ["1/2", "5/8"]),
        ("one of the sides, the third one, a right-angled triangle", []),
        ("x15, version 1.2.3, 15th", []),
        ("4 / 8, 2^10, 1e3, 5 %", ["4 / 8", "2^10", "1e3", "5 %"]),
        (r"3 \times 10^4 in the end", [r"3 \times 10^4", "3", "10^4"]),
        (
            r"a circle of 2\pi, or n^{2} of \frac{ \sqrt{2} }{2}.",
            [
                r"2\pi",
                "n^{2}",
                r"\frac{ \sqrt{2} }{2}",
                r"\sqrt{2}",
                "2",
            ],
        ),
        ("they meet at (1, 2), not at {3}", ["(1, 2)", "{3}", "1", "2", "3"]),
        ("15cm of $5!$ and 8!", ["15cm", "5!", "5", "8!", "8"]),
        ("an open { brace $a{$ and nothing", []),
        ("", []),
    ],
)
def test_values(text, values):
    assert sorted(shown_values(text)) == sorted(values)


def test_long_texts_take_linear_time():
    """512 tokens are some thousand characters; a hint of digits, operators or braces must not stall a step."""
    for piece in ("1,", "1+", "{", "x^", "one ", "$", "\\frac", "(1", "1", "a", " ", "$1", "( 1, ", "2\\pi "):
        start = time.process_time()
        shown_values(piece * 4000)
        assert time.process_time() - start < 0.5, piece
