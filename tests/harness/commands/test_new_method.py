"""`zppo new-method`: what it writes builds, is found, and passes its own tests; what it refuses."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness.app import main
from harness.commands.methods import methods_text
from harness.commands.new_method import new_method
from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.errors import UserError
from harness.testing import CHECKS
from methods.registry import build, provenance
from tests.support.fork_server import run_module

ROOT = Path(__file__).parents[3]
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist')"


@pytest.mark.usefixtures("fork_server")
def test_the_package_builds_is_found_and_passes_its_tests(tmp_path, monkeypatch):
    new_method("my_idea", str(tmp_path))
    folder = tmp_path / "zppo-my_idea"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "README.md", "pyproject.toml", "tests/test_my_idea.py", "zppo_my_idea/__init__.py",
        "zppo_my_idea/conf/method/my_idea.yaml",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)

    monkeypatch.syspath_prepend(site)
    method = build(from_hydra(compose(["method=my_idea", "method.scale=2"])).method)
    assert provenance(method) == ("zppo_my_idea:MyIdea", {"zppo-my_idea": "0.1.0"})
    (row,) = [line for line in methods_text().splitlines() if line.startswith("my_idea ")]
    assert row.split()[:5] == ["my_idea", "my_idea", "zppo-my_idea", "0.1.0", "?"]

    words = ["-q", "-p", "no:cacheprovider", "-k", "advantages or moves_the_student", str(folder / "tests")]
    env = {"PYTHONPATH": f"{site}:{ROOT}", "OMP_NUM_THREADS": "1"}
    result = run_module("pytest", words, cwd=tmp_path, env=env)
    assert f"2 passed, {len(CHECKS) - 1} deselected" in result.stdout, result.stdout


def test_what_it_wrote_keeps_the_house_style(tmp_path):
    new_method("my_idea", str(tmp_path))
    for action in (["check", "--isolated", "--select=E,F,I,UP,B,SIM,RUF,C4"], ["format", "--isolated", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *action, "--line-length=120", "--target-version=py311"]
        result = subprocess.run([*ruff, "."], cwd=tmp_path / "zppo-my_idea", capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


def test_the_command_prints_three_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my venv" / "bin" / "python"))
    assert main(["new-method", "my_idea", "--dir", "sub"]) == 0
    assert capsys.readouterr().out == (
        "Wrote sub/zppo-my_idea; the method is in sub/zppo-my_idea/zppo_my_idea/__init__.py. Next:\n\n"
        "    'my venv/bin/python' -m pip install --editable 'sub/zppo-my_idea[test]'\n"
        "    'my venv/bin/python' -m pytest sub/zppo-my_idea\n"
        "    'my venv/bin/zppo' train method=my_idea student=tiny_xs steps=2 eval=none\n"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MyIdea", "'MyIdea' cannot name a method: write it in snake_case, such as my_method"),
        ("my-idea", "'my-idea' cannot name a method: write it in snake_case, such as my_method"),
        ("class", "'class' cannot name a method: write it in snake_case, such as my_method"),
        ("", "'' cannot name a method: write it in snake_case, such as my_method"),
        ("grpo", "the name 'grpo' is taken by zppo-bench: choose another one"),
        ("grpo_replay", "the name 'grpo_replay' is taken by zppo-bench: choose another one"),
        ("demo", "the name 'demo' is taken by zppo-demo 1.0: choose another one"),
        ("bench", "a package zppo-bench is installed: choose another name"),
        ("here", "{folder}/zppo-here exists: remove it, or choose another --dir"),
    ],
)
def test_what_is_refused(install, tmp_path, name, message):
    install("zppo-demo", {"demo": "demo_pkg:Demo"})
    (tmp_path / "zppo-here").mkdir()
    with pytest.raises(UserError) as caught:
        new_method(name, str(tmp_path))
    assert str(caught.value) == message.format(folder=tmp_path)
    assert not (tmp_path / f"zppo-{name}" / "pyproject.toml").exists()


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["new-method", "my_idea", "--dir", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path}/file")
