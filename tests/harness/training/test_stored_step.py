"""What a step sampled, written and read back: the same records, the same graph of objects, or a reason why not."""

import copy
import dataclasses
import math
import random

import pytest
import torch

from harness.data.bars import chart_question, draw_bars
from harness.training import checkpoint
from harness.training.stored_step import SampledStep, StoredSteps, Unusable, code_digest
from harness.types import MediaLimits, Prompt, Question, Rollout, RolloutGroup
from methods import registry
from methods.base import plain_prompt
from methods.grpo import GRPO


def picture(seed: int) -> Question:
    rng = random.Random(seed)
    return chart_question(rng, draw_bars(rng, 1, "train"), MediaLimits())


@pytest.fixture(scope="module")
def questions() -> dict[str, Question]:
    text = Question(
        id="t", text="2+2?", answer="4", answer_type="choice", messages=({"role": "user", "content": "Hi"},),
        metadata={"choices": ["3", "4"]},
    )  # fmt: skip
    return {"t": text, "p": dataclasses.replace(picture(0), id="p")}


def rollout(index: int, logprobs: list, **values) -> Rollout:
    return Rollout(
        sampler="student", index=index, prompt_ids=[5, 6, 7], completion_ids=list(range(len(logprobs))),
        rollout_logprobs=logprobs, text=f"é{index} \\boxed{{4}}", finish_reason="stop", **values,
    )  # fmt: skip


@pytest.fixture
def sampled(chat, questions) -> SampledStep:
    """A teacher's rollout that joined the student's group, a rewrite, a picture, and numbers of every kind."""
    text, shown = questions.values()
    exact = float(torch.tensor(-1.2345678))
    teacher = dataclasses.replace(rollout(0, [-0.5, math.nan]), sampler="teacher", answer=None, verdict="unparsable")
    odd = rollout(0, [0.0, exact, None], num_prefix=1, reward=1.0, training_reward=math.inf, answer="4")
    student = RolloutGroup(uid="t/plain", prompt=plain_prompt(text), rollouts=[odd, rollout(1, [-2.0]), teacher])
    theirs = RolloutGroup(uid="t/teacher", prompt=plain_prompt(text), rollouts=[teacher], replayed=True)
    prompt = plain_prompt(shown)
    packed = chat.pack(prompt)
    seen = dataclasses.replace(rollout(0, [-1.0]), prompt_ids=packed.ids, media=packed.media)
    bcq = Prompt(
        uid="t/bcq", question=text, messages=({"role": "user", "content": "Which?"},), kind="bcq", prefix_ids=(3, 4),
        reference="r", positive_answer="4", positive_position=1, negative_answers=("3", "5"),
    )  # fmt: skip
    stripped = dataclasses.replace(text, text="", answer="", messages=(), metadata={}, limits=MediaLimits(fps=2.0))
    rewrite = Prompt(uid="t/compress", question=stripped, messages=bcq.messages, kind="compress", reference="x")
    return SampledStep(
        groups=[
            student,
            theirs,
            RolloutGroup(uid="p/plain", prompt=prompt, rollouts=[seen]),
            RolloutGroup(uid="t/bcq", prompt=bcq, rollouts=[rollout(0, [0.0, 0.0, -3.0], num_prefix=2)]),
        ],
        rewritten=[RolloutGroup(uid="t/compress", prompt=rewrite, rollouts=[rollout(1, [])])],
        counts={"tokens/student_generated": 3.0, "reward/judged": 1.0},
        num_replayed=1,
        sampler={"epoch": 0, "position": 4, "fingerprint": "f"},
        rng=checkpoint.rng_state(),
    )


@pytest.fixture
def stored(tmp_path, chat, questions) -> StoredSteps:
    return StoredSteps(tmp_path / "pending", identity="a", questions=questions, chat=chat)


def values(step: SampledStep) -> str:
    """Everything but tensors, as text: there NaN equals NaN; of media their digests."""
    plain = copy.copy(step)
    plain.rng = step.rng["python"]
    for group in (*step.groups, *step.rewritten):
        for item in group.rollouts:
            item.media = None if item.media is None else item.media.digest
    return repr(plain)


