from __future__ import annotations

import os

import pytest

from harness.app import main

MARKS = ["a|b", "a$b", "a/b", "../b", "a..b", "a\tb", "a\nb", "a\x1bb", "a\u202eb", "a\\\\b", ".", " "]
MARKS += ["x" * 201, "\u5b66" * 67]


def refused(words, capsys, tmp_path, monkeypatch):
    """The one line of a refusal that wrote nothing."""
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error[:-1].isprintable()
    assert os.listdir(tmp_path) == []
    return error


@pytest.mark.parametrize("option", ["label", "study", "student.name", "method.name"])
@pytest.mark.parametrize("name", MARKS)
def test_names_that_no_folder_or_table_can_show_are_refused(option, name, capsys, tmp_path, monkeypatch):
    words = ["train", "student=tiny_xs", "method=grpo", "steps=1", f"{option}='{name}'"]
    error = refused(words, capsys, tmp_path, monkeypatch)
    assert error.startswith(f"error: {option}")
    assert any(remedy in error for remedy in ("use letters", "shorten it"))


LONG = "\u5b66" * 60
"""180 bytes: a folder's name takes them, and not the values of swept keys as well."""


@pytest.mark.parametrize("words", [["label='a|b'"], ["study='a/b'"], ["label='../a'"], ["label='a$b'"]])
@pytest.mark.parametrize("command", [["train", "-m"], ["sweep", "quickstart"]])
def test_a_multirun_refuses_them_too(command, words, capsys, tmp_path, monkeypatch):
    error = refused([*command, "student=tiny_xs", "method=grpo", "seed=0,1", *words], capsys, tmp_path, monkeypatch)
    assert f"{words[0].partition('=')[0]}=" in error and "use letters" in error


def test_a_label_with_its_values_is_a_folders_name(capsys, tmp_path, monkeypatch):
    words = ["train", "-m", "--dry-run", "student=tiny_xs", "method=grpo", f"label={LONG}"]
    assert main([*words, "seed=0,1", "method.tau=0.5"]) == 0
    capsys.readouterr()
    error = refused([*words, "seed=0,1", "rollout.max_response_tokens=16,32"], capsys, tmp_path, monkeypatch)
    assert "label has 211 bytes, and a folder's name takes 200: shorten it" in error


def test_names_of_all_alphabets_stay(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("zppo,tau=0.3", "it\\'s", "Über uns 1", "grpo+kd", "v1.2", "学生"):
        assert main(["train", "student=tiny_xs", f"label='{name}'", f"study='{name}'", "--print-config"]) == 0
