"""What every form asks, and which replies it takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluation.judge import official
from harness.evaluation.judge.formats import FORMATS, wording
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.judge.sections import read_sections
from harness.types import Question


def make(**metadata: Any) -> Question:
    return Question(id="q", text="How many bars?", answer="7 bars", answer_type="text", metadata=metadata)


QUESTIONS = {
    "shared": make(),
    "mmvet": make(),
    "multichallenge": make(target_question="Does the reply rhyme?", pass_criteria="YES"),
    "mmvu": make(),
    "hle": make(),
    "charxiv": make(kind="reasoning", category=3),
}
HLE = '{"extracted_final_answer": "7", "reasoning": "Same.", "correct": "yes", "confidence": 90}'


def hle(**changes: Any) -> str:
    return json.dumps(json.loads(HLE) | changes)


def parts(form: str, question: Question, response: str = "The reply.", answer: str | None = "7") -> dict[str, str]:
    return read_sections(FORMATS[form].messages(question, response, answer)[1]["content"])


@pytest.mark.parametrize(
    ("form", "reply", "score"),
    [
        ("shared", '{"verdict": "correct"}', 1.0),
        ("shared", '{"verdict": "wrong"}', 0.0),
        ("shared", '\n {\n"verdict":"correct"}\t\r\n', 1.0),
        ("mmvet", "0.0", 0.0),
        ("mmvet", "0.4\n", 0.4),
        ("mmvet", " 1.0", 1.0),
        ("mmvet", "1", 1.0),
        ("mmvet", "0", 0.0),
        ("multichallenge", "YES", 1.0),
        ("multichallenge", " NO\n", 0.0),
        ("multichallenge", "It rhymes: NO is not to be said.\n\nYES", 1.0),
        ("multichallenge", "YES, one might think.\nBut no.\n NO ", 0.0),
        ("mmvu", '{"verdict": "correct"}', 1.0),
        ("mmvu", '{"verdict": "wrong"}', 0.0),
        ("hle", HLE, 1.0),
        ("hle", hle(correct="no"), 0.0),
        ("hle", hle(confidence=0), 1.0),
        ("hle", hle(confidence=100), 1.0),
        ("charxiv", '{"score": 1, "extracted_answer": "7"}', 1.0),
        ("charxiv", '{"extracted_answer": 7.5, "score": 0}', 0.0),
    ],
)
def test_replies_in_the_form_are_scores(form: str, reply: str, score: float) -> None:
    assert FORMATS[form].read(QUESTIONS[form], reply) == score


@pytest.mark.clause("C111")
@pytest.mark.parametrize(
    ("form", "reply"),
    [
        ("shared", ""),
        ("shared", "correct"),
        ("shared", '"correct"'),
        ("shared", '["verdict", "correct"]'),
        ("shared", '{"verdict": "Correct"}'),
        ("shared", '{"verdict": true}'),
        ("shared", '{"verdict": ["correct"]}'),
        ("shared", '{"Verdict": "correct"}'),
        ("shared", '{"verdict": "correct", "reason": "same"}'),
        ("shared", '{"verdict": "wrong", "verdict": "correct"}'),
        ("shared", '{"verdict": "correct"} {"verdict": "correct"}'),
        ("shared", 'Sure: {"verdict": "correct"}'),
        ("shared", '```json\n{"verdict": "correct"}\n```'),
        ("shared", '<think></think>{"verdict": "correct"}'),
        ("shared", '{"verdict": "correct"'),
        ("shared", "{'verdict': 'correct'}"),
        ("shared", '\u00a0{"verdict": "correct"}'),
        ("shared", "[" * 100_000),
        ("mmvet", "1.1"),
        ("mmvet", "-0.1"),
        ("mmvet", "2"),
        ("mmvet", "1.01"),
        ("mmvet", "0.5 because"),
        ("mmvet", "Score: 0.5"),
        ("mmvet", "0,5"),
        ("mmvet", "50%"),
        ("mmvet", "5e-1"),
        ("mmvet", "nan"),
        ("mmvet", "\u0661"),  # a digit one of another script
        ("multichallenge", "Yes"),
        ("multichallenge", "YES."),
        ("multichallenge", "YES NO"),
        ("multichallenge", ""),
        ("multichallenge", "YES\nIt rhymes."),
        ("multichallenge", "It rhymes. YES"),
        ("mmvu", '{"verdict": true}'),
        ("mmvu", '{"verdict": "Correct"}'),
        ("mmvu", '{"extracted_answer": "7", "correct": true}'),
        ("mmvu", '{"verdict": "correct", "extracted_answer": "7"}'),
        ("hle", hle(correct="Yes")),
        ("hle", hle(correct=True)),
        ("hle", hle(confidence=101)),
        ("hle", hle(confidence=-1)),
        ("hle", hle(confidence=90.0)),
        ("hle", hle(confidence="90")),
        ("hle", hle(confidence=True)),
        ("hle", hle(reasoning=None)),
        ("hle", hle(strict=True)),
        ("hle", '{"correct": "yes"}'),
        ("charxiv", '{"score": 2, "extracted_answer": "7"}'),
        ("charxiv", '{"score": 1.0, "extracted_answer": "7"}'),
        ("charxiv", '{"score": true, "extracted_answer": "7"}'),
        ("charxiv", '{"score": -1, "extracted_answer": "7"}'),
        ("charxiv", '{"score": 1, "extracted_answer": null}'),
        ("charxiv", '{"score": 1, "extracted_answer": NaN}'),
        ("charxiv", '{"score": 1, "extract_answer": "7"}'),
        ("charxiv", '{"score": 1}'),
    ],
)
def test_near_misses_are_malformed(form: str, reply: str) -> None:
    assert FORMATS[form].read(QUESTIONS[form], reply) is None


@given(st.sampled_from(sorted(FORMATS)), st.text() | st.from_regex(r'\{"?(verdict|score|correct)"?: ?.{0,9}\}'))
def test_garbage_is_no_score_but_where_it_is_in_the_form(form: str, reply: str) -> None:
    score = FORMATS[form].read(QUESTIONS[form], reply)
    if score is None:
        return
    if form == "mmvet":
        assert score == float(reply) and 0.0 <= score <= 1.0
    elif form == "multichallenge":
        assert reply.split()[-1] in ("YES", "NO")
    else:
        assert form in ("shared", "mmvu") and json.loads(reply)["verdict"] == ("correct" if score else "wrong")


@pytest.mark.parametrize(("reply", "pass_criteria", "score"), [("YES", "NO", 0.0), ("NO", "NO", 1.0)])
def test_multichallenge_scores_agreement_with_what_passes(reply: str, pass_criteria: str, score: float) -> None:
    question = make(target_question="?", pass_criteria=pass_criteria)
    assert FORMATS["multichallenge"].read(question, reply) == score


@pytest.mark.clause("C112", "C113")
def test_shared_shows_the_answer_where_there_is_one_and_else_the_response() -> None:
    asked = parts("shared", make(), "I think \\boxed{7}", "7")
    assert asked == {"question": "How many bars?", "reference": "7 bars", "answer": "7"}
    asked = parts("shared", make(), "seven, I think", None)
    assert asked == {"question": "How many bars?", "reference": "7 bars", "response": "seven, I think"}
    assert parts("shared", make(), "the box was empty", " ")["response"] == "the box was empty"


@pytest.mark.clause("C112")
def test_options_and_earlier_turns_are_parts() -> None:
    question = Question(
        id="q", text="And now?", answer="B", messages=({"role": "user", "content": "Hello"},),
        metadata={"choices": ["red", "blue"]},
    )  # fmt: skip
    asked = parts("shared", question)
    assert asked["options"] == "A. red\nB. blue"
    assert asked["conversation"] == "[user]\nHello"


@pytest.mark.clause("C112", "C113")
def test_the_shared_judge_compares_and_looks_inside_the_reasoning() -> None:
    system, _ = FORMATS["shared"].messages(make(), "seven, I think", None)
    assert system["role"] == "system"
    for rule in (
        "You compare; you do not solve.",
        "Take the reference to be right",
        "In a `response`, look for the final answer inside the reasoning too",
    ):
        assert rule in system["content"]


@pytest.mark.parametrize("form", ["hle", "mmvu"])
def test_these_are_judged_over_the_full_response(form: str) -> None:
    asked = parts(form, make(), "<think>8?</think> It is \\boxed{7}", "7")
    assert asked["response"] == "< think>8?< /think> It is \\boxed{7}"
    assert "answer" not in asked


def test_multichallenge_shows_the_reply_without_thoughts_and_never_what_passes() -> None:
    question = QUESTIONS["multichallenge"]
    asked = parts("multichallenge", question, "<think>secret</think>A poem.", "7")
    assert asked == {"criterion": "Does the reply rhyme?", "response": "A poem."}


def test_mmvu_has_two_branches() -> None:
    choice = FORMATS["mmvu"].messages(make(choices=["six", "seven"]), "r", None)[0]["content"]
    open_ended = FORMATS["mmvu"].messages(make(), "r", None)[0]["content"]
    assert choice == official.MMVU_CHOICE
    assert open_ended == official.MMVU_OPEN
    assert "the very technique or concept" in open_ended and "the very technique or concept" not in choice


def test_mmvet_uses_the_official_table_and_keeps_the_words_of_its_gold_answers() -> None:
    table = upstream_module("lmms_eval.tasks.mmvet.utils").MM_VET_PROMPT.strip()
    question = Question(id="q", text="x?", answer="-1<AND>-5<OR><b>six</b>")
    system, user = FORMATS["mmvet"].messages(question, "r", "x = -1")
    assert system["content"].startswith(table)
    assert read_sections(user["content"])["reference"] == "-1 <AND> -5 <OR> < b>six< /b>"


@pytest.mark.parametrize("category", [1, 2, 3, 4])
def test_charxiv_reasoning_rubrics_are_the_official_rules_without_their_open_end(category: int) -> None:
    rules = upstream_module("lmms_eval.tasks.charxiv.constant").REASONING_GRADING_INST[category]
    question = make(kind="reasoning", category=category)
    system = FORMATS["charxiv"].messages(question, "r", "7")[0]["content"]
    rubric = official.reasoning_rubric(category)
    assert rubric in system and rubric in rules
    assert "### Example 2 Ends ###" in rubric and "<|" not in rubric
    assert parts("charxiv", question)["question"] == "How many bars?"


@pytest.mark.parametrize("template", range(1, 20))
def test_charxiv_descriptive_templates_have_the_official_rubric_and_question(template: int) -> None:
    utils = upstream_module("lmms_eval.tasks.charxiv.descriptive_utils")
    question = make(kind="descriptive", template=template)
    system = FORMATS["charxiv"].messages(question, "r", "7")[0]["content"]
    rubric = official.descriptive_rubric(template)
    assert rubric.startswith("Rubric:") and "Example" not in rubric
    assert rubric in system and utils.get_rubric(template).strip().startswith(rubric)
    assert parts("charxiv", question)["question"] == utils.DESCRIPTIVE_GRADING_QMAP[template]


def test_charxiv_has_seven_groups_of_descriptive_rubrics() -> None:
    assert len({official.descriptive_rubric(template) for template in range(1, 20)}) == 7


def test_wording_changes_with_the_words_of_its_own_form_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: wording(name) for name in FORMATS}
    assert len(set(before.values())) == len(FORMATS)
    assert before == {name: wording(name) for name in FORMATS}
    monkeypatch.setattr(official, "MMVU_OPEN", official.MMVU_OPEN + " Be kind.")
    after = {name: wording(name) for name in FORMATS}
    assert {name for name in FORMATS if before[name] != after[name]} == {"mmvu"}
