"""Numbers that are not finite, in the second update's loss or in a step's samples: the run ends before the optimizer
moves, or leaves those updates out."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.errors import UserError
from harness.run.run import run
from harness.testing import run_metrics
from harness.training.nonfinite import NonFinite, check_samples
from harness.types import Rollout, TrainingSample
from methods.grpo import GRPO
from methods.sft import SFT

SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=6", "data.pool_size=24", "data.num_questions=60", "data.epochs=2",
    "data.levels=[1,2]", "num_threads=1", "method=sft", "teacher=null", "checkpoint.every=1",
]  # fmt: skip


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs of three updates of which those numbered in `broken` have a loss that is not finite."""
    calls = []
    loss = SFT.loss

    def broken_loss(self, logits_NV, batch, teacher):
        calls.append(1)
        output = loss(self, logits_NV, batch, teacher)
        return output if len(calls) not in broken else type(output)(loss_N=output.loss_N / 0.0, sums=output.sums)

    broken = {2}
    monkeypatch.setattr(SFT, "loss", broken_loss)

    def start(*overrides: str) -> Path:
        return run(from_hydra(compose([*SMALL, f"outputs={tmp_path}", "steps=3", *overrides])))

    return start


def folder(tmp_path: Path) -> Path:
    return tmp_path / "default/sft/tiny_xs/seed0"


def test_the_run_ends_names_the_sample_and_saves_it(start, tmp_path):
    with pytest.raises(UserError, match=r"step 2: the loss of token id \d+ is not finite \(sample .*\); saved in"):
        start()
    saved = json.loads((folder(tmp_path) / "nonfinite/step_000002_1.json").read_text())
    assert saved["step"] == 2 and "is not finite" in saved["reason"]
    assert len(saved["token_ids"]) == len(saved["loss_mask"]) and "boxed" in saved["text"]
    assert [row["step"] for row in run_metrics(folder(tmp_path))] == [1]


def test_an_update_is_left_out_and_counted(start, tmp_path):
    rows = run_metrics(start("update.on_nonfinite=skip"))
    assert [row["train/nonfinite_skipped"] for row in rows] == [0, 1, 0]
    assert [row["train/num_updates"] for row in rows] == [1, 0, 1]
    states = folder(tmp_path) / "checkpoints"
    weights = {p.name: load_file(p / "model.safetensors") for p in states.iterdir()}
    assert all(torch.isfinite(t).all() for w in weights.values() for t in w.values())
    assert "update is left out" in (folder(tmp_path) / "run.log").read_text()


def test_a_run_that_ended_so_goes_on_when_told_to_skip(start, tmp_path):
    with pytest.raises(UserError):
        start()
    rows = run_metrics(start("update.on_nonfinite=skip"))
    assert [row["step"] for row in rows] == [1, 2, 3]


GROUPED = [
    *SMALL, "method=grpo", "teacher=null", "method.group_size=4", "method.updates_per_step=2", "data.batch_size=4",
    "rollout.max_response_tokens=32", "data.levels=[2]", "steps=2", "checkpoint.keep_last=2",
]  # fmt: skip


@pytest.fixture
def grouped(tmp_path, monkeypatch):
    """Runs of two steps of two updates; in the second step the third rollout of the last group gets a reward of NaN."""
    spoilt = []
    credit = GRPO.credit

    def spoil(self, groups):
        if len(spoilt) == 1:
            groups[-1].rollouts[2].training_reward = math.nan
        spoilt.append(groups[-1].uid)
        return credit(self, groups)

    monkeypatch.setattr(GRPO, "credit", spoil)

    def start(*overrides: str) -> tuple[Path, list[str]]:
        return run(from_hydra(compose([*GROUPED, f"outputs={tmp_path}", *overrides]))), spoilt

    return start


