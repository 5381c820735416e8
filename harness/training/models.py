"""The models of a run and what it makes of them: student, engine, teacher, updater, the final weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import PreTrainedModel

from harness.config.deployment import Deployment, Scorer, TeacherPlace
from harness.config.engines import ENGINES
from harness.config.schema import ModelConfig, RunConfig
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.devices import device_of, use_device
from harness.models.forward import LanguageModel
from harness.models.identity import model_identity
from harness.models.loading import check_weights, num_parameters, resolve_path
from harness.models.probe import open_model
from harness.process.devices import visible_gpus
from harness.process.step_clock import StepClock
from harness.rollout.base import EngineParts, RolloutEngine
from harness.teacher.base import TeacherScorer
from harness.teacher.local import LocalScorer
from harness.teacher.server import Server, ServerScorer
from harness.training.update import Updater
from methods.base import Method

if TYPE_CHECKING:
    from harness.serving.endpoints import Endpoints

OPENERS = {
    "transformers": "harness.rollout.transformers_engine:open_engine",
    "vllm": "harness.rollout.vllm_engine:open_engine",
    "server": "harness.rollout.server_engine:open_engine",
}


def server_log(logs: Path, role: str, node: int = 0) -> Path:
    """The log of a server that a run starts; `logs` is what the name begins with."""
    return logs.with_name(f"{logs.name}.{role}.server{f'.{node}' if node else ''}.log")


class RunModels(Protocol):
    """The models of a run: in this process, or over ranks (`harness.distributed.build`)."""

    student: LanguageModel | None
    """None where endpoints answer for it."""
    engine: RolloutEngine

    @property
    def complete(self) -> LanguageModel | None:
        """The student where this process alone can read with all of its weights; else None."""
        ...

    def open_teacher(self, method: Method) -> Teacher: ...

    def updater(self, method: Method, teacher: Teacher, clock: StepClock) -> Updater: ...

    def finished(self) -> PreTrainedModel:
        """The complete trained student in its own dtype: what is saved is what is evaluated."""
        ...

    def identity(self) -> str:
        """Which model answers. What an endpoint serves by a name is not known here: only the name counts."""
        ...


class LocalModels:
    """The models in one process. What they start ends with `stack`; names of its logs begin with `logs`."""

    def __init__(self, config: RunConfig, deployment: Deployment, chat: Chat, *, logs: Path, stack: ExitStack) -> None:
        self._config, self._chat, self._logs, self._stack = config, chat, logs, stack
        self._deployment = deployment
        use_device(device_of(deployment.student.device or "cpu"))  # bare kernels go to the current one
        self.student = load_student(config, deployment, chat)
        log = server_log(logs, "student")
        self.engine = student_engine(config, deployment, chat, self.student, log=log, stack=stack)

    @property
    def complete(self) -> LanguageModel | None:
        return self.student

    def open_teacher(self, method: Method) -> Teacher:
        log = server_log(self._logs, "teacher")
        return open_teacher(method, self._config, self._deployment.teacher, self._chat, log=log, stack=self._stack)

    def updater(self, method: Method, teacher: Teacher, clock: StepClock) -> Updater:
        assert self.student is not None
        return Updater(
            student=self.student,
            teacher=teacher.scorer,
            method=method,
            config=self._config.update,
            temperature=self._config.rollout.temperature,
            clock=clock,
        )

    def finished(self) -> PreTrainedModel:
        assert self.student is not None
        # The fp32 weights are in the last checkpoint.
        self.student.module.to(dtype=getattr(torch, self._config.student.dtype))  # type: ignore[call-arg]
        return self.student.module

    def identity(self) -> str:
        if self.student is None:
            return f"served:{self._config.student.served_name or self._config.student.path}"
        return model_identity(self.student.module, self._chat)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What a run has of its teacher: an engine where it may sample, a scorer where its distribution is read."""

    engine: RolloutEngine | None = None
    scorer: TeacherScorer | None = None
    num_parameters: int = 0
    urls: tuple[str, ...] = ()
    """Where it is served, if it is."""


def load_student(config: RunConfig, deployment: Deployment, chat: Chat) -> LanguageModel | None:
    """The student in its dtype; one that is trained has fp32 weights and computes in its dtype. None where endpoints
    answer for it."""
    model, place = config.student, deployment.student
    if place.device is None:
        return None
    device = device_of(place.device)
    if not place.is_trained or model.dtype == "float32":
        return open_model(model, device, chat)
    return open_model(model, device, chat, dtype="float32", compute_dtype=getattr(torch, model.dtype))


