"""The gap between trainer and engine: numbers by hand, length buckets, whose tokens count and when, the alarm."""

import logging
import math

import pytest
import torch

from harness.config.schema import UpdateConfig
from harness.teacher.local import LocalScorer
from harness.training.mismatch import ALARM_K3_KL, ALARM_MAX, GapMeter, alarm
from harness.training.update import Updater
from harness.types import TokenBatch, TrainingSample
from methods import registry

LN2 = math.log(2)


def sample(num_completion: int, *, num_prompt: int = 2, student: bool = True) -> TrainingSample:
    mask = [0] * num_prompt + [1] * num_completion
    return TrainingSample(
        uid="a", token_ids=[5] * len(mask), loss_mask=mask, rollout_logprobs=[0.0] * len(mask) if student else None
    )


def tokens(engine: list[float], sequence: list[int]) -> TokenBatch:
    zeros_N = torch.zeros(len(engine))
    return TokenBatch(
        ids_N=zeros_N.long(),
        advantages_N=zeros_N,
        old_logprobs_N=zeros_N,
        rollout_logprobs_N=torch.tensor(engine),
        sequence_N=torch.tensor(sequence),
    )


def measured(engine: list[float], trainer: list[float]) -> dict[str, float]:
    """One completion of as many tokens."""
    one = sample(len(engine))
    meter = GapMeter()
    meter.start([one])
    meter.add([one], tokens(engine, [0] * len(engine)), torch.tensor(trainer))
    return meter.finish()


def updater(student, **changes) -> Updater:
    config = UpdateConfig(**({"learning_rate": 1e-2, "micro_batch_tokens": 40, "logit_memory_mb": 0.01} | changes))
    method = registry.build({"name": "grpo", "class": "grpo"})
    assert method is not None
    return Updater(student=student, teacher=None, method=method, config=config, temperature=0.7)


def test_three_tokens_by_hand():
    # differences 0, ln 2, -ln 2; r = 1, 2, 1/2; k3 = 0, 2 - 1 - ln 2, 1/2 - 1 + ln 2: together 1/2
    found = measured([-1.0, -2.0 - LN2, -3.0], [-1.0, -2.0, -3.0 - LN2])
    assert found == {
        "mismatch/num_tokens": 3.0,
        "mismatch/num_missing": 0.0,
        "mismatch/max": pytest.approx(LN2, rel=1e-6),
        "mismatch/mean": pytest.approx(2 * LN2 / 3, rel=1e-6),
        "mismatch/k3_kl": pytest.approx(1 / 6, rel=1e-6),
        "mismatch/mean@256": pytest.approx(2 * LN2 / 3, rel=1e-6),
        "mismatch/k3_kl@256": pytest.approx(1 / 6, rel=1e-6),
    }
    assert all(type(value) is float for value in found.values())


def test_k3_is_the_divergence_of_the_engine_from_the_trainer():
    """Tokens in the engine's proportions 3 : 1, where the trainer has 1 : 1, give KL(engine || trainer) exactly."""
    q, p = (0.75, 0.25), (0.5, 0.5)
    drawn = [0, 0, 0, 1]
    found = measured([math.log(q[i]) for i in drawn], [math.log(p[i]) for i in drawn])
    assert found["mismatch/k3_kl"] == pytest.approx(sum(a * math.log(a / b) for a, b in zip(q, p, strict=True)))
    assert abs(found["mismatch/k3_kl"] - sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))) > 0.01


def test_equal_logprobs_have_no_gap():
    found = measured([-0.1, -7.3], [-0.1, -7.3])
    assert {found[f"mismatch/{name}"] for name in ("mean", "max", "k3_kl", "mean@256", "k3_kl@256")} == {0.0}


def test_small_differences_are_not_lost_in_rounding():
    """Beside a gap of 1, a thousand of x = 2^-13: their k3 of x^2 / 2 + x^3 / 6 is below the rounding of x in fp32."""
    x = 2.0**-13
    found = measured([-1.0] + [-x] * 1000, [-2.0] + [0.0] * 1000)
    assert found["mismatch/k3_kl"] * 1001 - math.exp(-1) == pytest.approx(1000 * (x**2 / 2 + x**3 / 6), rel=1e-6)
    assert found["mismatch/mean@1024"] * 1001 - 1 == pytest.approx(1000 * x, rel=1e-9)


