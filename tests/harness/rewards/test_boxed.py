"""`last_boxed` on a table, on generated braces, and on hostile text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rewards.boxed import ends_with_box, last_boxed

TABLE = [
    ("no box", None),
    ("", None),
    (r"so \boxed{5}.", "5"),
    (r"\boxed{}", ""),
    (r"\boxed { 5 }", "5"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{1} then \boxed{2", "1"),
    (r"\boxed{1 then \boxed{2}", "2"),
    (r"\boxed{1} then \boxed{2} then \boxed{3", "2"),
    (r"\boxed{a \boxed{b} c} then \boxed{3", "b"),
    (r"\boxed{2", None),
    (r"\boxed{\frac{1}{2}", None),
    (r"\boxed{1} and a \boxed word", "1"),
    (r"\boxed{a \boxed{b} c}", "b"),
    (r"{ \boxed{3}", "3"),
    (r"} \boxed{3} }", "3"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{a \\{b}}", r"a \\{b}"),
    (r'{"text": "\\boxed{4}"}', "4"),
    (r"\fbox{5}", None),
    ("\\boxed{two\nlines}", "two\nlines"),
]


@pytest.mark.clause("C048")
@pytest.mark.parametrize(("text", "content"), TABLE)
def test_table(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


balanced = st.recursive(
    st.text(alphabet="ab1 ", max_size=4),
    lambda inner: st.builds(lambda a, b, c: a + "{" + b + "}" + c, inner, inner, inner),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(balanced, min_size=1, max_size=3), st.text(alphabet="x} ", max_size=4))
def test_the_last_of_several_boxes_with_balanced_content_is_returned(contents: list[str], tail: str) -> None:
    text = " then ".join(f"\\boxed{{{content}}}" for content in contents)
    assert last_boxed(text + tail) == contents[-1].strip()


@settings(max_examples=50, deadline=None)
@given(balanced, st.text(alphabet="x{ ", max_size=6))
def test_an_unclosed_box_leaves_the_one_before(content: str, tail: str) -> None:
    assert last_boxed(f"\\boxed{{{content}}} \\boxed{{{tail}") == content.strip()


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{" * 200_000, None),
        ("\\boxed{" * 200_000 + "}" * 200_000, ""),
        ("\\boxed" + " " * 1_000_000, None),
        ("\\boxed" * 200_000, None),
        ("\\boxed{1}" + "{" * 1_000_000, "1"),
        ("\\boxed{1}" + "}" * 1_000_000, "1"),
        ("\\" * 1_000_000 + "boxed{1}", "1"),
    ],
)
def test_hostile_text_takes_linear_time(text: str, content: str | None) -> None:
    # A quadratic scan of 10^6 characters would not return within the time of a test run.
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("1+1=2\n\\boxed{2}", True),
        ("so $\\boxed{\\frac{1}{2}}$.", True),
        ("\\[ \\boxed{2} \\]\n", True),
        ("**\\boxed{2}**", True),
        ("\\boxed{2} is the answer", False),
        ("\\boxed{2}, since 1+1=2", False),
        ("\\boxed{1} then \\boxed{2}", True),
        ("\\boxed{2} then \\boxed{open", False),
        ("no box", False),
        ("", False),
    ],
)
def test_whether_the_box_is_last(text, ends):
    assert ends_with_box(text) is ends