def test_a_reward_is_named_not_the_advantages_that_it_spoils(grouped, tmp_path):
    with pytest.raises(
        UserError, match=r"step 2: the training reward is not finite \(sample (.*)\); saved in .*credit"
    ):
        grouped()
    (file,) = (tmp_path / "default/grpo/tiny_xs/seed0/nonfinite").iterdir()
    saved = json.loads(file.read_text())
    assert file.name == "step_000002_0.json"
    assert math.isnan(saved["training_reward"]) and saved["index"] == 2


def test_a_reward_leaves_the_updates_of_its_step_out(grouped):
    path, spoilt = grouped("update.on_nonfinite=skip")
    rows = run_metrics(path)
    assert [row["train/num_updates"] for row in rows] == [2, 0]
    assert [row["train/nonfinite_skipped"] for row in rows] == [0, 2]
    saved = json.loads((path / "nonfinite/step_000002_0.json").read_text())
    assert saved["uid"] == spoilt[1]
    first, second = (load_file(path / f"checkpoints/step-00000{n}/model.safetensors") for n in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_update_of_a_step_has_a_file_of_its_own(tmp_path, monkeypatch):
    loss = GRPO.loss

    def broken(self, logits_NV, batch, teacher):
        output = loss(self, logits_NV, batch, teacher)
        return type(output)(loss_N=output.loss_N / 0.0, sums=output.sums)

    monkeypatch.setattr(GRPO, "loss", broken)
    path = run(from_hydra(compose([*GROUPED, f"outputs={tmp_path}", "steps=1", "update.on_nonfinite=skip"])))
    found = [json.loads(file.read_text())["uid"] for file in sorted((path / "nonfinite").iterdir())]
    assert sorted(p.name for p in (path / "nonfinite").iterdir()) == ["step_000001_1.json", "step_000001_2.json"]
    assert len(found) == 2


def samples() -> list[TrainingSample]:
    """Two of one prompt token and two completion tokens."""
    return [
        TrainingSample(
            uid=uid, token_ids=[5, 6, 7], loss_mask=[0, 1, 1], advantages=[0.0, 1.0, 1.0], weights=[1.0] * 3, norm=2.0,
            old_logprobs=[0.0, -1.0, -2.0], rollout_logprobs=[0.0, -1.0, -2.0],
            rollout=Rollout(sampler="student", index=0, prompt_ids=[5], completion_ids=[6, 7],
                            rollout_logprobs=[-1.0, -2.0], text="", finish_reason="stop"),
        )
        for uid in ("a", "b")
    ]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda s, v: setattr(s.rollout, "reward", v), "the reward"),
        (lambda s, v: setattr(s.rollout, "training_reward", v), "the training reward"),
        (lambda s, v: setattr(s, "norm", v), "the norm"),
        (lambda s, v: s.advantages.__setitem__(2, v), "an advantage"),
        (lambda s, v: s.weights.__setitem__(1, v), "a weight"),
        (lambda s, v: s.old_logprobs.__setitem__(1, v), "an old log-probability"),
        (lambda s, v: s.rollout_logprobs.__setitem__(1, v), "a log-probability of the engine"),
    ],
)
def test_what_is_refused_of_a_sample(spoil, what, value):
    given = samples()
    check_samples(given)
    spoil(given[1], value)
    if what == "a log-probability of the engine" and math.isnan(value):
        check_samples(given)  # one that the engine did not give
        return
    with pytest.raises(NonFinite, match=rf"{what} is not finite \(sample b\)"):
        check_samples(given)


def test_the_cause_comes_before_what_it_spoils_whatever_the_order_of_samples():
    given = samples()
    given[0].advantages = [math.nan] * 3
    given[1].rollout.reward = math.inf
    with pytest.raises(NonFinite, match=r"the reward .* \(sample b\)"):
        check_samples(given)


def test_large_numbers_are_no_infinite_ones():
    given = samples()
    given[0].weights = [1e308] * 3  # their sum is infinite
    check_samples(given)
