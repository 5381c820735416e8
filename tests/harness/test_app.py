"""The command: what it lists, and how it reports what a user can mend."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.app import COMMANDS, main

STUDY = Path(__file__).parents[1] / "fixtures" / "study_at_39ecb1c"


def test_usage_lists_every_command_with_its_summary(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    for name, (summary, _) in COMMANDS.items():
        assert f"\n  {name:<12}{summary}\n" in usage


def test_help_and_version_are_asked_for_as_elsewhere(capsys):
    assert main(["help"]) == 0
    assert capsys.readouterr().out.startswith("usage: zppo COMMAND")
    assert main(["--version"]) == 0
    assert re.fullmatch(r"zppo-bench \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["audit", "view", "report", "status"])
def test_a_folder_without_runs_is_one_line(tmp_path, capsys, command):
    assert main([command, str(tmp_path / "absent")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep"], "the following arguments are required: name: see zppo sweep --help"),
        (["train", "--jobs", "two"], "argument --jobs: invalid int value: 'two': see zppo train --help"),
        (["status", "a", "b"], "unrecognized arguments: b: see zppo status --help"),
        (["data"], "the following arguments are required: action: see zppo data --help"),
        (["data", "build"], "the following arguments are required: name: see zppo data build --help"),
    ],
)
def test_a_command_with_wrong_arguments_is_one_line(capsys, words, said):
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_no_jobs_at_all_are_refused_by_a_dry_run_too(capsys):
    assert main(["train", "-m", "--dry-run", "--jobs", "0", "seed=0,1"]) == 2
    assert capsys.readouterr().err == "error: --jobs must be at least 1, got 0\n"


def test_view_and_audit_pass_their_options_on(monkeypatch, capsys):
    import reports.audit
    import reports.view

    monkeypatch.setattr(reports.audit, "audit_command", lambda *args, **options: f"{args} {options}")
    monkeypatch.setattr(reports.view, "view_command", lambda *args, **options: f"{args} {options}")
    assert main(["audit", "run"]) == 0
    assert main(["view", "run", "--step", "7", "--kind", "bcq", "--question", "q/1", "--num", "2"]) == 0
    assert main(["view", "run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "('run',) {}",
        "('run',) {'step': 7, 'kind': 'bcq', 'question': 'q/1', 'num_groups': 2}",
        "('run',) {'step': None, 'kind': None, 'question': None, 'num_groups': 3}",
    ]


def test_every_command_is_there():
    for _, place in COMMANDS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(import_module(f"harness.commands.{module}"), function)), place


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert main(["new_method"]) == 2
    assert capsys.readouterr().err == "error: no command 'new_method'. Did you mean 'new-method' or 'methods'?\n"


def test_a_reader_that_stops_reading_is_no_traceback(tmp_path):
    """`zppo ... | head -1`: what is printed is larger than the pipe holds."""
    code = (
        "import sys, types, harness.app as app\n"
        "shout = types.SimpleNamespace(shout=lambda parser, argv: print('x' * 10_000_000) or 0)\n"
        "sys.modules['harness.commands.shout'] = shout\n"
        "app.COMMANDS['shout'] = ('x', 'shout:shout')\n"
        "sys.exit(app.main(['shout']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_report_passes_its_options_on(monkeypatch, capsys, tmp_path):
    import reports.report
    from reports.report import Report

    asked = []

    def write_report(studies, **options):
        asked.append((studies, options))
        return Report(tmp_path, "the tables")

    monkeypatch.setattr(reports.report, "write_report", write_report)
    plain = {"out": None, "delta": None, "baseline": None, "with_published": False}
    assert main(["report", "a"]) == 0
    assert main(["report", "a", "b", "--out", "c", "--delta", "x", "y", "--baseline", "z", "--with-published"]) == 0
    assert asked == [
        (["a"], plain),
        (["a", "b"], {"out": "c", "delta": ("x", "y"), "baseline": "z", "with_published": True}),
    ]
    assert capsys.readouterr().out == "the tables\nthe tables\n"
    assert main(["report"]) == 2
    assert main(["report", "a", "--compare", "x", "y"]) == 2
    assert capsys.readouterr().err.count("error: zppo report needs the folder of a study, or --compare RUN RUN\n") == 2
    assert main(["report", "--compare", str(tmp_path / "x"), str(tmp_path / "y")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


TINY = ["student=tiny_xs", "method=grpo", "steps=1", "eval=none", "data.batch_size=4", "method.group_size=2",
        "num_threads=1", "device=cpu"]  # fmt: skip


def refused(words, capsys):
    """The one line of a refusal, without `error: `."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error[7:-1]