def student_engine(
    config: RunConfig,
    deployment: Deployment,
    chat: Chat,
    student: LanguageModel | None,
    *,
    log: Path,
    stack: ExitStack,
) -> RolloutEngine:
    """The engine that samples the student. It has the weights of `student` and is ready; without one, where the student
    is cut over ranks, it has complete weights of its own, in the student's dtype.

    What it starts ends with `stack`; a server that it starts writes to `log`.
    """
    place, model = deployment.student, config.student
    parts = EngineParts(
        model=model,
        rollout=config.rollout,
        chat=chat,
        sampler="student",
        weights=student,
        device=device_of(config.device),
        endpoints=_open(model, config, "student", log, stack) if place.asks else None,
    )
    return _engine(place.engine, parts, stack)


def open_teacher(
    method: Method,
    config: RunConfig,
    place: TeacherPlace | None,
    chat: Chat,
    *,
    log: Path,
    stack: ExitStack,
    local_rank: int = 0,
    urls: Sequence[str] = (),
) -> Teacher:
    """What a process has of its teacher, as `place` says; all of it ends with `stack`.

    `urls` are those of the node's server where another rank has started it.
    """
    if place is None:
        return Teacher()
    assert config.teacher is not None
    model = dataclasses.replace(config.teacher, serve=False, urls=list(urls)) if urls else config.teacher
    gpus = [visible_gpus()[number] for number in place.own_gpus] if place.takes_gpus else []
    device = device_of(place.device(local_rank) if place.devices else config.device)
    endpoints = _open(model, config, "teacher", log, stack, gpus) if place.asks else None
    loaded = open_model(model, device, chat) if place.loads else None
    engine = None
    if place.samples is not None:
        parts = EngineParts(
            model=model,
            rollout=config.rollout,
            chat=chat,
            sampler="teacher",
            weights=loaded if place.samples_here else None,
            device=device,
            gpus=gpus,
            endpoints=endpoints,
        )
        engine = _engine(place.samples, parts, stack)
    scorer = None
    if place.scores is not None:
        scorer = open_scorer(
            model,
            chat,
            place.scores,
            temperature=method.logit_temperature(config.rollout.temperature),
            model=loaded,
            endpoints=endpoints,
            top_k=config.server.top_k,
            device=device,
            head_device=device_of(config.device),
            timeout=config.server.timeout,
        )
        stack.callback(scorer.close)
    found = () if endpoints is None else tuple(endpoints.urls)
    return Teacher(engine=engine, scorer=scorer, num_parameters=num_parameters(model), urls=found)


def _engine(name: str, parts: EngineParts, stack: ExitStack) -> RolloutEngine:
    engine: RolloutEngine = ENGINES.call(name, parts, ours=OPENERS)
    for part in ("generate", "load_weights", "sleep", "wake", "close"):
        if ENGINES.entry(name) is not None and not hasattr(engine, part):
            raise UserError(f"rollout.engine={name} gave a {type(engine).__name__} without {part}: see RolloutEngine")
    stack.callback(engine.close)
    return engine


def _open(
    model: ModelConfig, config: RunConfig, role: str, log: Path, stack: ExitStack, gpus: Sequence[str] = ()
) -> Endpoints:
    from harness.serving.server import opened
    from harness.serving.vllm_options import as_flags, engine_options

    if not model.serve:
        return stack.enter_context(opened(model, model.path, config.server, role=role, log=log))
    check_weights(model)
    folder = resolve_path(model)
    arguments = list(as_flags(engine_options(config.rollout, folder, own_gpus=bool(gpus))))
    if len(gpus) > 1 and not any("parallel-size" in argument for argument in config.server.args):
        arguments += ["--data-parallel-size", str(len(gpus))]
    return stack.enter_context(opened(model, folder, config.server, role=role, log=log, arguments=arguments, gpus=gpus))


def open_scorer(
    config: ModelConfig,
    chat: Chat,
    scores: Scorer,
    *,
    temperature: float,
    model: LanguageModel | None = None,
    endpoints: Server | None = None,
    top_k: int = 64,
    device: str = "cpu",
    head_device: str = "cpu",
    timeout: float = 1800.0,
) -> TeacherScorer:
    """The scorer of a run's teacher; close it. `chat` says what a reply may consist of.

    - `local`: `model`, the teacher that this process holds.
    - `process`: load `config` in a process of its own on `device`; its head comes to `head_device`. `timeout` seconds
      for each micro-batch.
    - `server`: ask `endpoints` for `top_k` log-probabilities a token. Raises UserError at another temperature than 1.
    """

    def local() -> TeacherScorer:
        assert model is not None
        return LocalScorer(model, temperature)

    def process() -> TeacherScorer:
        from harness.teacher.process import ProcessScorer

        return ProcessScorer(
            config,
            num_tokens=chat.num_tokens,
            banned_ids=chat.banned_ids,
            device=device,
            head_device=head_device,
            temperature=temperature,
            timeout=timeout,
            shown=chat.shown,
        )

    def server() -> TeacherScorer:
        assert endpoints is not None
        return ServerScorer(
            endpoints,
            top_k=top_k,
            temperature=temperature,
            num_tokens=chat.num_tokens,
            banned_ids=chat.banned_ids,
        )

    return {"local": local, "process": process, "server": server}[scores]()
