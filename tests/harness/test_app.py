"""The command: what it lists, and how it reports what a user can mend."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.app import COMMANDS, main


def test_usage_lists_every_command_with_its_summary(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    for name, (summary, _) in COMMANDS.items():
        assert f"\n  {name:<12}{summary}\n" in usage


@pytest.mark.parametrize("command", ["audit", "view", "report", "status"])
def test_a_folder_without_runs_is_one_line(tmp_path, capsys, command):
    assert main([command, str(tmp_path / "absent")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


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
