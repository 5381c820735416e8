"""The folder of a run: who may claim it, what its files hold, what a resume cuts off."""

import json

import pandas as pd
import pytest
import yaml

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.data.replay import BufferEvent
from harness.errors import UserError
from harness.records import folder as folder_module
from harness.records.files import write_atomically
from harness.records.folder import RunFolder, run_dir
from harness.types import Prompt, Question, Rollout, RolloutGroup, TrainingSample


def make_config(*overrides: str):
    return from_hydra(compose(["student=tiny_xs", *overrides]))


def test_path_of_a_run():
    config = make_config("outputs=out", "study=s", "seed=3")
    assert str(run_dir(config, "zppo,updates_per_step=8")) == "out/s/zppo,updates_per_step=8/tiny_xs/seed3"


def test_another_configuration_is_refused_and_nothing_is_touched(tmp_path):
    folder = begun(RunFolder(tmp_path / "run", make_config()))
    folder.write_metrics(1, {"rollout/accuracy": 0.5})
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError) as error:
        RunFolder(folder.path, make_config("update.learning_rate=1e-3", "seed=1"))
    assert "another configuration (seed=0, not 1, update.learning_rate=0.0002, not 0.001)" in str(error.value)
    assert "choose another study=NAME" in str(error.value)
    assert before == {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}


def begun(folder: RunFolder, **fields) -> RunFolder:
    folder.start(label="zppo", overrides=[], **fields)
    return folder


def test_more_steps_and_other_threads_are_the_same_run(tmp_path):
    folder = begun(RunFolder(tmp_path / "run", make_config("steps=5")))
    folder.write_metrics(1, {})
    folder.close()
    begun(RunFolder(folder.path, make_config("steps=10", "num_threads=1", "tracker=wandb")))
    assert yaml.safe_load((folder.path / "config.yaml").read_text())["steps"] == 10


@pytest.mark.parametrize("killed_at", ["config.yaml", "run.json"])
def test_a_kill_while_a_launch_with_more_steps_begins_is_no_damage(tmp_path, monkeypatch, killed_at):
    folder = begun(RunFolder(tmp_path / "run", make_config("steps=5")))
    folder.write_metrics(1, {})
    folder.close()

    def write(path, text):
        if path.name == killed_at and (killed_at == "config.yaml" or json.loads(text)["config_sha256"]):
            raise KeyboardInterrupt
        write_atomically(path, text)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(folder_module, "write_atomically", write)
        begun(RunFolder(folder.path, make_config("steps=6")))
    begun(RunFolder(folder.path, make_config("steps=7"))).close()
    RunFolder(folder.path, make_config("steps=7"))


def test_a_folder_without_results_may_be_claimed_again(tmp_path):
    begun(RunFolder(tmp_path / "run", make_config("seed=0")))
    begun(RunFolder(tmp_path / "run", make_config("seed=1")))


def test_nothing_but_the_lock_is_written_before_the_start(tmp_path):
    path = tmp_path / "s" / "zppo" / "tiny_xs" / "seed0"
    folder = RunFolder(path, make_config())
    assert {file.name for file in path.iterdir()} == {".lock", ".lock.json"}
    assert json.loads((path / ".lock.json").read_text())["phase"] == "starting"
    folder.end("failed", "no teacher", exit_code=2)
    folder.close()
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["refused.jsonl"]
    folder = begun(RunFolder(path, make_config()))
    assert json.loads((path / ".lock.json").read_text())["phase"] == "running"
    folder.close()
    assert {file.name for file in path.iterdir()} == {".lock", "config.yaml", "run.json"}


def test_what_is_done_stays_done_until_there_is_a_new_model(tmp_path):
    config = make_config("steps=2")
    folder = begun(RunFolder(tmp_path / "run", config), num_steps=2)
    folder.finish("done")
    folder.close()
    first = RunFolder.read_info(folder.path)
    longer = begun(RunFolder(folder.path, make_config("steps=3")), num_steps=3)
    longer.finish("failed", "the teacher is gone")
    longer.close()
    info = RunFolder.read_info(folder.path)
    assert [info[key] for key in ("status", "num_steps", "finished")] == ["done", 2, first["finished"]]
    assert (info["error"], info["last_error"]) == (None, "the teacher is gone")
    longer = begun(RunFolder(folder.path, make_config("steps=3")), num_steps=3)
    (folder.path / "model.tmp").mkdir()
    longer.replace_model(folder.path / "model.tmp")
    longer.finish("failed", "no scores")
    info = RunFolder.read_info(folder.path)
    assert [info[key] for key in ("status", "num_steps", "error", "last_error")] == ["failed", 3, "no scores", None]
    longer.finish("done")


def test_anew_removes_what_was_there_at_the_start_alone(tmp_path):
    folder = begun(RunFolder(tmp_path / "run", make_config("seed=0")), num_steps=2)
    folder.write_metrics(1, {})
    folder.finish("done")
    folder.close()
    again = RunFolder(folder.path, make_config("seed=1"), anew=True)
    assert (folder.path / "metrics.jsonl").exists() and not again.is_done(None) and not again.goes_on
    begun(again)
    assert not (folder.path / "metrics.jsonl").exists() and RunFolder.read_info(folder.path)["status"] == "running"


