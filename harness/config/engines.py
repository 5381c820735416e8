"""Which engine samples, and how endpoints are asked: that part of the configuration. Imports nothing heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, PositiveFloat, PositiveInt

from harness.config.foreign import foreign
from harness.config.registry import Registry
from harness.config.values import PositiveShare, Seconds, Text
from harness.errors import UserError


@dataclass
class VllmConfig:
    """Options of `rollout=vllm`: the student's engine in the trainer's process, a teacher's in a process of its own."""

    memory_fraction: PositiveShare = 0.3
    """Share of a GPU's memory for the weights and the cache of an engine. The trainer has the rest."""
    own_memory_fraction: PositiveShare = 0.9
    """Share of a GPU's memory for a teacher's engine or server on GPUs of its own (`cluster.teacher_gpus`)."""
    cache_gib: PositiveFloat | None = None
    """GiB of the key-value cache. `null` takes what is left of the engine's share, and 1 GiB without a GPU."""
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and completion together. `null` is the model's context window. On a GPU it is as much of it
    as the cache holds once."""
    enforce_eager: bool = False
    """Compile no graphs: the engine starts faster and samples slower."""
    prefix_caching: bool = True
    """Keep the cache of what prompts begin with, and read it once for all of them. Switched off for models with which
    vLLM fails."""
    sleep: bool = True
    """Free the memory of the student's engine while the student is updated. Has an effect on a GPU only."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs over which a teacher's engine is cut. With `cluster.teacher_gpus` it takes all of those instead. The
    student's engine has the trainer's GPU."""


@dataclass
class RolloutConfig:
    """How student and teacher sample in training: from all tokens, without penalties (published). Evaluation has
    its own decoding under `eval.`."""

    engine: Text = foreign("transformers")
    """What samples. `transformers` and `vllm` do so on this machine; `server` asks endpoints, for students that are not
    trained. `package.module:function` opens an engine of one's own."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of student and teacher (published: 1.0). Log-probabilities are those of the logits divided
    by it."""
    max_prompt_tokens: PositiveInt = 4096
    """Most tokens of a plain prompt (Table 8: 4,096). Questions with longer ones are dropped and counted. BCQ and NCQ
    prompts are limited by the context window alone."""
    max_response_tokens: PositiveInt = 12_288
    """Most tokens of a response of student or teacher (Table 8: 12,288). A given prefix counts; a longer response is
    cut off."""
    max_sequences: PositiveInt = 256
    """Sequences that one engine decodes at a time."""
    fast_decoding: bool = True
    """Sample with packed weights where `rollout=transformers` runs in fp32 on a CPU, for models of full attention from
    16 million weights on. Results are equal up to rounding. `false` samples by the model's own forward pass."""
    transfer_timeout: Seconds = 600.0
    """Seconds in which the engine has to take the student's new weights after an update. After them the run ends."""
    vllm: VllmConfig = field(default_factory=VllmConfig)


@dataclass
class ServerConfig:
    """How endpoints are asked (`teacher.urls`), and how `vllm serve` is started (`teacher.serve=true`)."""

    timeout: Seconds = 1800.0
    """Seconds that a single request may take. The limit also holds for a teacher in a process of its own
    (`teacher_process`)."""
    max_wait: Seconds = 900.0
    """Seconds without an answer from any endpoint, after which the run ends as `interrupted`."""
    concurrency: PositiveInt = 64
    """Requests at a time to each endpoint."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Name of the environment variable with the key, if an endpoint wants one."""
    top_k: PositiveInt = 64
    """Log-probabilities for each token that a served teacher gives to methods that read its distribution. All other
    tokens share one bucket."""
    score: bool = True
    """A served teacher also scores, `server.top_k` tokens at each position, for text alone. `false`: the server only
    samples, and a copy in the run scores with its full distribution."""
    start_timeout: Seconds = 900.0
    """Seconds in which a started `vllm serve` has to answer."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of a server that is started here, on 127.0.0.1. 0 takes a free one."""
    args: list[Text] = field(default_factory=list)
    """Further arguments of `vllm serve`, such as `--tensor-parallel-size=2`. Arguments that would open it to other
    machines, show a key or run a model's code are refused."""


ENGINES = Registry(
    option="rollout.engine",
    group="zppo.engines",
    ours=("transformers", "vllm", "server"),
)
"""Each is called with `harness.rollout.base.EngineParts`, and gives a `RolloutEngine`."""

REFUSED_ARGUMENTS = {
    "--host": "it listens on this machine alone; start one for others yourself and name it in teacher.urls",
    "--uds": "it listens on 127.0.0.1",
    "--port": "set server.port",
    "--api-key": "a key on a command line is for all to read; put it into the variable VLLM_API_KEY and set "
    "server.api_key_env=VLLM_API_KEY",
    "--hf-token": "a token on a command line is for all to read; put it into the variable HF_TOKEN",
    "--trust-remote-code": "set teacher.trust_remote_code=true, which the run records",
    "--load-format": "weights are read from safetensors alone",
    "--config": "its arguments would not be seen here; put them into server.args",
}
"""Arguments of `vllm serve` that are refused, each with what to do instead."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"key|token|secret|passw|auth|credential|signature|\bsig\b", re.IGNORECASE)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises UserError for one of `REFUSED_ARGUMENTS`, however vLLM lets it be written: `--api_key`, `--host=x`,
    `--ho`.
    Values are not repeated: one may be the key."""
    for argument in arguments:
        name = argument.split("=")[0].split()[0].replace("_", "-") if argument.strip() else ""
        for flag, remedy in REFUSED_ARGUMENTS.items():
            if len(name) > 2 and name.startswith("--") and flag.startswith(name):
                raise UserError(f"server.args: {flag} is not passed on: {remedy}")


def check_variable(option: str, name: str) -> None:
    """Raises UserError for what cannot name an environment variable, without repeating it: it may be the key itself."""
    if not _VARIABLE.fullmatch(name):
        raise UserError(f"{option} names an environment variable, and the key stands in that: {option}=OPENAI_API_KEY")


def api_key(option: str, variable: str) -> str:
    """The key in an environment variable, which `option` names; empty where there is none.

    Raises UserError, without showing it, for a key that no HTTP header takes: libraries would quote it in their errors.
    """
    check_variable(option, variable)
    key = os.environ.get(variable, "").strip()
    if not all("!" <= char <= "~" for char in key):
        raise UserError(
            f"the key in the variable {variable} ({option}) has a line break, a space or another character that no "
            "header takes: store the key alone in it"
        )
    return key


def check_address(option: str, url: str, variable: str) -> None:
    """Raises UserError for what is no address, and for a key or a password in one, without repeating it. `variable` is
    the option that names the environment variable of the endpoint's key."""
    no_address = UserError(f"{option} has no address: write http://<host>:<port>/v1")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise no_address from error
    options = parse_qsl(f"{parts.query}&{parts.fragment}", keep_blank_values=True)
    named = [name for name, _ in options if _SECRET.search(name)]
    has_user = "@" in (parts.netloc or url.partition("?")[0])
    what = "a user or password" if has_user else f"'{named[0]}'" if named else None
    if what is not None:
        raise UserError(
            f"{option} has {what} in an address, which is written to config.yaml and logs: leave it out and put the "
            f"key into the environment variable that {variable} names"
        )
    try:
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that no machine has
        is_address = False
    if not is_address or parts.fragment:
        raise UserError(f"{option}: {url} is no address: write http://<host>:<port>/v1")
