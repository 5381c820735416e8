"""A fork of the server is the command: its exit code, its streams, its folder, its environment and its import path."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.fork_server import run_module

pytestmark = pytest.mark.usefixtures("fork_server")

SCRIPT = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ.get("NAME"), os.environ.get("HOME"), __name__)
print("said", file=sys.stderr)
os.system("echo below")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "said.py").write_text(SCRIPT)
    (folder / "failing.py").write_text("1 / 0")
    return {"PYTHONPATH": str(folder), "NAME": "value", "PATH": os.environ["PATH"]}


@pytest.mark.parametrize("arguments", [["0", "a b"], ["3"]])
def test_it_is_what_a_fresh_python_says(script, tmp_path, arguments):
    forked = run_module("said", arguments, cwd=tmp_path, env=script)
    fresh = subprocess.run(
        [sys.executable, "-m", "said", *arguments], cwd=tmp_path, env=script, capture_output=True, text=True
    )
    assert (forked.returncode, forked.stderr) == (fresh.returncode, fresh.stderr) == (int(arguments[0]), "said\n")
    assert sorted(forked.stdout.splitlines()) == sorted(fresh.stdout.splitlines())
    assert f"{arguments} {tmp_path} value None __main__" in forked.stdout and "below" in forked.stdout


def test_what_is_raised_is_shown_and_its_code_is_1(script):
    forked = run_module("failing", [], env=script)
    assert forked.returncode == 1 and forked.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_the_command_refuses_as_it_does_in_a_process_of_its_own():
    forked = run_module("harness.app", ["train", "method=nothing"])
    assert forked.returncode == 2 and forked.stderr.startswith("error: method=nothing: no such option")