def test_seconds_are_those_that_the_run_ran(tmp_path, monkeypatch):
    clock = iter([100.0, 103.0, 110.0, 1000.0, 1000.5, 1002.0])
    monkeypatch.setattr("harness.records.folder.monotonic", lambda: next(clock))
    folder = begun(RunFolder(tmp_path / "run", make_config()))
    folder.finish("interrupted")  # ten seconds, and a pause
    folder.close()
    folder = begun(RunFolder(folder.path, make_config()))
    folder.finish("done")
    assert RunFolder.read_info(folder.path)["seconds"] == 12.0


def test_run_json_life(tmp_path):
    config = make_config("steps=2", "seed=7")
    folder = RunFolder(tmp_path / "run", config)
    folder.start(label="zppo,tau=0.3", overrides=["seed=7"], num_steps=2)
    info = RunFolder.read_info(folder.path)
    keys = ("schema_version", "status", "error", "label", "method", "student", "teacher", "seed")
    assert {key: info[key] for key in keys} == {
        "schema_version": 2, "status": "running", "error": None, "label": "zppo,tau=0.3", "method": "zppo",
        "student": "tiny_xs", "teacher": "tiny_teacher", "seed": 7,
    }  # fmt: skip
    assert info["versions"]["torch"] and info["overrides"] == ["seed=7"]
    folder.add_cost({"time/step": 1.5, "tokens/student_generated": 10.0, "rollout/accuracy": 0.5})
    folder.add_cost({"time/step": 2.0})
    folder.finish("done")
    info = RunFolder.read_info(folder.path)
    assert info["cost"] == {"time/step": 3.5, "tokens/student_generated": 10.0}
    folder.close()
    again = RunFolder(folder.path, config)
    assert again.is_done(2) and again.is_done(None) and not again.is_done(3)


def test_resume_cuts_off_what_came_after_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "run", make_config())
    begun(folder)
    for step in (1, 2, 3):
        folder.write_metrics(step, {"time/step": 1.0})
        event = BufferEvent(event="admit", question_id=f"q{step}", accuracy=0.0, entry_accuracy=0.0, visits=0)
        folder.write_buffer_events(step, [event])
        folder.write_rollouts(step, [], [], {})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')  # a kill in the middle of a line
    folder.truncate_after(2)
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "time/step": 1.0}, {"step": 2, "time/step": 1.0}]
    events = [json.loads(line) for line in (folder.path / "buffer.jsonl").read_text().splitlines()]
    assert [event["question_id"] for event in events] == ["q1", "q2"]
    rollouts = sorted(p.name for p in (folder.path / "rollouts").iterdir())
    assert rollouts == [
        "step-000001.parquet",
        "step-000002.parquet",
    ]
    folder.set_info()
    assert RunFolder.read_info(folder.path)["cost"] == {"time/step": 2.0}


def test_rollouts_on_disk_literal(tmp_path):
    question = Question(id="q", text="Compute 1+1.", answer="2")
    messages = ({"role": "user", "content": "Compute 1+1."},)
    prompt = Prompt(
        uid="q/bcq", question=question, messages=messages, kind="bcq", positive_answer="2", positive_position=1,
        negative_answers=("3", "4"),
    )  # fmt: skip

    def rollout(index: int, text: str, reward: float) -> Rollout:
        return Rollout(
            sampler="student", index=index, prompt_ids=[1, 2], completion_ids=[3, 4, 5], rollout_logprobs=[-1.0] * 3,
            text=text, num_prefix=1, finish_reason="stop", answer=text, reward=reward, training_reward=0.25,
            verdict="correct" if reward else "wrong",
        )  # fmt: skip

    rollouts = [rollout(0, "2", 1.0), rollout(1, "3", 0.0)]
    group = RolloutGroup(uid="q/bcq", prompt=prompt, rollouts=rollouts, replayed=True)
    sample = TrainingSample(
        uid="q/bcq", token_ids=[1, 2, 3, 4, 5], loss_mask=[0, 0, 1, 1, 1], advantages=[0, 0, 1.5, 1.5, 1.5],
        rollout=rollouts[0],
    )  # fmt: skip
    folder = begun(RunFolder(tmp_path / "run", make_config()))
    folder.write_rollouts(1, [group], [sample], {"q/bcq": "<prompt>"})
    frame = pd.read_parquet(folder.path / "rollouts" / "step-000001.parquet")
    row = frame.iloc[0].to_dict()
    assert list(row.pop("negative_answers")) == ["3", "4"]
    assert row == {
        "step": 1, "uid": "q/bcq", "kind": "bcq", "sampler": "student", "question_id": "q", "replayed": True,
        "index": 0, "prompt_text": "<prompt>", "response_text": "2", "num_prompt_tokens": 2, "num_response_tokens": 3,
        "num_prefix_tokens": 1, "finish_reason": "stop", "answer": "2", "gold": "2", "reward": 1.0,
        "training_reward": 0.25, "verdict": "correct", "positive_answer": "2", "match": "positive", "trained": True,
        "advantage": 1.5, "positive_position": 1, "source": "",
    }  # fmt: skip
    assert frame.iloc[1]["match"] == "negative"
    assert not frame.iloc[1]["trained"] and pd.isna(frame.iloc[1]["advantage"])
