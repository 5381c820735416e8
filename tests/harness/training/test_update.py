"""One optimizer update: normalisation, micro-batch and chunk invariance, inert samples, old log-probabilities."""

import math
import weakref

import pytest
import torch

from harness.config.schema import UpdateConfig
from harness.errors import UserError
from harness.models.forward import gather_logprobs
from harness.teacher.local import LocalScorer
from harness.training.nonfinite import NonFinite
from harness.training.ranks import Alone
from harness.training.update import Updater
from harness.types import TrainingSample
from methods import registry

GRPO = {"name": "grpo", "class": "grpo"}


def updater(student, method=None, teacher=None, temperature=1.0, **changes) -> Updater:
    config = UpdateConfig(**({"learning_rate": 1e-3} | changes))
    method = registry.build(method or GRPO)
    scorer = None if teacher is None else LocalScorer(teacher, temperature)
    return Updater(student=student, teacher=scorer, method=method, config=config, temperature=temperature)


def gradients(student, samples, method=None, teacher=None, **changes) -> dict[str, torch.Tensor]:
    """The gradient of one update: read where the optimizer would take it."""
    taken = {}
    upd = updater(student, method, teacher, **({"max_grad_norm": 1e9} | changes))

    def read(*args, **kwargs):
        taken.update({n: p.grad.clone() for n, p in student.module.named_parameters() if p.grad is not None})

    upd.optimizer.register_step_pre_hook(read)
    upd.fill_old_logprobs(samples)
    upd.update(samples)
    return taken


def assert_same(a, b, tolerance=1e-6):
    assert a.keys() == b.keys()
    scale = max(float(value.abs().max()) for value in a.values())
    assert scale > 0
    for name in a:
        assert float((a[name] - b[name]).abs().max()) < tolerance * max(1.0, scale), name


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("micro_batch_tokens", 1),
        ("micro_batch_tokens", 40),
        ("logit_memory_mb", 0.005),
        ("logit_memory_mb", 0.03),
        ("gradient_checkpointing", True),
    ],
)
def test_gradient_does_not_depend_on_the_cut(make_student, make_samples, option, value):
    whole = gradients(make_student(), make_samples(6))
    assert_same(whole, gradients(make_student(), make_samples(6), **{option: value}))


