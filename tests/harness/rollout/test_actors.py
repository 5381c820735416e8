"""Streams, grading, rewriting and counters of the actors, over an engine that replies what it is told."""

import dataclasses
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.schema import ModelConfig, RolloutConfig
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.rollout.actors import LiveActors, between_tags
from harness.types import Prompt, Question, Rollout, RolloutGroup


@pytest.fixture(scope="module")
def chat():
    config = ModelConfig(name="tiny_xs", path="tiny:xs", dtype="float32")
    return Chat(load_tokenizer(config), config)


class Told:
    """An engine with given texts by uid; remembers the sampling options, can be made to wait or fail."""

    def __init__(self, sampler, texts, gate=None, error=None, late=False):
        self.sampler, self.texts, self.gate, self.error, self.asked = sampler, texts, gate, error, []
        self.context_window, self.takes_late_prompts = 10_000, late

    def generate(self, prompts, sampling):
        self.asked.append((threading.current_thread().name.split("_")[0], sampling))
        for prompt in reversed(prompts):  # groups may finish in any order
            if self.gate is not None:
                assert self.gate.wait(10)
            if self.error is not None:
                raise self.error
            texts = self.texts[prompt.uid][: sampling.num_rollouts]
            rollouts = [
                Rollout(
                    sampler=self.sampler, index=i, prompt_ids=[1, 2, 3], completion_ids=[4, 5],
                    rollout_logprobs=[-1.0, -1.0], text=text, finish_reason="stop",
                )
                for i, text in enumerate(texts)
            ]  # fmt: skip
            yield RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts)

    def load_weights(self, named_tensors):
        raise AssertionError("not part of these tests")

    def close(self):
        raise AssertionError("not part of these tests")


def prompt(uid, answer="2", reference=None):
    question = Question(id=uid, text=uid, answer=answer)
    return Prompt(uid=uid, question=question, messages=({"role": "user", "content": uid},), reference=reference)


@pytest.fixture
def make(chat, grader):
    def build(student, teacher=None, config=None):
        config = config or RolloutConfig()
        actors = LiveActors(student=student, teacher=teacher, chat=chat, grader=grader, config=config, seed=5)
        actors.begin(3)
        return actors

    return build


def test_single_answers_are_graded_by_the_rule(make):
    actors = make(Told("student", {}))
    half = Question(id="h", text="", answer=r"\frac{1}{2}")
    assert actors.are_right([(half, "0.5"), (half, "2"), (prompt("a").question, "4/2")]) == [True, False, True]


def test_a_whole_box_in_some_tokens(make, chat):
    actors = make(Told("student", {}))
    ids = chat.encode_text("so \\boxed{12} holds")
    assert actors.boxed(ids) == "12" and actors.boxed([]) is None
    cut = next(n for n in range(len(ids)) if actors.boxed(ids[:n]))
    assert chat.decode(ids[:cut]).endswith("}") and actors.boxed(ids[: cut - 1]) is None


@pytest.mark.clause("C001", "C047")
def test_groups_come_back_graded_in_the_order_of_the_prompts(make):
    student = Told("student", {"a": ["\\boxed{2}", "\\boxed{3}"], "b": ["no box", "\\boxed{2.0}"]})
    actors = make(student)
    stream = actors.student([prompt("a"), prompt("b")], 2)
    groups = stream.list()
    assert [g.uid for g in groups] == ["a", "b"]
    assert [[(r.answer, r.verdict, r.reward) for r in g.rollouts] for g in groups] == [
        [("2", "correct", 1.0), ("3", "wrong", 0.0)],
        [(None, "unparsable", 0.0), ("2.0", "correct", 1.0)],
    ]
    assert [g.uid for g in stream] == ["b", "a"] and stream.list() == groups  # may be read again
    _, sampling = student.asked[0]
    assert (sampling.num_rollouts, sampling.seed, sampling.step, sampling.temperature) == (2, 5, 3, 1.0)
    assert sampling.max_new_tokens == 12_288
    counts = actors.counts
    assert counts["tokens/student_generated"] == 8 and counts["tokens/student_prompt"] == 6


