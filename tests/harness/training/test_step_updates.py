"""Going on between the updates of a step: what is written of it, and that the rest is the same to the bit."""

import copy
import json

import numpy as np
import pytest
import torch

from harness.config.compose import compose
from harness.config.schema import UpdateConfig, from_hydra
from harness.process import preemption
from harness.records.folder import RunFolder
from harness.training.alarms import Alarms
from harness.training.dealing import deal
from harness.training.step_updates import Progress, StepUpdates
from harness.training.update import Updater
from methods import registry
from methods.grpo import GRPO


@pytest.fixture
def make(make_student, tmp_path):
    """`make()` are updates of a fresh student, three a step; with a `progress` they go on from there."""

    def make(progress=None, **changes) -> tuple[StepUpdates, Updater]:
        method = registry.build({"name": "grpo", "class": "grpo", "updates_per_step": 3})
        config = from_hydra(compose(["student=tiny_xs", "alarms.max_ratio=1.0001"]))
        update = UpdateConfig(learning_rate=1e-3, **changes)
        updater = Updater(student=make_student(), teacher=None, method=method, config=update, temperature=1.0)
        folder = RunFolder(tmp_path / f"run{len(list(tmp_path.iterdir()))}", config)
        alarms = Alarms(config.alarms, folder, logprobs=updater.logprobs)
        return StepUpdates(updater, alarms, folder, update, teacher_scores=False, progress=progress), updater

    return make


def dealt_of(samples) -> list[list[str]]:
    uids = list(dict.fromkeys(sample.uid for sample in samples))
    return deal(uids, num_batches=3, rng=np.random.default_rng(0))


class Left(Exception):
    pass


def left_behind(number: int):
    def stop(name: str) -> None:
        if name == f"update-{number}":
            raise Left

    return stop


@pytest.mark.parametrize("old_logprobs", ["engine", "recompute"])
@pytest.mark.parametrize("number", [1, 2])
def test_the_rest_of_a_step_is_the_same(make, make_samples, old_logprobs, number):
    samples = make_samples(8, seed=1)  # with recomputed log-probabilities mean ratios of 1, 3.7 and 5.6: an alarm
    samples[3].rollout_logprobs = None  # the engine gave none: the trainer's are taken, before its weights move
    samples[5].rollout_logprobs[-1] = None
    whole, whole_updater = make(old_logprobs=old_logprobs)
    expected = whole.run(1, copy.deepcopy(samples), dealt_of(samples))

    broken, updater = make(old_logprobs=old_logprobs)
    preemption.watch(left_behind(number))
    try:
        with pytest.raises(Left):
            broken.run(1, copy.deepcopy(samples), dealt_of(samples))
    finally:
        preemption.watch(None)
    assert broken.progress.num_done == number
    state, tensors = broken.progress.pack()

    progress = Progress.unpack(json.loads(json.dumps(state)), tensors, broken.progress.rng)
    resumed, other = make(progress, old_logprobs=old_logprobs)
    other.student.module.load_state_dict(updater.student.module.state_dict())
    other.optimizer.load_state_dict(updater.optimizer.state_dict())
    assert resumed.run(1, copy.deepcopy(samples), dealt_of(samples)) == expected
    assert resumed.progress is None and expected["alarm/ratio"] == 1.0
    for one, two in zip(whole_updater.student.module.parameters(), other.student.module.parameters(), strict=True):
        assert torch.equal(one, two)


def test_old_log_probabilities_are_written_to_the_bit():
    values = [[0.0, -1 / 3, float("nan")], None, []]
    progress = Progress(old_logprobs=values, num_rescored=7, num_skipped=1, rows=[{"loss": 0.5}])
    progress.note(2, {"max": 0.25})
    state, tensors = progress.pack()
    back = Progress.unpack(json.loads(json.dumps(state)), tensors, progress.rng)
    assert repr(back) == repr(progress)


def test_an_update_of_inert_samples_alone_is_counted_and_still_moves_weights(make, make_samples):
    """Four groups in parts of two, one and one. The second is inert: the momentum of the first moves the weights.

    One sample of the first is inert too, as most steps have some: that is no such update.
    """
    samples = make_samples(8)
    dealt = dealt_of(samples)
    assert list(map(len, dealt)) == [2, 1, 1]
    mixed = next(sample for sample in samples if sample.uid in dealt[0])
    for sample in samples:
        if sample.uid in dealt[1] or sample is mixed:
            sample.advantages, sample.inert = [0.0] * len(sample.token_ids), True
    updates, updater = make(weight_decay=0.0)
    head = updater.student.module.get_output_embeddings().weight
    seen = []

    def note(name: str) -> None:
        if name.startswith("update-"):
            seen.append(head.detach().clone())

    preemption.watch(note)
    try:
        row = updates.run(1, samples, dealt)
    finally:
        preemption.watch(None)
    assert (row["train/inert_updates"], row["train/num_updates"]) == (1.0, 3.0)
    assert not torch.equal(seen[0], seen[1])
    assert make()[0].run(1, make_samples(8), dealt)["train/inert_updates"] == 0.0


def test_an_update_that_is_left_out_is_in_no_mean_and_the_next_one_measures_the_gap(make, make_samples, monkeypatch):
    """The first of three has a loss that is not finite. Padding is that of the two that were made."""
    samples, made, calls = make_samples(8), [], []
    updates, updater = make(on_nonfinite="skip")
    loss, update = GRPO.loss, updater.update

    def broken(self, logits_NV, batch, teacher):
        calls.append(1)
        output = loss(self, logits_NV, batch, teacher)
        return output if len(calls) > 1 else type(output)(loss_N=output.loss_N / 0.0, sums=output.sums)

    def note(part, **options):
        made.append((part, dict(row := update(part, **options))))
        return row

    monkeypatch.setattr(GRPO, "loss", broken)
    monkeypatch.setattr(updater, "update", note)
    row = updates.run(1, samples, dealt_of(samples))
    assert (row["train/nonfinite_skipped"], row["train/num_updates"], len(made)) == (1.0, 2.0, 2)
    assert row["train/grad_norm"] == (made[0][1]["grad_norm"] + made[1][1]["grad_norm"]) / 2
    assert row["mismatch/num_tokens"] == sum(sample.num_trained for sample in made[0][0])
    lengths = [[len(sample.token_ids) for sample in part] for part, _ in made]
    num_padded = sum(len(part) * max(part) for part in lengths)
    assert row["train/padding_frac"] == pytest.approx(1 - sum(map(sum, lengths)) / num_padded)


def test_random_streams_go_on_behind_the_last_update(make, make_samples, monkeypatch):
    """A loss may draw from them: the draws of the second and third update are those of a run without a stop."""
    samples, drawn = make_samples(8), []
    loss = GRPO.loss

    def draw(self, *given):
        drawn.append(float(torch.rand(())))
        return loss(self, *given)

    monkeypatch.setattr(GRPO, "loss", draw)
    torch.manual_seed(0)
    make()[0].run(1, copy.deepcopy(samples), dealt_of(samples))
    expected = drawn.copy()
    drawn.clear()
    torch.manual_seed(0)
    broken, _ = make()
    preemption.watch(left_behind(1))
    try:
        with pytest.raises(Left):
            broken.run(1, copy.deepcopy(samples), dealt_of(samples))
    finally:
        preemption.watch(None)
    torch.manual_seed(1)  # another process
    make(broken.progress)[0].run(1, samples, dealt_of(samples))
    assert len(expected) == 3 and drawn == expected
