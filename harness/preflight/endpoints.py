"""What answers over the network: the checks of `zppo doctor` that ask endpoints, and of the port for one's own."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx

from harness.config.engines import ServerConfig
from harness.config.evaluation import JudgeConfig
from harness.config.schema import ModelConfig
from harness.preflight.machine import Check
from harness.serving.answers import WrongAnswer, logprob, most_bytes, token_ids
from harness.serving.http import (
    LOOPBACK,
    MODELS_BYTES,
    bearer,
    detail,
    json_of,
    listed,
    models_of,
    reason,
    request,
    window_of,
)

HOST = "127.0.0.1"
MODELS_SECONDS = 10.0
COMPLETION_SECONDS = 120.0
"""An endpoint may be busy, or compile for its first request."""


def check_endpoint(
    role: str,
    model: ModelConfig,
    url: str,
    server: ServerConfig,
    windows: dict[str, int],
    *,
    probe_ids: list[int] | None,
    scores: bool = False,
) -> list[Check]:
    """Whether the endpoint is there, serves the model, and answers in ids with log-probabilities (`api=tokens`).

    The probe samples one token after `probe_ids`, and is left out without them. With `scores` it also asks for the
    `server.top_k` likeliest tokens at each position of the prompt, as methods that read the teacher's distribution do.
    The context window that the endpoint names goes to `windows`.
    """
    base, name = url.rstrip("/"), model.served_name or model.path
    key = bearer("server.api_key_env", server.api_key_env)
    models, problem = ask(f"{base}/models", key, MODELS_SECONDS)
    address = f"{role}.urls are http://<host>:<port>/v1"
    if problem:
        remedy = f"is it running? {address}; a key is read from the variable {server.api_key_env}"
        return [Check("fail", role, f"{base}/models: {problem}", remedy)]
    found_models = models_of(models)
    if found_models is None:
        return [Check("fail", role, f"{base}/models: no list of models", address)]
    served = dict(found_models)
    if name not in served:
        text = f"{base} does not serve {name}, it serves {listed(list(served))}"
        return [Check("fail", role, text, f"set {role}.served_name to what is served, or serve {name}")]
    try:
        window = window_of(served[name])
    except ValueError as error:
        return [Check("fail", role, f"{base}/models states {error}", "does it have vLLM's API?")]
    found = f"{base} serves {name}"
    if window is not None:
        windows[f"max_model_len of {base}"] = window
        found += f", context window {window}"
    if model.api == "text":
        return [Check("ok", role, f"{found}; asked for text alone")]
    if probe_ids is None:
        return [Check("ok", role, found)]
    body = {"model": name, "prompt": probe_ids, "max_tokens": 1, "logprobs": 1, "return_token_ids": True}
    if scores:
        body["prompt_logprobs"] = server.top_k
    answer, problem = ask(f"{base}/completions", key, COMPLETION_SECONDS, body)
    problem = problem or lacks(answer, probe_ids, scores=scores)
    if not problem:
        return [Check("ok", role, f"{found}; gives ids and log-probabilities")]
    remedy = f"serve it with vLLM, or set {role}.api=text; methods that need ids or distributions refuse it"
    if scores:
        remedy = f"serve it with vLLM and --max-logprobs={server.top_k}, or lower server.top_k"
    return [Check("fail", role, f"{base}/completions: {problem}", remedy)]


def lacks(answer: Any, probe_ids: list[int], *, scores: bool = False) -> str:
    """What is missing of ids and log-probabilities in the answer to the probe; "" where nothing is."""
    try:
        choice = answer["choices"][0]
        ids, prompt_ids = choice.get("token_ids"), choice.get("prompt_token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    except (LookupError, TypeError, AttributeError):
        return "the answer is no completion"
    if not ids:
        return "no token ids are returned"
    if not isinstance(logprobs, list) or not logprobs:
        return "no log-probabilities are returned"
    try:
        token_ids(ids), [logprob(value) for value in logprobs]
    except WrongAnswer as error:
        return f"it {error}"
    if scores and not choice.get("prompt_logprobs"):
        return "no log-probabilities of the prompt are returned"
    if prompt_ids is not None and prompt_ids != probe_ids:
        return f"it read the ids {str(prompt_ids)[:200]} where {probe_ids} were sent"
    return ""


def check_judge(judge: JudgeConfig, option: str = "eval.judge") -> list[Check]:
    """Nothing where there is no judge. `option` is where the configuration comes from."""
    if not judge.url:
        return []
    base = judge.url.rstrip("/").removesuffix("/chat/completions")
    _, problem = ask(f"{base}/models", bearer(f"{option}.api_key_env", judge.api_key_env), MODELS_SECONDS)
    if problem:
        remedy = f"is it running? {option}.url=http://<host>:<port>/v1; its key is read from {judge.api_key_env}"
        return [Check("fail", "judge", f"{base}/models: {problem}", remedy)]
    return [Check("ok", "judge", f"{base} can be reached")]


def check_port(port: int) -> Check:
    """Whether a server that the run starts could listen there."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            remedy = "set server.port to another one, or to 0 for any that is free"
            return Check("fail", "port", f"server.port={port} is not to be had on {HOST}: {reason(error)}", remedy)
    return Check("ok", "port", f"server.port={port} is free on {HOST}")


def ask(url: str, headers: dict[str, str], seconds: float, body: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The JSON that answers a GET, or a POST of `body`, and what went wrong or ""."""
    try:
        response = asyncio.run(_request(url, headers, seconds, body))
    except TimeoutError:
        return None, f"no answer in {seconds:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return None, f"cannot be reached ({reason(error)})"
    if response.status_code != 200:
        return None, f"status {response.status_code}, {detail(response)}"
    answer = json_of(response)
    return answer, "" if answer is not None else "the answer is no JSON"


async def _request(url: str, headers: dict[str, str], seconds: float, body: dict[str, Any] | None) -> httpx.Response:
    most = MODELS_BYTES if body is None else most_bytes(body)
    is_here = httpx.URL(url).host in LOOPBACK
    async with asyncio.timeout(seconds), httpx.AsyncClient(timeout=None, trust_env=not is_here) as http:
        method = "GET" if body is None else "POST"
        return await request(http, method, url, most_bytes=most, body=body, headers=headers)
