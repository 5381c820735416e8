"""Which engine samples, and how endpoints are asked: that part of the configuration. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from harness.errors import UserError


@dataclass
class VllmConfig:
    """rollout=vllm: the student's engine in the trainer's process, a teacher's in a process of its own."""

    memory_fraction: float = 0.3
    """Share of a GPU's memory for the engine's weights and cache; the trainer has the rest."""
    own_memory_fraction: float = 0.9
    """The same of a teacher's engine or server that has GPUs of its own (`cluster.teacher_gpus`)."""
    cache_gib: float | None = None
    """Size of the key-value cache; default: what is left of the engine's share, and 1 GiB without a GPU."""
    max_model_len: int | None = None
    """Tokens of prompt and completion together; default: the model's context window."""
    enforce_eager: bool = False
    """No compiled graphs: starts faster, samples slower."""
    prefix_caching: bool = True
    sleep: bool = True
    """Free the engine's memory while the student is updated. Only on a GPU."""
    tensor_parallel_size: int = 1
    """GPUs of a teacher's engine, all of `cluster.teacher_gpus` if there are any; the student's has the trainer's."""


@dataclass
class RolloutConfig:
    engine: str = "transformers"
    """transformers, vllm, or server: endpoints, for students that are not trained."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_prompt_tokens: int = 4096
    """Longer plain prompts are dropped from the data and counted; BCQ and NCQ prompts have only the context window."""
    max_response_tokens: int = 12_288
    max_sequences: int = 256
    """Sequences that are decoded at once."""
    transfer_timeout: float = 600.0
    """Seconds in which the engine has to have the student's new weights."""
    vllm: VllmConfig = field(default_factory=VllmConfig)


@dataclass
class ServerConfig:
    """How endpoints are asked, and how `vllm serve` is started where `serve` is set for a model."""

    timeout: float = 1800.0
    """Seconds a single request may take."""
    max_wait: float = 900.0
    """Seconds without an answer from any endpoint until the run ends as `interrupted`."""
    concurrency: int = 64
    """Requests at a time to each endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the key, if an endpoint wants one."""
    top_k: int = 64
    """Log-probabilities a token that a served teacher gives to methods that read its distribution; the rest is a tail
    of one bucket."""
    score: bool = True
    """A served teacher also scores for methods that read its distribution, `top_k` tokens each and text alone; false:
    it samples, and what scores is loaded beside the student, with its whole distribution."""
    start_timeout: float = 900.0
    """Seconds in which `vllm serve` has to answer."""
    port: int = 0
    """Of a server that is started here, on 127.0.0.1; 0: a free one."""
    args: list[str] = field(default_factory=list)
    """Further arguments of `vllm serve`, such as --tensor-parallel-size=2. What would open it to other machines, show
    a key or run a model's code is refused."""


CHOICES = {"rollout.engine": ("transformers", "vllm", "server")}

POSITIVE = (
    "rollout.max_response_tokens",
    "rollout.max_prompt_tokens",
    "rollout.max_sequences",
    "rollout.temperature",
    "rollout.transfer_timeout",
    "rollout.vllm.memory_fraction",
    "rollout.vllm.own_memory_fraction",
    "rollout.vllm.tensor_parallel_size",
    "server.timeout",
    "server.max_wait",
    "server.concurrency",
    "server.top_k",
    "server.start_timeout",
)

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
"""Of `vllm serve`, each with what to do instead."""
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


def check_address(option: str, url: str, variable: str) -> None:
    """Raises UserError for a key or a password in an address, without repeating it. `variable` is the option that names
    the environment variable of the endpoint's key."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return  # no address at all, which others refuse
    options = parse_qsl(f"{parts.query}&{parts.fragment}", keep_blank_values=True)
    named = [name for name, _ in options if _SECRET.search(name)]
    has_user = "@" in (parts.netloc or url.partition("?")[0])
    what = "a user or password" if has_user else f"'{named[0]}'" if named else None
    if what is not None:
        raise UserError(
            f"{option} has {what} in an address, which is written to config.yaml and logs: leave it out and put the "
            f"key into the environment variable that {variable} names"
        )
