"""The configuration of a run: dataclasses whose defaults are the paper's published setting (METHOD, Table 8).

Hydra merges `conf/` and the command line; `from_hydra` refuses misspelt keys, wrong types and incoherent combinations.
Imports no torch, so everything is checked before anything heavy loads. A method's own options are checked by its class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import cluster, data, engines, evaluation, update
from harness.config.cluster import ClusterConfig, check_cluster
from harness.config.data import DataConfig, check_data
from harness.config.engines import RolloutConfig, ServerConfig
from harness.config.evaluation import EvalConfig, JudgeConfig, check_media, check_suite
from harness.config.foreign import foreign
from harness.config.names import check_name
from harness.config.update import AlarmConfig, UpdateConfig
from harness.errors import UserError, did_you_mean


@dataclass
class ModelConfig:
    """A model: where it is, how it is loaded or who serves it."""

    name: str = MISSING
    """Name of the model. The student's is a folder of the run and a row of tables."""
    path: str = MISSING
    """Where the model is: a local folder, a hub id, or `tiny:<size>` for the embedded family."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository. `null` takes the newest."""
    dtype: str = foreign("bfloat16")
    """Number format in which the model computes (published: bf16). A student that is trained in 16 bits keeps fp32
    weights until it is saved."""
    attn_implementation: str = "sdpa"
    """Attention of transformers, such as `sdpa`, `eager` or `flash_attention_2`. One from a hub repository needs
    `trust_remote_code`."""
    enable_thinking: bool = foreign(False)
    """Passed to the chat template. It is explicit because templates of one family differ in their default."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's template. Base models have none and need it."""
    urls: list[str] = field(default_factory=list)
    """Endpoints that serve this model, such as `[http://localhost:8000/v1]`. A request goes to the one with the least
    to do. For a student this needs `rollout=server`."""
    serve: bool = False
    """Start `vllm serve` for this model, on 127.0.0.1, for as long as the run lasts."""
    api: str = "tokens"
    """What the endpoints of `urls` exchange. `tokens`: ids with log-probabilities (vLLM); `text`: chat messages alone,
    for methods that read text alone."""
    served_name: str | None = None
    """Name of the model at its endpoints. `null` is `path`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model, for an architecture that transformers does not have. `run.json`
    records it."""

    @property
    def is_served(self) -> bool:
        return self.serve or bool(self.urls)


@dataclass
class RewardConfig:
    """How answers are graded, in training and in evaluation."""

    grader: str = foreign("math_verify")
    """Library that compares mathematical answers. The published one is `mathruler`."""
    num_workers: int = 1
    """Processes that grade side by side. They start when the first answer needs one."""
    cpu_seconds: float = 5.0
    """CPU seconds that a worker may spend on one answer. A worker that takes longer is killed, and the answer counts as
    `timeout`."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """This judge is asked in training, about answers of type `text` that the rule does not find right; `when` has
    no other value here. Evaluation has its own, `eval.judge`."""


@dataclass
class TrackerConfig:
    """Tracking with Weights & Biases. `metrics.jsonl` is always written as well."""

    wandb: str = "disabled"
    """Where metrics go. `offline` keeps wandb's files in the run folder until `wandb sync`; `online` sends them at
    once."""
    project: str = "zppo-bench"
    """Name of the wandb project."""
    entity: str | None = None
    """User or team of wandb that owns the project. `null` is the account's default."""


@dataclass
class CheckpointConfig:
    """When the state of a run is written, and how much of it stays on disk."""

    every: int = 10
    """Rollout steps between two checkpoints. The last step has one as well."""
    keep_last: int = 1
    """How many of the newest checkpoints stay."""
    keep_every: int | None = None
    """Checkpoints of every so many steps are never removed. `null`: only the newest stay."""


@dataclass
class RecordsConfig:
    """How many recorded prompts and responses stay on disk."""

    keep: int | None = None
    """How many of the newest steps keep their rollouts on disk. `null`: all. A report shows and audits what is
    there."""


@dataclass
class RunConfig:
    """Where a run is stored, how long it is and which devices it uses."""

    study: str = "default"
    """Name of the study, a set of runs that a report compares. It is a folder under `outputs`."""
    outputs: str = "outputs"
    """Folder of all studies. A run is in `OUTPUTS/STUDY/LABEL/STUDENT/seedN`."""
    seed: int = 0
    """Decides the order of questions and all sampling of the run, which is repeated with the same seed."""
    steps: int | None = None
    """Rollout steps (Table 8: 200). `null`: as many as the data give in `data.epochs` passes. 0 trains nothing."""
    resume: str = "auto"
    """What to do with a folder that has a checkpoint. `auto`: go on from the newest one of the same configuration;
    `never`: refuse the folder."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    rollouts: RecordsConfig = field(default_factory=RecordsConfig)
    preempt_grace: float = 60.0
    """Seconds that a run has to write its state after SIGTERM or SIGUSR1. After them it ends, and the last checkpoint
    counts."""
    device: str = "auto"
    """Device of the student: `auto`, `cpu`, `cuda` or `cuda:<n>`. `auto` takes a GPU where there is one."""
    teacher_device: str | None = None
    """Device of a teacher that the run loads itself, or in a process of its own. `null`: a GPU of
    `cluster.teacher_gpus` if there are any, else the student's device. vLLM takes the GPUs of `cluster.teacher_gpus`
    whatever this is."""
    teacher_process: bool = False
    """Run the teacher in a process of its own, for methods that read its distribution. It may be on another device."""
    num_threads: int = 0
    """CPU threads of the run. 0 leaves the number to PyTorch, which takes all cores."""
    label: str | None = None
    """Folder of the run and row of tables. `null`: the method's name, to which a multirun adds its swept keys."""
    method: dict[str, Any] = field(default_factory=dict)
    """Options of the method. The preset that `method=` chooses sets `method.name` and `method.class`."""
    student: ModelConfig = field(default_factory=ModelConfig)
    """The student is the model that is trained."""
    teacher: ModelConfig | None = None
    """The teacher has these options as well. `teacher=none` makes all of it `null`, for methods that need none."""
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
    *evaluation.POSITIVE,
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "rollouts.keep",
    "preempt_grace",
    *cluster.POSITIVE,
    *engines.POSITIVE,
    *update.POSITIVE,
)
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "steps": (0, math.inf),
    "num_threads": (0, 4096),
    **engines.RANGES,
    **evaluation.RANGES,
    **update.RANGES,
}
"""Least and greatest value of a number; every other that is not in `POSITIVE` may be negative."""
MAX_SECONDS = 1_000_000_000
SECONDS = ("timeout", "max_wait", "preempt_grace", "cpu_seconds")
"""How the names of times end; no clock of the system waits for much longer than `MAX_SECONDS`."""


