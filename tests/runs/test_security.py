"""The claims of docs/security.md that no other test has: each is named there beside its test."""

from __future__ import annotations

import ast
import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import reasoning_gym

import harness
from benchmarks.replies import READERS, seconds
from harness.app import main
from harness.config.compose import compose
from harness.config.engines import REFUSED_ARGUMENTS, ServerConfig
from harness.config.schema import ModelConfig, RewardConfig, from_hydra
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.records.folder import RunFolder
from harness.rewards.workers import Grader
from harness.run.run import run
from harness.serving import server as serving
from harness.types import Question
from methods.base import plain_prompt
from tests.support.http_server import Fault
from tests.support.judge_server import serve as serve_judge

ROOT = Path(harness.__file__).parents[1]
SMALL = [
    "student=tiny_xs", "eval=none", "data.batch_size=6", "data.pool_size=12", "data.num_questions=60", "steps=1",
    "data.levels=[1]", "num_threads=1", "method=grpo", "method.group_size=4", "rollout.max_response_tokens=32",
]  # fmt: skip


@cache
def sources() -> list[tuple[Path, ast.AST]]:
    files = [file for package in ("harness", "methods", "reports") for file in (ROOT / package).rglob("*.py")]
    return [(file.relative_to(ROOT), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


# code of models, pickles


def test_every_place_that_loads_a_model_says_whether_its_code_may_run():
    calls = [
        (file, node)
        for file, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
    ]  # fmt: skip
    silent = [
        f"{file}:{call.lineno}"
        for file, call in calls
        # None is a **mapping: those are built by `loading._source`
        if not {"trust_remote_code", None} & {keyword.arg for keyword in call.keywords}
    ]
    assert len(calls) >= 6 and silent == []


def test_no_module_reads_a_pickle_or_unsafe_yaml():
    unsafe = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    called = {("torch", "load"), ("pd", "read_pickle"), ("np", "load")}
    called |= {("yaml", name) for name in ("unsafe_load", "full_load", "Loader", "UnsafeLoader", "FullLoader")}
    found = []
    for file, tree in sources():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = ["pickle"] if (node.value.id, node.attr) in called else []
            found += [f"{file}:{node.lineno}" for name in names if name in unsafe]
    assert found == []


def pairs(first: list[str], second: list[str]) -> list[object]:
    """All of the two; those of neither list's first are in the slow suite."""
    return [
        pytest.param(a, b, marks=[] if a == first[0] or b == second[0] else [pytest.mark.slow])
        for a in first
        for b in second
    ]


@pytest.mark.parametrize("hostile", ["script", "pickle"])
def test_a_data_set_runs_no_code(tmp_path, monkeypatch, hostile):
    folder = tmp_path / "planted"
    folder.mkdir()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    if hostile == "script":
        (folder / "planted.py").write_text(code)
    else:  # what unpickling runs: exec(code)
        (folder / "train.pkl").write_bytes(b"cbuiltins\nexec\n(V" + code.replace("\n", "\\u000a").encode() + b"\ntR.")
    with pytest.raises(UserError, match="cannot be loaded"):
        run(from_hydra(compose([*SMALL, f"outputs={tmp_path}", "data=hub", f"data.path={folder}"])))
    assert not (tmp_path / "ran").exists()


def test_a_chat_template_reaches_nothing(tmp_path):
    """What comes with a model's tokenizer is rendered in Jinja's sandbox."""
    template = tmp_path / "hostile.jinja"
    template.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    config = ModelConfig(name="x", path="tiny:xs", dtype="float32", chat_template=str(template))
    with pytest.raises(UserError, match=r"cannot be rendered \(access to attribute '__class__' of 'str' object is un"):
        Chat(load_tokenizer(config), config).pack(plain_prompt(Question(id="q", text="1+1", answer="2")))


def test_a_run_says_whose_code_it_allowed(tmp_path):
    for allowed in ([], ["student"]):
        flags = [f"{role}.trust_remote_code=true" for role in allowed]
        config = from_hydra(compose([*SMALL, f"study=s{len(allowed)}", *flags]))
        folder = RunFolder(tmp_path / str(len(allowed)), config)
        folder.start(label="grpo", overrides=[])
        assert RunFolder.read_info(folder.path)["trust_remote_code"] == ["tiny_xs"] * len(allowed)


# what a model writes


@pytest.mark.parametrize(
    ("name", "does"),
    pairs(
        ["countdown", "spiral_matrix", "polynomial_multiplication", "string_insertion"],
        ["system", "write", "remove", "connect"],
    ),
)
def test_an_answer_that_is_a_program_does_nothing(grader, tmp_path, name, does):
    """The scorers of these data sets evaluate an answer as Python."""
    mark, kept = tmp_path / "ran", tmp_path / "kept"
    kept.touch()
    program = {
        "system": f"__import__('os').system('touch {mark}')",
        "write": f"__import__('pathlib').Path('{mark}').touch()",
        "remove": f"__import__('os').remove('{kept}')",
        "connect": "__import__('socket').create_connection(('127.0.0.1', 9))",
    }[does]
    config = {"size": 1, "seed": 1}
    entry = reasoning_gym.create_dataset(name, **config)[0]
    metadata = {"dataset": name, "entry": json.loads(json.dumps(entry, default=str)), "config": config}
    question = Question(id="q", text="", answer="x", answer_type="reasoning_gym", metadata=metadata)
    (grade,) = grader.grade([(f"\\boxed{{{program}}}", question)])
    assert grade.verdict in ("wrong", "timeout") and not mark.exists() and kept.exists()


def test_the_process_that_reads_answers_has_no_keys(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    monkeypatch.setenv("HF_TOKEN", "planted")
    monkeypatch.setenv("HARMLESS", "kept")
    with Grader(RewardConfig()) as grader:
        grader.grade([("\\boxed{0.5}", Question(id="q", text="", answer="1/2"))])
        (child,) = (p for p in psutil.Process().children() if "harness.rewards.child" in p.cmdline()
                    and p.environ().get("HARMLESS"))  # fmt: skip
        assert "planted" not in child.environ().values()


# servers


def test_servers_listen_on_this_machine_alone(monkeypatch):
    with serve_judge() as server:
        ports = {c.laddr.port: c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"}
        assert ports[server.server_port] == "127.0.0.1"
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(serving.importlib.metadata, "version", lambda name: "1.0")
    line = serving.command(ModelConfig(name="t", path="/model"), "/model", ServerConfig(), "t", 8000, [])
    assert dict(pairwise(line))["--host"] == "127.0.0.1"
    assert {"--no-trust-remote-code", "--load-format=safetensors"} < set(line)


@pytest.mark.parametrize(
    ("flag", "form"),
    pairs(
        sorted(REFUSED_ARGUMENTS, key=lambda flag: "-" not in flag[2:]),
        ["{flag}=planted", "{flag}", "{under}=planted", "{short}=planted"],
    ),
)
def test_arguments_that_would_open_a_server_are_refused(flag, form):
    given = form.format(flag=flag, under="--" + flag[2:].replace("-", "_"), short=flag[:-1])
    with pytest.raises(UserError, match=rf"server\.args: {flag} is not passed on") as error:
        from_hydra(compose([*SMALL, f"server.args=['{given}']"]))
    assert "planted" not in str(error.value)


def test_other_arguments_pass():
    args = (
        "['--tensor-parallel-size=2','--api-server-count','2','--config-format=hf','--no-enable-prefix-caching','-O3']"
    )
    assert len(from_hydra(compose([*SMALL, f"server.args={args}"])).server.args) == 6


# secrets


URLS = [
    "http://user:PLANTED@host:8000/v1", "http://PLANTED@host/v1", "https://host/v1?api_key=PLANTED",
    "https://host/v1?x=1&access_token=PLANTED", "https://host/v1#token=PLANTED", "user:PLANTED@host:80/v1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "key"), pairs(URLS, ["teacher.urls", "student.urls", "reward.judge.url", "eval.judge.url"])
)
def test_an_address_with_a_key_is_refused_and_not_repeated(tmp_path, capsys, url, key):
    value = f"['{url}']" if key.endswith("urls") else f"'{url}'"
    lines = [*SMALL, "teacher=tiny_teacher", f"outputs={tmp_path}", f"{key}={value}"]
    with pytest.raises(UserError, match=rf"{key} has .* in an address, .* environment variable") as error:
        from_hydra(compose(lines))
    assert "PLANTED" not in str(error.value)
    assert main(["train", *lines]) == 2
    out = capsys.readouterr()
    assert "PLANTED" not in out.out + out.err and list(tmp_path.iterdir()) == []


def test_plain_addresses_pass():
    urls = "['http://127.0.0.1:8000/v1','https://host.example/deployments/a/v1?api-version=2024']"
    assert len(from_hydra(compose([*SMALL, "teacher=tiny_teacher", f"teacher.urls={urls}"])).teacher.urls) == 2


PLANTED = {
    name: f"planted-{name.lower()}-4711"
    for name in ("OPENAI_API_KEY", "JUDGE_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
} | {"WANDB_API_KEY": "4711" * 10}


@pytest.fixture
def planted(monkeypatch):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["zppo"])


def leaks(folder: Path) -> list[str]:
    """Files below a folder with one of the planted secrets."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [
        f"{file}: {name}" for file in files for name, value in PLANTED.items() if value.encode() in file.read_bytes()
    ]


def write_text_data(path: Path) -> Path:
    rows = [{"question": f"Which tree is number {i}?", "answer": "oak", "answer_type": "text"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_secrets_are_in_no_file_of_a_run_and_its_report(planted, tmp_path, capfd):
    """A run with wandb offline and a judge that wants a key, then the report of its study."""
    monkey = [f"outputs={tmp_path / 'outputs'}", "study=planted", "tracker.wandb=offline"]
    data = write_text_data(tmp_path / "data.jsonl")
    with serve_judge() as server:
        judge = [
            f"reward.judge.url={server.url}",
            "reward.judge.model=loopback-judge",
            "reward.judge.api_key_env=JUDGE_KEY",
        ]
        lines = [*SMALL, *monkey, *judge, "data=jsonl", f"data.path={data}", "data.columns.answer_type=answer_type"]
        assert main(["train", *lines]) == 0
        assert f"Bearer {PLANTED['JUDGE_KEY']}" in server.keys or server.requests == []
    assert main(["report", str(tmp_path / "outputs" / "planted")]) == 0
    assert list((tmp_path / "outputs").rglob("*.wandb")) and list((tmp_path / "outputs").rglob("*.html"))
    assert leaks(tmp_path / "outputs") == []
    printed = "".join(capfd.readouterr())
    assert not any(value in printed for value in PLANTED.values())


def test_an_endpoint_that_repeats_the_key_does_not_get_it_into_the_log(planted, tmp_path, capfd):
    refusal = json.dumps({"error": {"message": f"Incorrect API key provided: {PLANTED['JUDGE_KEY']}"}})
    data = write_text_data(tmp_path / "data.jsonl")
    with serve_judge(plan=lambda number, body: Fault(status=401, body=refusal)) as server:
        judge = [
            f"reward.judge.url={server.url}",
            "reward.judge.model=loopback-judge",
            "reward.judge.api_key_env=JUDGE_KEY",
        ]
        lines = [*SMALL, f"outputs={tmp_path / 'outputs'}", *judge, "data=jsonl", f"data.path={data}",
                 "data.columns.answer_type=answer_type"]  # fmt: skip
        assert main(["train", *lines]) != 0
    printed = "".join(capfd.readouterr())
    assert "Incorrect API key provided: ***" in printed and PLANTED["JUDGE_KEY"] not in printed
    assert leaks(tmp_path / "outputs") == []


@pytest.mark.parametrize(
    ("key", "who"),
    [
        ("sk-planted\nsecond-line", "server.api_key_env teacher.urls=[{url}]"),
        ("sk-planted secret", "server.api_key_env teacher.urls=[{url}]"),
        ("sk-plantéd", "reward.judge.api_key_env reward.judge.url={url}"),
        ("sk-planted\x1b[2J", "reward.judge.api_key_env reward.judge.url={url}"),
    ],
)
def test_a_key_that_no_header_takes_is_refused_and_not_shown(monkeypatch, tmp_path, capfd, key, who):
    monkeypatch.setenv("PLANTED", key)
    option, endpoint = who.format(url="http://127.0.0.1:9/v1").split()
    lines = [*SMALL, "method=zppo", "teacher=tiny_teacher", endpoint, f"{option}=PLANTED", f"outputs={tmp_path}"]
    assert main(["train", *lines]) == 2
    shown = "".join(capfd.readouterr())
    assert f"the key in the variable PLANTED ({option}) has" in shown and "planted" not in shown and "sk-" not in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["server.api_key_env", "eval.judge.api_key_env", "reward.judge.api_key_env"])
def test_a_key_in_the_place_of_its_variable_is_refused_and_not_shown(tmp_path, capfd, option):
    assert main(["train", *SMALL, f"{option}=sk-planted", f"outputs={tmp_path}"]) == 2
    shown = "".join(capfd.readouterr())
    assert f"{option} names an environment variable" in shown and "sk-" not in shown
    assert not list(tmp_path.iterdir())


def test_doctor_and_the_judge_of_an_evaluation_show_no_key_either(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("PLANTED", "sk-planted\nsecond")
    judge = ["eval.judge.url=http://127.0.0.1:9/v1", "eval.judge.api_key_env=PLANTED"]
    for words in (["doctor", *judge], ["eval", "model=tiny_xs", f"outputs={tmp_path}", *judge]):
        assert main(words) == 2
        shown = " ".join("".join(capfd.readouterr()).split())  # doctor wraps its lines
        assert "PLANTED (eval.judge.api_key_env) has" in shown and "sk-" not in shown


@pytest.mark.parametrize(
    ("reader", "before", "piece", "behind"),
    [
        ("between_tags", "", "<hint>", ""),
        ("between_tags", "</think>", "<hint></hint>", "<hint>"),
        ("number", "+", "$", "x"),  # signs of a currency are gaps
        ("number", "+", " ", "x"),
        ("number", "", "1", "!"),
        ("number", "1/", "1", "!"),
        ("grid_size", "", "1 ", ""),
        ("choice_letter", "the answer is (", "\\text{a} ", ""),
        ("last_boxed", "", "\\boxed{", ""),
        ("neutralize", "", "</ ", ""),
    ],
)
def test_a_reply_is_read_in_time_that_is_linear_in_its_length(reader, before, piece, behind):
    """Ten times what a response may have. Linear takes milliseconds, quadratic minutes; `benchmarks.replies` compares
    lengths for every reader and many more texts."""
    text = before + piece * (120_000 // len(piece)) + behind
    assert seconds(READERS[reader], text) < 5.0
