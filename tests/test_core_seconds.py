"""The bounds of core-seconds turn a session red: what a test itself burns, what its processes burn, and the sum."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import core_seconds
from tests.core_seconds import Family, Meter
from tests.layers import ROOT

BURN = """
import subprocess, sys, time

def burn(seconds):
    started = time.process_time()
    while time.process_time() - started < seconds:
        pass
"""
LIGHT = "def test_light():\n    pass\n"
DEAR = f"{BURN}\ndef test_dear():\n    burn(0.3)\n"
CHILD = f"""{BURN}
CODE = "import time\\nwhile time.process_time() < 0.3: pass"

def test_child():
    subprocess.run([sys.executable, "-c", CODE])
"""
ALIVE = f"""{BURN}
CODE = "import time\\nwhile time.process_time() < 0.3: pass\\nprint(flush=True)\\ntime.sleep(60)"
server = None

def test_server_that_stays():
    global server
    server = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE)
    server.stdout.readline()

def teardown_module():
    server.kill()
    server.wait()
"""
LATE = (
    ALIVE.replace("that_stays():", "that_is_hidden():\n    core_seconds._children = lambda pid: []")
    + """
import core_seconds

children = core_seconds._children

def test_after_it():
    core_seconds._children = children
"""
)
"""The list of children is cut short while a server burns, and is complete again in the test after it."""
FIXTURE = f"""{BURN}
import pytest

@pytest.fixture(scope="module")
def made():
    burn(0.3)

def test_fixture(made):
    pass
"""


def session(folder: Path, files: dict[str, str], *options: str) -> tuple[int, str]:
    """Exit code and output of pytest over these files, with the plugin alone."""
    for name, text in files.items():
        (folder / name).write_text(text)
    words = [sys.executable, "-m", "pytest", "-p", "core_seconds", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    answer = subprocess.run([*words, *options, str(folder)], capture_output=True, text=True, env=env, check=False)
    return answer.returncode, answer.stdout + answer.stderr


def test_a_dear_test_of_any_kind_is_named_and_the_session_is_red(tmp_path):
    """And no other test: what is seen late was not used by who sees it."""
    files = {"test_light.py": LIGHT, "test_dear.py": DEAR, "test_child.py": CHILD, "test_alive.py": ALIVE}
    code, output = session(tmp_path, files | {"test_fixture.py": FIXTURE, "test_late.py": LATE}, "--test-bound=0.1")
    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert "7 passed" in output
    named = re.findall(r"ERROR: test_\w+\.py::(test_\w+) takes .* core-seconds, more than", output)
    assert sorted(named) == ["test_child", "test_dear", "test_fixture", "test_server_that_stays"]
    assert "the suite takes" not in output


def test_the_sum_of_all_workers_and_their_collection_is_bounded(tmp_path):
    files = {"test_a.py": DEAR, "test_b.py": DEAR, "test_c.py": LIGHT}
    bounds = ["-p", "xdist", "--test-bound=30", "--numprocesses=2", "--dist=loadfile"]
    code, output = session(tmp_path, files, *bounds, "--suite-bound=0.6")
    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert re.search(r"ERROR: the suite takes .* core-seconds, more than", output)
    assert "ERROR: test_" not in output
    total = float(re.findall(r"([\d.]+) core-seconds for 3 tests", output)[0])
    collected = [float(number) for number in re.findall(r"tests, ([\d.]+) \+ ([\d.]+) of them", output)[0]]
    assert total > 0.6 + sum(collected), "two burning tests, two collections and a controller"


@pytest.mark.slow
def test_within_the_bounds_a_session_is_green_and_without_them_nothing_is_measured(tmp_path):
    code, output = session(tmp_path, {"test_light.py": LIGHT}, "--suite-bound=90", "--test-bound=30")
    assert code == pytest.ExitCode.OK and re.search(r"[\d.]+ core-seconds for 1 tests", output)
    code, output = session(tmp_path, {"test_light.py": LIGHT})
    assert code == pytest.ExitCode.OK and "core-seconds" not in output


def test_a_slow_machine_has_bounds_in_proportion(tmp_path):
    """The pace is printed; a bound on a machine of half the speed is twice as high, and a quarter above it is red."""
    meter = Meter(suite_bound=10.0, test_bound=1.0, pace=2.0, tests={"a": (2.4, 0.0), "b": (2.6, 0.0)}, total=24.0)
    assert [fault.split(":")[0] for fault in meter.faults_found()] == ["b takes 2.6 core-seconds, more than 2.5"]
    meter.total = 25.1
    assert meter.faults_found()[-1].startswith("the suite takes 25.1 core-seconds, more than 25.0")


BURN_ALONE = "import time\nwhile time.process_time() < 0.4: pass"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]]); print(flush=True); input()"


def test_what_a_process_below_a_process_uses_is_counted():
    family = Family()
    before = family.used()
    words = [sys.executable, "-c", PARENT, BURN_ALONE]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        alive = family.used() - before
        process.communicate("\n")
    assert alive > 0.4 and family.used() - before >= alive - 0.05


def test_who_was_seen_is_counted_where_a_list_of_children_is_cut_short(monkeypatch):
    """And where its parent has ended before it."""
    family = Family()
    code = f"{BURN_ALONE}\nprint(flush=True)\ninput()"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}]); input()"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        whole = family.used()
        with monkeypatch.context() as patch:
            patch.setattr(core_seconds, "_children", lambda pid: [])
            assert family.used() >= whole
        process.kill()
        process.wait()
        assert family.used() >= whole