def test_a_gradient_is_scaled_down_to_the_largest_norm(make_student, make_samples):
    """What is reported is the norm that it had."""
    whole = gradients(make_student(), make_samples(3))
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in whole.values()))
    clipped = gradients(make_student(), make_samples(3), max_grad_norm=norm / 8)
    assert_same({name: value / 8 for name, value in whole.items()}, clipped)
    assert_same(whole, gradients(make_student(), make_samples(3), max_grad_norm=norm * 1.01))
    upd, samples = updater(make_student(), max_grad_norm=norm / 8), make_samples(3)
    upd.fill_old_logprobs(samples)
    assert upd.update(samples)["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_gradient_checkpointing_recomputes_the_layers(make_student, make_samples):
    calls = []
    for enabled in (False, True):
        student = make_student()
        hook = student.module.base_model.language_model.layers[0].mlp.register_forward_pre_hook(
            lambda *_: calls.append(1)
        )
        gradients(student, make_samples(2), gradient_checkpointing=enabled)
        hook.remove()
        assert not student.module.training
    assert len(calls) == 1 + 2


@pytest.mark.clause("C065")
def test_gradient_equals_the_naive_token_mean(make_student, make_samples):
    """At ratio 1 the surrogate's gradient is that of -A log p; summed over tokens, divided by their number."""
    samples = make_samples(5)
    student = make_student()
    total, count = 0.0, 0
    for s in samples:
        ids = torch.tensor([s.token_ids])
        hidden_TH = student.hidden(ids, torch.ones_like(ids))[0]
        logprobs_T = gather_logprobs(student.logits(hidden_TH[:-1]), ids[0, 1:])
        for t in range(1, len(s.token_ids)):
            if s.loss_mask[t]:
                total = total - s.advantages[t] * logprobs_T[t - 1]
                count += 1
    (total / count).backward()
    naive = {n: p.grad.clone() for n, p in student.module.named_parameters() if p.grad is not None}
    # Single precision: the sums stand in another order.
    assert_same(naive, gradients(make_student(), samples, old_logprobs="recompute"), tolerance=1e-5)


@pytest.mark.clause("C089")
def test_every_update_has_the_same_learning_rate(make_student, make_samples):
    upd, rates = updater(make_student(), learning_rate=1e-6), []
    upd.optimizer.register_step_pre_hook(lambda opt, *_: rates.extend(g["lr"] for g in opt.param_groups))
    for _ in range(3):
        upd.update(make_samples(2))
    assert len(rates) >= 3 and set(rates) == {1e-6}


@pytest.mark.clause("C069")
def test_inert_samples_keep_their_share_of_the_denominator(make_student, make_samples):
    samples = make_samples(4)
    for s in samples[2:]:
        s.advantages = [0.0] * len(s.token_ids)
    naive = gradients(make_student(), samples)
    for s in samples[2:]:
        s.inert = True
    assert_same(naive, gradients(make_student(), samples))


def test_a_signal_ends_what_is_read_before_a_step_and_not_what_is_read_behind_it(make_student, make_samples):
    seen = []

    class Noting(Alone):
        def rounds(self, micros, *, may_stop=True):
            seen.append(may_stop)
            return super().rounds(micros, may_stop=may_stop)

    config, samples = UpdateConfig(old_logprobs="recompute"), make_samples(1)
    method = registry.build(GRPO)
    upd = Updater(student=make_student(), teacher=None, method=method, config=config, temperature=1.0, ranks=Noting())
    upd.fill_old_logprobs(samples)
    upd.logprobs(samples)
    assert seen == [True, False]


def test_a_mean_per_token_is_over_what_was_read(make_student, make_samples):
    """Inert samples are in no forward pass, so their tokens have no entropy."""
    samples = make_samples(4)
    for s in samples[2:]:
        s.advantages, s.inert = [0.0] * len(s.token_ids), True
    rows = []
    for given in (samples, samples[:2]):
        upd = updater(make_student())
        upd.fill_old_logprobs(given)
        rows.append(upd.update(given))
    assert rows[0]["entropy"] == pytest.approx(rows[1]["entropy"]) and rows[0]["entropy"] > 0


def test_a_mini_batch_of_inert_samples_has_gradient_zero(make_student, make_samples):
    samples = make_samples(2)
    for s in samples:
        s.advantages, s.inert = [0.0] * len(s.token_ids), True
    student = make_student()
    row = updater(student, weight_decay=0.0).update(samples)
    assert row["grad_norm"] == 0.0 and row["loss"] == 0.0


def test_weights_and_norm_are_data(make_student, make_samples):
    """Weights 3 with norm 3 x tokens are the token mean again."""
    plain = gradients(make_student(), make_samples(4))
    samples = make_samples(4)
    for s in samples:
        s.weights, s.norm = [3.0 * m for m in s.loss_mask], 3.0 * s.num_trained
    assert_same(plain, gradients(make_student(), samples))


def test_old_logprobs_engine_recompute_and_missing(make_student, make_samples):
    samples = make_samples(3)
    samples[1].rollout_logprobs = None  # a teacher response in a student's group
    assert updater(make_student()).fill_old_logprobs(samples) == len(samples[1].token_ids)
    assert samples[0].old_logprobs == samples[0].rollout_logprobs
    missing = samples[1].old_logprobs
    assert missing is not None and len(missing) == len(samples[1].token_ids)

    again = make_samples(3)
    num_read = updater(make_student(), old_logprobs="recompute").fill_old_logprobs(again)
    assert num_read == sum(len(s.token_ids) for s in again)
    assert again[1].old_logprobs == pytest.approx(missing, abs=1e-5)
    assert again[0].old_logprobs != again[0].rollout_logprobs
    assert all(value == 0.0 for value, m in zip(missing, samples[1].loss_mask, strict=True) if not m)


def test_a_micro_batch_without_trained_tokens_is_read(make_student, make_samples):
    samples = make_samples(3)
    samples[1].loss_mask = [0] * len(samples[1].token_ids)
    upd = updater(make_student(), old_logprobs="recompute", micro_batch_tokens=1)
    assert upd.fill_old_logprobs(samples) == sum(len(sample.token_ids) for sample in samples)
    assert samples[1].old_logprobs == [0.0] * len(samples[1].token_ids)
    assert math.isfinite(upd.update(samples)["loss"])


def test_the_forward_pass_for_old_logprobs_reads_no_more_than_it_has_to(make_student, make_samples):
    """Not what is inert, what has no advantages, or what has its old log-probabilities already."""
    samples = make_samples(5)
    samples[0].inert = True
    samples[1].advantages = None
    samples[2].old_logprobs = given = [0.0] * len(samples[2].token_ids)
    recompute = updater(make_student(), old_logprobs="recompute", micro_batch_tokens=1)
    assert recompute.fill_old_logprobs(samples) == len(samples[3].token_ids) + len(samples[4].token_ids)
    assert samples[0].old_logprobs == samples[0].rollout_logprobs
    assert samples[1].old_logprobs is None and samples[2].old_logprobs is given
    assert recompute.fill_old_logprobs(samples) == 0  # a second time there is nothing left
    assert updater(make_student()).fill_old_logprobs(make_samples(3)) == 0  # the engine's


def test_ratio_is_one_at_the_sampling_temperature(make_student, make_samples):
    samples = make_samples(4)
    upd = updater(make_student(), temperature=0.7, old_logprobs="recompute")
    upd.fill_old_logprobs(samples)
    row = upd.update(samples)
    assert row["ratio"] == pytest.approx(1.0, abs=1e-6) and row["clip_frac"] == 0.0


def test_distillation_from_itself_is_exactly_no_gradient(make_student, make_samples):
    """Even rounding noise would become a real update: Adam divides by its size."""
    method = {"name": "on_policy_kd", "class": "on_policy_kd"}
    found = gradients(make_student(), make_samples(3), method=method, teacher=make_student())
    assert all(float(value.abs().max()) == 0.0 for value in found.values())


def test_a_step_moves_the_student_towards_the_teacher(make_student, make_samples):
    method = {"name": "on_policy_kd", "class": "on_policy_kd"}
    student, samples = make_student(), make_samples(3)
    upd = updater(student, method, make_student("s"))
    losses = [upd.update(samples)["loss"] for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_loss_that_is_not_finite_changes_nothing_and_names_the_sample(make_student, make_samples):
    student, samples = make_student(), make_samples(4)
    before = {n: p.detach().clone() for n, p in student.module.named_parameters()}
    samples[2].advantages = [math.inf * m if m else 0.0 for m in samples[2].loss_mask]
    upd = updater(student)
    with pytest.raises(NonFinite, match=r"the loss of token id .* is not finite \(sample q1/plain\)") as caught:
        upd.update(samples)
    assert caught.value.sample is samples[2]
    assert all(torch.equal(before[n], p) for n, p in student.module.named_parameters())
    assert not upd.optimizer.state and all(p.grad is None for p in student.module.parameters())


class Explode(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.where(grad == 0, 0.0, math.inf)


@pytest.mark.parametrize("where", ["logits", "layers"])
def test_a_gradient_that_is_not_finite_is_traced_to_its_sample(make_student, make_samples, where):
    """Every loss is finite: the gradient explodes in the loss, or in the layers alone."""
    student, samples = make_student(), make_samples(4)
    culprit, method = samples[1], registry.build(GRPO)
    if where == "logits":
        culprit.token_ids[-1] = 91  # ids of the other samples are below 90
        loss = method.loss

        def broken(logits_NV, batch, teacher):
            exploding = torch.where((batch.ids_N == 91).unsqueeze(-1), Explode.apply(logits_NV), logits_NV)
            return loss(exploding, batch, teacher)

        method.loss = broken
    else:
        culprit.token_ids[0] = 91

        def explode(module, args, output):
            return torch.where((args[0] == 91).unsqueeze(-1), Explode.apply(output), output)

        student.module.get_input_embeddings().register_forward_hook(explode)
    upd = Updater(student=student, teacher=None, method=method, config=UpdateConfig(), temperature=1.0)
    before = [p.detach().clone() for p in student.module.parameters()]
    expected = {"logits": "the gradient of the logits of token id 91", "layers": "its gradient"}[where]
    with pytest.raises(NonFinite, match=expected) as caught:
        upd.update(samples)
    assert caught.value.sample is culprit
    assert all(torch.equal(a, b) for a, b in zip(before, student.module.parameters(), strict=True))


def test_a_budget_below_one_token_is_refused(make_student):
    """4 buffers x 4 bytes x V ids."""
    row = 16 * make_student().num_tokens / 2**20
    updater(make_student(), logit_memory_mb=row)
    with pytest.raises(UserError, match=r"update.logit_memory_mb=.* does not hold one token's logits over .* set"):
        updater(make_student(), logit_memory_mb=row * 0.99)


def test_no_tensor_of_the_logits_size_is_kept(make_student, make_samples, monkeypatch):
    """A tile's logits are gone before the next tile is projected."""
    student, alive = make_student(), []
    project = student.logits

    def logits(hidden_NH):
        assert not any(ref() is not None for ref in alive)
        made = project(hidden_NH)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(student, "logits", logits)
    updater(student, logit_memory_mb=0.005).update(make_samples(6))
    assert len(alive) > 3


def test_supervised_loss_is_the_mean_negative_log_likelihood(make_student):
    student = make_student()
    one = TrainingSample(uid="a", token_ids=[40, 41, 42], loss_mask=[0, 1, 1])
    ids = torch.tensor([one.token_ids])
    with torch.no_grad():
        hidden_TH = student.hidden(ids, torch.ones_like(ids))[0]
        expected = -gather_logprobs(student.logits(hidden_TH[:-1]), ids[0, 1:]).mean()
    row = updater(student, {"name": "sft", "class": "sft"}).update([one])
    assert row["loss"] == pytest.approx(float(expected), rel=1e-5)
