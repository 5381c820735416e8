from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from rich.console import Console

from harness.app import main
from harness.config.schema import ModelConfig, RunConfig, UpdateConfig
from harness.errors import UserError
from harness.process.devices import num_cores
from harness.records.folder import RunFolder
from harness.records.lock import RunLock
from harness.study import scheduler
from harness.study.cells import Cell
from harness.study.scheduler import exit_code, run_cells
from harness.study.status import format_seconds, last_metrics, run_states, status

# Stands for `zppo train`: does what <outputs>/<label>.txt says and writes the files of a run folder.
FAKE_TRAIN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
outputs, label = Path(sys.argv[1]), next(a for a in sys.argv if a.startswith("label="))[7:-1]
what, folder = (outputs / f"{label}.txt").read_text(), outputs / "s" / label / "tiny_s" / "seed0"
folder.mkdir(parents=True, exist_ok=True)
record = {"status": "running", "error": None, "label": label, "method": label, "student": "tiny_s", "seed": 0,
          "num_steps": 2, "pid": os.getpid(), "started": "2026-01-01T00:00:00+00:00", "finished": None}
def write(**fields):
    (folder / "run.json").write_text(json.dumps(record | fields))
write()
print("cell", label, "threads", os.environ["OMP_NUM_THREADS"])
steps = [{"step": 1, "rollout/accuracy": 0.25}, {"step": 2, "rollout/accuracy": 0.3125}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\\n" for step in steps))
if what == "slow":
    time.sleep(0.8)
if what == "crash":
    sys.exit("error: a line before\\nerror: the last line")
if what == "fail":
    write(status="failed", error="ValueError: first\\nbad reward")
    sys.exit(1)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "unfinished":
    sys.exit(0)
if what == "preempted":
    sys.exit(75)
if what == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
if what == "gpu":
    print("GPU", os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(0.3)
if what.startswith("interrupt"):  # with a helper, and deaf to SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (outputs / "pids.txt").write_text(f"{os.getpid()} {helper.pid}")
    os.kill(int(os.environ["LAUNCHER"]), int(what.split()[1]))
    time.sleep(60)
(folder / "config.yaml").write_bytes((outputs / f"{label}.yaml").read_bytes())
write(status="done")
"""


SERVER = "import sys; from harness.process.warm import main; main(sys.argv[1], lambda: None)"
FORKED = pytest.mark.parametrize("study", ["fresh", "forked"], indirect=True)


@pytest.fixture
def study(tmp_path, monkeypatch, request):
    """`study(grpo="done", zppo="crash")` gives the cells of a study and prepares what their processes will do."""
    script = tmp_path / "fake_train.py"
    script.write_text(FAKE_TRAIN)
    (tmp_path / "server.py").write_text(SERVER)
    monkeypatch.setattr(scheduler, "WARM", (sys.executable, str(tmp_path / "server.py")))
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("LAUNCHER", str(os.getpid()))
    is_forked = getattr(request, "param", "fresh") == "forked"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.getcwd()}")
    if is_forked:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(scheduler._Starter, "_fresh", None)

    class Study:
        folder = tmp_path / "s"
        command = (sys.executable, *(["-m", "fake_train"] if is_forked else [str(script)]), str(tmp_path))

        def __call__(self, **plans: str) -> list[Cell]:
            return [self.cell(label, what) for label, what in plans.items()]

        def cell(self, label: str, what: str, **fields: object) -> Cell:
            student = ModelConfig(name="tiny_s", path="tiny:s")
            method = {"name": "grpo", "class": "grpo"}
            config = RunConfig(study="s", outputs=str(tmp_path), student=student, label=label, method=method, **fields)
            RunFolder(tmp_path / "written", config).start(label=label, overrides=[])
            (tmp_path / "written" / "config.yaml").rename(tmp_path / f"{label}.yaml")  # freed: nobody refers to it
            (tmp_path / f"{label}.txt").write_text(what)
            return Cell((f"label='{label}'",), label, label, "tiny_s", 0, config)

        def run(self, cells, *, jobs=2, terminal=False, **options):
            self.screen = io.StringIO()
            console = Console(file=self.screen, width=300, force_terminal=terminal)
            return run_cells(cells, jobs=jobs, command=self.command, console=console, **options)

    return Study()


def states(outcomes):
    return [(outcome.cell.label, outcome.state, outcome.error) for outcome in outcomes]


@FORKED
def test_goes_on_past_failures_and_tells_each_ones_last_words(study):
    outcomes = study.run(study(a="crash", b="fail", c="killed", d="unfinished", e="done", f="preempted", g="segfault"))
    assert states(outcomes) == [
        ("a", "failed", "error: the last line"),
        ("b", "failed", "bad reward"),
        ("c", "failed", "killed by SIGKILL"),
        ("d", "failed", "cell d threads " + str(max(1, num_cores() // 2))),
        ("e", "done", None),
        ("f", "interrupted", "cell f threads " + str(max(1, num_cores() // 2))),
        ("g", "failed", "killed by SIGSEGV"),
    ]
    assert [exit_code(outcomes), exit_code(outcomes[4:5]), exit_code(outcomes[4:6])] == [1, 0, 75]
    assert [outcome.reward for outcome in outcomes] == [0.3125] * 7
    text = study.screen.getvalue()
    assert re.search(r"^\[\d/7\] done    e tiny_s seed0  \d s  reward 0\.31$", text, re.M)
    assert f"failed: a tiny_s seed0: error: the last line\n    log: {study.folder}/logs/a-tiny_s-seed0.log\n" in text
    assert "7 cells: 1 done, 1 interrupted, 5 failed" in text


def test_done_cells_are_skipped_and_failed_ones_tried_again(study):
    cells = study(a="done", b="crash")
    study.run(cells)
    cells = study(a="crash", b="done")
    assert [outcome.state for outcome in study.run(cells)] == ["skipped", "done"]
    log = (study.folder / "logs" / "b-tiny_s-seed0.log").read_text()
    assert log.count("=== ") == 2 and log.index("the last line") < log.rindex("cell b")


def test_a_refusal_of_an_earlier_launch_says_nothing_about_this_one(study, tmp_path):
    (cell,) = study(a="done")
    data = ("data.batch_size=4", "data.num_questions=40", "data.pool_size=24", "data.levels=[1]")
    words = ("label=a", "study=s", f"outputs={tmp_path}", "student=tiny_s", "method=grpo", *data)
    assert main(["train", *words, "steps=999"]) == 2
    assert '"label": "a"' in (study.folder / "refused.jsonl").read_text()
    assert states(study.run([cell])) == [("a", "done", None)]


def test_another_configuration_is_refused_and_the_rest_goes_on(study):
    study.run(study(a="done"))
    other = study.cell("a", "done", update=UpdateConfig(learning_rate=0.5))
    outcomes = study.run([other, *study(b="done")])
    assert [outcome.state for outcome in outcomes] == ["refused", "done"]
    assert (outcomes[0].error or "").startswith(
        f"{study.folder}/a/tiny_s/seed0 holds a run of another configuration (update.learning_rate=1e-06, not 0.5): "
        "choose another study=NAME or outputs=DIR, restore these keys, or remove the folder; only these may change: "
    )
    assert exit_code(outcomes) == 1


def test_what_does_not_change_results_may_differ_and_more_steps_prolong(study):
    study.run([study.cell("a", "done", steps=2)])
    assert states(study.run([study.cell("a", "crash", steps=2, num_threads=3)])) == [("a", "skipped", None)]
    assert states(study.run([study.cell("a", "done", steps=4)])) == [("a", "done", None)]


def test_force_is_the_cell_s_to_carry_out_once_it_begins(study):
    cells = study(a="done")
    study.run(cells)
    (cells[0].run_dir / "kept").touch()
    assert [outcome.state for outcome in study.run(cells, force=True)] == ["done"]
    first, second = (study.folder / "logs" / "a-tiny_s-seed0.log").read_text().split("=== ")[1:]
    assert "--force" not in first and "--force" in second
    assert (cells[0].run_dir / "kept").exists()


def held(cell: Cell, status: str, during: float = 0.6) -> threading.Thread:
    """A process that runs the cell for a while and then leaves it with this status, as seen from a launcher."""
    lock = RunLock(cell.run_dir)

    def end() -> None:
        time.sleep(during)
        record = {"status": status, "pid": 1, "num_steps": 2, "error": None}
        config = Path(cell.config.outputs) / f"{cell.label}.yaml"
        (cell.run_dir / "config.yaml").write_bytes(config.read_bytes())
        (cell.run_dir / "run.json").write_text(json.dumps(record))
        lock.release()

    thread = threading.Thread(target=end)
    thread.start()
    return thread


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("left", "attempts"), [("done", 0), ("interrupted", 1), ("running", 1)])
def test_a_cell_that_another_process_runs_is_waited_for(study, force, left, attempts):
    """It is left alone when that ends well, else it is tried; the other cells are run meanwhile."""
    a, b = study(a="done", b="done")
    thread = held(a, left)
    outcomes = study.run([a, b], jobs=1, force=force)
    thread.join()
    assert states(outcomes) == [("a", "done", None), ("b", "done", None)]
    lines = study.screen.getvalue().splitlines()
    assert f"      elsewhere a tiny_s seed0  process {os.getpid()} on {os.uname().nodename}" in lines[0]
    assert lines[2].startswith("[1/2] done    b") and "[2/2] done    a" in study.screen.getvalue()
    log = study.folder / "logs" / "a-tiny_s-seed0.log"
    assert (log.read_text().count("=== ") if log.exists() else 0) == attempts


def test_a_cell_that_another_launcher_takes_first_is_waited_for(study, tmp_path):
    """The child is refused the lock (75, no run.json of its own), which is not the cell's failure."""
    (cell,) = study(a="refused")
    script = Path(study.command[1])
    script.write_text("import sys; sys.exit(75)\n")
    threads = []

    class Late(Cell):
        """Taken between the launcher's look and the start of the child."""

        @property
        def name(self) -> str:
            if not threads and log.exists():
                threads.append(held(cell, "done"))
            return super().name

    log = study.folder / "logs" / "a-tiny_s-seed0.log"
    late = Late(**vars(cell))
    assert states(study.run([late])) == [("a", "done", None)]
    threads[0].join()
    assert log.read_text().count("=== ") == 1


def test_two_launchers_share_a_study(study, tmp_path):
    """Each of 6 cells is started once, by one of two launchers."""
    plans = dict.fromkeys("abcdef", "slow")
    script = Path(study.command[1])
    lock = (
        "from harness.records.lock import RunLock\n"
        "try:\n    held = RunLock(folder)\nexcept Exception:\n    sys.exit(75)\n"
    )
    done = 'if "done" in str(Path(folder / "run.json").exists() and (folder / "run.json").read_text()): sys.exit(0)\n'
    write = "record = {"
    script.write_text(FAKE_TRAIN.replace(write, lock + done + 'print("works")\n' + write))
    cells, results = study(**plans), []
    consoles = [Console(file=io.StringIO(), width=300) for _ in range(2)]

    def launch(console: Console) -> None:
        results.append(run_cells(cells, jobs=2, command=study.command, console=console))

    threads = [threading.Thread(target=launch, args=(console,)) for console in consoles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[outcome.ok for outcome in outcomes] for outcomes in results] == [[True] * 6] * 2
    logs = [(study.folder / "logs" / f"{label}-tiny_s-seed0.log").read_text() for label in plans]
    assert [log.count("works") for log in logs] == [1] * 6


def test_one_cell_a_gpu(study, monkeypatch):
    """Names in CUDA_VISIBLE_DEVICES stand for GPUs: what a cell sees is tested here, not what it does there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,3")
    cells = study(a="gpu", b="gpu", c="gpu", d="gpu")
    assert [outcome.state for outcome in study.run(cells, jobs=None)] == ["done"] * 4
    logs = [(study.folder / "logs" / f"{label}-tiny_s-seed0.log").read_text() for label in "abcd"]
    seen = [re.search(r"^GPU (.*)$", log, re.M)[1] for log in logs]
    assert seen[:2] == ["GPU-a", "3"] and sorted(seen[2:]) == ["3", "GPU-a"]


def test_the_gpu_of_a_cell_that_another_process_runs_is_left_out(study, monkeypatch):
    """The other process has GPU-a for as long as two cells take, one after the other, on GPU 3."""
    a, *others = study(a="gpu", b="gpu", c="gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    thread = held(a, "done", during=2.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,3")
    assert [outcome.state for outcome in study.run([a, *others], jobs=None)] == ["done"] * 3
    thread.join()
    logs = [(study.folder / "logs" / f"{label}-tiny_s-seed0.log").read_text() for label in "bc"]
    assert [re.search(r"^GPU (.*)$", log, re.M)[1] for log in logs] == ["3", "3"]


@FORKED
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_the_cells_with_their_helpers(study, monkeypatch, tmp_path, number, code):
    monkeypatch.setattr(scheduler, "stop_seconds", lambda cell: 0.3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        study.run(study(a=f"interrupt {int(number)}", b="done"), jobs=1)
    assert caught.value.code == code
    assert signal.getsignal(signal.SIGTERM) is before
    pids = [int(pid) for pid in (tmp_path / "pids.txt").read_text().split()]
    assert len(pids) == 2
    end = time.monotonic() + 10  # the helper's new parent collects it a moment later
    while any(running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)
    assert not (study.folder / "b").exists()
    assert [run.state for run in run_states(study.folder)] == ["interrupted"]


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_terminal_shows_the_running_cells(study):
    study.run(study(grpo="slow", zppo="done"), jobs=1, terminal=True)
    text = study.screen.getvalue()
    assert "[1/2] done    grpo tiny_s seed0" in text
    assert re.search(r"grpo tiny_s seed0 +\S*running\S* +2/2 +0\.31 +\d s", text)  # the live row
    assert re.search(r"zppo tiny_s seed0 +waiting", text) and "1 running, 1 waiting" in text


def test_config_dir_reaches_the_cell_and_jobs_are_checked(study):
    study.run(study(a="done"), config_dir="/somewhere")
    assert "--config-dir /somewhere label='a'" in (study.folder / "logs" / "a-tiny_s-seed0.log").read_text()
    with pytest.raises(UserError, match="jobs must be at least 1"):
        study.run([], jobs=0)


def write_state(folder: Path, **fields: object) -> None:
    record = {
        "label": "grpo", "method": "grpo", "student": "tiny_s", "seed": 0, "status": "done", "num_steps": 10,
        "pid": os.getpid(), "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:10:00+00:00",
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record | fields))


def test_status_table(tmp_path):
    base, grpo, zppo = (tmp_path / "s" / name / "tiny_s" / "seed0" for name in ("base", "grpo", "zppo"))
    write_state(base, label="base", method="base", num_steps=None, finished="2026-01-01T00:00:12+00:00")
    write_state(grpo)
    write_state(zppo, label="zppo", method="zppo", status="running", finished=None)
    held = RunLock(zppo)
    (zppo / "metrics.jsonl").write_text('{"step": 4, "rollout/accuracy": 0.5, "time/step": 30.0}\n{"step": 5, "roll')
    # zppo: 6 of 10 steps are left, 30 s each.
    assert [re.split(r"\s{2,}", line) for line in re.sub(r"\d+\.\d h", "T", status(tmp_path / "s")).splitlines()] == [
        ["run", "student", "seed", "state", "step", "reward", "time", "left"],
        ["base", "tiny_s", "0", "done", "12 s"],
        ["grpo", "tiny_s", "0", "done", "0/10", "10.0 min"],
        ["zppo", "tiny_s", "0", "running", "4/10", "0.50", "T", "3.0 min"],
    ]
    held.release()
    assert "interrupted" in status(tmp_path / "s").splitlines()[-1]


def test_missing_and_empty_studies_are_refused(tmp_path):
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(UserError, match=r"no study 'quikstart' in .* Did you mean 'quickstart'"):
        run_states(tmp_path / "quikstart")
    with pytest.raises(UserError, match="has no runs yet"):
        run_states(tmp_path / "quickstart")


def test_long_metrics_are_read_from_the_end(tmp_path):
    lines = [json.dumps({"step": step, "x": "y" * 90}) for step in range(1, 2001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert last_metrics(tmp_path)["step"] == 2000
    assert last_metrics(tmp_path / "absent") == {}


def test_durations():
    assert [format_seconds(s) for s in (41.6, 750, 11_160)] == ["42 s", "12.5 min", "3.1 h"]


def test_a_written_configuration_reads_back_equal(study):
    """The comparison needs config.yaml as the run folder writes it; floats and tuples are where YAML could differ."""
    (cell,) = study(a="done")
    written = yaml.safe_load((Path(cell.config.outputs) / "a.yaml").read_text())
    assert written["update"]["learning_rate"] == 1e-6 and written["update"]["betas"] == [0.9, 0.999]