def test_buckets_are_those_of_the_completions_length():
    """The prompt does not count, a prefix does; a bucket without tokens has no number."""
    lengths = [256, 257, 1024, 1025, 4096, 4097]
    samples = [sample(n, num_prompt=300) for n in lengths]
    samples[0].loss_mask[300:310] = [0] * 10  # a given prefix
    meter = GapMeter()
    meter.start(samples)
    trainer_N = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    meter.add(samples, tokens([0.0] * 6, [0, 1, 2, 3, 4, 5]), trainer_N)
    found = meter.finish()
    assert {name.split("@")[1]: value for name, value in found.items() if "mean@" in name} == {
        "256": 1.0, "1024": 2.5, "4096": 4.5, "long": 6.0,
    }  # fmt: skip
    # k3 of a gap -x: e^-x - 1 + x
    assert found["mismatch/k3_kl@long"] == pytest.approx(math.exp(-6) + 5)
    assert found["mismatch/mean"] == 3.5 and found["mismatch/max"] == 6.0
    only = GapMeter()
    only.start(samples[4:5])
    only.add(samples[4:5], tokens([0.0], [0]), trainer_N[:1])
    assert {name for name in only.finish() if "@" in name} == {"mismatch/mean@4096", "mismatch/k3_kl@4096"}


def test_tokens_without_an_engines_logprob_are_counted_apart():
    found = measured([math.nan, -1.0, -math.inf], [-1.0, -1.5, -1.0])
    assert (found["mismatch/num_tokens"], found["mismatch/num_missing"]) == (1.0, 2.0)
    assert found["mismatch/mean"] == found["mismatch/max"] == 0.5
    assert measured([math.nan], [-1.0]) == {"mismatch/num_tokens": 0.0, "mismatch/num_missing": 1.0}


def test_an_impossible_token_keeps_every_number_finite():
    found = measured([-1e9, 0.0], [0.0, -1e9])
    assert all(math.isfinite(value) for value in found.values()) and found["mismatch/max"] == 1e9


def test_the_teachers_tokens_do_not_count():
    mine, theirs = sample(2), sample(2, student=False)
    meter = GapMeter()
    meter.start([mine, theirs])
    theirs.rollout_logprobs = [0.0] * 4  # as `fill_old_logprobs` leaves it
    batch = tokens([0.0, 0.0, 0.0, math.nan], [1, 0, 1, 1])
    meter.add([mine, theirs], batch, torch.tensor([-9.0, -1.0, -9.0, -9.0]))
    found = meter.finish()
    assert (found["mismatch/num_tokens"], found["mismatch/max"], found["mismatch/num_missing"]) == (1.0, 1.0, 0.0)
    meter.start([theirs, sample(0)])
    assert meter.finish() == {}


# --- in the update


def naive(student, samples: list[TrainingSample]) -> list[float]:
    """Trainer minus engine log-probability of every trained token, one sequence after another."""
    gaps = []
    for s in samples:
        ids = torch.tensor([s.token_ids])
        with torch.no_grad():
            logits_TV = student.logits(student.hidden(ids, torch.ones_like(ids))[0]) / 0.7
        logprobs_TV = torch.log_softmax(logits_TV.double(), -1)
        assert s.rollout_logprobs is not None
        trained = [t for t, m in enumerate(s.loss_mask) if m]
        gaps += [float(logprobs_TV[t - 1, s.token_ids[t]]) - s.rollout_logprobs[t] for t in trained]
    return gaps


def assert_measured(found: dict[str, float], gaps: list[float]) -> None:
    assert found["mismatch/num_tokens"] == len(gaps)
    assert found["mismatch/mean"] == pytest.approx(sum(map(abs, gaps)) / len(gaps), abs=1e-5)
    assert found["mismatch/max"] == pytest.approx(max(map(abs, gaps)), rel=1e-6, abs=1e-5)
    assert found["mismatch/k3_kl"] == pytest.approx(sum(math.expm1(g) - g for g in gaps) / len(gaps), rel=1e-4)


