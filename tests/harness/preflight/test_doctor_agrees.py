"""`zppo doctor` fails where `zppo train` refuses before it reads weights, in the same words, and nowhere else."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.app import main
from harness.config.deployment import Deployment, gpu_problems
from harness.config.evaluation import EvalConfig
from harness.config.schema import RunConfig
from harness.errors import UserError
from harness.models import loading
from harness.preflight.doctor import checks_of, run_checks
from harness.records.lock import RunLock
from harness.run.run import run
from methods.base import Method
from tests.runs.test_deployment import XS, combinations, words_of
from tests.support.http_server import Fault
from tests.support.model_server import ServedModel, serve

WEIGHTS = "weights would be read now"
SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=4", "data.num_questions=24", "data.pool_size=null",
    "data.levels=[1]", "steps=1", "rollout.max_response_tokens=16", "num_threads=1", "server.max_wait=0.1",
]  # fmt: skip
GONE = "http://127.0.0.1:1/v1"
ON_POLICY = ["method=on_policy_kd", "teacher=hf", "teacher.path=tiny:xs", "teacher.dtype=float32"]
Make = Callable[[Path], list[str]]
OTHERS = (
    "unfinished", "other columns", "no answers", "pool", "unknown task", "wrong column of a folder", "400", "no ids",
    "another prompt", "scores that nobody reads",
)  # fmt: skip
"""Kinds that are in the slow suite: another of their family is in the fast one."""


def sample_of(kinds: Iterable[str]) -> list[Any]:
    return [pytest.param(kind, marks=pytest.mark.slow) if kind in OTHERS else kind for kind in kinds]


# What needs vLLM is refused where it is not installed, and takes long where it is.
without_vllm = pytest.mark.skipif(bool(importlib.util.find_spec("vllm")), reason="vLLM is installed")


@pytest.fixture(autouse=True)
def before_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends where it would load models; tokenizers are read once, and the outside is not asked."""

    def load(*args: Any, **options: Any) -> None:
        raise UserError(WEIGHTS)

    monkeypatch.setattr("harness.run.preparation.make_models", load)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def served() -> ServedModel:
    return ServedModel(XS)


@pytest.fixture(scope="module")
def url(served: ServedModel) -> Iterator[str]:
    with serve(served) as server:
        yield server.url


