"""A refused command changes nothing: whatever refuses it, and whatever the folder holds."""

import ast
import hashlib
import json
import re
import shutil
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType

import pytest

from harness.app import main
from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.errors import UserError
from harness.models import loading
from harness.records.folder import RunFolder
from harness.run import preparation
from harness.study.status import run_states
from methods import prompts

ROOT = Path(__file__).parents[2]
SMALL = [
    "student=tiny_xs", "method=grpo", "method.group_size=4", "eval=mini", "eval.num_questions=4",
    "eval.mini_tasks=[arithmetic]", "eval.levels=[1]", "data.batch_size=4", "data.num_questions=40",
    "data.pool_size=24", "data.levels=[1]", "rollout.max_response_tokens=24", "eval.max_response_tokens=24",
    "num_threads=1",
]  # fmt: skip


def train(outputs: Path, *overrides: str) -> int:
    return main(["train", *SMALL, f"outputs={outputs}", *overrides])


def run_folder(outputs: Path) -> Path:
    return outputs / "default" / "grpo" / "tiny_xs" / "seed0"


def digests(folder: Path) -> dict[str, str]:
    """As `sha256sum` gives them, of all files but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(outputs: Path) -> list[dict]:
    file = outputs / "default" / "refused.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("finished")
    assert train(outputs, "steps=1") == 0
    return outputs


@pytest.fixture
def outputs(finished, tmp_path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "outputs"))


@pytest.mark.parametrize("place", range(len(preparation.CHECKS)), ids=[c.__name__ for c in preparation.CHECKS])
def test_an_error_in_any_check_leaves_a_finished_folder_as_it_was(outputs, monkeypatch, place):
    def refuse(run: preparation.Preparation) -> None:
        raise UserError("refused: fix it")

    checks = [*preparation.CHECKS[:place], refuse]
    monkeypatch.setattr(preparation, "CHECKS", tuple(checks))
    before = digests(run_folder(outputs))
    assert train(outputs, "steps=2") == 2
    assert digests(run_folder(outputs)) == before and len(before) > 10
    assert [line["error"] for line in refused(outputs)] == ["refused: fix it"]
    assert [state.state for state in run_states(outputs / "default")] == ["done"]


@pytest.mark.parametrize("what", ["wording", "tokenizer"])
def test_a_run_whose_prompts_are_made_otherwise_by_now_does_not_go_on(outputs, monkeypatch, capsys, what):
    """Its student would go on with prompts that it has not learned from, and the records would not tell."""
    if what == "wording":
        monkeypatch.setattr(prompts, "NCQ_TRACES", "All of it is wrong.")
    else:
        load = loading.load_tokenizer

        def changed(config):
            tokenizer = load(config)
            tokenizer.chat_template += "\n"
            return tokenizer

        monkeypatch.setattr(loading, "load_tokenizer", changed)
    before = digests(run_folder(outputs))
    assert train(outputs, "steps=2") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert what in line and "step-000001" in line and "choose another study=NAME, or --force" in line
    assert digests(run_folder(outputs)) == before


DEAD = "http://127.0.0.1:9"
REFUSALS = {
    "steps=999": "the data give",
    "resume=never steps=2": "resume=never",
    "device=cuda": "no GPU",
    "method=on_policy_kd label=grpo teacher=hf teacher.path=missing": "another configuration",
    f"steps=2 reward.judge.url={DEAD} reward.judge.model=m reward.judge.retries=0": "another configuration",
    "steps=2 eval.num_questions=5": "another configuration",
    "steps=0": "steps",
    "steps=2 data.pool_size=25": "another configuration",
}


SLOW = {"steps=2 eval.num_questions=5", "steps=2 data.pool_size=25", "steps=0"}
"""Another configuration, and one that nobody could have: others of their kind are in the fast suite."""


@pytest.mark.parametrize("words", [pytest.param(w, marks=[pytest.mark.slow] if w in SLOW else []) for w in REFUSALS])
def test_a_refused_command_leaves_a_finished_folder_as_it_was(outputs, capsys, words):
    before = digests(run_folder(outputs))
    code = train(outputs, *words.split())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and REFUSALS[words] in lines[0]
    assert digests(run_folder(outputs)) == before
    assert [state.state for state in run_states(outputs / "default")] == ["done"]


def test_a_prompt_that_the_context_window_does_not_hold_is_refused_before_the_run_begins(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    texts = ["1+1=?", "2+2=?", "3+3=?", "word " * 8000]
    data.write_text("".join(json.dumps({"question": text, "answer": "2"}) + "\n" for text in texts))
    words = [f"outputs={tmp_path / 'o'}", "eval=none", "data=jsonl", f"data.path={data}", "data.pool_size=null"]
    assert main(["train", *SMALL, *words, "steps=1", "rollout.max_prompt_tokens=100000"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(r"error: a question's prompt has (\d+) tokens and the context window of the student (\d+): "
                         r"set rollout.max_prompt_tokens to less, which leaves such questions out", error)  # fmt: skip
    assert found and int(found[1]) >= int(found[2])
    assert [path.name for path in (tmp_path / "o" / "default").iterdir()] == ["refused.jsonl"]


def test_a_run_with_fewer_steps_than_the_data_give_is_not_done_where_all_are_asked_for(outputs, monkeypatch):
    def refuse(run: preparation.Preparation) -> None:
        raise UserError("it goes on")

    monkeypatch.setattr(preparation, "CHECKS", (refuse,))
    config = from_hydra(compose(SMALL))
    assert RunFolder.read_info(run_folder(outputs))["most_steps"] == 24 // 4 * config.data.epochs > 1
    assert [train(outputs, "steps=1"), train(outputs, "steps=null")] == [0, 2]
    assert [line["error"] for line in refused(outputs)] == ["it goes on"]


def test_force_of_a_refused_command_removes_nothing(outputs):
    before = digests(run_folder(outputs))
    assert main(["train", *SMALL, f"outputs={outputs}", "steps=999", "--force"]) == 2
    assert digests(run_folder(outputs)) == before


def test_force_replaces_a_run_and_no_other(outputs):
    other = shutil.copytree(run_folder(outputs), run_folder(outputs).with_name("seed1"))
    before = digests(other)
    (run_folder(outputs) / "model" / "extra").touch()
    assert main(["train", "--force", *SMALL, f"outputs={outputs}", "steps=1", "method.tauu=1"]) == 2
    assert (run_folder(outputs) / "model" / "extra").exists()
    assert main(["train", "--force", *SMALL, f"outputs={outputs}", "steps=1", "eval=none"]) == 0
    names = {file.name for file in run_folder(outputs).iterdir()}
    assert {"run.json", "run.log", "model"} <= names and "eval" not in names
    assert not (run_folder(outputs) / "model" / "extra").exists() and digests(other) == before


def test_a_refused_fresh_cell_leaves_a_line_that_status_and_report_show(outputs, capsys):
    dead = ["method=on_policy_kd", "rollout.temperature=1", "server.max_wait=0.1", f"teacher.urls=[{DEAD}]"]
    code = train(outputs, "steps=1", *dead)
    study = outputs / "default"
    assert code == 2 and not (study / "on_policy_kd").exists()
    (line,) = refused(outputs)
    assert (line["label"], line["student"], line["seed"], line["exit_code"]) == ("on_policy_kd", "tiny_xs", 0, 2)
    assert DEAD in line["error"]
    capsys.readouterr()
    assert main(["status", str(study)]) == 0
    assert f"refused: on_policy_kd tiny_xs seed0: {line['error']}" in capsys.readouterr().out
    assert main(["report", str(study)]) == 0
    page = (study / "report" / "report.md").read_text()
    assert f"refused: {line['error'][:40]}" in page


@pytest.mark.slow
def test_the_newest_refusal_of_a_cell_is_shown_until_it_has_a_run(outputs, capsys):
    study, own = outputs / "default", ("seed=2", "eval=none", "method.updates_per_step=1")
    assert [train(outputs, *own, "steps=999"), train(outputs, *own, "steps=998")] == [2, 2]
    assert len(refused(outputs)) == 2
    capsys.readouterr()
    assert main(["status", str(study)]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused: ")]
    assert len(shown) == 1 and "steps=998" in shown[0]
    assert train(outputs, *own, "steps=1") == 0
    capsys.readouterr()
    assert main(["status", str(study)]) == 0
    assert "refused" not in capsys.readouterr().out
    assert main(["report", str(study)]) == 0
    assert "refused" not in (study / "report" / "report.md").read_text()


def test_a_cell_whose_models_load_is_starting(outputs, capsys):
    config = from_hydra(compose([*SMALL, f"outputs={outputs}", "seed=1"]))
    folder = RunFolder(run_folder(outputs).with_name("seed1"), config)
    assert main(["status", str(outputs / "default")]) == 0
    states = [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:]]
    assert states == [["grpo", "tiny_xs", "0", "done"], ["grpo", "tiny_xs", "1", "starting"]]
    folder.close()
    assert not folder.path.exists()


def test_a_prolonged_run_that_fails_stays_done(outputs, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise UserError("no room: make some")

    from harness.training.trainer import Trainer

    before = digests(run_folder(outputs))
    first = RunFolder.read_info(run_folder(outputs))
    monkeypatch.setattr(Trainer, "_step", fail)
    assert train(outputs, "steps=2") == 2
    info = RunFolder.read_info(run_folder(outputs))
    kept = ("status", "num_steps", "started", "finished", "error")
    assert {key: info[key] for key in kept} == {key: first[key] for key in kept}
    assert (info["status"], info["last_error"]) == ("done", "no room: make some")
    assert "data.pool_size=24 leaves out 16 of them: data.pool_size=null trains on all" in caplog.text
    after = digests(run_folder(outputs))
    same = [name for name in before if name.startswith(("model/", "eval/"))]
    assert same and all(after[name] == before[name] for name in same)


# --- nothing else refuses a run between its start and its first token ---


def raisers() -> dict[tuple[str, str], int]:
    """Functions of the harness that raise a UserError of their own, by file and name."""
    errors = {"UserError", "RunInterrupted", "MethodError", "MediaError"}
    found = {}
    for file in sorted((ROOT / "harness").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            raised = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
            if any(getattr(exc.func, "id", getattr(exc.func, "attr", "")) in errors for exc in raised):
                found[(str(file), node.name)] = node.lineno
    return found


ALLOWED = {
    ("harness/rollout/actors.py", "_engine"),  # a method asks for a teacher that it does not declare
    ("harness/rollout/base.py", "room"),  # the longest plain prompt has been compared with the window
    # Every question's prompt has been rendered, to know its length.
    ("harness/models/template.py", "render"),
    ("harness/models/template.py", "check"),
    ("harness/evaluation/student.py", "answer"),  # without an engine
    # Asked again by the evaluation, with the answer that the check had.
    ("harness/evaluation/suites.py", "load_suite"),
    ("harness/evaluation/suites.py", "mini_tasks"),
    ("harness/evaluation/library_tasks.py", "find_tasks"),
    ("harness/evaluation/suites.py", "refuse_golds"),
    ("harness/config/evaluation.py", "benchmarks_of"),
    ("harness/data/synthetic.py", "make_questions"),
    ("harness/data/synthetic.py", "_of_task"),
    ("harness/data/arithmetic.py", "make_questions"),
    ("harness/data/arithmetic.py", "_draw"),
}


@pytest.mark.parametrize(
    "method", ["zppo", *(pytest.param(m, marks=pytest.mark.slow) for m in ("base", "grpo", "on_policy_kd"))]
)
def test_no_other_function_that_refuses_is_called_before_the_first_token(tmp_path, monkeypatch, method):
    from harness.rollout.transformers_engine import TransformersEngine

    called: set[tuple[str, str]] = set()
    seen: set[CodeType] = set()
    sampling: list[bool] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and not sampling and code not in seen:
            seen.add(code)
            called.add((code.co_filename, code.co_name))

    start, sample = RunFolder.start, TransformersEngine._sample

    def started(self: RunFolder, **fields: object) -> None:
        start(self, **fields)  # type: ignore[arg-type]
        sampling.clear()  # of the probe
        sys.setprofile(note)
        threading.setprofile(note)  # the actors' threads

    def sampled(self: TransformersEngine, *args: object) -> object:
        sampling.append(True)
        return sample(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(RunFolder, "start", started)
    monkeypatch.setattr(TransformersEngine, "_sample", sampled)
    try:
        options = ["steps=1"] if method != "base" else []
        lines = [line for line in SMALL if not line.startswith("method")] + [f"method={method}", *options]
        assert main(["train", *lines, f"outputs={tmp_path}"]) == 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    refusing = {(str(Path(file).relative_to(ROOT)), name) for file, name in called & raisers().keys()}
    assert len(seen) > 20 and refusing - ALLOWED == set()
