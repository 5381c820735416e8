"""We-Math: questions, the score over composite problems, and the library's faults beside it."""

import random
from pathlib import Path

import datasets
import pytest

from harness.config.evaluation import BenchmarkOptions
from harness.errors import UserError
from harness.evaluation.benchmarks.recipe import row_mean
from harness.evaluation.benchmarks.registry import recipe
from harness.evaluation.benchmarks.visual_maths import composite_score
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import grade
from harness.types import Question

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"


def docs_of(repository, split, config=None):
    return list(datasets.load_dataset(str(FIXTURES / repository), config, split=split))


def mark(name, question, answer):
    return recipe(name).scorer(question, grade(f"So it is \\boxed{{{answer}}}", question, "math_verify"))


def result(marked):
    return marked.score, marked.outcome


def test_wemath_questions(questions_of):
    side, spaced, _, _, broken, *_ = questions_of("wemath")
    assert side.text == "The side of the square is ( ) cm.\nA. 2 cm\nB. 3 cm\nC. 4 cm\nD. No correct answer"
    assert spaced.metadata["choices"] == ["9", "12", "15", "No correct answer"]
    assert side.metadata | {"choices": []} == {"choices": [], "problem": "2steps/2steps_1", "steps": 2, "step": "1"}
    assert "choices" not in broken.metadata and "A. Angle ∠AB;E.; B." in broken.text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("B", (1.0, "match")), ("B. C", (1.0, "match")), ("C", (0.0, "other_option")), ("point C", (0.0, "mismatch"))],
)
def test_wemath_letter_of_an_option_counts_before_its_text(questions_of, answer, expected):
    """The options of that question are `A. B; B. C; C. D; D. E`."""
    assert result(mark("wemath", questions_of("wemath")[3], answer)) == expected


def composite(problem, steps, whole):
    """The scored questions of one composite problem."""
    named = [*((str(i), right) for i, right in enumerate(steps, 1)), ("multi", whole)]
    return [
        (
            Question(
                id=f"{problem}/{step}",
                text="",
                answer="A",
                metadata={"problem": f"{len(steps)}steps/{problem}", "steps": len(steps), "step": step},
            ),
            float(right),
        )
        for step, right in named
    ]


@pytest.mark.parametrize(
    ("steps", "whole", "strict", "loose"),
    [
        ((1, 1), 1, 1.0, 1.0),  # complete mastery
        ((1, 0), 1, 0.0, 1.0),  # rote memorisation, but mastery in the loose count
        ((0, 0), 1, 0.0, 0.0),  # rote memorisation
        ((1, 1), 0, 0.5, 0.5),  # inadequate generalisation
        ((1, 0), 0, 0.0, 0.0),  # insufficient knowledge
        ((1, 1, 1), 1, 1.0, 1.0),
        ((0, 0, 1), 1, 0.0, 1.0),
        ((1, 1, 1), 0, 0.5, 0.5),
        ((1, 1, 0), 0, 0.0, 0.0),
    ],
)
def test_wemath_four_ways(steps, whole, strict, loose):
    scored = composite("p", steps, whole)
    assert composite_score(scored, strict=True).mean == strict
    assert composite_score(scored, strict=False).mean == loose


def test_wemath_error_is_over_composite_problems():
    """Values 1, 0.5, 0 and 0: mean 0.375, variance (0.390625 + 0.015625 + 2 * 0.140625) / 4 = 0.171875."""
    cases = [((1, 1), 1), ((1, 1, 1), 0), ((0, 1), 0), ((0, 0, 0), 1)]
    scored = [pair for i, case in enumerate(cases) for pair in composite(str(i), *case)]
    estimate = composite_score(scored, strict=True)
    assert estimate.mean == 0.375 and estimate.stderr == pytest.approx((0.171875 / 4) ** 0.5)


def test_wemath_counts_complete_problems_only():
    whole, part = composite("a", (1, 1), 1), composite("b", (1, 1), 0)[1:]
    assert composite_score(whole + part, strict=True).mean == 1.0
    with pytest.raises(UserError, match=r"eval\.options\.wemath=accuracy"):
        composite_score(part, strict=True)


def test_wemath_options_choose_the_score(questions_of):
    """Of the two-step problem the first step is wrong, of the three-step problem only the whole is."""
    scored = [(q, float(i not in (0, 6))) for i, q in enumerate(questions_of("wemath"))]
    means = {
        name: recipe("wemath").aggregate(BenchmarkOptions(wemath=name))(scored).mean
        for name in ("accuracy", "strict", "loose")
    }
    assert means == {"accuracy": pytest.approx(5 / 7), "strict": 0.25, "loose": 0.75}


def library_results(scored):
    return [
        {
            "ID": q.metadata["problem"],
            "key": f"{q.metadata['steps']}steps_{q.metadata['step']}",
            "acc_score": score,
        }
        for q, score in scored
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_wemath_agrees_with_the_library_on_the_whole_benchmark(seed):
    utils = upstream_module("lmms_eval.tasks.wemath.reasoning.utils")
    draw = random.Random(seed)
    sizes = [2] * 360 + [3] * 165
    scored = [
        pair
        for i, size in enumerate(sizes)
        for pair in composite(str(i), [draw.random() < 0.7 for _ in range(size)], draw.random() < 0.6)
    ]
    results = library_results(scored)
    assert utils.wemath_aggregate_results_strict(results) == f"{composite_score(scored, strict=True).mean:.2%}"
    assert utils.wemath_aggregate_results_loose(results) == f"{composite_score(scored, strict=False).mean:.2%}"


def test_wemath_library_counts_525_problems_whatever_there_are():
    utils = upstream_module("lmms_eval.tasks.wemath.reasoning.utils")
    scored = composite("a", (1, 1), 1) + composite("b", (0, 0), 0) + composite("c", (1, 1, 1), 0)
    assert utils.wemath_aggregate_results_strict(library_results(scored)) == "99.71%"  # 523.5 / 525
    assert composite_score(scored, strict=True).mean == 0.5


def test_wemath_library_breaks_where_no_whole_problem_is_right():
    utils = upstream_module("lmms_eval.tasks.wemath.reasoning.utils")
    scored = composite("a", (0, 0), 0) + composite("b", (0, 0, 0), 0)
    with pytest.raises(ZeroDivisionError):
        utils.wemath_aggregate_results_strict(library_results(scored))
    assert composite_score(scored, strict=True).mean == 0.0 == row_mean(scored).mean


def test_wemath_rows_pass_the_library():
    utils = upstream_module("lmms_eval.tasks.wemath.reasoning.utils")
    results = []
    for doc in docs_of("We-Math/We-Math", "testmini"):
        assert utils.wemath_doc_to_text_cot(doc) == f"{doc['question']}\n{doc['option']}"
        assert utils.wemath_doc_to_visual(doc)[0].size == (64, 64)
        reply = f"<think>so</think><answer>{doc['answer']}</answer>"
        results.append(utils.wemath_reasoning_process_results(doc, [reply])["wemath_strict"])
    assert [result["acc_score"] for result in results] == [1.0] * 7
    assert utils.wemath_aggregate_results_strict(results) == "100.00%"