def both(words: list[str], outputs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a run is refused with before it reads weights, "" where it is not: after doctor has said the same."""
    words = [*words, f"outputs={outputs}"]
    code = main(["doctor", *words])
    told = " ".join(capsys.readouterr().out.split())
    assert not outputs.exists(), "the doctor has written"
    refused = main(["train", *words])
    shutil.rmtree(outputs, ignore_errors=True)
    error = " ".join(capsys.readouterr().err.rpartition("error: ")[2].split())
    if error == WEIGHTS:
        assert code == 0, told
        return ""
    assert (refused in (2, 75)) and code == 2, told
    first = told.partition(" fail ")[2]
    assert error in first[: len(error) + len("teacher tokenizer ")], (error, told)
    return error


# --- folders of models ---


def xs(folder: Path) -> Path:
    return Path(shutil.copytree(loading.resolve_path(XS), folder / "model"))


def changed(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    file = folder / name
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def swapped(tokenizer: dict[str, Any]) -> dict[str, Any]:
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[20:22]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    return tokenizer


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def unknown_architecture(folder: Path) -> None:
    changed(folder, "config.json", lambda config: {**config, "model_type": "made_up"})


def no_causal_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def base_model(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def other_tokenizer(folder: Path) -> None:
    changed(folder, "tokenizer.json", swapped)


def whole(folder: Path) -> None:
    """As it is."""


MODELS = [
    (without_config, "has no config.json: it is not the folder of a model"),
    (damaged_config, "cannot load the configuration of"),
    (unknown_architecture, "cannot load the configuration of"),
    (no_causal_model, "is a t5, which transformers has no model of that writes text"),
    (without_tokenizer, "has no tokenizer"),
    (damaged_tokenizer, "cannot load the tokenizer of"),
    (base_model, "has no chat template"),
    (broken_template, "cannot be rendered"),
    (adapter, "has an adapter, not a complete model"),
    (pickled, "has its weights as a pickle"),
    (without_weights, "has no weights"),
    (whole, ""),
]


@pytest.mark.parametrize(("damage", "says"), MODELS, ids=[damage.__name__ for damage, _ in MODELS])
def test_folders_of_students(tmp_path, capsys, damage, says):
    folder = xs(tmp_path)
    damage(folder)
    words = [*SMALL, "method=grpo", "student=hf", f"student.path={folder}"]
    error = both(words, tmp_path / "outputs", capsys)
    assert says in error and bool(says) == bool(error)


@pytest.mark.parametrize(
    ("damage", "says"), [(other_tokenizer, "have different tokenizers"), (without_weights, "has no weights")]
)
def test_folders_of_teachers(tmp_path, capsys, damage, says):
    folder = xs(tmp_path)
    damage(folder)
    words = [*SMALL, *ON_POLICY[:2], f"teacher.path={folder}"]
    assert says in both(words, tmp_path / "outputs", capsys)


# --- data ---


def written(folder: Path, name: str, *rows: dict[str, Any]) -> list[str]:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["data=jsonl", f"data.path={file}"]


def sums(number: int) -> list[dict[str, Any]]:
    return [{"question": f"{i}+{i}=?", "answer": str(2 * i)} for i in range(number)]


def corpus(folder: Path, **columns: list[Any]) -> list[str]:
    """A folder with two files."""
    table = pa.table(columns or {"question": [row["question"] for row in sums(4)], "answer": ["2"] * 4})
    for name in ("a", "b"):
        pq.write_table(table, folder / f"{name}.parquet")
    return ["data=parquet", f"data.path={folder}"]


def unfinished(folder: Path) -> list[str]:
    (folder / ".unfinished").touch()
    return corpus(folder)


def mixed(folder: Path) -> list[str]:
    words = corpus(folder)
    pq.write_table(pa.table({"text": ["a"]}), folder / "c.parquet")
    return words


def broken(folder: Path) -> list[str]:
    words = corpus(folder)
    (folder / "b.parquet").write_bytes(b"PAR1")
    return words


DATA: dict[str, tuple[Make, str]] = {
    "file": (lambda at: written(at, "a.jsonl", *sums(8)), ""),
    "folder": (corpus, ""),
    "no file": (lambda at: ["data=jsonl", f"data.path={at}/absent.jsonl"], "is not a file"),
    "no parquet": (lambda at: ["data=parquet", f"data.path={at}"], "has no *.parquet in it"),
    "unfinished": (unfinished, "whose build has not ended"),
    "other columns": (mixed, "no column 'question'"),
    "no parquet file": (broken, "is not readable parquet"),
    "wrong column": (lambda at: written(at, "a.jsonl", {"q": "1+1=?", "a": "2"}), "question"),
    "wrong column of a folder": (lambda at: [*corpus(at), "data.columns.question=text"], "text"),
    "empty": (lambda at: written(at, "a.jsonl"), "a.jsonl"),
    "no answers": (lambda at: written(at, "a.jsonl", *({"question": "?", "answer": ""} for _ in range(8))), "a.jsonl"),
    "one batch short": (lambda at: written(at, "a.jsonl", *sums(3)), "3 questions do not fill one batch of 4"),
    "too few steps": (lambda at: [*written(at, "a.jsonl", *sums(8)), "steps=31"], "steps=31 of 4 questions"),
    "too long": (lambda at: ["data=arithmetic", "rollout.max_prompt_tokens=2"], "have prompts of more than"),
    "pool": (lambda at: [*written(at, "a.jsonl", *sums(8)), "data.pool_size=9"], "data.pool_size=9"),
    "no pictures": (
        lambda at: written(at, "a.jsonl", *(row | {"images": ["absent.png"]} for row in sums(8))), "absent.png",
    ),
    "suite without data": (lambda at: ["eval=paper31", f"eval.data_root={at}/absent"], "is no folder"),
    "unknown task": (lambda at: ["eval=mini", "eval.mini_tasks=[sums]"], "there is no task 'sums'"),
    "judge of later": (lambda at: ["eval=mini", "eval.mini_tasks=[arithmetic]", f"eval.judge.url={GONE}"], ""),
    "only judging": (lambda at: ["eval=mini", "eval.stage=judge"], "eval.stage=judge generates nothing"),
    "no judge": (lambda at: [f"reward.judge.url={GONE}"], "cannot be reached"),
    "no gpu": (lambda at: ["device=cuda"], "this machine has no GPU"),
    "unknown option": (lambda at: ["method.tauu=1"], "tauu"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sample_of(DATA))
def test_data_and_what_else_a_run_reads(tmp_path, capsys, kind):
    make, says = DATA[kind]
    (tmp_path / "data").mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = make(tmp_path / "data")
    written = sorted(tmp_path.rglob("*"))
    error = both([*SMALL, "method=grpo", *words], tmp_path / "outputs", capsys)
    assert says in error and bool(says) == bool(error)
    assert before != written or sorted(path for path in tmp_path.rglob("*") if "outputs" not in path.parts) == before


def test_a_prompt_that_the_window_does_not_hold(tmp_path, capsys):
    words = written(tmp_path, "a.jsonl", *sums(7), {"question": "word " * 8_000, "answer": "1"})
    words += ["rollout.max_prompt_tokens=100000"]
    error = both([*SMALL, "method=grpo", *words], tmp_path / "outputs", capsys)
    assert "tokens and the context window of the student 32768: set rollout.max_prompt_tokens to less" in error


# --- endpoints and ports ---


def without_logprobs(body: dict[str, Any]) -> None:
    body["choices"][0]["logprobs"] = None


def without_ids(body: dict[str, Any]) -> None:
    body["choices"][0]["token_ids"] = None


def without_scores(body: dict[str, Any]) -> None:
    body["choices"][0]["prompt_logprobs"] = None


def other_prompt(body: dict[str, Any]) -> None:
    body["choices"][0]["prompt_token_ids"] = [1, 2, 3]


FAULTS: dict[str, tuple[Fault | None, list[str], str]] = {
    "all well": (None, ON_POLICY, ""),
    "401": (Fault(status=401), ON_POLICY, "status 401"),
    "500": (Fault(status=500), ON_POLICY, "has not answered for 0.1 s"),
    "400": (Fault(status=400), ON_POLICY, "refuses: status 400"),
    "no log-probabilities": (Fault(spoil=without_logprobs), ON_POLICY, "gives no log-probabilities of its tokens"),
    "no ids": (Fault(spoil=without_ids), ON_POLICY, "gives no token ids"),
    "no scores": (Fault(spoil=without_scores), ON_POLICY, "returns no prompt_logprobs with token ids"),
    "scores that nobody reads": (Fault(spoil=without_scores), ["method=zppo", *ON_POLICY[1:]], ""),
    "another prompt": (Fault(spoil=other_prompt), ON_POLICY, "read another prompt than probe"),
    "other model": (None, [*ON_POLICY, "teacher.served_name=other"], "does not serve other, it serves tiny:xs"),
    "text, and ids are needed": (None, [*ON_POLICY, "teacher.api=text"], "teacher.api=text gives text alone"),
    "text": (Fault(status=400), ["method=zppo", *ON_POLICY[1:], "teacher.api=text"], ""),
    "text of no folder": (
        None,
        ["method=zppo", "teacher=hf", "teacher.path=nobody/none", "teacher.served_name=tiny:xs", "teacher.api=text"],
        "",
    ),
}


@pytest.mark.parametrize("kind", sample_of(FAULTS))
def test_endpoints(tmp_path, capsys, served, kind):
    fault, words, says = FAULTS[kind]
    with serve(served, plan=lambda number, body: fault) as server:
        error = both([*SMALL, *words, f"teacher.urls=[{server.url}]"], tmp_path / "outputs", capsys)
    assert says in error and bool(says) == bool(error)


@pytest.mark.parametrize("words", [["method=zppo", "teacher=tiny_teacher"], ON_POLICY])
def test_an_endpoint_where_nobody_listens(tmp_path, capsys, words):
    assert "cannot be reached" in both([*SMALL, *words, f"teacher.urls=[{GONE}]"], tmp_path / "outputs", capsys)
    unread = [*SMALL, "method=on_policy_kd", "server.score=false", f"teacher.urls=[{GONE}]"]
    assert both(unread, tmp_path / "unread", capsys) == ""


def test_the_window_that_an_endpoint_states_counts(tmp_path, capsys, served):
    data = written(tmp_path, "a.jsonl", *(row | {"question": "word " * 9} for row in sums(8)))
    with serve(served) as server:
        words = [*SMALL, *ON_POLICY, *data, f"teacher.urls=[{server.url}]"]

        def refusal(window: Any) -> str:
            server.models[0]["max_model_len"] = window
            return both(words, tmp_path / "outputs", capsys)

        found = re.search(r"prompt has (\d+) tokens and the context window of the teacher 30: set", refusal(30))
        assert found is not None
        assert "window of the teacher" in refusal(int(found[1])) and refusal(int(found[1]) + 1) == ""
        assert "states a context window of 4" in refusal("4")


def test_a_served_teacher_of_pictures_is_a_warning(tmp_path, served):
    with serve(served) as server:
        words = [*SMALL, *ON_POLICY, "data.tasks=[bar_chart]", f"teacher.urls=[{server.url}]", f"outputs={tmp_path}"]
        checks = run_checks(words)
    assert [check.state for check in checks if check.name == "media"] == ["warn", "ok"]


def test_a_served_student(tmp_path, capsys, url):
    words = [*SMALL, "method=base", "student=hf", "student.path=tiny:xs", "eval=mini", "eval.mini_tasks=[arithmetic]"]
    words += ["rollout=server", "eval.levels=[1]", "eval.num_questions=4"]
    assert both([*words, f"student.urls=[{url}]"], tmp_path / "outputs", capsys) == ""
    assert "cannot be reached" in both([*words, f"student.urls=[{GONE}]"], tmp_path / "outputs", capsys)


# --- folders of runs ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done; made before models are out of reach."""
    outputs = tmp_path_factory.mktemp("finished")
    assert main(["train", *SMALL, "method=grpo", "method.group_size=2", f"outputs={outputs}"]) == 0
    return outputs


@pytest.mark.parametrize(
    ("word", "says"),
    [("seed=0", ""), ("steps=2", ""), ("data.num_questions=25", "holds a run of another configuration")],
)
def test_a_folder_that_has_a_run(finished, capsys, word, says):
    words = [*SMALL, "method=grpo", "method.group_size=2", f"outputs={finished}", word]
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    code = main(["doctor", *words])
    told = " ".join(capsys.readouterr().out.split())
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert ("is done: a run would do nothing" in told) == (word == "seed=0")
    refused = main(["train", *words])
    error = " ".join(capsys.readouterr().err.rpartition("error: ")[2].split())
    assert says in error and code == (2 if says else 0) and refused == (0 if word == "seed=0" else 2)
    assert not says or f"fail folder {error}" in told


def test_a_folder_that_another_process_writes(tmp_path, capsys):
    words = [*SMALL, "method=grpo", f"outputs={tmp_path}"]
    lock = RunLock(tmp_path / "default" / "grpo" / "tiny_xs" / "seed0")
    codes = main(["doctor", *words]), main(["train", *words])
    lock.release()
    said = capsys.readouterr()
    assert codes == (2, 75)
    assert "is being written by process" in said.err and "fail folder" in " ".join(said.out.split())


# --- where the models are ---


Row = tuple[int, RunConfig]
"""A configuration, and how many GPUs the checks see on its machine."""


def disagreements(
    rows: Iterable[Row], outputs: Path, see: Callable[[int], None]
) -> Iterator[tuple[str, list[str], str]]:
    """The refusal of each run, what the doctor says, and the options, where these disagree."""
    for number, (num_gpus, row) in enumerate(rows):
        see(num_gpus)
        config = replace(row, outputs=str(outputs / str(number)))
        with pytest.raises(UserError) as caught:
            run(config)
        refusal = "" if str(caught.value) == WEIGHTS else str(caught.value)
        try:
            fails = [check.text for check in checks_of(config) if check.state == "fail"]
        except UserError as error:
            fails = [str(error)]
        if fails[:1] != ([refusal] if refusal else []):
            yield refusal, str(fails), words_of(config)


def kinds_of(config: RunConfig, method: Method, num_gpus: int) -> tuple[Any, Any]:
    """What a row shares with others: the reason for which it is refused, or the teacher's place; and, finer, all of its
    deployment."""
    try:
        deployment = Deployment.of(config, method)
    except UserError as error:
        return str(error), str(error)
    problems = tuple(gpu_problems(config, deployment, num_gpus))
    place = deployment.teacher
    where = place and (place.samples, place.scores, place.serves, place.num_urls)
    return problems or (where, deployment.student.engine), (deployment, problems)


@without_vllm
@pytest.mark.parametrize("part", ["sample", pytest.param("all", marks=pytest.mark.slow)])
def test_every_deployment(tmp_path, monkeypatch, url, part):
    """Of the table of `tests/runs/test_deployment.py`, on machines with no, one and eight GPUs."""
    monkeypatch.setattr("harness.run.run.check_place", lambda config, place: None)  # ranks are no matter of a check
    for name in ("load_tokenizer", "read_config"):  # of both models: reading them would take most of the time
        known = getattr(loading, name)(XS)
        monkeypatch.setattr(loading, name, lambda config, known=known: known)

    def see(num_gpus: int) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus))))
        monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)

    rows: dict[Any, Row] = {}
    for config, method in combinations(url):
        small = replace(config.data, num_questions=6, pool_size=None, levels=[1])
        config = replace(config, data=small, eval=EvalConfig(), steps=1)
        for num_gpus in (0, 1, 8):
            rough, fine = kinds_of(config, method, num_gpus)
            rows.setdefault(fine if part == "all" else rough, (num_gpus, config))
    found = list(disagreements(rows.values(), tmp_path, see))
    print(f"{len(found)} of {len(rows)} disagree")
    assert not found, found[:3]
    assert len(rows) > (800 if part == "all" else 30)