@pytest.mark.clause("C007", "C090", "C091")
def test_the_teacher_is_sampled_and_graded_as_the_student(make):
    texts = {"a": ["\\boxed{2}", "\\boxed{3}", "no box"]}
    student, teacher = Told("student", texts), Told("teacher", texts)
    actors = make(student, teacher)
    mine, theirs = actors.student([prompt("a")], 3).list(), actors.teacher([prompt("a")], 3).list()
    grades = [[(r.answer, r.verdict, r.reward) for r in group.rollouts] for group in (*mine, *theirs)]
    assert grades == [[("2", "correct", 1.0), ("3", "wrong", 0.0), (None, "unparsable", 0.0)]] * 2
    assert student.asked[0][1] == teacher.asked[0][1]
    sampling = dataclasses.asdict(student.asked[0][1])
    everything = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    assert {key: sampling[key] for key in everything} == everything


def test_both_models_have_started_before_either_is_waited_for(make):
    gate = threading.Event()
    student = Told("student", {"a": ["\\boxed{2}"]}, gate=gate)
    teacher = Told("teacher", {"a": ["\\boxed{2}"]})
    actors = make(student, teacher)
    slow = actors.student([prompt("a")], 1)
    assert actors.teacher([prompt("a")], 1).list()[0].rollouts[0].sampler == "teacher"
    gate.set()
    assert slow.list()[0].accuracy == 1.0
    assert [name for name, _ in student.asked + teacher.asked] == ["student", "teacher"]


def test_what_sampling_raises_reaches_the_method(make):
    with pytest.raises(UserError, match="context window"):
        make(Told("student", {}, error=UserError("context window"))).student([prompt("a")], 1).list()


@pytest.mark.clause("C030", "C033")
def test_rewrites_are_read_from_their_tags_and_compared(make, chat):
    long = " ".join(["1+1=2"] * 20)
    texts = {
        "same": ["<summary>1+1=2\n\\boxed{2}</summary>"],
        "other": ["<summary>\\boxed{3}</summary>"],
        "none": ["\\boxed{2}"],
        "no_box": ["<summary>1+1</summary>"],
        "long": [f"<summary>{long} \\boxed{{2}}</summary>"],
    }
    teacher = Told("teacher", texts)
    prompts = [prompt(uid, reference="so \\boxed{2}") for uid in ("same", "other", "none", "long")]
    prompts.append(prompt("no_box", reference="a trace without an answer"))
    rewrites = make(Told("student", {}), teacher).rewrite(prompts, tag="summary", max_tokens=30)
    assert [(r.uid, r.text[:6], r.answer, r.same_answer, r.truncated) for r in rewrites] == [
        ("same", "1+1=2\n", "2", True, False),
        ("other", "\\boxed", "3", False, False),
        ("none", "", None, False, False),
        ("long", "1+1=2 ", "2", True, True),
        ("no_box", "1+1", None, True, False),
    ]
    _, sampling = teacher.asked[0]
    assert (sampling.temperature, sampling.num_rollouts, sampling.max_new_tokens) == (0.0, 1, 46)


def test_a_teacher_that_thinks_has_a_budget_of_its_own(make):
    """The reply may have 200 tokens, the text between the tags 30: thinking does not count there."""
    thought = "<think>" + "1+1=2 " * 20 + "</think>"
    texts = {"short": [f"{thought}<summary>\\boxed{{2}}</summary>"]}
    texts["long"] = [f"{thought}<summary>{'1+1=2 ' * 20}\\boxed{{2}}</summary>"]
    teacher = Told("teacher", texts)
    prompts = [prompt(uid, reference="\\boxed{2}") for uid in texts]
    short, long = make(Told("student", {}), teacher).rewrite(prompts, tag="summary", max_tokens=30, budget=200)
    assert teacher.asked[0][1].max_new_tokens == 200
    assert (short.text, short.truncated, long.truncated) == ("\\boxed{2}", False, True)


