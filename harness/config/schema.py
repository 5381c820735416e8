"""The configuration of a run: dataclasses whose defaults are the paper's published setting (METHOD, Table 8).

Hydra merges `conf/` and the command line; `from_hydra` refuses misspelt keys, wrong types and incoherent combinations.
Imports no torch, so everything is checked before anything heavy loads. A method's own options are checked by its class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import cluster, data, engines, evaluation, update
from harness.config.cluster import ClusterConfig, check_cluster
from harness.config.data import DataConfig, check_data
from harness.config.engines import RolloutConfig, ServerConfig
from harness.config.evaluation import EvalConfig, JudgeConfig, check_media
from harness.config.update import AlarmConfig, UpdateConfig
from harness.errors import UserError, did_you_mean


@dataclass
class ModelConfig:
    name: str = MISSING
    """Folder and table row of a student."""
    path: str = MISSING
    """A local folder, a hub id, `tiny:<size>` for the embedded family, or `package:<module>` for files in a package."""
    revision: str | None = None
    gguf_file: str | None = None
    """Read the weights from this GGUF file in `path` (or in the folder of the package)."""
    dtype: str = "bfloat16"
    """float32, bfloat16 or float16. A student that is trained in 16 bit keeps fp32 weights until it is saved."""
    attn_implementation: str = "sdpa"
    enable_thinking: bool = False
    """Passed to the chat template; explicit because templates of one family differ in their default."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's template (base models have none)."""
    urls: list[str] = field(default_factory=list)
    """Endpoints that serve this model, http://<host>:<port>/v1; requests go to the one with the least to do."""
    serve: bool = False
    """Start `vllm serve` for this model, on 127.0.0.1, for as long as the run lasts."""
    api: str = "tokens"
    """What the endpoints of `urls` speak. tokens: ids in and out with log-probabilities (vLLM); text: chat alone."""
    served_name: str | None = None
    """The model's name at its endpoints; default: `path`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model, for an architecture that transformers does not have. run.json says
    whose was allowed."""

    @property
    def is_served(self) -> bool:
        return self.serve or bool(self.urls)


@dataclass
class RewardConfig:
    grader: str = "math_verify"
    """math_verify or mathruler (the paper's)."""
    num_workers: int = 1
    cpu_seconds: float = 5.0
    """CPU time a worker may spend on one answer before it is killed and the answer counts as `timeout`."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Asked in training about answers of type text that the rule does not find right; evaluation has `eval.judge`."""


@dataclass
class TrackerConfig:
    """metrics.jsonl is always written; this adds wandb."""

    wandb: str = "disabled"
    """disabled, offline or online."""
    project: str = "zppo-bench"
    entity: str | None = None


@dataclass
class CheckpointConfig:
    every: int = 10
    """Rollout steps between two checkpoints; the last step has one as well."""
    keep_last: int = 1
    """How many of the newest stay."""
    keep_every: int | None = None
    """Those of every so many steps stay as well, and are never removed."""


@dataclass
class RecordsConfig:
    keep: int | None = None
    """Steps whose rollouts stay on disk, the newest; null: all. A report shows and audits what is there."""


@dataclass
class RunConfig:
    study: str = "default"
    outputs: str = "outputs"
    seed: int = 0
    steps: int | None = None
    """Rollout steps; default: as many as the data give in `data.epochs` passes."""
    resume: str = "auto"
    """auto: go on from the newest checkpoint of the same configuration; never: refuse a folder that has one."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    rollouts: RecordsConfig = field(default_factory=RecordsConfig)
    preempt_grace: float = 60.0
    """Seconds in which a run that SIGTERM or SIGUSR1 reached has written its state; then it ends as it is."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<n>."""
    teacher_device: str | None = None
    """Default: the student's."""
    teacher_process: bool = False
    """Score in a process of its own, which ships hidden states; methods that read the teacher's distribution."""
    num_threads: int = 0
    """CPU threads; 0 = all cores."""
    label: str | None = None
    """Folder and table row; default: the method's name. A multirun adds its swept keys."""
    method: dict[str, Any] = field(default_factory=dict)
    student: ModelConfig = field(default_factory=ModelConfig)
    teacher: ModelConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


CHOICES = {
    "resume": ("auto", "never"),
    "student.dtype": ("float32", "bfloat16", "float16"),
    "teacher.dtype": ("float32", "bfloat16", "float16"),
    **data.CHOICES,
    "student.api": ("tokens", "text"),
    "teacher.api": ("tokens", "text"),
    **engines.CHOICES,
    "reward.grader": ("math_verify", "mathruler"),
    "reward.judge.when": ("unmatched",),  # what has no readable answer earns nothing
    **update.CHOICES,
    **evaluation.CHOICES,
    "tracker.wandb": ("disabled", "offline", "online"),
}


POSITIVE = (
    *data.POSITIVE,
    "reward.num_workers",
    "reward.cpu_seconds",
    "reward.judge.max_tokens",
    "reward.judge.timeout",
    "reward.judge.concurrency",
    "eval.num_questions",
    "eval.max_response_tokens",
    "eval.options.aime_repeats",
    "eval.judge.max_tokens",
    "eval.judge.timeout",
    "eval.judge.concurrency",
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "rollouts.keep",
    "preempt_grace",
    *cluster.POSITIVE,
    *engines.POSITIVE,
    *update.POSITIVE,
)