def test_the_first_update_measures_its_own_tokens_before_it_moves(make_student, make_samples):
    samples = make_samples(6)
    samples[1].rollout_logprobs = None  # a teacher's
    upd = updater(make_student())
    upd.fill_old_logprobs(samples)
    upd.update(samples[:3], measure_gap=True)
    upd.update(samples[3:])
    assert_measured(upd.gap.finish(), naive(make_student(), [samples[0], samples[2]]))
    assert upd.gap.finish() == {}


def test_recomputed_logprobs_measure_every_sample_without_the_update(make_student, make_samples):
    samples = make_samples(6)
    samples[1].rollout_logprobs = None
    upd = updater(make_student(), old_logprobs="recompute")
    upd.fill_old_logprobs(samples)
    upd.update(samples[:3], measure_gap=True)  # would count its tokens twice
    assert_measured(upd.gap.finish(), naive(make_student(), samples[:1] + samples[2:]))


def test_samples_without_advantages_are_measured_in_the_update(make_student, make_samples):
    """On-policy distillation has no old log-probabilities, but an engine that has to agree."""
    for mode in ("engine", "recompute"):
        samples = make_samples(2)
        for s in samples:
            s.advantages = None
        upd = updater(make_student(), old_logprobs=mode)
        assert upd.fill_old_logprobs(samples) == 0
        upd.update(samples, measure_gap=True)
        assert_measured(upd.gap.finish(), naive(make_student(), samples))


def test_a_loss_of_another_temperature_is_measured_at_that_of_sampling(make_student, make_samples):
    samples = make_samples(2)
    for s in samples:
        s.advantages = None
    method = registry.build({"name": "on_policy_kd", "class": "on_policy_kd"})
    teacher = LocalScorer(make_student(), 1.0)
    upd = Updater(student=make_student(), teacher=teacher, method=method, config=UpdateConfig(), temperature=0.7)
    upd.fill_old_logprobs(samples)
    upd.update(samples, measure_gap=True)
    assert_measured(upd.gap.finish(), naive(make_student(), samples))


@pytest.mark.parametrize("absent", [None, math.nan])
@pytest.mark.parametrize("mode", ["engine", "recompute"])
def test_a_token_without_a_logprob_is_trained_and_not_measured(make_student, make_samples, mode, absent):
    samples = make_samples(2)
    samples[0].rollout_logprobs[-1] = absent
    upd = updater(make_student(), old_logprobs=mode)
    num_read = upd.fill_old_logprobs(samples)
    assert num_read == sum(len(s.token_ids) for s in (samples if mode == "recompute" else samples[:1]))
    row = upd.update(samples, measure_gap=True)
    assert all(math.isfinite(value) for value in row.values())
    found = upd.gap.finish()
    gaps = [gap for gap in naive(make_student(), samples) if not math.isnan(gap)]
    assert found["mismatch/num_missing"] == 1.0
    assert_measured(found, gaps)


def test_an_inert_mini_batch_without_logprobs_still_is_an_update(make_student, make_samples):
    samples = make_samples(2)
    for s in samples:
        s.advantages, s.inert = [0.0] * len(s.token_ids), True
        s.rollout_logprobs[-1] = math.nan
    upd = updater(make_student(), weight_decay=0.0)
    assert upd.fill_old_logprobs(samples) == 0
    assert upd.update(samples)["grad_norm"] == 0.0


# --- the alarm


def test_the_alarm_rings_once_a_run_and_says_what_helps(caplog):
    one = sample(1)
    meter = GapMeter()
    with caplog.at_level(logging.WARNING):
        for gap in (ALARM_MAX / 4, 2.0, 2.0):
            meter.start([one])
            meter.add([one], tokens([-3.0], [0]), torch.tensor([-3.0 - gap]))
            meter.finish()
            if gap < ALARM_MAX:
                assert not caplog.records
    (record,) = caplog.records
    assert "update.old_logprobs=recompute with method.importance_cap=2" in record.message
    assert "mismatch/max 2," in record.message and "\n" not in record.message


def test_either_threshold_is_enough():
    assert alarm({}) is None
    assert alarm({"mismatch/max": ALARM_MAX, "mismatch/k3_kl": ALARM_K3_KL}) is None
    assert alarm({"mismatch/max": ALARM_MAX + 0.01, "mismatch/k3_kl": 0.0}) is not None
    assert alarm({"mismatch/max": 0.0, "mismatch/k3_kl": ALARM_K3_KL + 0.01}) is not None