def test_a_rewrite_says_whether_its_box_is_last(make):
    texts = {"last": ["<summary>1+1\n\\boxed{2}.</summary>"], "first": ["<summary>\\boxed{2}\n1+1=2</summary>"]}
    prompts = [prompt(uid, reference="\\boxed{2}") for uid in texts]
    rewrites = make(Told("student", {}), Told("teacher", texts)).rewrite(prompts, tag="summary", max_tokens=30)
    assert [(r.same_answer, r.ends_with_box) for r in rewrites] == [(True, True), (True, False)]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("<think>between <summary> and </summary></think><summary>real</summary>", "real"),
        ("I write <summary> and </summary>: <summary>real</summary>", "real"),
        ("<think>not closed <summary>real</summary>", "real"),
        ("<think><summary>draft</summary></think>nothing", ""),
    ],
)
def test_tags_that_the_teacher_only_talks_about_are_no_rewrite(make, reply, text):
    actors = make(Told("student", {}), Told("teacher", {"a": [reply]}))
    assert actors.rewrite([prompt("a", reference="x")], tag="summary", max_tokens=30)[0].text == text


def test_a_trace_over_the_teachers_window_counts_as_cut_off(make, chat):
    teacher = Told("teacher", {"a": ["<summary>\\boxed{2}</summary>"]})
    long = dataclasses.replace(prompt("b"), messages=({"role": "user", "content": "1" * 50},))
    teacher.context_window = 50
    actors = make(Told("student", {}), teacher)
    first, second = actors.rewrite([long, prompt("a", reference="\\boxed{2}")], tag="summary", max_tokens=30)
    assert (first.uid, first.text, first.same_answer, first.truncated) == ("b", "", False, True)
    assert (second.uid, second.answer, second.truncated) == ("a", "2", False)
    assert [group.uid for group in actors.rewritten] == ["a"]


def test_rewrites_are_kept_for_the_records(make):
    actors = make(Told("student", {}), Told("teacher", {"a": ["<summary>\\boxed{2}</summary>"]}))
    for sample in (False, True):
        actors.rewrite([prompt("a", reference="\\boxed{2}")], tag="summary", max_tokens=30, sample=sample)
    kept = [(g.uid, r.index, r.answer, r.reward, r.verdict) for g in actors.rewritten for r in g.rollouts]
    assert kept == [("a", 0, "2", 1.0, "correct"), ("a", 1, "2", 1.0, "correct")]
    actors.begin(4)
    assert actors.rewritten == []


def test_a_missing_teacher_is_named_with_its_remedy(make):
    with pytest.raises(UserError, match="set teacher=tiny_teacher"):
        make(Told("student", {})).teacher([prompt("a")], 1).list()


def test_demonstrations_end_like_a_reply(make, chat):
    group = make(Told("student", {})).demonstrate([prompt("a")], ["\\boxed{2}"])[0]
    rollout = group.rollouts[0]
    assert rollout.completion_ids == [*chat.encode_text("\\boxed{2}"), chat.end_id]
    assert rollout.prompt_ids == chat.pack(prompt("a")).ids
    assert (rollout.sampler, rollout.reward, rollout.answer) == ("teacher", 1.0, "2")


def test_a_prompt_fits_if_it_leaves_room_for_the_longest_reply(make, chat):
    """Replies of at most 6 tokens, a prefix among them."""
    student = Told("student", {})
    num_tokens = len(chat.pack(prompt("a")).ids)
    actors = make(student, config=RolloutConfig(max_response_tokens=6))

    def given(number):
        return dataclasses.replace(prompt("a"), prefix_ids=(4,) * number)

    def fits(spare, *numbers):
        student.context_window = num_tokens + spare
        return actors.fits([given(number) for number in numbers])

    assert fits(6, 0, 2, 5) == [True] * 3  # 2 given and 4 to come
    assert fits(5, 0, 2) == [False] * 2  # the old rule, one token, would take both
    assert fits(30, 0) == [True] and fits(0, 0) == [False]
    assert actors.fits([]) == [] and student.asked == []


def test_half_a_window_is_room_enough_where_a_reply_may_fill_it(make, chat):
    """Replies of 12,288 tokens (Table 8) and a window of 40: a prompt may have 20."""
    student = Told("student", {})
    student.context_window = 40
    spare = 20 - len(chat.pack(prompt("a")).ids)
    given = [dataclasses.replace(prompt("a"), prefix_ids=(4,) * number) for number in (spare, spare + 1)]
    assert make(student).fits(given) == [True, False]


