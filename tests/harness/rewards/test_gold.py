from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rewards.boxed import last_boxed
from harness.rewards.gold import NoGold, short_gold
from harness.rewards.rules import gold_error, grade
from harness.types import Question

SOLUTIONS = [  # as MATH and GSM8K write them, with a reply in another form
    (r"The sum is $\frac{1}{2}+\frac{1}{3}=\boxed{\frac{5}{6}}$.", r"\dfrac56"),
    (r"Since $x>0$, we get $x = \boxed{2\sqrt{3}}$ units.", r"2\sqrt3"),
    (r"First $\boxed{1}$ is tried, then the area is \[\boxed{12\pi}.\]", r"12 \pi"),
    (r"The interval is $\boxed{[0, 3)}$.", "[0,3)"),
    (r"Thus the point is $\boxed{(3,-2)}$", "(3, -2)"),
    (r"Hence the day is $\boxed{\text{Tuesday}}$.", r"\text{Tuesday}"),
    (r"There are \fbox{1,024} of them", "1024"),
    (r"The answer is \boxed 7.", "7"),
    ("He has 3+4=<<3+4=7>>7 pens.\n#### 7", "7"),
    ("She pays $1,234.\n####  1,234 ", "1234"),
    (r"so $\boxed{y = 2x + 1}$", "2x+1=y"),
    ("7 pens", "7"), ("7 pens", r"7 \text{ pens}"), ("The answer is 7.", "7"), ("$x=7$", "7"),
]  # fmt: skip


@pytest.mark.parametrize("grader", ["math_verify", "mathruler"])
def test_right_replies_to_solutions_are_right(grader: str) -> None:
    """Of 100 right replies at least 99 are rewarded; these are 15, so all of them."""
    said = []
    for text, answer in SOLUTIONS:
        question = Question(id="q", text="", answer=short_gold(text, "math"))
        assert gold_error(question, grader) is None, text
        said.append(grade(rf"So \boxed{{{answer}}}", question, grader).verdict)
    others = {"mathruler": {10}}  # it solves no equation for its other side
    assert [i for i, verdict in enumerate(said) if verdict != "correct" and i not in others.get(grader, ())] == []


@pytest.mark.parametrize("text", ["proof", "notfound", "not found", "Not provided", "Evelyn"])
def test_a_word_is_no_mathematical_gold(text: str) -> None:
    with pytest.raises(NoGold, match="is a word, no mathematics"):
        short_gold(text, "math")
    assert short_gold(text, "text") == text


@pytest.mark.parametrize("text", ["yes", "even", "abc", r"\text{Evelyn}", r"\pi", "2ab"])
def test_short_words_and_names_stay(text: str) -> None:
    assert short_gold(text, "math") == text


def test_a_pattern_takes_its_last_match() -> None:
    text = "Answer: 3. No. Answer: 4."
    assert short_gold(text, "text", r"Answer: (\d+)") == "4"
    with pytest.raises(NoGold, match=r"nothing that data\.answer_pattern matches"):
        short_gold("four", "text", r"Answer: (\d+)")


def test_headings_and_open_boxes() -> None:
    assert short_gold("#### Step one\nthen 7", "text") == "#### Step one\nthen 7"
    with pytest.raises(NoGold, match="has no complete box"):
        short_gold(r"so \boxed{7", "math")


@pytest.mark.parametrize("gold", ["x}", "{x", r"\{1,2", "7 sheep"])
def test_a_gold_that_no_box_can_hold_is_refused(gold: str) -> None:
    assert gold_error(Question(id="q", text="", answer=gold), "math_verify") is not None


@settings(max_examples=10, deadline=None)
@given(
    st.text(r"0123456789+-*/{}()[]\,.=xyab $^_%", min_size=1, max_size=12),
    st.sampled_from(["math_verify", "mathruler"]),
)
def test_an_accepted_gold_is_matched_by_its_own_box(text: str, grader: str) -> None:
    try:
        gold = short_gold(text, "math")
    except NoGold:
        return
    question = Question(id="q", text="", answer=gold)
    if gold_error(question, grader) is None:
        assert grade(rf"\boxed{{{gold}}}", question, grader).verdict == "correct"
        assert last_boxed(rf"\boxed{{{gold}}}") == gold.strip()


def test_any_of_several_golds_is_right() -> None:
    question = Question(id="q", text="", answer="7", other_answers=("1/2",))
    said = [grade(rf"\boxed{{{answer}}}", question, "math_verify").verdict for answer in ("7", "0.5", "8")]
    assert said == ["correct", "correct", "wrong"]
    both = Question(id="q", text="", answer="7", other_answers=("all even integers",))
    assert "is words" in (gold_error(both, "math_verify") or "")
