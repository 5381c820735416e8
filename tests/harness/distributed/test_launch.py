"""The launcher of a node: where ranks meet, what they are told, what becomes of them and of their exit codes."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import psutil
import pytest

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.distributed.launch import PORTS, exit_code, launch
from harness.errors import UserError

WRITE = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
with open(os.path.join(sys.argv[1], os.environ["RANK"]), "w") as file:
    json.dump([os.environ[name] for name in names], file)
"""
WAIT = """
import os, signal, sys, time
number, code = int(os.environ["RANK"]), int(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
open(os.path.join(sys.argv[1], os.environ["RANK"]), "w").close()
if number == 1 and code >= 0:
    os._exit(code)
time.sleep(60)
"""
LAUNCH = """
import sys
from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.distributed import launch
launch.END = 0.5
config = from_hydra(compose(["student=tiny_xs", "cluster.student_gpus=2"]))
sys.exit(launch.launch(config, [sys.executable, "-c", sys.argv[1], *sys.argv[2:]]))
"""


def config(*overrides):
    return from_hydra(compose(["student=tiny_xs", "data.batch_size=48", *overrides]))


def told(tmp_path):
    return {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir() if path.name.isdigit()}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The variables of the second of two nodes, and a `scontrol` that knows them."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[04,07]" ] && printf "gpu04\\ngpu07\\n"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    for name, value in (("NODEID", "1"), ("NNODES", "2"), ("JOB_NODELIST", "gpu[04,07]"), ("JOB_ID", "4711")):
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_ranks_of_one_machine(tmp_path):
    assert launch(config("cluster.student_gpus=3"), [sys.executable, "-c", WRITE, str(tmp_path)]) == 0
    found = told(tmp_path)
    ports = {values[5] for values in found.values()}
    assert len(ports) == 1
    assert found == {str(r): [str(r), "3", str(r), "3", "127.0.0.1", *ports] for r in range(3)}


def test_ranks_share_the_cores_of_the_allocation(tmp_path, monkeypatch):
    """Eight cores of a larger machine for three ranks: two threads each."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    write = (
        'import os, sys; open(os.path.join(sys.argv[1], os.environ["RANK"]), "w").write(os.environ["OMP_NUM_THREADS"])'
    )
    assert launch(config("cluster.student_gpus=3"), [sys.executable, "-c", write, str(tmp_path)]) == 0
    assert told(tmp_path) == {"0": 2, "1": 2, "2": 2}


def test_ranks_of_the_second_slurm_node(tmp_path, slurm):
    """3 ranks a node: the second node has 3, 4 and 5. The port follows from the job: 20,000 + 4711."""
    chosen = config("cluster.num_nodes=2", "cluster.student_gpus=3")
    assert launch(chosen, [sys.executable, "-c", WRITE, str(tmp_path)]) == 0
    assert PORTS[4711] == 24_711
    assert told(tmp_path) == {str(3 + r): [str(3 + r), "6", str(r), "3", "gpu04", "24711"] for r in range(3)}
    with pytest.raises(UserError, match=r"cluster.num_nodes=3 and the Slurm job has 2"):
        launch(config("cluster.num_nodes=3"), [])


def test_nodes_without_slurm_are_numbered_by_hand(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match=r"\(missing: ZPPO_NODE, MASTER_ADDR\), or use torchrun"):
        launch(config("cluster.num_nodes=2"), [])
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("ZPPO_NODE", "1")
    assert launch(config("cluster.num_nodes=2"), [sys.executable, "-c", WRITE, str(tmp_path)]) == 0
    assert told(tmp_path) == {"1": ["1", "2", "0", "1", "first", "29500"]}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([2, 2], 2),
        ([75, 75], 75),
        ([1, 75], 1),  # what went wrong counts, not who was told to leave
        ([75, -9], 75),  # a rank was killed
        ([-9, -9], 75),  # all were
    ],
)
def test_the_exit_code_of_a_run(codes, expected):
    assert exit_code(codes) == expected


def start(tmp_path, code):
    command = [sys.executable, "-c", LAUNCH, WAIT, str(tmp_path), str(code)]
    process = subprocess.Popen(command)
    end = time.monotonic() + 60
    while not all((tmp_path / str(rank)).exists() for rank in (0, 1)):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    return process


def test_a_rank_that_ends_alone_ends_the_others(tmp_path):
    """They end each other; one that does not is killed."""
    assert start(tmp_path, 2).wait(30) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_launcher_reaches_the_ranks(tmp_path, number):
    process = start(tmp_path, -1)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    process.send_signal(number)
    assert process.wait(30) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert alive == []
