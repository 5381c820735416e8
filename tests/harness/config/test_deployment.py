"""What the rest of a configuration cannot give to several ranks; test_schema.py has what it cannot give to a method."""

import pytest

from harness.config.compose import compose
from harness.config.deployment import check_ranks
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
