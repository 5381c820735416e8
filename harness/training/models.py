"""The models of a run and what it makes of them: student, engine, teacher, updater, the final weights."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import PreTrainedModel

from harness.config.schema import ModelConfig, RunConfig
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.identity import model_identity
from harness.models.loading import check_weights, load_model, num_parameters, resolve_path, save_model, text_config
from harness.process.devices import visible_gpus
from harness.process.step_clock import StepClock
from harness.rollout.base import RolloutEngine
from harness.rollout.transformers_engine import TransformersEngine
from harness.training.teacher import LocalScorer, Server, ServerScorer, TeacherScorer
from harness.training.update import Updater
from harness.types import Sampler
from methods.base import Method

if TYPE_CHECKING:
    from harness.serving.endpoints import Endpoints


def server_log(logs: Path, role: str, node: int = 0) -> Path:
    """The log of a server that a run starts; `logs` is what the name begins with."""
    return logs.with_name(f"{logs.name}.{role}.server{f'.{node}' if node else ''}.log")


class Models(Protocol):
    """The models of a run: in this process, or over ranks (`harness.distributed.build`)."""

    student: LanguageModel | None
    """None where endpoints answer for it."""
    engine: RolloutEngine

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

    def __init__(self, config: RunConfig, chat: Chat, *, trained: bool, logs: Path, stack: ExitStack) -> None:
        self._config, self._chat, self._logs, self._stack = config, chat, logs, stack
        self.student = None if config.student.is_served else load_student(config, chat, trained=trained)
        self.engine = student_engine(config, chat, self.student, log=server_log(logs, "student"), stack=stack)

    def open_teacher(self, method: Method) -> Teacher:
        return open_teacher(method, self._config, self._chat, log=server_log(self._logs, "teacher"), stack=self._stack)

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


def load_student(config: RunConfig, chat: Chat, *, trained: bool) -> LanguageModel:
    """The student in its dtype; one that is trained has fp32 weights and computes in its dtype."""
    model, device = config.student, device_of(config.device)
    if not trained or model.dtype == "float32":
        return LanguageModel.for_chat(load_model(model, device), chat)
    module = load_model(model, device, dtype="float32")
    return LanguageModel.for_chat(module, chat, compute_dtype=getattr(torch, model.dtype))


def student_engine(
    config: RunConfig, chat: Chat, student: LanguageModel | None, *, log: Path, stack: ExitStack
) -> RolloutEngine:
    """The engine of `rollout.engine`, ready to sample. `student` is None where endpoints answer for it.

    What it starts ends with `stack`; a server that it starts writes to `log`.
    """
    if student is None:
        return _server(_open(config.student, config, "student", log, stack), config.student, config, chat, "student")
    if config.rollout.engine == "transformers":
        ours = TransformersEngine(student, chat, "student", config.rollout.max_sequences)
        stack.callback(ours.close)
        return ours
    from harness.rollout.vllm_engine import VllmEngine

    folder = _folder(config.student, stack, student)
    engine = VllmEngine(folder, chat, sampler="student", model=config.student, config=config.rollout, empty=True)
    stack.callback(engine.close)
    engine.load_weights(student.module.named_parameters())
    return engine


def separate_engine(config: RunConfig, chat: Chat, *, stack: ExitStack) -> RolloutEngine:
    """An engine with complete weights of its own, in the student's dtype, for a student that is cut over ranks."""
    if config.rollout.engine == "transformers":
        model = LanguageModel.for_chat(load_model(config.student, device_of(config.device)), chat)
        ours = TransformersEngine(model, chat, "student", config.rollout.max_sequences, own_weights=True)
        stack.callback(ours.close)
        return ours
    from harness.rollout.vllm_engine import VllmEngine

    folder = _folder(config.student, stack)
    engine = VllmEngine(folder, chat, sampler="student", model=config.student, config=config.rollout, empty=True)
    stack.callback(engine.close)
    return engine


