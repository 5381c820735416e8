"""What holds for each of the 31 columns, on its fixture."""

import json
import re

import pytest

from harness.evaluation.benchmarks.columns import columns, suite_columns
from harness.evaluation.benchmarks.registry import recipe, recipes
from harness.rewards.rules import gold_error
from methods.prompts import CLOSING, plain_messages

NAMES = list(columns())
DIRECTIVES = re.compile(
    r"answer with|option'?s? letter|letter from the given|respond with|only give|directly|\\boxed|step by step|"
    r"single word or phrase|answer the question using|final answer|put your|best option|<answer>|in the format|"
    r"curly bracket|请",
    re.IGNORECASE,
)


def wrong_box(question):
    """Something in a box that is no right answer of the question: another option, another number, other words."""
    if question.answer_type == "choice":
        return next(letter for letter in "ABCDEFGHIJ" if letter != question.answer)
    return "271828.5" if question.answer_type == "math" else "no such thing at all"


PAPER = """
AI2D VLM exact_judge lmms-lab/ai2d
BabyV VLM exact_judge UnipatAI/BabyVision
CharXiv VLM bench_judge princeton-nlp/CharXiv
DynaM VLM exact_judge DynaMath/DynaMath_Sample
EmbSp VLM exact_judge FlagEval/EmbSpatial-Bench
InfoVQA VLM det lmms-lab/DocVQA InfographicVQA
MVerse VLM exact_judge CaraJ/MathVerse-lmmseval testmini
MVision VLM exact_judge MathLLMs/MathVision
MVista VLM rule_judge AI4Math/MathVista testmini
MMMUPro VLM exact_judge MMMU/MMMU_Pro
MM-Vet VLM bench_judge lmms-lab/MMVet
OCREN VLM det ling99/OCRBench_v2
OCRZH VLM det ling99/OCRBench_v2
VisP VLM exact_judge neulab/VisualPuzzles
VBlind VLM exact_judge XAI/vlmsareblind
WeMath VLM exact_judge We-Math/We-Math testmini
AIME25 LLM exact_judge opencompass/AIME2025 AIME2025-I AIME2025-II
AIME26 LLM exact_judge MathArena/aime_2026
CEval LLM exact_judge ceval/ceval-exam val
GPQA-D LLM exact_judge Idavidrein/gpqa gpqa_diamond
HLE LLM bench_judge cais/hle
IMO-AB LLM exact_judge OpenEvals/IMO-AnswerBench
MMLU LLM exact_judge cais/mmlu all test
MMLU-Pro LLM exact_judge TIGER-Lab/MMLU-Pro
MMLU-Rd LLM exact_judge edinburgh-dawg/mmlu-redux-2.0 *
MultiCh LLM bench_judge ScaleAI/MultiChallenge
MMVU Video bench_judge yale-nlp/MMVU validation
MVBench Video rule_judge OpenGVLab/MVBench *
VMME Video rule_judge lmms-lab/Video-MME
VMMES Video rule_judge lmms-lab/Video-MME
VMMMU Video rule_judge lmms-lab/VideoMMMU
"""
"""Tables 5 to 7: heading, family, scoring and source, then the configurations and splits that they name."""


@pytest.mark.clause("C104", "C107")
def test_sources_and_scoring_are_those_of_the_paper():
    printed = [line.split() for line in PAPER.split("\n") if line]
    known = list(columns().values())
    assert [[c.label, c.family, c.scoring, c.repository] for c in known] == [words[:4] for words in printed]
    for column, words in zip(known, printed, strict=True):
        assert {*column.configs, *column.splits} >= set(words[4:])
    assert columns()["mmmu_pro"].configs == ("standard (4 options)", "standard (10 options)", "vision")


@pytest.mark.clause("C104")
def test_there_are_the_columns_of_the_paper():
    assert len(columns()) == 31 and recipes().keys() == columns().keys()
    sizes = {suite: len(members) for suite, members in suite_columns().items()}
    assert sizes == {"paper31": 31, "llm10": 10, "vlm16": 16, "video5": 5}


@pytest.mark.clause("C045", "C106")
@pytest.mark.parametrize("name", NAMES)
def test_questions_are_complete(name, questions_of):
    questions = questions_of(name)
    assert len(questions) >= 2 and len({q.id for q in questions}) == len(questions)
    family = columns()[name].family
    for question in questions:
        json.dumps(question.metadata)
        assert question.answer and question.text == question.text.strip()
        assert (question.video is not None) == (family == "Video")
        if family != "Video":  # VideoMMMU has questions with a picture beside the clip
            assert bool(question.images) == (family == "VLM")
        if question.answer_type != "text":
            assert gold_error(question, "math_verify") is None
        for image in question.images:
            assert image.open().mode == "RGB"
        text = "\n".join(message["content"] for message in plain_messages(question))
        assert text.count(CLOSING) == 1
        assert not DIRECTIVES.search(question.text), question.text


@pytest.mark.parametrize("name", [name for name in NAMES if columns()[name].scoring != "bench_judge"])
def test_gold_in_the_box_scores_one_and_nothing_else_does(name, questions_of, grader):
    questions = questions_of(name)
    for answer_of, expected in ((lambda q: q.answer, 1.0), (wrong_box, 0.0), (lambda q: None, 0.0)):
        boxes = [answer_of(q) for q in questions]
        replies = ["" if box is None else f"<think>Hm, A or (B)?</think>It is \\boxed{{{box}}}" for box in boxes]
        grades = grader.grade(list(zip(replies, questions, strict=True)))
        marks = [recipe(name).scorer(q, grade) for q, grade in zip(questions, grades, strict=True)]
        assert [mark.score for mark in marks] == [expected] * len(marks)
        outcomes = {mark.outcome for mark in marks}
        assert outcomes <= ({"match"} if expected else {"unparsed"} if None in boxes else {"other_option", "mismatch"})


@pytest.mark.clause("C107")
@pytest.mark.parametrize("name", NAMES)
def test_who_judges_follows_from_the_scoring_class(name):
    scoring, judge = columns()[name].scoring, recipe(name).judge
    assert (judge is None) == (scoring == "det")
    assert (judge == "shared") == (scoring in ("rule_judge", "exact_judge"))