@pytest.mark.clause("C046")
def test_a_candidate_prompt_may_be_longer_than_a_plain_one(make):
    """The limit of a plain prompt is 4,096 tokens; here the window is 24,000."""
    student = Told("student", {})
    student.context_window = 24_000
    long = dataclasses.replace(prompt("a"), kind="ncq", prefix_ids=(4,) * 5000)
    assert RolloutConfig().max_prompt_tokens < 5000
    assert make(student).fits([long]) == [True]


def test_it_is_the_students_window_that_counts(make, chat):
    student, teacher = Told("student", {}), Told("teacher", {})
    student.context_window, teacher.context_window = len(chat.pack(prompt("a")).ids), 10_000
    assert make(student, teacher).fits([prompt("a")]) == [False]


class Eager(Told):
    """Starts on each prompt as it comes."""

    def generate(self, prompts, sampling):
        for prompt in prompts:
            yield from super().generate([prompt], sampling)


def test_a_teacher_that_takes_late_prompts_starts_beside_the_student(make):
    """The student's second group waits until the teacher's first one is there."""
    first_of_the_teacher = threading.Event()

    class Waiting(Told):
        def generate(self, prompts, sampling):
            yield from super().generate(prompts[:1], sampling)
            assert first_of_the_teacher.wait(10)
            yield from super().generate(prompts[1:], sampling)

    student = Waiting("student", {"a": ["\\boxed{2}"], "b": ["\\boxed{3}"]})
    teacher = Eager("teacher", {"a": ["\\boxed{2}"], "b": ["\\boxed{2}"]}, late=True)
    actors = make(student, teacher)
    plain = actors.student([prompt("a"), prompt("b")], 1)
    theirs = actors.teacher((group.prompt for group in plain), 1)
    assert next(iter(theirs)).uid == "a"
    first_of_the_teacher.set()
    assert [g.uid for g in theirs.list()] == ["a", "b"] == [g.uid for g in plain.list()]


def test_any_other_engine_gets_the_whole_list(make):
    teacher = Told("teacher", {"a": ["\\boxed{2}"], "b": ["\\boxed{2}"]})
    actors = make(Told("student", teacher.texts), teacher)
    plain = actors.student([prompt("a"), prompt("b")], 1)
    theirs = actors.teacher((group.prompt for group in plain), 1)  # Told reads prompts backwards: it needs a list
    assert [g.uid for g in theirs] == ["a", "b"]  # the student's groups came as b, a
    assert actors.teacher(iter(()), 1).list() == []


def test_what_the_student_raises_reaches_who_waits_for_the_teacher(make):
    actors = make(Told("student", {}, error=UserError("context window")), Eager("teacher", {}, late=True))
    plain = actors.student([prompt("a")], 1)
    with pytest.raises(UserError, match="context window"):
        actors.teacher((group.prompt for group in plain), 1).list()


def test_the_clock_knows_who_was_at_work(make):
    gate = threading.Event()
    actors = make(Told("student", {"a": ["\\boxed{2}"]}, gate=gate))
    threading.Timer(0.2, gate.set).start()
    actors.student([prompt("a")], 1).list()
    row = actors.clock.finish()
    assert 0.15 < row["time/rollout"] == row["busy/rollout"] and row["busy/grade"] > 0
    assert sum(v for k, v in row.items() if k.startswith("time/") and k != "time/step") == pytest.approx(
        row["time/step"]
    )
    actors.begin(4)
    assert actors.clock.finish()["time/rollout"] == 0


@given(st.lists(st.sampled_from(["<hint>", "</hint>", "</think>", "<think>", "a", "<", "\n", " b "])).map("".join))
def test_the_last_pair_of_tags_is_that_of_the_pattern(text):
    """As a pattern says it, which is quadratic where tags are opened and never closed."""
    found = re.findall("<hint>(.*?)</hint>", text.rpartition("</think>")[2], re.DOTALL)
    assert between_tags(text, "hint") == (found[-1].strip() if found else "")
