"""Scoring that runs what a model wrote, in processes that are ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.evaluation.library import code


def process_results(doc: dict[str, str], results: list[str]) -> dict[str, Any]:
    """As a task that executes a reply: whatever it says is done."""
    exec(results[0], {"os": os, "time": time, "subprocess": subprocess, "sys": sys})
    return {"passed": float("OWN_SECRET" not in os.environ), "again": 1.0}


HOSTILE = {
    "sleeps and starts another": "subprocess.Popen(['sleep', '977']); time.sleep(600)",
    "burns": "while True: pass",
    "ends": "os._exit(3)",
    "raises": "raise ValueError",
    "leaves": "sys.exit(0)",
    "takes memory": "bytearray(1 << 36)",
    "kills its parent's wish": "os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_code_that_does_not_end_scores_nothing_and_leaves_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "SECONDS", 0.2)
    started = time.monotonic()
    metrics = {"passed": None, "again": None}
    assert code.limited_results(process_results, lambda: metrics, {}, [HOSTILE[what]]) == {"passed": 0.0, "again": 0.0}
    assert time.monotonic() - started < 60
    if "sleep" in what:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and b"sleep\x00977\x00" in commands():
            time.sleep(0.05)
        assert b"sleep\x00977\x00" not in commands()


def test_what_it_writes_and_prints_stays_there_and_secrets_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OWN_SECRET", "x")
    monkeypatch.chdir(tmp_path)
    reply = "open('left', 'w').write('x'); print('said'); os.environ['HOME'] = '/'"
    assert code.limited_results(process_results, dict, {}, [reply]) == {"passed": 1.0, "again": 1.0}
    assert os.environ["OWN_SECRET"] == "x" and os.environ["HOME"] != "/"
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def commands() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:  # it has just ended
            continue
    return found