def from_hydra(cfg: DictConfig) -> RunConfig:
    """Merge a composed Hydra config into `RunConfig` and check it.

    Raises UserError for unknown keys, wrong types, missing values and incoherent combinations.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), cfg)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"no value for {', '.join(missing)}: set {missing[0]}=...")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    assert isinstance(config, RunConfig)
    check(config)
    return config


def known_keys() -> list[str]:
    """Every dotted key of the configuration, for suggestions."""

    def walk(node: Any, prefix: str) -> list[str]:
        keys: list[str] = []
        for key in node:
            keys.append(prefix + str(key))
            if OmegaConf.is_dict(node) and not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
                keys += walk(node[key], f"{prefix}{key}.")
        return keys

    return walk(OmegaConf.structured(RunConfig(teacher=ModelConfig())), "")


def check(config: RunConfig) -> None:
    """Refuse values that no run could use, with the reason."""
    for key, choices in CHOICES.items():
        section, _, name = key.rpartition(".")
        owner = attrgetter(section)(config) if section else config
        if owner is not None and (value := getattr(owner, name)) not in choices:
            raise UserError(f"{key}={value} is not known.{did_you_mean(str(value), [str(c) for c in choices])}")
    _check_positive(config)
    check_data(config.data)
    _check_secrets(config)
    _check_served(config)
    check_media("eval", config.eval.media)
    check_cluster(config.cluster, config.data.batch_size)
    rollout = config.rollout
    if (rollout.top_p, rollout.top_k, rollout.min_p) != (1.0, 0, 0.0):
        raise UserError(
            "rollout.top_p, top_k and min_p truncate the distribution that the ratio and the divergence are formed "
            "with: training needs top_p=1 top_k=0 min_p=0 (evaluation has its own under eval.)"
        )
    if rollout.presence_penalty != 0.0 or rollout.repetition_penalty != 1.0:
        raise UserError(
            "penalties change the sampled distribution: training needs presence_penalty=0 repetition_penalty=1"
        )
    if config.steps is not None and config.steps < 0:
        raise UserError(f"steps must be 0 or more, got {config.steps}")


def _check_positive(config: RunConfig) -> None:
    for key in POSITIVE:
        value = attrgetter(key)(config)
        if value is not None and value <= 0:
            raise UserError(f"{key} must be above 0, got {value}")
    if len(config.update.betas) != 2:
        raise UserError(f"update.betas are two numbers, got {config.update.betas}")
    if config.eval.temperature < 0:
        raise UserError(f"eval.temperature must be 0 (greedy) or above, got {config.eval.temperature}")
    for key, limit, least in (("min_entropy", config.alarms.min_entropy, 0), ("max_ratio", config.alarms.max_ratio, 1)):
        if limit is not None and not limit > least:
            raise UserError(f"alarms.{key} must be above {least}, got {limit}; null is no alarm")


def _check_secrets(config: RunConfig) -> None:
    """Before anything is written: addresses and arguments are in config.yaml, in logs and in wandb."""
    for role, model in (("student", config.student), ("teacher", config.teacher)):
        for url in model.urls if model is not None else ():
            engines.check_address(f"{role}.urls", url, "server.api_key_env")
    for option, judge in (("reward.judge", config.reward.judge), ("eval.judge", config.eval.judge)):
        engines.check_address(f"{option}.url", judge.url or "", f"{option}.api_key_env")
    engines.check_arguments(config.server.args)


def _check_served(config: RunConfig) -> None:
    """Who answers for a model has to be clear, and weights that change are never served."""
    for role, model in (("student", config.student), ("teacher", config.teacher)):
        if model is None:
            continue
        for url in model.urls:
            if not re.match(r"https?://[^/\s]+", url):
                raise UserError(f"{role}.urls: {url} is no address: http://<host>:<port>/v1")
        if model.serve and model.urls:
            raise UserError(f"{role}.serve=true starts an endpoint and {role}.urls names others: set one of them")
    trained = config.method.get("class") is not None
    if config.rollout.engine == "server" and trained:
        raise UserError(
            "rollout=server cannot give the student's new weights to an endpoint: train with rollout=vllm or "
            "rollout=transformers; a teacher is served with teacher.serve=true or teacher.urls=[http://...]"
        )
    if config.rollout.engine == "server" and not config.student.is_served:
        raise UserError("rollout=server needs endpoints: student.urls=[http://<host>:<port>/v1] or student.serve=true")
    if config.student.is_served and config.rollout.engine != "server":
        raise UserError("student.urls and student.serve need rollout=server, for a student that is not trained")


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or ""
    first = str(error).splitlines()[0]
    if re.search(r"not in '|Could not override|is not in struct", first):
        return f"unknown option '{key}'.{did_you_mean(key, known_keys())}"
    return f"{key}: {first}" if key else first
