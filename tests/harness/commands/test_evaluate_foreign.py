"""`zppo eval run=` on folders that are damaged, edited or somebody else's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.app import main
from tests.harness.commands.conftest import FIXTURES


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


ALTERED = {
    "a weight": (lambda model: _flip(model / "model.safetensors"), "model.safetensors is not what was written"),
    "weights that are gone": (lambda model: (model / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no sums": (lambda model: (model / "SHA256SUMS").write_bytes(b"\xff\n"), "SHA256SUMS cannot be read"),
    "a book of sums": (lambda model: (model / "SHA256SUMS").write_text("a  b\n" * 400_000), "it is too long"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_a_model_that_is_not_what_the_run_saved_is_not_scored_as_the_runs(
    run: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    alter, message = ALTERED[what]
    alter(run / "model")
    before = contents(run)
    assert main(["eval", f"run={run}", "limit=1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and line.endswith("take another copy of the run")
    assert contents(run) == before


HOSTILE_CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class EvilConfig(PretrainedConfig): model_type = "evil"
class EvilTok(PreTrainedTokenizerFast): pass
"""


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and not path.name.startswith(".lock")}


def set_config(run: Path, config: dict) -> None:
    """As a stranger does, who also writes run.json."""
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"config_sha256": None}))


def test_half_a_configuration_is_refused_and_an_edited_one_is_said(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Half of its lines are YAML as well: what is gone would stand at its default."""
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("\n".join(text.splitlines()[: text.count("\n") // 2]) + "\n")
    before = contents(run)
    assert main(["eval", f"run={run}", "limit=1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "config.yaml cannot be read (it is not what the run wrote, and has no " in line
    assert contents(run) == before
    (run / "config.yaml").write_text(text.replace("  levels:\n  - 1\n  - 2\n  num_q", "  levels:\n  - 2\n  num_q"))
    assert (run / "config.yaml").read_text() != text
    assert main(["eval", f"run={run}", "limit=1"]) == 0
    assert "config.yaml is not what the run wrote: what it says now is taken" in caplog.text
    assert "limit=1: its scores take the place of those in " in caplog.text
    assert "arithmetic_l1" not in capsys.readouterr().out


def make_hostile(run: Path, mark: Path) -> None:
    """A run whose model has code of its own, which its configuration allows, as it allows much else."""
    (run / "model" / "evil.py").write_text(HOSTILE_CODE.format(mark=str(mark)))
    for name, changes in {
        "config.json": {"auto_map": {"AutoConfig": "evil.EvilConfig"}, "model_type": "evil"},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "evil.EvilTok"]}, "tokenizer_class": "EvilTok"},
    }.items():
        file = run / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["student"] |= {"trust_remote_code": True, "attn_implementation": "evil/kernels"}
    set_config(run, config)


def test_a_hostile_run_runs_no_code_of_its_own(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    make_hostile(run, tmp_path / "ran")
    before = contents(run)
    assert main(["eval", f"run={run}", "suite=mini", "limit=1"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and "trust_remote_code=true" in error.splitlines()[-1]
    assert (
        "config.yaml also sets student.attn_implementation, student.trust_remote_code, which no folder" in caplog.text
    )
    assert not (tmp_path / "ran").exists()
    assert contents(run) == before


def test_a_run_asks_nobody_and_reads_no_variable_that_it_names(
    run: Path,
    start: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its judge would be sent the key of another one, from any variable of whoever looks at the run."""
    monkeypatch.setenv("PLANTED", "secret-of-mine")
    server, _ = start()
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["eval"] |= {"data_root": "/", "suite": "paper31", "columns": ["aime26"], "max_response_tokens": 8}
    config["eval"]["judge"] |= {"url": server.url, "api_key_env": "PLANTED"}
    set_config(run, config)
    assert main(["eval", f"run={run}", f"data_root={FIXTURES}"]) == 0
    assert server.keys == [] and "aime26" in capsys.readouterr().out
    assert "eval.data_root, eval.judge.url, eval.judge.api_key_env, which no folder decides" in caplog.text
    config["eval"]["suite"] = "${oc.env:PLANTED}"
    set_config(run, config)
    assert main(["eval", f"run={run}"]) == 2
    assert "secret-of-mine" not in (error := capsys.readouterr().err) and "eval.suite has no value" in error


def test_a_run_without_a_model_is_told_which_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it was trained from may be anything."""
    assert main(["eval", f"run={run}", "student.path=tiny:xs"]) == 2
    assert "leave student.path out" in capsys.readouterr().err
    shutil.rmtree(run / "model")
    assert main(["eval", f"run={run}"]) == 2
    assert "no model in" in (error := capsys.readouterr().err) and "student.path=NAME" in error
    assert main(["eval", f"run={run}", "student.path=tiny:xs", "eval.num_questions=1", "eval.levels=[1]"]) == 0


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model/chat_template.jinja", "{{ ''.__class__.__mro__ }}", "the chat template of "),
        ("model/chat_template.jinja", "{{ 1 / 0 }}", "cannot be rendered (division by zero): repair it"),
        ("model/generation_config.json", "[1]", "generation_config.json is damaged ("),
        ("model/tokenizer.json", "{}", "cannot load the tokenizer of "),
        ("model/tokenizer.json", "[1, 2", "cannot load the tokenizer of "),
        ("model/tokenizer_config.json", "[1]", "cannot load the tokenizer of "),
        ("model/config.json", "[1]", "cannot load the "),
        ("model/config.json", '{"model_type": 3}', "cannot load the "),
        ("model/config.json", '{"model_type": "qwen3_5", "text_config": 3}', "cannot load the "),
        ("eval/mini/responses.jsonl", None, "responses.jsonl cannot be written (Is a directory)"),
    ],
)
def test_files_of_a_run_that_cannot_be_used_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, says: str
) -> None:
    (run / file).unlink()
    if content is None:
        (run / file).mkdir()
    else:
        (run / file).write_text(content)
    before = contents(run)
    assert main(["eval", f"run={run}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and says in error
    assert contents(run) == before
