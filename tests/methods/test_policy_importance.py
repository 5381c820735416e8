"""Truncated importance sampling: weights by hand, gradient = weight x gradient, whose weight is 1, what is refused."""

import math

import pytest
import torch

from harness.config.compose import compose
from harness.config.deployment import build_method
from harness.config.schema import ModelConfig, UpdateConfig, from_hydra
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.training.update import Updater
from harness.types import TokenBatch, TrainingSample
from methods.grpo import GRPO
from methods.losses import policy_gradient_loss
from methods.policy import PolicyGradientConfig

CLIPS = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "dual_clip": 10.0}
LN2 = math.log(2)
IDS_N = torch.tensor([0, 3, 1, 4])
ADVANTAGES_N = torch.tensor([1.0, -2.0, 0.5, 1.5])


def logits() -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def old_logprobs() -> torch.Tensor:
    return torch.log_softmax(logits(), -1).gather(-1, IDS_N.unsqueeze(-1)).squeeze(-1)


def loss_and_gradient(**options):
    """Loss [N], sums and the gradient [N, V] of its sum, at ratio 1.1."""
    leaf_NV = logits().requires_grad_()
    old_N = old_logprobs() - math.log(1.1)
    if "gap_N" in options:
        options["rollout_logprobs_N"] = old_N - options.pop("gap_N")
    loss_N, sums = policy_gradient_loss(leaf_NV, IDS_N, ADVANTAGES_N, old_N, **CLIPS, **options)
    loss_N.sum().backward()
    return loss_N.detach(), sums, leaf_NV.grad


@pytest.mark.parametrize("cap", [1.0, 2.0, 1e30, math.inf])
def test_agreement_is_no_cap_bit_for_bit(cap):
    plain_N, sums, plain_NV = loss_and_gradient()
    loss_N, weighted, gradient_NV = loss_and_gradient(gap_N=torch.zeros(4), importance_cap=cap)
    assert torch.equal(plain_N, loss_N) and torch.equal(plain_NV, gradient_NV)
    assert weighted.pop("importance_weight") == 4.0 and weighted.pop("importance_capped_frac") == 0.0
    assert weighted == sums and "importance_weight" not in sums


def test_weights_by_hand():
    """old - rollout = ln 2, -ln 2, ln 8, 0 and C = 3: weights 2, 1/2, 3 (cut from 8), 1."""
    plain_N, _, plain_NV = loss_and_gradient()
    gap_N = torch.tensor([LN2, -LN2, 3 * LN2, 0.0])
    loss_N, sums, gradient_NV = loss_and_gradient(gap_N=gap_N, importance_cap=3.0)
    weights_N = torch.tensor([2.0, 0.5, 3.0, 1.0])
    torch.testing.assert_close(loss_N, weights_N * plain_N)
    torch.testing.assert_close(gradient_NV, weights_N.unsqueeze(-1) * plain_NV)
    assert gradient_NV.abs().min() > 0
    assert float(sums["importance_weight"]) == pytest.approx(6.5) and sums["importance_capped_frac"] == 1


def test_the_ratio_is_that_of_the_trainer():
    _, sums, _ = loss_and_gradient(gap_N=torch.full((4,), LN2), importance_cap=2.0)
    assert float(sums["ratio"]) == pytest.approx(4 * 1.1)


def test_a_weight_is_a_constant():
    """No gradient flows into log-probabilities that happen to have one."""
    old_N, rollout_N = (torch.zeros(4, requires_grad=True) for _ in range(2))
    leaf_NV = logits().requires_grad_()
    loss_N, sums = policy_gradient_loss(
        leaf_NV, IDS_N, ADVANTAGES_N, old_N.detach(), **CLIPS, rollout_logprobs_N=rollout_N, importance_cap=2.0
    )
    loss_N.sum().backward()
    assert rollout_N.grad is None and not any(value.requires_grad for value in sums.values())