def from_hydra(cfg: DictConfig) -> RunConfig:
    """Merge a composed Hydra config into `RunConfig` and check it.

    Raises UserError for unknown keys, wrong types, missing values and incoherent combinations.
    """
    try:
        merged = OmegaConf.merge(_structure(), cfg)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"no value for {', '.join(missing)}: set {missing[0]}=...")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    assert isinstance(config, RunConfig)
    check(config)
    return config


@cache
def _structure() -> DictConfig:
    """`RunConfig` as OmegaConf holds it, made once: it takes twice as long as the merge, which copies it."""
    return OmegaConf.structured(RunConfig)


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
    engines.ENGINES.entry(config.rollout.engine)
    _check_numbers(config)
    _check_devices(config)
    _check_names(config)
    check_data(config.data)
    _check_secrets(config)
    _check_addresses(config)
    check_suite(config.eval)
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


def _check_numbers(config: RunConfig) -> None:
    for key, value in _numbers(config):
        low, high = RANGES.get(key, (-math.inf, math.inf))
        high = min(high, MAX_SECONDS) if key.endswith(SECONDS) else high
        if not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, got {value}")
        if key in POSITIVE and value <= 0:
            raise UserError(f"{key} must be above 0, got {value}")
        if not low <= value <= high:
            wanted = f"{low} or more" if math.isinf(high) else f"in {low} to {high}"
            raise UserError(f"{key} must be {wanted}, got {value}")
    update.check_update(config.update)
    for key, limit, least in (("min_entropy", config.alarms.min_entropy, 0), ("max_ratio", config.alarms.max_ratio, 1)):
        if limit is not None and not limit > least:
            raise UserError(f"alarms.{key} must be above {least}, got {limit}; null is no alarm")


def _numbers(node: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a configuration by its key; those of a method are its class's to check."""
    for field_ in fields(node):
        key, value = prefix + field_.name, getattr(node, field_.name)
        if is_dataclass(value):
            yield from _numbers(value, f"{key}.")
        else:
            values = value if isinstance(value, list) else [value]
            yield from ((key, v) for v in values if isinstance(v, int | float) and not isinstance(v, bool))


def _check_devices(config: RunConfig) -> None:
    for key in ("device", "teacher_device"):
        value = getattr(config, key)
        if value is not None and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise UserError(f"{key}={value} is no device: write auto, cpu, cuda or cuda:0")


def _check_names(config: RunConfig) -> None:
    """What names the folder of a run, and its row in tables."""
    names = {"study": config.study, "student.name": config.student.name}
    if config.label:
        names["label"] = config.label
    elif "name" in config.method:
        names["method.name"] = config.method["name"]
    for option, name in names.items():
        check_name(option, name)


def _check_secrets(config: RunConfig) -> None:
    """Before anything is written: addresses and arguments are in config.yaml, in logs and in wandb."""
    for role, model in (("student", config.student), ("teacher", config.teacher)):
        for url in model.urls if model is not None else ():
            engines.check_address(f"{role}.urls", url, "server.api_key_env")
        if model is not None and model.is_served:
            engines.api_key("server.api_key_env", config.server.api_key_env)
    for option, judge in (("reward.judge", config.reward.judge), ("eval.judge", config.eval.judge)):
        engines.check_address(f"{option}.url", judge.url or "", f"{option}.api_key_env")
        engines.check_variable(f"{option}.api_key_env", judge.api_key_env)
        if judge.url:
            engines.api_key(f"{option}.api_key_env", judge.api_key_env)
    engines.check_variable("server.api_key_env", config.server.api_key_env)
    engines.check_arguments(config.server.args)


def _check_addresses(config: RunConfig) -> None:
    for role, model in (("student", config.student), ("teacher", config.teacher)):
        if model is None:
            continue
        for url in model.urls:
            if not re.match(r"https?://[^/\s]+", url):
                raise UserError(f"{role}.urls: {url} is no address: http://<host>:<port>/v1")


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or ""
    first = str(error).splitlines()[0]
    if re.search(r"not in '|Could not override|is not in struct", first):
        return f"unknown option '{key}'.{did_you_mean(key, known_keys())}"
    return f"{key}: {first}" if key else first
