"""GPUs are dealt out by name; no GPU is needed for that, and none is used here."""

from __future__ import annotations

import pytest

from harness.config.compose import compose
from harness.config.schema import RunConfig, from_hydra
from harness.errors import UserError
from harness.study.slots import Slots


def config(device: str = "auto", teacher_device: str | None = None) -> RunConfig:
    devices = [f"device={device}", f"teacher_device={teacher_device or 'null'}"]
    return from_hydra(compose(["method=zppo", "student=tiny_s", *devices]))


def test_shares_and_who_gets_which():
    slots = Slots([config(), config("cpu")], ["0", "1", "2"])
    assert slots.shares == [("0",), ("1",), ("2",)]
    assert slots.choose([], jobs=3) == ("0",)
    assert slots.choose([("0",), ("2",)], jobs=3) == ("1",)
    assert slots.choose([("0",), ("1",), ("2",)], jobs=3) is None
    # 5 jobs on 3 GPUs are at most 2 on one.
    assert slots.choose([("0",), ("1",), ("1",), ("2",)], jobs=5) == ("0",)
    assert slots.choose([("0",), ("0",), ("1",), ("1",), ("2",), ("2",)], jobs=9) == ("0",)
    assert slots.choose([("0",), ("0",), ("1",), ("1",), ("2",), ("2",)], jobs=6) is None


def test_cells_with_a_teacher_on_another_gpu_get_two():
    slots = Slots([config(), config("cuda:0", "cuda:1")], ["4", "5", "6", "7", "8"])
    assert slots.shares == [("4", "5"), ("6", "7")]
    assert slots.choose([("5",)], jobs=2) == ("6", "7")
    with pytest.raises(UserError, match="a cell names 2 GPUs and 1 are visible"):
        Slots([config("cuda:0", "cuda:1")], ["0"])


def test_without_gpus_all_run_anywhere():
    for slots in (Slots([config()], []), Slots([config("cpu")], ["0", "1"])):
        assert slots.shares == [] and slots.choose([(), ()], jobs=2) == ()