def test_a_step_comes_back_with_its_shared_objects(stored, sampled, questions):
    stored.write(7, sampled)
    back = stored.read(7)
    student, theirs = back.groups[:2]
    assert student.rollouts[2] is theirs.rollouts[0]
    assert student.prompt.question is questions["t"]
    assert back.rng["torch"].keys() == sampled.rng["torch"].keys()
    assert all(torch.equal(back.rng["torch"][k], sampled.rng["torch"][k]) for k in back.rng["torch"])
    assert back.groups[2].rollouts[0].media.inputs().digest == sampled.groups[2].rollouts[0].media.digest
    assert values(back) == values(sampled)


def test_numbers_that_fp32_does_not_hold_stay(stored, sampled):
    sampled.groups[0].rollouts[0].rollout_logprobs[1] = -0.1
    stored.write(1, sampled)
    assert stored.read(1).groups[0].rollouts[0].rollout_logprobs == [0.0, -0.1, None]


def test_what_cannot_be_used_is_named(stored, sampled, tmp_path, chat, questions):
    with pytest.raises(Unusable, match=r"step-000007\.safetensors is missing"):
        stored.read(7)
    stored.write(7, sampled)
    other = StoredSteps(tmp_path / "pending", identity="b", questions=questions, chat=chat)
    with pytest.raises(Unusable, match="another configuration or other code"):
        other.read(7)
    fewer = StoredSteps(tmp_path / "pending", identity="a", questions={}, chat=chat)
    with pytest.raises(Unusable, match="question t is not one of the run"):
        fewer.read(7)
    path = tmp_path / "pending" / "step-000007.safetensors"
    path.rename(path.with_name("step-000008.safetensors"))
    with pytest.raises(Unusable, match="another configuration"):
        stored.read(8)


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_damage_is_found(stored, sampled, tmp_path, harm):
    stored.write(1, sampled)
    path = tmp_path / "pending" / "step-000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content if harm == "flipped" else content[:-3])
    with pytest.raises(Unusable, match="is not what was written" if harm == "flipped" else "cannot be read"):
        stored.read(1)


def test_a_picture_that_has_changed(stored, sampled, chat, questions, tmp_path):
    stored.write(1, sampled)
    changed = {**questions, "p": dataclasses.replace(questions["p"], images=picture(1).images)}
    with pytest.raises(Unusable, match=r"the images or the video of question .* have changed"):
        StoredSteps(tmp_path / "pending", identity="a", questions=changed, chat=chat).read(1)


def test_a_step_on_foreign_pictures_is_left_out_with_a_warning(stored, sampled, questions, caplog, tmp_path):
    prompt = sampled.groups[0].prompt
    foreign = dataclasses.replace(prompt.question, images=questions["p"].images)
    sampled.groups[0].prompt = dataclasses.replace(prompt, question=foreign)
    stored.write(1, sampled)
    assert "step 1 cannot be stored: images of question t are not those of the run" in caplog.text
    assert stored.steps_after(0) == []


def test_steps_follow_a_checkpoint_without_a_gap(stored, sampled, tmp_path):
    for step in (3, 4, 6):
        stored.write(step, sampled)
    (tmp_path / "pending" / "step-000007.tmp").write_bytes(b"half")
    assert stored.steps_after(2) == [3, 4] and stored.steps_after(4) == [] and stored.steps_after(1) == []
    stored.keep_only([3, 4])
    assert sorted(p.name[5:11] for p in (tmp_path / "pending").iterdir()) == ["000003", "000004"]
    stored.keep_only([])
    assert not (tmp_path / "pending").exists()


def test_the_code_of_a_method_is_part_of_the_identity(tmp_path, monkeypatch):
    own = registry.build({"name": "grpo", "class": "grpo"})
    assert code_digest(own) == code_digest(GRPO(GRPO.Config()))
    (tmp_path / "one.py").write_text("from methods.grpo import GRPO\n\nclass One(GRPO):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import one

    before = code_digest(one.One(GRPO.Config()))
    assert before != code_digest(own)
    (tmp_path / "one.py").write_text("from methods.grpo import GRPO\n\nclass One(GRPO):\n    tau = 1\n")
    assert code_digest(one.One(GRPO.Config())) != before