def open_teacher(
    method: Method, config: RunConfig, chat: Chat, *, log: Path, stack: ExitStack, may_sample: bool = True
) -> Teacher:
    """The teacher of a run as its method uses it; all of it ends with `stack`. Without `may_sample` it scores alone."""

    model = config.teacher
    if model is None or method.needs_teacher == "none":
        return Teacher()
    scores = method.needs_teacher == "distribution"
    samples = may_sample and (not scores or "teacher" in method.trained_samplers)
    device = device_of(config.teacher_device or config.device)
    by_server = model.is_served and config.server.score
    endpoints = _open(model, config, "teacher", log, stack) if by_server or (model.is_served and samples) else None
    loaded: LanguageModel | None = None
    on_vllm = config.rollout.engine == "vllm"
    scores_here = scores and not by_server and not config.teacher_process
    if scores_here or (samples and endpoints is None and not on_vllm):
        loaded = LanguageModel.for_chat(load_model(model, device), chat)
    engine: RolloutEngine | None = None
    if endpoints is not None:
        engine = _server(endpoints, model, config, chat, "teacher")
    elif on_vllm and samples:
        from harness.rollout.vllm_engine import VllmEngine

        folder, gpus = _folder(model, stack), _teacher_gpus(config)
        engine = VllmEngine(folder, chat, sampler="teacher", model=model, config=config.rollout, gpus=gpus)
        stack.callback(engine.close)
    elif loaded is not None:
        engine = TransformersEngine(loaded, chat, "teacher", config.rollout.max_sequences)
        stack.callback(engine.close)
    scorer = None
    if scores:
        scorer = open_scorer(
            model,
            chat,
            temperature=method.logit_temperature(config.rollout.temperature),
            model=loaded,
            endpoints=endpoints if by_server else None,
            top_k=config.server.top_k,
            process=config.teacher_process,
            device=device,
            head_device=device_of(config.device),
            timeout=config.server.timeout,
        )
        stack.callback(scorer.close)
    urls = () if endpoints is None else tuple(endpoints.urls)
    return Teacher(engine=engine, scorer=scorer, num_parameters=num_parameters(model), urls=urls)


def device_of(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _teacher_gpus(config: RunConfig) -> list[str]:
    """The GPUs of this node that are the teacher's alone: the last ones."""
    return visible_gpus()[-config.cluster.teacher_gpus :] if config.cluster.teacher_gpus else []


def _open(model: ModelConfig, config: RunConfig, role: str, log: Path, stack: ExitStack) -> Endpoints:
    from harness.serving.server import opened
    from harness.serving.vllm_options import as_flags, engine_options

    if not model.serve:
        return stack.enter_context(opened(model, model.path, config.server, role=role, log=log))
    folder = _folder(model, stack)
    gpus = _teacher_gpus(config) if role == "teacher" else []
    arguments = list(as_flags(engine_options(config.rollout, folder, own_gpus=bool(gpus))))
    if len(gpus) > 1 and not any("parallel-size" in argument for argument in config.server.args):
        arguments += ["--data-parallel-size", str(len(gpus))]
    return stack.enter_context(opened(model, folder, config.server, role=role, log=log, arguments=arguments, gpus=gpus))


def _server(endpoints: Endpoints, model: ModelConfig, config: RunConfig, chat: Chat, sampler: Sampler) -> RolloutEngine:
    from harness.rollout.server_engine import ServerEngine

    window = endpoints.check()
    rows = 0 if model.api == "text" else text_config(model).vocab_size
    if window is None and model.api == "text":
        window = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    if window is None:
        window = text_config(model).max_position_embeddings
    return ServerEngine(endpoints, chat, sampler, context_window=window, api=model.api, vocab_size=rows)


def _folder(model: ModelConfig, stack: ExitStack, loaded: LanguageModel | None = None) -> str:
    """A folder or hub id that vLLM reads; GGUF weights are unpacked into one that ends with `stack`."""
    if model.gguf_file is None:
        check_weights(model)
        return resolve_path(model)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zppo-"))
    save_model(load_model(model, "cpu") if loaded is None else loaded.module, model, folder)
    return folder


def open_scorer(
    config: ModelConfig,
    chat: Chat,
    *,
    temperature: float,
    model: LanguageModel | None = None,
    endpoints: Server | None = None,
    top_k: int = 64,
    process: bool = False,
    device: str = "cpu",
    head_device: str = "cpu",
    timeout: float = 1800.0,
) -> TeacherScorer:
    """The scorer of a run's teacher; close it. `chat` says what a reply may consist of.

    - `process`: load `config` in a process of its own on `device`; its head comes to `head_device`. `timeout` seconds
      for each micro-batch.
    - `endpoints`: ask a server for `top_k` log-probabilities a token.
    - `model`: the teacher that this process holds.

    Raises UserError for a served teacher that should be scored in a process, or at another temperature than 1.
    """
    if endpoints is not None:
        if process:
            raise UserError(
                "teacher_process=true needs a teacher that this run loads: set teacher_process=false, or "
                "teacher.serve=false teacher.urls=[]"
            )
        return ServerScorer(
            endpoints,
            top_k=top_k,
            temperature=temperature,
            num_tokens=chat.num_tokens,
            banned_ids=chat.banned_ids,
        )
    if process:
        from harness.training.scorer import ProcessScorer

        return ProcessScorer(
            config,
            num_tokens=chat.num_tokens,
            banned_ids=chat.banned_ids,
            device=device,
            head_device=head_device,
            temperature=temperature,
            timeout=timeout,
        )
    assert model is not None, "a teacher that is neither served nor in a process is given as a model"
    return LocalScorer(model, temperature)
