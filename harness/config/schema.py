"""The configuration of a run: dataclasses whose defaults are the paper's published setting (METHOD, Table 8).

Hydra merges `conf/` and the command line; `from_hydra` refuses misspelt keys, wrong types and incoherent combinations.
Imports no torch, so everything is checked before anything heavy loads. A method's own options are checked by its class.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import accumulate
from typing import Annotated, Any, Literal

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, NonNegativeInt, PositiveInt, with_config

from harness.config import engines
from harness.config.cluster import ClusterConfig, check_cluster
from harness.config.data import DataConfig, check_data
from harness.config.engines import RolloutConfig, ServerConfig
from harness.config.evaluation import EvalConfig, JudgeConfig, check_media, check_suite
from harness.config.foreign import foreign, option_fields
from harness.config.names import check_name
from harness.config.update import AlarmConfig, UpdateConfig
from harness.config.values import Seconds, Text
from harness.errors import UserError, did_you_mean, first_line
from methods.options import validated


@dataclass
class ModelConfig:
    """A model: where it is, how it is loaded or who serves it."""

    name: Text = MISSING
    """Name of the model. The student's is a folder of the run and a row of tables."""
    path: Text = MISSING
    """Where the model is: a local folder, a hub id, or `tiny:<size>` for the embedded family."""
    revision: Text | None = None
    """Branch, tag or commit of a hub repository. `null` takes the newest."""
    dtype: Literal["float32", "bfloat16", "float16"] = foreign("bfloat16")
    """Number format in which the model computes (published: bf16). A student that is trained in 16 bits keeps fp32
    weights until it is saved."""
    attn_implementation: Text = "sdpa"
    """Attention of transformers, such as `sdpa`, `eager` or `flash_attention_2`. One from a hub repository needs
    `trust_remote_code`."""
    enable_thinking: bool = foreign(False)
    """Passed to the chat template. It is explicit because templates of one family differ in their default."""
    chat_template: Text | None = None
    """A Jinja file that replaces the tokenizer's template. Base models have none and need it."""
    urls: list[Text] = field(default_factory=list)
    """Endpoints that serve this model, such as `[http://localhost:8000/v1]`. A request goes to the one with the least
    to do. For a student this needs `rollout=server`."""
    serve: bool = False
    """Start `vllm serve` for this model, on 127.0.0.1, for as long as the run lasts."""
    api: Literal["tokens", "text"] = "tokens"
    """What the endpoints of `urls` exchange. `tokens`: ids with log-probabilities (vLLM); `text`: chat messages alone,
    for methods that read text alone."""
    served_name: Text | None = None
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

    grader: Literal["math_verify", "mathruler"] = foreign("math_verify")
    """Library that compares mathematical answers. The published one is `mathruler`."""
    num_workers: PositiveInt = 1
    """Processes that grade side by side. They start when the first answer needs one."""
    cpu_seconds: Seconds = 5.0
    """CPU seconds that a worker may spend on one answer. A worker that takes longer is killed, and the answer counts as
    `timeout`."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """This judge is asked in training, about answers of type `text` that the rule does not find right. Evaluation has
    its own, `eval.judge`."""


@dataclass
class TrackerConfig:
    """Tracking with Weights & Biases. `metrics.jsonl` is always written as well."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Where metrics go. `offline` keeps wandb's files in the run folder until `wandb sync`; `online` sends them at
    once."""
    project: Text = "zppo-bench"
    """Name of the wandb project."""
    entity: Text | None = None
    """User or team of wandb that owns the project. `null` is the account's default."""


@dataclass
class CheckpointConfig:
    """When the state of a run is written, and how much of it stays on disk."""

    every: PositiveInt = 10
    """Rollout steps between two checkpoints. The last step has one as well."""
    keep_last: PositiveInt = 1
    """How many of the newest checkpoints stay."""
    keep_every: PositiveInt | None = None
    """Checkpoints of every so many steps are never removed. `null`: only the newest stay."""


@dataclass
class RecordsConfig:
    """How many recorded prompts and responses stay on disk."""

    keep: PositiveInt | None = None
    """How many of the newest steps keep their rollouts on disk. `null`: all. A report shows and audits what is
    there."""


