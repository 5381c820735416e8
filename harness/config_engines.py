"""Which engine samples, and how endpoints are asked: that part of the configuration. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class VllmConfig:
    """rollout=vllm: the student's engine in the trainer's process, a teacher's in a process of its own."""

    memory_fraction: float = 0.3
    """Share of a GPU's memory for the engine's weights and cache; the trainer has the rest."""
    cache_gib: float | None = None
    """Size of the key-value cache; default: what is left of `memory_fraction`, and 1 GiB without a GPU."""
    max_model_len: int | None = None
    """Tokens of prompt and completion together; default: the model's context window."""
    enforce_eager: bool = False
    """No compiled graphs: starts faster, samples slower."""
    prefix_caching: bool = True
    sleep: bool = True
    """Free the engine's memory while the student is updated. Only on a GPU."""
    tensor_parallel_size: int = 1
    """GPUs of a teacher's engine; the student's has the trainer's own."""


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
    start_timeout: float = 900.0
    """Seconds in which `vllm serve` has to answer."""
    port: int = 0
    """Of a server that is started here, on 127.0.0.1; 0: a free one."""
    args: list[str] = field(default_factory=list)
    """Further arguments of `vllm serve`, such as --tensor-parallel-size=2."""


CHOICES = {"rollout.engine": ("transformers", "vllm", "server")}

POSITIVE = (
    "rollout.max_response_tokens",
    "rollout.max_prompt_tokens",
    "rollout.max_sequences",
    "rollout.temperature",
    "rollout.transfer_timeout",
    "rollout.vllm.memory_fraction",
    "rollout.vllm.tensor_parallel_size",
    "server.timeout",
    "server.max_wait",
    "server.concurrency",
    "server.top_k",
    "server.start_timeout",
)
