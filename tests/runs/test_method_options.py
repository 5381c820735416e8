"""What a step of ZPPO with other options than the published ones does: through `zppo train`, by what the run wrote."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from harness.app import main
from harness.models.tiny import tiny_path
from harness.training.dealing import deal

OPTIONS = [
    "method=zppo", "student=tiny_xs", "eval=none", "steps=1", "data.batch_size=8", "data.num_questions=40",
    "data.pool_size=24", "data.levels=[1,2]", "rollout.max_response_tokens=48", "num_threads=1", "seed=0",
    "method.group_size=4", "method.teacher_group_size=2", "method.augment_ratio=0.5", "method.updates_per_step=3",
    "method.advantage_scope=mini_batch",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    assert main(["train", *OPTIONS, "study=options", f"outputs={outputs}"]) == 0
    return outputs / "options" / "zppo" / "tiny_xs" / "seed0"


@pytest.fixture(scope="module")
def rollouts(folder):
    return pd.read_parquet(folder / "rollouts" / "step-000001.parquet")


def test_advantages_are_normalised_within_their_mini_batch(rollouts):
    """Centre, pool, divide by hand over the groups that the step's third stream deals to one mini-batch."""
    student = rollouts[(rollouts["sampler"] == "student") & rollouts["trained"]]
    dealt = deal(list(dict.fromkeys(student["uid"])), num_batches=3, rng=np.random.default_rng([0, 1, 3]))
    sigmas = []
    for part in dealt:
        rewards = [student.loc[student["uid"] == uid, "reward"].tolist() for uid in part]
        centred = [[r - sum(group) / 4 for r in group] for group in rewards]
        pool = [value for group in centred if any(group) for value in group]
        sigmas.append(math.sqrt(sum(value**2 for value in pool) / len(pool)))
        for uid, group in zip(part, centred, strict=True):
            found = student.loc[student["uid"] == uid, "advantage"].tolist()
            assert found == pytest.approx([value / (sigmas[-1] + 1e-6) for value in group], abs=1e-5)
    assert len({round(sigma, 3) for sigma in sigmas}) > 1  # or this would hold for the step as well


def test_the_place_of_the_right_candidate_is_recorded_and_audited(folder, rollouts, capsys):
    """A BCQ's candidates stand in its prompt; the audit counts replies by the place of the right one."""
    bcq = rollouts[rollouts["kind"] == "bcq"]
    assert len(bcq) and rollouts.loc[rollouts["kind"] != "bcq", "positive_position"].isna().all()
    for _, row in bcq.iterrows():
        candidates = row["prompt_text"].split("<candidate>\n")[1:]
        assert ["\\boxed{" + row["gold"] + "}" in text for text in candidates].index(True) == row["positive_position"]
    assert main(["audit", str(folder)]) == 0
    table = capsys.readouterr().out.partition("BCQ by the place of the right trace\n")[2].splitlines()[1:3]
    for place, line in enumerate(table):
        rewards = bcq.loc[bcq["positive_position"] == place, "reward"]
        share = f"{100 * rewards.mean():.1f}" if len(rewards) else "-"
        assert line.split()[:3] == [("first", "second")[place], str(len(rewards)), share]


def test_thinking_that_is_off_and_asked_for_is_said_ahead_of_a_run_and_in_its_log(tmp_path, capsys):
    template = (tiny_path("xs") / "chat_template.jinja").read_text(encoding="utf-8")
    closed = "{% if add_generation_prompt and not enable_thinking %}<think></think>{% endif %}"
    (tmp_path / "closes.jinja").write_text(template + closed, encoding="utf-8")
    said = "student.enable_thinking=false keeps replies from thinking"
    words = ["method=grpo", "student=tiny_xs", "eval=none", f"outputs={tmp_path}"]
    for override, expected in ((f"student.chat_template={tmp_path}/closes.jinja", True), ("seed=0", False)):
        assert main(["doctor", *words, override]) == 0
        assert (said in " ".join(capsys.readouterr().out.split())) is expected
    small = [
        "steps=1",
        "method.group_size=2",
        "data.batch_size=2",
        "data.pool_size=8",
        "rollout.max_response_tokens=8",
        "num_threads=1",
    ]
    assert main(["train", *words, *small, f"student.chat_template={tmp_path}/closes.jinja"]) == 0
    (log,) = tmp_path.rglob("run.log")
    assert said in log.read_text()


def test_the_option_is_recorded(folder):
    assert json.loads((folder / "run.json").read_text())["method_options"]["advantage_scope"] == "mini_batch"


def test_a_divergence_is_at_temperature_1_and_the_mismatch_at_that_of_sampling(tmp_path):
    """The teacher has the student's weights: tempered alike, their divergence is 0, and the engine is the trainer."""
    words = ["method=on_policy_kd", "student=tiny_xs", "teacher=hf", "teacher.path=tiny:xs", "teacher.dtype=float32"]
    small = ["steps=1", "data.batch_size=2", "data.num_questions=8", "data.pool_size=8", "method.group_size=2"]
    limits = ["rollout.max_response_tokens=16", "rollout.temperature=0.5", "eval=none", "num_threads=1"]
    assert main(["train", *words, *small, *limits, f"outputs={tmp_path}"]) == 0
    (file,) = tmp_path.rglob("metrics.jsonl")
    row = json.loads(file.read_text())
    assert abs(row["train/loss"]) < 1e-6 and row["mismatch/max"] < 1e-3 and row["mismatch/num_tokens"] > 0
