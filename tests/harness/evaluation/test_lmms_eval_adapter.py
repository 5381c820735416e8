from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from harness.config.schema import EvalConfig
from harness.data.bars import BarClip, BarImage
from harness.evaluation.library.isolation import quiet_lmms_eval
from harness.evaluation.student import Respondent
from harness.evaluation.suites import Benchmark, load_suite
from harness.types import Prompt, Question

MakeEngine = Callable[..., Any]
CLIP = BarClip((4, 4, 1, 4), (0, 0))
CARDS = (BarImage((8,), (1, 2)), BarImage((5,), (1, 2)))
TURNS = ({"role": "user", "content": "Look: <image>"}, {"role": "assistant", "content": "Yes."})
BOTH = Question(id="both", text="Add <image> and <video>.", answer="50", messages=TURNS, images=CARDS, video=CLIP)


@pytest.fixture(scope="module")
def adapter() -> Iterator[Any]:
    with quiet_lmms_eval():
        from harness.evaluation import lmms_eval_adapter

        yield lmms_eval_adapter


def asked(adapter: Any, student: Respondent, task: Any) -> list[str]:
    """The texts that lmms-eval would get for a task."""
    model = adapter.StudentLMM(student)
    model.task_dict[task.config.task] = task.dataset
    task.build_all_requests()
    return model.generate_until(task.instances)


@pytest.fixture
def media_config(two_levels: EvalConfig) -> EvalConfig:
    return replace(two_levels, tasks=["bar_cards", "bar_clip"], levels=[2])


def test_messages_carry_the_references_themselves(adapter: Any) -> None:
    first, reply, last = adapter.chat_messages(BOTH)
    assert first == {"role": "user", "content": [{"type": "text", "text": "Look: <image>"}]}
    assert reply == {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    *media, text = last["content"]
    assert [(item["type"], item["url"]) for item in media] == [
        ("image", CARDS[0]),
        ("image", CARDS[1]),
        ("video", CLIP),
    ]
    assert media[0]["url"] is CARDS[0] and media[2]["url"] is CLIP
    assert text["text"].startswith("Add <image> and <video>.\n")


def test_texts_come_back_in_the_order_of_the_requests(
    student_of: Any, adapter: Any, media_config: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    _, clips = benchmarks = load_suite(media_config).benchmarks
    student = student_of(make_engine(), grader, media_config, benchmarks)
    texts = asked(adapter, student, adapter.MediaBenchmarkTask(clips, student))
    golds = [q.answer for q in clips.questions]
    assert texts == [
        f"<think> ok </think> \\boxed{{{golds[0]}}}",
        "<think> no </think> \\boxed{7000}",
        "<think> so 12 + 9 =",
        f"it is {golds[3]}",
    ]
    assert list(student.responses) == [f"eval/bar_clip_l2/{i}" for i in range(4)]


def test_what_is_scored_is_what_was_said_white_space_and_all(
    student_of: Any, adapter: Any, two_levels: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    def script(prompt: Prompt) -> tuple[str, str]:
        return f"\n  \\boxed{{{prompt.question.answer}}}  \n", "stop"

    benchmark = Benchmark(
        name="own", family="Video", library="lmms_eval", questions=(BOTH, replace(BOTH, id="again", video=None))
    )
    engine = make_engine(script)
    student = student_of(engine, grader, two_levels, [benchmark])
    assert adapter.run_benchmarks([benchmark], student) == {"own": 1.0}
    [(prompts, _)] = engine.calls
    assert [p.question for p in prompts] == list(benchmark.questions)
    assert prompts[0].question.video is CLIP
    assert student.responses["eval/own/0"].sample.response == "\n  \\boxed{50}  \n"


def test_a_failing_score_is_not_tried_again(
    student_of: Any,
    adapter: Any,
    media_config: EvalConfig,
    make_engine: MakeEngine,
    grader: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    benchmarks = load_suite(media_config).benchmarks
    student = student_of(make_engine(), grader, media_config, benchmarks)
    calls = []

    def score(uid: str, results: list[str]) -> dict[str, float]:
        calls.append(uid)
        raise AssertionError("another text")

    monkeypatch.setattr(student, "score", score)
    with pytest.raises(AssertionError, match="another text"):
        adapter.run_benchmarks(benchmarks, student)
    assert calls == ["eval/bar_cards_l2/0"]


def test_a_task_cannot_bring_its_own_decoding(
    student_of: Any, adapter: Any, media_config: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    benchmarks = load_suite(media_config).benchmarks
    other = student_of(make_engine(), grader, replace(media_config, max_response_tokens=32), benchmarks)
    student = student_of(make_engine(), grader, media_config, benchmarks)
    with pytest.raises(AssertionError, match="bar_cards_l2 wants other decoding"):
        asked(adapter, student, adapter.MediaBenchmarkTask(benchmarks[0], other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "Add nothing."}, "own changed the wording"),
        ({"images": CARDS[::-1]}, "own changed the images"),
        ({"images": CARDS[:1]}, "own changed the images"),
        ({"video": None}, "own changed the video"),
        ({"video": BarClip((4, 4, 4, 1), (0, 0))}, "own changed the video"),
    ],
)
def test_a_task_cannot_change_a_question(
    student_of: Any,
    change: dict[str, Any],
    message: str,
    adapter: Any,
    two_levels: EvalConfig,
    make_engine: MakeEngine,
    grader: Any,
) -> None:
    right = Benchmark(name="own", family="Video", library="lmms_eval", questions=(BOTH,))
    wrong = replace(right, questions=(replace(BOTH, **change),))
    task = adapter.MediaBenchmarkTask(wrong, student_of(make_engine(), grader, two_levels, [wrong]))
    with pytest.raises(AssertionError, match=message):
        asked(adapter, student_of(make_engine(), grader, two_levels, [right]), task)


def test_other_ways_of_scoring_are_refused_with_the_reason(
    student_of: Any, adapter: Any, two_levels: EvalConfig, make_engine: MakeEngine, grader: Any
) -> None:
    model = adapter.StudentLMM(student_of(make_engine(), grader, two_levels, []))
    with pytest.raises(NotImplementedError, match="scores generated answers only"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="asks each question once"):
        model.generate_until_multi_round([])