def test_where_the_engine_gave_none_the_weight_is_one():
    plain_N, _, plain_NV = loss_and_gradient()
    gap_N = torch.tensor([math.nan, LN2, math.inf, -1e9])  # inf: the engine calls it impossible, -1e9: the trainer does
    loss_N, sums, gradient_NV = loss_and_gradient(gap_N=gap_N, importance_cap=2.5)
    assert loss_N[0] == plain_N[0] and torch.equal(gradient_NV[0], plain_NV[0])
    torch.testing.assert_close(loss_N, torch.tensor([1.0, 2.0, 2.5, math.exp(-20)]) * plain_N)
    assert float(sums["importance_weight"]) == pytest.approx(5.5) and sums["importance_capped_frac"] == 1


def test_a_cap_needs_the_engines_logprobs():
    with pytest.raises(ValueError, match="rollout_logprobs_N is missing"):
        loss_and_gradient(importance_cap=2.0)


def test_the_configured_cap_reaches_the_loss():
    batch = TokenBatch(
        ids_N=IDS_N,
        advantages_N=ADVANTAGES_N,
        old_logprobs_N=old_logprobs(),
        rollout_logprobs_N=old_logprobs() - 3 * LN2,
        sequence_N=torch.zeros(4, dtype=torch.long),
    )
    plain, capped = (GRPO(PolicyGradientConfig(importance_cap=cap)).loss(logits(), batch, None) for cap in (None, 2.0))
    torch.testing.assert_close(capped.loss_N, 2 * plain.loss_N)
    assert "importance_weight" not in plain.sums


@pytest.mark.parametrize("cap", [0.0, -1.0, 0.99, math.nan])
def test_a_cap_below_the_weight_of_agreement_is_refused(cap):
    with pytest.raises(ValueError, match=r"method.importance_cap must be at least 1, got .*: it bounds the weight"):
        PolicyGradientConfig(importance_cap=cap)


def test_a_cap_on_the_engines_own_logprobs_is_refused():
    lines = ["method=grpo", "student=tiny_xs", "method.importance_cap=2"]
    with pytest.raises(UserError, match=r"has no effect with update.old_logprobs=engine.*old_logprobs=recompute"):
        build_method(from_hydra(compose(lines)))
    method = build_method(from_hydra(compose([*lines, "update.old_logprobs=recompute"])))
    assert method is not None and method.config.importance_cap == 2.0
    assert build_method(from_hydra(compose(["method=on_policy_kd", "student=tiny_xs"]))) is not None


def test_a_teachers_tokens_weigh_one_in_an_update():
    """A student's token that the engine calls 8 times rarer weighs C; a teacher's or one without a number weighs 1."""
    config = ModelConfig(name="tiny_xs", path="tiny:xs", dtype="float32")
    student = LanguageModel.for_chat(load_model(config, "cpu"), Chat(load_tokenizer(config), config))
    method = GRPO(PolicyGradientConfig(importance_cap=2.0))
    update = UpdateConfig(learning_rate=1e-3, old_logprobs="recompute")
    upd = Updater(student=student, teacher=None, method=method, config=update, temperature=1.0)

    def sample(rollout_logprobs):
        ids, mask = [40, 41, 42, 43], [0, 0, 1, 1]
        advantages = [0.0, 0.0, 1.0, 1.0]
        return TrainingSample(
            uid="a", token_ids=ids, loss_mask=mask, advantages=advantages, rollout_logprobs=rollout_logprobs
        )

    probe = sample(None)
    upd.fill_old_logprobs([probe])
    assert probe.rollout_logprobs == probe.old_logprobs
    own = [value - 3 * LN2 for value in probe.old_logprobs]
    samples = [sample(own), sample(None), sample([*own[:3], math.nan])]
    upd.fill_old_logprobs(samples)
    assert samples[1].rollout_logprobs == samples[1].old_logprobs
    row = upd.update(samples)
    # weights 2, 2 | 1, 1 | 2, 1; at ratio 1 the loss is -A w
    assert row["importance_weight"] == pytest.approx(9 / 6)
    assert row["importance_capped_frac"] == pytest.approx(3 / 6)
    assert row["loss"] == pytest.approx(-9 / 6, abs=1e-5)