def test_a_dry_run_prints_the_one_run_and_stops(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dry-run", *TINY, "study=s t"]) == 0
    words = " ".join(TINY)
    assert capsys.readouterr().out == f"outputs/s t/grpo/tiny_xs/seed0\n    zppo train {words} 'study=s t'\n1 cell\n"
    assert main(["train", "--dry-run", *TINY[:-1], "cluster=8x8", "data.batch_size=48"]) == 0  # where no GPU is
    assert refused(["train", "--dry-run", *TINY, "seed=0,1"], capsys).startswith("'seed=0,1' has several values")
    assert list(tmp_path.iterdir()) == []


def test_jobs_without_several_runs_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "add -m" in refused(["train", "--jobs", "2", *TINY], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["device=cuda"], ["cluster=1x8", "data.batch_size=48"], ["-m", "device=cuda"]])
def test_gpus_that_are_not_there_are_one_line_and_leave_nothing(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "this machine has" in refused(["train", *TINY[:-1], *words], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EEXIST])
def test_a_folder_that_cannot_be_written_is_one_line(number, tmp_path, monkeypatch, capsys):
    (tmp_path / "study" / "a" / "b" / "seed0").mkdir(parents=True)
    (tmp_path / "study" / "a" / "b" / "seed0" / "run.json").write_text("{}")

    def refuse(self, *args, **options):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    line = refused(["report", str(tmp_path / "study")], capsys)
    assert line.endswith(f"({os.strerror(number)}): choose a folder that can be written, with --out DIR")
    assert str(tmp_path / "study" / "report") in line
    assert "with --out DIR" in refused(["data", "build", "zppo77k", "--fixture", "--out", str(tmp_path / "c")], capsys)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("joblib", "no launcher 'joblib'. Known: basic, zppo_ray, zppo_slurm, zppo_slurm_nodes."),
        ("zppo_slrm", "no launcher 'zppo_slrm'. Did you mean 'zppo_slurm'"),
        ("zppo_ray", "hydra/launcher=zppo_ray is not installed: pip install -e '.[launchers]' in the checkout"),
        ("zppo_slurm", ""),  # not installed, or no srun
    ],
)
def test_a_launcher_that_is_not_there_is_one_line(name, remedy, tmp_path, monkeypatch, capsys):
    if name == "zppo_ray" and find_spec("ray"):
        pytest.skip("it is installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert remedy in refused(["train", "-m", *TINY, f"hydra/launcher={name}"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_is_imported_where_its_method_is_chosen(install, tmp_path, monkeypatch, capsys):
    install("zppo-demo", {"demo": "demo_pkg:Demo"})
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--print-config", *TINY]) == 0
    assert main(["train", "--dry-run", *TINY]) == 0
    assert main(["train", "-m", "--dry-run", *TINY, "seed=0,1"]) == 0
    assert main(["sweep", "quickstart", "--dry-run"]) == 0
    assert "demo_pkg" not in sys.modules
    assert main(["train", "--dry-run", *TINY, "method=demo"]) == 0
    assert "demo_pkg" in sys.modules


EVIL = "\x1b]0;PWN\x07\x1b]52;c;cHduZWQ=\x07\u202e.png"
SHOWN = "\\x1b]0;PWN\\x07\\x1b]52;c;cHduZWQ=\\x07\\u202e.png"


def test_text_of_a_data_set_is_printable_in_errors_and_logs(tmp_path, capsys):
    """From the file to the terminal and to run.log, in a message that refuses the data and in one that skips a row."""
    rows = [{"question": f"{i}+1", "answer": str(i + 1)} for i in range(9)]
    rows.append({"question": "x", "answer": "1", "images": EVIL})
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "train", "method=grpo", "student=tiny_xs", "data=jsonl", f"data.path={tmp_path / 'd.jsonl'}", "eval=none",
        "data.pool_size=null", f"outputs={tmp_path}", "data.batch_size=3", "method.group_size=2", "steps=1",
        "rollout.max_response_tokens=2",
    ]  # fmt: skip
    assert main(words) == 2
    error = capsys.readouterr().err
    assert SHOWN in error and "\x1b" not in error
    assert main([*words, "data.max_bad_fraction=0.5"]) == 0
    (log,) = tmp_path.rglob("run.log")
    assert f"skipped {tmp_path / 'd.jsonl'}:10: image {tmp_path}/{SHOWN} does not exist" in log.read_text()
    assert "\x1b" not in log.read_text() + capsys.readouterr().err


def test_names_of_a_run_folder_are_printable_in_its_status(tmp_path, capsys):
    run = Path(shutil.copytree(STUDY, tmp_path / "study")) / "zppo" / "tiny_xs" / "seed0" / "run.json"
    names = {"label": EVIL, "student": f"a\n{EVIL}", "status": f"[link=http://a]{EVIL}"}
    run.write_text(json.dumps(json.loads(run.read_text()) | names))
    assert main(["status", str(tmp_path / "study")]) == 0
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 3 and "\x1b" not in out and "[link=http://a]" in out and out.count("\n") == 2
