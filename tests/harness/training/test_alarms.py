"""Alarms: when they are raised, whose samples they name and what is kept of them."""

from __future__ import annotations

import json
import logging
import math

import pytest

from harness.config.compose import compose
from harness.config.schema import AlarmConfig, from_hydra
from harness.errors import UserError
from harness.records.folder import RunFolder
from harness.run.run import run
from harness.testing import run_metrics
from harness.training.alarms import MAX_ALARMS, NUM_SAMPLES, Alarms, least_entropy
from harness.types import TrainingSample

OVERRIDES = ["student=tiny_xs", "method=grpo"]


def sample(uid: str, old: list[float], *, inert: bool = False) -> TrainingSample:
    """A prompt of one token, and a completion with these log-probabilities."""
    mask = [0] + [1] * len(old)
    return TrainingSample(
        uid=uid, token_ids=[5] * len(mask), loss_mask=mask, advantages=[1.0] * len(mask),
        old_logprobs=[0.0, *old], rollout_logprobs=[0.0, *old], inert=inert,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run", from_hydra(compose(OVERRIDES)))


def alarms(folder: RunFolder, present: dict[str, list[float]] | None = None, **limits) -> Alarms:
    def logprobs(samples):
        return [[0.0, *(present or {})[s.uid]] for s in samples]

    return Alarms(AlarmConfig(**limits), folder, logprobs=logprobs)


def saved(folder: RunFolder, name: str) -> dict:
    return json.loads((folder.path / "alarms" / name).read_text())


def test_quiet_while_within_the_limits_and_silent_without_them(folder):
    rows = [{"entropy": 0.5, "ratio": 1.0}, {"entropy": 0.01, "ratio": 2.0}]
    assert alarms(folder).check(1, rows, []) == {"alarm/entropy": 0.0, "alarm/ratio": 0.0}
    assert alarms(folder, min_entropy=None, max_ratio=None).check(1, rows, []) == {}
    assert alarms(folder).check(1, [{"loss": 1.0}], []) == {}  # no policy gradient
    assert alarms(folder).check(1, [], []) == {}  # no update was made
    assert not (folder.path / "alarms").exists()


def test_entropy_names_the_surest_samples(folder, caplog):
    # mean -log-probability: b 0.01, a (0.1 + 0.3) / 2 = 0.2, c 1.5; d has no gradient
    samples = [sample("a", [-0.1, -0.3]), sample("b", [-0.01]), sample("c", [-1.5]), sample("d", [0.0], inert=True)]
    assert [(s.uid, pytest.approx(f)) for s, f in least_entropy(samples)] == [("b", 0.01), ("a", 0.2), ("c", 1.5)]
    with caplog.at_level(logging.WARNING):
        metrics = alarms(folder).check(7, [{"entropy": 0.5}, {"entropy": 0.009}], samples)
    assert metrics == {"alarm/entropy": 1.0}
    assert "step 7: entropy collapses: an update's mean is 0.009 nats" in caplog.text
    kept = saved(folder, "step_000007_entropy.json")
    assert (kept["step"], kept["limit"]) == (7, 0.01)
    assert [s["uid"] for s in kept["samples"]] == ["b", "a", "c"]
    assert kept["samples"][1]["old_logprobs"] == [0.0, -0.1, -0.3]


def test_ratio_names_the_samples_whose_tokens_moved_most(folder, caplog):
    # largest exp(present - old): a exp(0.5), b exp(-1 + 3) = exp(2); c leaves exp's range and is cut to exp(20)
    samples = [sample("a", [-1.0, -1.0]), sample("b", [-3.0]), sample("c", [-900.0])]
    present = {"a": [-1.5, -0.5], "b": [-1.0], "c": [0.0]}
    with caplog.at_level(logging.WARNING):
        metrics = alarms(folder, present).check(3, [{"ratio": 1.0}, {"ratio": 2.5}], samples)
    assert metrics == {"alarm/ratio": 1.0} and "mean ratio is 2.5" in caplog.text
    found = [(s["uid"], s["figure"]) for s in saved(folder, "step_000003_ratio.json")["samples"]]
    assert found == [(uid, pytest.approx(math.exp(x))) for uid, x in [("c", 20.0), ("b", 2.0), ("a", 0.5)]]


def test_files_are_bounded_and_counted_on_after_an_interruption(folder, caplog):
    samples = [sample(str(i), [-0.001 * i]) for i in range(NUM_SAMPLES + 3)]
    low = [{"entropy": 0.0}]
    with caplog.at_level(logging.WARNING):
        found = [alarms(folder).check(step, low, samples) for step in range(1, MAX_ALARMS + 4)]
    assert found == [{"alarm/entropy": 1.0}] * (MAX_ALARMS + 3)
    files = sorted(p.name for p in (folder.path / "alarms").iterdir())
    assert files == [f"step_{step:06d}_entropy.json" for step in range(1, MAX_ALARMS + 1)]
    assert len(caplog.records) == MAX_ALARMS
    assert len(saved(folder, files[0])["samples"]) == NUM_SAMPLES
    folder.truncate_after(4)
    for step in range(5, MAX_ALARMS + 4):
        alarms(folder).check(step, low, samples)
    assert sorted(p.name for p in (folder.path / "alarms").iterdir()) == files


def test_a_run_with_both_alarms_goes_on_and_its_results_do_not_change(tmp_path):
    small = [
        "student=tiny_xs", "eval=none", "data.batch_size=6", "data.pool_size=12", "data.num_questions=60", "steps=2",
        "data.epochs=2", "data.levels=[2]", "rollout.max_response_tokens=32", "num_threads=1", "method=grpo",
        "method.group_size=4",
    ]  # fmt: skip
    quiet, loud = (
        run(from_hydra(compose([*small, f"outputs={tmp_path / name}", *extra])))
        for name, extra in (
            ("quiet", ["alarms.min_entropy=null", "alarms.max_ratio=null"]),
            ("loud", ["alarms.min_entropy=100", "alarms.max_ratio=1.0000001"]),
        )
    )
    rows = [{k: v for k, v in row.items() if k.startswith(("train/", "rollout/"))} for row in run_metrics(quiet)]
    found = run_metrics(loud)
    assert [{k: row[k] for k in rows[0]} for row in found] == rows
    assert [row["alarm/entropy"] for row in found] == [1.0, 1.0] and not any("alarm/ratio" in row for row in rows)
    kept = json.loads((loud / "alarms/step_000001_ratio.json").read_text())
    assert kept["samples"][0]["figure"] > 1 and "boxed" in kept["samples"][0]["text"]
    assert "alarms/step_000001_entropy.json" in (loud / "run.log").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alarms.min_entropy=-1", r"alarms\.min_entropy must be greater than 0, or null, got -1"),
        ("alarms.max_ratio=1", r"alarms\.max_ratio must be greater than 1, or null, got 1"),
        ("alarms.max_ratio=nan", r"alarms\.max_ratio must be a finite number, or null, got nan"),
    ],
)
def test_limits_that_make_no_sense(override, message):
    with pytest.raises(UserError, match=message):
        from_hydra(compose([*OVERRIDES, override]))
