"""What the rest of a configuration cannot give to several ranks; test_schema.py has what it cannot give to a method."""

import pytest

from harness.config.compose import compose
from harness.config.deployment import check_devices, check_ranks
from harness.config.schema import from_hydra
from harness.errors import UserError


def config(*overrides):
    return from_hydra(compose(["student=tiny_xs", "data.batch_size=48", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["update.optimizer=adamw_8bit"], "set update.optimizer=adamw_bf16"),
        (["device=cuda:1"], "device=cuda:1 is one GPU for several ranks: set device=cuda"),
        (["rollout=vllm"], "set cluster.teacher_gpus"),
        (["method=base", "rollout=server", "student.urls=[http://127.0.0.1:1/v1]"], "set cluster=local"),
    ],
)
def test_what_several_ranks_cannot_do(overrides, message, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    check_ranks(config(*overrides))
    with pytest.raises(UserError) as error:
        check_ranks(config(*overrides, "cluster.student_gpus=2"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster=1x8"], "cluster=1x8 names GPUs and this machine has none (zppo doctor says why): set cluster=local"),
        (["cluster=one_gpu"], "or device=cpu where a CPU is meant"),
        (["cluster.student_gpus=2"], "cluster=local names GPUs"),
        (["cluster.teacher_gpus=1"], "cluster=local names GPUs"),
        (["device=cuda"], "device=cuda and this machine has no GPU: set device=cpu"),
        (["device=cpu", "teacher_device=cuda:1"], "teacher_device=cuda:1 and this machine has no GPU"),
    ],
)
def test_gpus_that_are_named_have_to_be_there(overrides, message, monkeypatch):
    chosen = config(*overrides)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    check_devices(chosen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError) as error:
        check_devices(chosen)
    assert message in str(error.value)


@pytest.mark.parametrize("overrides", [[], ["device=cpu", "cluster=1x8"], ["device=cpu", "cluster.student_gpus=2"]])
def test_a_cpu_that_is_meant_is_taken(overrides, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_devices(config(*overrides))


@pytest.mark.parametrize("source", ["jsonl", "parquet", "hub"])
def test_a_recipe_cuts_no_data_of_a_user(source):
    assert config().data.pool_size == 240  # of the recipe of tiny students
    chosen = config(f"data={source}", "data.path=mine").data
    assert (chosen.pool_size, chosen.epochs) == (None, 15)
    assert config(f"data={source}", "data.path=mine", "data.pool_size=7").data.pool_size == 7
    assert config(f"data={source}", "data.path=mine", "recipe=tiny").data.pool_size is None
