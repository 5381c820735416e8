"""A teacher in a process of its own: the local distributions, and an end in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import harness.teacher.process as process_module
from harness.config.schema import ModelConfig
from harness.errors import RunInterrupted, UserError
from harness.models.batching import pad
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.teacher.base import check_same
from harness.teacher.local import LocalScorer
from harness.teacher.process import ProcessScorer
from harness.training.models import open_scorer
from tests.support.samples import distilled

TEACHER = ModelConfig(name="teacher", path="tiny:teacher", dtype="float32")
CPU = torch.device("cpu")
TEMPERATURE = 0.7
pytestmark = pytest.mark.usefixtures("forked")


def pid_of(scorer: ProcessScorer) -> int:
    assert scorer.pid is not None  # signals to 0 would reach this process's own group
    return scorer.pid


def open_process(chat: Any, **changes: Any) -> ProcessScorer:
    options = {"temperature": TEMPERATURE, "timeout": 60.0} | changes
    scorer = open_scorer(TEACHER, chat, "process", **options)
    assert isinstance(scorer, ProcessScorer)
    return scorer


@pytest.fixture(scope="module")
def process(forked: None) -> Iterator[ProcessScorer]:
    """Starting one takes seconds: tests that leave it alive share it."""
    scorer = open_process(Chat(load_tokenizer(TEACHER), TEACHER))
    yield scorer
    scorer.close()


def test_the_process_gives_the_local_distributions_bit_for_bit(
    process: ProcessScorer, teacher: Any, micro_batches: Any
) -> None:
    local = LocalScorer(teacher, TEMPERATURE)
    for samples, ours, theirs in zip(
        micro_batches, local.score(micro_batches), process.score(micro_batches), strict=True
    ):
        check_same(theirs, pad(samples, CPU))
        num_tokens = len(ours.ids_N)
        assert num_tokens == sum(sample.num_trained for sample in samples)
        assert torch.equal(ours.between(0, num_tokens).logits_NV, theirs.between(0, num_tokens).logits_NV)
    assert process.num_parameters == sum(p.numel() for p in teacher.module.parameters())


def test_an_update_is_the_same_with_either(process: Any, teacher: Any, make_student: Any, make_samples: Any) -> None:
    rows = [
        distilled(make_student("s"), scorer, make_samples(8), TEMPERATURE)
        for scorer in (LocalScorer(teacher, TEMPERATURE), process)
    ]
    assert rows[0][0] == rows[1][0] and rows[0][0]["loss"] > 0
    assert all(torch.equal(a, b) for a, b in zip(rows[0][1], rows[1][1], strict=True))


def test_a_changed_id_stops_the_update(
    process: Any, make_student: Any, make_samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One completion id on its way to the process: it echoes what it scored, and the trainer compares."""
    request = process_module._request

    def altered(*args: Any, **kwargs: Any) -> Any:
        made = request(*args, **kwargs)
        arrays = made.arrays
        arrays["ids_BT"][arrays["rows_N"][-1], arrays["columns_N"][-1] + 1] += 1
        return made

    monkeypatch.setattr(process_module, "_request", altered)
    with pytest.raises(RuntimeError, match="teacher and student were given different completions"):
        distilled(make_student("s"), process, make_samples(4), TEMPERATURE)


def test_the_next_micro_batch_is_under_way_while_one_is_trained_on(process: Any, micro_batches: Any) -> None:
    scores = process.score(micro_batches)
    next(scores)
    assert process._connection.poll(60.0)  # the second one's reply, which nobody has asked for yet
    assert [s.ids_N for s in scores] == [pad(samples, CPU).tokens.ids_N.tolist() for samples in micro_batches[1:]]


def test_an_iterator_may_be_dropped(process: Any, micro_batches: Any) -> None:
    """Its outstanding replies are not taken for those of the next one."""
    next(process.score(micro_batches))
    again = list(process.score(micro_batches[::-1]))
    assert [s.ids_N for s in again] == [pad(samples, CPU).tokens.ids_N.tolist() for samples in micro_batches[::-1]]


@pytest.mark.slow
def test_a_process_that_hangs_meets_its_deadline(chat: Any, micro_batches: Any) -> None:
    scorer = open_process(chat, timeout=0.5)
    os.kill(pid_of(scorer), signal.SIGSTOP)
    with pytest.raises(RunInterrupted, match=r"took more than 0\.5 s to score a micro-batch: raise server\.timeout"):
        next(scorer.score(micro_batches))
    pid = pid_of(scorer)
    scorer.close()
    assert not psutil.pid_exists(pid)


def test_a_process_that_dies_is_one_line(chat: Any, micro_batches: Any) -> None:
    process = open_process(chat)
    scores = process.score(micro_batches)
    next(scores)
    os.kill(pid_of(process), signal.SIGKILL)
    with pytest.raises(RunInterrupted, match=r"^the teacher's process has died \(exit code -9; [^\n]*\Z"):
        list(scores)
    with pytest.raises(RunInterrupted, match="has died"):
        next(process.score(micro_batches))
    process.close()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_the_users_error(chat: Any) -> None:
    missing = ModelConfig(name="t", path="/nowhere/model", dtype="float32")
    with pytest.raises(UserError, match="no model folder /nowhere/model"):
        open_scorer(missing, chat, "process", temperature=1.0)


PARENT = """
import os, sys
from harness.config.schema import ModelConfig
from harness.teacher.process import ProcessScorer
if __name__ == "__main__":
    config = ModelConfig(name="teacher", path="tiny:teacher", dtype="float32")
    scorer = ProcessScorer(config, num_tokens=100, banned_ids=[], device="cpu", head_device="cpu", temperature=1.0,
                           timeout=60.0)
    print(scorer.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_the_process_dies_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()  # kill -9: nothing of the parent's runs any more
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    gone, _ = psutil.wait_procs([child], timeout=30)
    assert gone