@with_config(allow_inf_nan=False)
@dataclass
class RunConfig:
    """Where a run is stored, how long it is and which devices it uses."""

    study: Text = "default"
    """Name of the study, a set of runs that a report compares. It is a folder under `outputs`."""
    outputs: Text = "outputs"
    """Folder of all studies. A run is in `OUTPUTS/STUDY/LABEL/STUDENT/seedN`."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Decides the order of questions and all sampling of the run, which is repeated with the same seed."""
    steps: NonNegativeInt | None = None
    """Rollout steps (Table 8: 200). `null`: as many as the data give in `data.epochs` passes. 0 trains nothing."""
    resume: Literal["auto", "never"] = "auto"
    """What to do with a folder that has a checkpoint. `auto`: go on from the newest one of the same configuration;
    `never`: refuse the folder."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    rollouts: RecordsConfig = field(default_factory=RecordsConfig)
    preempt_grace: Seconds = 60.0
    """Seconds that a run has to write its state after SIGTERM or SIGUSR1. After them it ends, and the last checkpoint
    counts."""
    device: Text = "auto"
    """Device of the student: `auto`, `cpu`, `cuda` or `cuda:<n>`. `auto` takes a GPU where there is one."""
    teacher_device: Text | None = None
    """Device of a teacher that the run loads itself, or in a process of its own. `null`: a GPU of
    `cluster.teacher_gpus` if there are any, else the student's device. vLLM takes the GPUs of `cluster.teacher_gpus`
    whatever this is."""
    teacher_process: bool = False
    """Run the teacher in a process of its own, for methods that read its distribution. It may be on another device."""
    num_threads: Annotated[int, Field(ge=0, le=4096)] = 0
    """CPU threads of the run. 0 leaves the number to PyTorch, which takes all cores."""
    label: Text | None = None
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


FORMER = {
    **dict.fromkeys(("rollout.top_p", "rollout.repetition_penalty"), 1.0),
    **dict.fromkeys(("rollout.top_k", "rollout.min_p", "rollout.presence_penalty"), 0),
    "reward.judge.when": "unmatched",
    **dict.fromkeys(("student.gguf_file", "teacher.gguf_file"), None),
}
"""Options of earlier versions, each with the only value that it could have, or that still has its meaning."""
WHY_FORMER = {
    "rollout": "training samples from the complete distribution, which ratio and divergence are formed with; leave it "
    "out (evaluation has eval.{0})",
    "reward": "in training the judge sees all that no rule matches, and what has no readable answer earns nothing; "
    "leave it out (evaluation has eval.{0})",
    "student": "weights are read from safetensors alone; unpack them once, as examples/smollm/unpack.py does, and set "
    "student.path=FOLDER",
    "teacher": "weights are read from safetensors alone; unpack them once, as examples/smollm/unpack.py does, and set "
    "teacher.path=FOLDER",
}


def from_hydra(cfg: DictConfig) -> RunConfig:
    """Merge a composed Hydra config into `RunConfig` and check it.

    Raises UserError for unknown keys, wrong types, missing values and incoherent combinations.
    """
    values: Any = OmegaConf.to_container(cfg)
    try:
        if "${" in str(values):  # it may be a default that an option refers to
            values = OmegaConf.to_container(OmegaConf.merge(_defaults("teacher" in cfg), cfg), resolve=True)
        config = validated(RunConfig, values, unknown_option)
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{key}: {first_line(error)}" if key else first_line(error)) from error
    missing = sorted(key for key, value in flat(asdict(config)).items() if value == MISSING)
    if missing:
        raise UserError(f"no value for {', '.join(missing)}: set {missing[0]}=...")
    check(config)
    return config


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted keys."""
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    return {key: leaf for name, child in node.items() for key, leaf in flat(child, f"{prefix}{name}.").items()}


@cache
def _defaults(has_teacher: bool) -> DictConfig:
    """All options but free mappings, whose default is replaced and not added to."""
    values = asdict(RunConfig(teacher=ModelConfig() if has_teacher else None))
    for judge in (values["reward"]["judge"], values["eval"]["judge"]):
        del judge["extra_body"]
    return OmegaConf.create(values)


def known_keys() -> list[str]:
    """Every dotted key of the configuration, for suggestions."""
    keys = [key.split(".") for key, _, _ in option_fields(RunConfig)]
    return list(dict.fromkeys(name for parts in keys for name in accumulate(parts, "{}.{}".format)))


def unknown_option(key: str) -> str:
    """The line for a key that the configuration does not have."""
    if key in FORMER:
        section, _, rest = key.partition(".")
        return f"{key} is no option: {WHY_FORMER[section].format(rest)}"
    near = did_you_mean(key, known_keys())
    return f"unknown option '{key}'.{near if 'Did' in near else ' See zppo train --print-config.'}"


def check(config: RunConfig) -> None:
    """Refuse values that no run could use together, with the reason."""
    engines.ENGINES.entry(config.rollout.engine)
    _check_devices(config)
    _check_names(config)
    _check_free_mappings(config)
    check_data(config.data)
    _check_endpoints(config)
    check_suite(config.eval)
    check_media("eval", config.eval.media)
    check_cluster(config.cluster, config.data.batch_size)


def _check_devices(config: RunConfig) -> None:
    for key in ("device", "teacher_device"):
        value = getattr(config, key)
        if value is not None and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise UserError(f"{key}={value} is no device: write auto, cpu, cuda or cuda:0")


def _check_free_mappings(config: RunConfig) -> None:
    """Only finite numbers have a form in JSON: in requests, and in the records of a run."""
    judges = {"reward.judge": config.reward.judge, "eval.judge": config.eval.judge}
    mappings = {f"{option}.extra_body": judge.extra_body for option, judge in judges.items()}
    for option, values in ({"data.dataset_config": config.data.dataset_config} | mappings).items():
        try:
            json.dumps(values, allow_nan=False, default=str)
        except ValueError as error:
            raise UserError(f"{option} has a number that is not finite: write one that is, or a text") from error


def _check_names(config: RunConfig) -> None:
    """What names the folder of a run, and its row in tables."""
    names = {"study": config.study, "student.name": config.student.name}
    if config.label:
        names["label"] = config.label
    elif "name" in config.method:
        names["method.name"] = config.method["name"]
    for option, name in names.items():
        check_name(option, name)


def _check_endpoints(config: RunConfig) -> None:
    """Before anything is written: addresses and arguments are in config.yaml, in logs and in wandb."""
    for role, model in (("student", config.student), ("teacher", config.teacher)):
        for url in model.urls if model is not None else ():
            engines.check_address(f"{role}.urls", url, "server.api_key_env")
        if model is not None and model.is_served:
            engines.api_key("server.api_key_env", config.server.api_key_env)
    for option, judge in (("reward.judge", config.reward.judge), ("eval.judge", config.eval.judge)):
        if judge.url:
            engines.check_address(f"{option}.url", judge.url, f"{option}.api_key_env")
        engines.check_variable(f"{option}.api_key_env", judge.api_key_env)
        if judge.url:
            engines.api_key(f"{option}.api_key_env", judge.api_key_env)
    engines.check_variable("server.api_key_env", config.server.api_key_env)
    engines.check_arguments(config.server.args)
