"""A finished run of somebody else: what is read of it, and the folders that are refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from harness.errors import UserError
from harness.records.foreign import read_foreign

STUDY = Path(__file__).parents[2] / "fixtures" / "study_at_39ecb1c"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a run that the product wrote."""
    return Path(shutil.copytree(STUDY / "zppo" / "tiny_xs" / "seed0", tmp_path / "runs" / "seed0"))


def set_config(folder: Path, section: str, **values: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[section] |= values
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def set_info(folder: Path, **values: object) -> None:
    (folder / "run.json").write_text(json.dumps(json.loads((folder / "run.json").read_text()) | values))


def test_decoding_and_dtype_are_read_and_nothing_else(folder: Path) -> None:
    set_config(folder, "student", trust_remote_code=True, path="/evil", urls=["http://a/v1"], dtype="float32")
    set_config(folder, "server", api_key_env="HOME")
    run = read_foreign(folder)
    assert (run.label, run.student) == ("zppo", "tiny_xs")
    assert run.options.keys() >= {"eval.suite", "eval.temperature", "eval.media.max_pixels", "student.dtype"}
    marked = {"student.dtype", "student.enable_thinking", "reward.grader", "rollout.engine"}
    assert {key for key in run.options if not key.startswith("eval.")} == marked
    assert not [key for key in run.options if key.startswith("eval.judge") or key in ("eval.stage", "eval.data_root")]


def test_what_is_left_out_is_named(folder: Path) -> None:
    before = read_foreign(folder).left_out({})
    set_config(folder, "student", trust_remote_code=True)
    used = read_foreign(folder).stored | {"student": {"trust_remote_code": False}}
    assert "student.path" not in before and "student.trust_remote_code" in read_foreign(folder).left_out(used)


LAUGHS = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
"""Merged, nine to the power of eleven pairs."""
Spoil = Callable[[Path], object]
SPOILED: dict[str, tuple[Spoil, str]] = {
    "damaged": (lambda f: (f / "run.json").write_text("{"), r"run.json cannot be read \(Expecting"),
    "deep": (lambda f: (f / "run.json").write_text("[" * 100_000), r"run.json cannot be read \(maximum recursion"),
    "endless": (lambda f: os.truncate(f / "run.json", 1 << 40), r"run.json is damaged \(has more than 16 MiB\)"),
    "bytes": (lambda f: (f / "run.json").write_bytes(b"\xff\xfe"), "run.json cannot be read"),
    "list": (lambda f: (f / "run.json").write_text("[]"), r"run.json cannot be read \(it is empty\)"),
    "running": (lambda f: set_info(f, status="running"), r"is no finished run \(running\): zppo eval run=FOLDER"),
    "no label": (lambda f: set_info(f, label=None), "run.json has no label"),
    "label": (lambda f: set_info(f, label="../../x"), "label of .*run.json='../../x' has /"),
    "student": (lambda f: set_info(f, student="\x1b]0;x\x07"), "student of .*run.json=.* has a control character"),
    "no config": (lambda f: (f / "config.yaml").unlink(), "config.yaml cannot be read"),
    "no yaml": (lambda f: (f / "config.yaml").write_text("a: [}"), "config.yaml cannot be read"),
    "deep yaml": (lambda f: (f / "config.yaml").write_text("[" * 1000), "config.yaml cannot be read"),
    "tag": (lambda f: (f / "config.yaml").write_text("!!python/object/apply:os.system [x]"), "cannot be read"),
    "large": (
        lambda f: (f / "config.yaml").write_text("a" * (1 << 19)),
        "config.yaml cannot be read .*more than 0.25 MiB",
    ),
    "aliases": (lambda f: (f / "config.yaml").write_text(LAUGHS), r"config.yaml cannot be read \(it has aliases\)"),
    "variable": (lambda f: set_config(f, "eval", suite="${oc.env:HOME}"), "config.yaml: eval.suite has no value"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_records_that_cannot_be_right_are_refused(folder: Path, how: str) -> None:
    spoil, reason = SPOILED[how]
    spoil(folder)
    with pytest.raises(UserError, match=reason) as error:
        read_foreign(folder)
    assert "\n" not in str(error.value) and os.environ["HOME"] + "'" not in str(error.value)


@pytest.mark.parametrize(
    "place", ["config.yaml", "run.json", "model", "eval", "eval/mini", "eval/mini/responses.jsonl"]
)
def test_a_link_that_leads_out_is_refused(folder: Path, tmp_path: Path, place: str) -> None:
    """What is read would be somebody's file, and what is appended would go into one."""
    outside = tmp_path / "outside"
    (folder / place).parent.mkdir(exist_ok=True)
    if (folder / place).exists():
        (folder / place).rename(outside)
    else:
        outside.mkdir()
    (folder / place).symlink_to(outside)
    with pytest.raises(UserError, match=f"{place} is a link that leads out of the run"):
        read_foreign(folder)


def test_folders_within_folders_are_no_traceback(folder: Path) -> None:
    """More of them than a function can call itself."""
    descriptor = os.open(folder / "model", os.O_RDONLY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    with pytest.raises(UserError, match="File name too long"):
        read_foreign(folder)
    subprocess.run(["rm", "-r", folder / "model"], check=True)


def test_links_within_and_to_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "eval" / "mini").rename(folder / "eval" / "kept")
    (folder / "eval" / "mini").symlink_to("kept")
    (tmp_path / "run").symlink_to(folder)
    assert read_foreign(tmp_path / "run").label == "zppo"


@pytest.mark.parametrize("place", ["run.json", "config.yaml", "eval/mini/responses.jsonl"])
def test_a_pipe_is_refused_at_once(folder: Path, place: str) -> None:
    (folder / place).unlink(missing_ok=True)
    os.mkfifo(folder / place)
    with pytest.raises(UserError, match=f"{place} is neither a file nor a folder"):
        read_foreign(folder)
