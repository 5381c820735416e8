"""Who samples, who scores, who serves and where: decided here, once, from a configuration and its method.

A run, `zppo plan`, `zppo doctor`, the memory estimate and the scheduler read a `Deployment` and decide nothing
themselves. What a configuration cannot have is refused here, too. A `Deployment` knows nothing of this machine, as a
plan is made elsewhere: `gpu_problems` and `check_devices` compare the two. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.config.schema import ModelConfig, RunConfig
from harness.errors import UserError
from harness.process.devices import has_gpus, visible_gpus
from methods import registry
from methods.base import Method

Engine = str
"""What samples (`ENGINES`): this process (`transformers`), a vLLM of this machine, endpoints (`server`), or an engine
of others, which has weights of its own as vLLM has."""
Scorer = Literal["local", "process", "server"]
"""Where a teacher's distribution comes from: this process, one of its own, or endpoints."""
UNCOUNTED = 2**31
"""GPUs of a machine whose drivers are there and whose number is not known."""


@dataclass(frozen=True, kw_only=True)
class StudentPlace:
    """Where the student is."""

    engine: Engine
    """What samples."""
    serves: bool
    """The run starts the endpoint."""
    is_trained: bool
    device: str | None
    """The option `device`; None where endpoints answer and a run loads no weights."""

    @property
    def in_vllm(self) -> bool:
        """Whether a vLLM of this machine loads it, in process or as a server."""
        return self.engine == "vllm" or self.serves

    @property
    def asks(self) -> bool:
        """Whether endpoints are opened."""
        return self.engine == "server"


@dataclass(frozen=True, kw_only=True)
class TeacherPlace:
    """Where the teacher of a method is; `at` says which part of it a rank has."""

    samples: Engine | None
    """What samples where the method asks the teacher. None: nothing of it can."""
    scores: Scorer | None
    """Where its distribution comes from. None: the method reads none."""
    serves: bool
    """The run starts the endpoint, at the first rank of each node."""
    num_urls: int
    """Endpoints that somebody else has started and the run asks."""
    devices: tuple[str, ...]
    """Devices of weights and of scorers' processes, to local ranks in turn. Empty where ranks have neither."""
    beside: bool
    """Those devices are the student's."""
    own_gpus: tuple[int, ...]
    """Numbers of the node's GPUs that have the teacher and nothing else of the run."""

    @property
    def asks(self) -> bool:
        """Whether endpoints are opened."""
        return "server" in (self.samples, self.scores)

    @property
    def samples_here(self) -> bool:
        """Whether a process of the run samples with weights of its own."""
        return self.samples == "transformers"

    @property
    def loads(self) -> bool:
        """Whether a process of the run has the weights."""
        return self.samples_here or self.scores == "local"

    @property
    def has_process(self) -> bool:
        return self.scores == "process"

    @property
    def in_vllm(self) -> bool:
        """Whether a vLLM of this machine loads it, as an engine or as a server."""
        return self.samples == "vllm" or self.serves

    @property
    def has_engine(self) -> bool:
        """Whether an engine samples it that loads weights of its own."""
        return self.samples not in (None, "transformers", "server")

    @property
    def takes_gpus(self) -> bool:
        """Whether something takes GPUs for it by itself: an engine, or a server of the run."""
        return self.has_engine or self.serves

    @property
    def num_copies(self) -> int:
        """Copies of the weights that a rank has on its device."""
        return self.loads + self.has_process

    @property
    def is_scored_by_server(self) -> bool:
        return self.scores == "server"

    @property
    def has_copies_on_own_gpus(self) -> bool:
        return bool(self.devices) and {_number(device) for device in self.devices} <= {*self.own_gpus}

    @property
    def sees_media(self) -> bool:
        """Whether it can be asked prompts with pictures."""
        return self.samples != "server"

    @property
    def is_everywhere(self) -> bool:
        """Whether every rank has it. One that is only asked is at the first rank of each node."""
        return self.scores is not None

    @property
    def samples_everywhere(self) -> bool:
        return self.is_everywhere and self.samples_here

    @property
    def is_aside(self) -> bool:
        """Whether it samples on nothing of the student's, and so at the same time."""
        return not self.beside if self.samples_here else bool(self.own_gpus or self.num_urls)

    def device(self, local_rank: int = 0) -> str:
        return self.devices[local_rank % len(self.devices)]

    def at(self, local_rank: int) -> TeacherPlace:
        """The part that a rank of `is_everywhere` has. Only the first one of a node starts anything."""
        if local_rank == 0:
            return self
        return replace(self, serves=False, samples=self.samples if self.samples_everywhere else None)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Where the models of a run are."""

    student: StudentPlace
    teacher: TeacherPlace | None
    """None where the method needs none."""
    num_nodes: int
    ranks_per_node: int
    num_gpus: int
    """GPUs that the run takes of each node, or of which it names the last; 0 for one on CPUs alone."""

    @classmethod
    def of(cls, config: RunConfig, method: Method | None) -> Deployment:
        """The deployment of a run. `method` is None for a cell without training.

        Raises UserError, a line with its remedy, for what cannot be deployed so.
        """
        _check_endpoints(config, is_trained=method is not None)
        engine = config.rollout.engine
        device = None if config.student.is_served else config.device
        student = StudentPlace(engine=engine, serves=config.student.serve, is_trained=method is not None, device=device)
        teacher = None
        if method is not None and method.needs_teacher != "none":
            if config.teacher is None:
                raise UserError(
                    f"method={config.method['name']} needs a teacher: set teacher=tiny_teacher, "
                    "or teacher=hf teacher.path=FOLDER"
                )
            _check_served_teacher(config, config.teacher, method)
            teacher = _teacher(config, config.teacher, method)
        _check_gpus(config, student, teacher)
        return cls(
            student=student,
            teacher=teacher,
            num_nodes=config.cluster.num_nodes,
            ranks_per_node=config.cluster.student_gpus,
            num_gpus=_num_gpus(config, student, teacher),
        )

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.ranks_per_node

    @property
    def sampling_gpus(self) -> int:
        """GPUs on which the teacher samples, of all nodes."""
        return 0 if self.teacher is None else self._spread(self.teacher, self.teacher.samples)

    @property
    def scoring_gpus(self) -> int:
        """GPUs on which its distribution is computed."""
        return 0 if self.teacher is None else self._spread(self.teacher, self.teacher.scores)

    def _spread(self, teacher: TeacherPlace, work: Engine | Scorer | None) -> int:
        """An endpoint of somebody else's counts as one GPU: its size is not known."""
        if work is None:
            return 0
        if work == "server" and not teacher.serves:
            return teacher.num_urls
        if work == "server" or (work == teacher.samples and teacher.has_engine):
            return self.num_nodes * max(1, len(teacher.own_gpus))
        ranks = self.ranks_per_node if teacher.is_everywhere else 1
        return self.num_nodes * (ranks if teacher.beside else min(ranks, len(teacher.devices)))


def build_method(config: RunConfig) -> Method | None:
    """The method of a run, None for a cell without training. Imports no torch.

    Raises UserError for unknown options and for what the rest of the configuration cannot give it.
    """
    try:
        method = registry.build(config.method)
    except registry.MethodError as error:
        raise UserError(str(error)) from error
    Deployment.of(config, method)
    if method is None:
        return None
    if getattr(method.config, "importance_cap", None) is not None and config.update.old_logprobs == "engine":
        raise UserError(
            "method.importance_cap has no effect with update.old_logprobs=engine: old and rollout log-probabilities "
            "are then the same and every weight is 1; set update.old_logprobs=recompute"
        )
    return method


def deployed(config: RunConfig) -> Deployment:
    """The deployment of a configuration with the method that it names. Raises UserError as `build_method`."""
    return Deployment.of(config, build_method(config))


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with every option of its method, defaults too: what a run records, and is compared by.

    Raises UserError as `build_method`.
    """
    method = build_method(config)
    return config if method is None else replace(config, method=registry.resolved(method, config.method))


def default_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the class of a `method` node has by default, as JSON values."""
    return dict(json.loads(json.dumps(registry.default_options(options))))


def run_label(config: RunConfig) -> str:
    return config.label or config.method["name"]


def check_devices(config: RunConfig) -> None:
    """Raises UserError for GPUs that the run takes and this machine has not, as far as that is known without torch."""
    present = len(visible_gpus()) or (UNCOUNTED if has_gpus() else 0)
    for problem in gpu_problems(config, deployed(config), present):
        raise UserError(problem)


def gpu_problems(
    config: RunConfig, deployment: Deployment, present: int, *, where: str = "this machine"
) -> Iterator[str]:
    """Lines with their remedies: what the run takes and `present` GPUs of a node do not give.

    `device=cpu` says that a CPU is meant, whatever the cluster is.
    """
    student, teacher, cluster = deployment.student, deployment.teacher, config.cluster
    if student.device is None:
        return
    named = {"device": student.device}
    if teacher is not None and teacher.devices and config.teacher_device is not None:
        named["teacher_device"] = config.teacher_device
    for name, device in named.items():
        if device.startswith("cuda") and not present:
            yield f"{name}={device} and {where} has no GPU: set {name}=cpu, or see zppo doctor"
        elif (_number(device) or 0) >= max(present, 1):
            yield f"{name}={device}, and GPUs are cuda:0 to cuda:{present - 1} here: set {name} to another one"
    if student.device == "cpu":
        return
    wanted = cluster.student_gpus + cluster.teacher_gpus
    if not present and student.device == "auto" and (cluster.gpu or cluster.world_size > 1 or cluster.teacher_gpus):
        yield (
            f"cluster={cluster.name} names GPUs and {where} has none (zppo doctor says why): "
            "set cluster=local and no cluster.* option, or device=cpu where a CPU is meant"
        )
    elif 0 < present < wanted:
        yield (
            f"cluster={cluster.name} needs {wanted} GPUs a node ({cluster.student_gpus} for the student, "
            f"{cluster.teacher_gpus} for the teacher) and {where} shows {present}: lower "
            "cluster.student_gpus or cluster.teacher_gpus, or set device=cpu"
        )
    elif present and _shares_ranks(config, teacher):
        yield SHARED_ENGINE


def _teacher(config: RunConfig, model: ModelConfig, method: Method) -> TeacherPlace:
    """An engine is also there for a method that does not say that it asks, where weights or endpoints are."""
    reads = method.needs_teacher == "distribution"
    scores: Scorer | None = None
    if reads:
        by_server = model.is_served and config.server.score
        scores = "server" if by_server else "process" if config.teacher_process else "local"
    samples: Engine | None = {"server": "server", "local": "transformers"}.get(scores or "")
    if not reads or "teacher" in method.trained_samplers:
        samples = "server" if model.is_served else config.rollout.engine
    asks = "server" in (samples, scores)
    place = TeacherPlace(
        samples=samples, scores=scores, serves=model.serve and asks, num_urls=len(model.urls) if asks else 0,
        devices=(), beside=False, own_gpus=(),
    )  # fmt: skip
    own = tuple(_teacher_gpus(config))
    if place.num_copies and own and config.teacher_device is None:
        return replace(place, own_gpus=own, devices=tuple(f"cuda:{number}" for number in own))
    device, place = config.teacher_device or config.device, replace(place, own_gpus=own if place.takes_gpus else ())
    is_beside = _first(device) == _first(config.device)
    return replace(place, devices=(device,), beside=is_beside) if place.num_copies else place


def _teacher_gpus(config: RunConfig) -> range:
    """A node's GPUs after the student's. `device=cpu` says that none is meant."""
    cluster = config.cluster
    return range(cluster.student_gpus, cluster.student_gpus + cluster.teacher_gpus * (config.device != "cpu"))


def _num_gpus(config: RunConfig, student: StudentPlace, teacher: TeacherPlace | None) -> int:
    devices = [student.device or "cpu", *(() if teacher is None else teacher.devices)]
    least = [0 if device == "cpu" else 1 + (_number(device) or 0) for device in devices]
    cluster = 0 if student.device in (None, "cpu") else config.cluster.student_gpus + config.cluster.teacher_gpus
    return max(*least, cluster, int(student.serves))


def _number(device: str) -> int | None:
    found = re.fullmatch(r"cuda:(\d+)", device)
    return int(found[1]) if found else None


def _first(device: str) -> str:
    """A device as torch takes it on a GPU machine. Those of ranks have no number."""
    return "cuda:0" if device in ("auto", "cuda") else device


SHARED_ENGINE = "a teacher in an engine needs GPUs of its own where there are several ranks: set cluster.teacher_gpus"


def _shares_ranks(config: RunConfig, teacher: TeacherPlace | None) -> bool:
    """Whether a teacher's engine would share a GPU with one of several ranks, if there are GPUs."""
    many = config.cluster.world_size > 1 and config.device != "cpu"
    return many and teacher is not None and teacher.has_engine and not teacher.own_gpus


def _check_endpoints(config: RunConfig, *, is_trained: bool) -> None:
    """Who answers for a model has to be clear, and weights that change are never served."""
    for role, model in (("student", config.student), ("teacher", config.teacher)):
        if model is not None and model.serve and model.urls:
            raise UserError(f"{role}.serve=true starts an endpoint and {role}.urls names others: set one of them")
    by_server = config.rollout.engine == "server"
    if by_server and is_trained:
        raise UserError(
            "rollout=server cannot give the student's new weights to an endpoint: train with rollout=vllm or "
            "rollout=transformers; a teacher is served with teacher.serve=true or teacher.urls=[http://...]"
        )
    if by_server and not config.student.is_served:
        raise UserError("rollout=server needs endpoints: student.urls=[http://<host>:<port>/v1] or student.serve=true")
    if config.student.is_served and not by_server:
        raise UserError("student.urls and student.serve need rollout=server, for a student that is not trained")


def _check_served_teacher(config: RunConfig, teacher: ModelConfig, method: Method) -> None:
    """What an endpoint cannot give is known before it is asked."""
    name = config.method["name"]
    if not teacher.is_served:
        return
    reads = method.needs_teacher == "distribution" and config.server.score
    trains = "teacher" in method.trained_samplers
    if teacher.api == "text" and (reads or trains):
        what = "reads the teacher's distribution" if reads else "trains the teacher's tokens"
        raise UserError(
            f"method={name} {what}, and teacher.api=text gives text alone: use an endpoint that gives ids and "
            "log-probabilities (vLLM, teacher.api=tokens), or load the teacher next to the student"
        )
    if reads and method.logit_temperature(config.rollout.temperature) != 1.0:
        raise UserError(
            f"method={name} compares distributions at rollout.temperature={config.rollout.temperature:g}, and an "
            "endpoint scores at 1: set rollout.temperature=1, or load the teacher next to the student"
        )
    if config.teacher_process and config.server.score:
        raise UserError("teacher_process=true is for a teacher that this run loads: set teacher_process=false")


def _check_gpus(config: RunConfig, student: StudentPlace, teacher: TeacherPlace | None) -> None:
    """What several ranks cannot do, and a student on a GPU of the teacher's."""
    cluster = config.cluster
    if cluster.world_size == 1:
        if teacher is not None and _number(config.device) in teacher.own_gpus:
            raise UserError(
                f"device={config.device} is a GPU of the teacher's (cluster.teacher_gpus={cluster.teacher_gpus}): set "
                "device=cuda:0, or cluster.teacher_gpus=0"
            )
        if student.engine == "vllm" and (number := _number(config.device)):
            raise UserError(
                f"device={config.device} and vLLM in one process takes the first GPU: set "
                f"CUDA_VISIBLE_DEVICES={number} and device=cuda"
            )
        return
    if student.device is None:
        raise UserError("a served student has nothing to share out: set cluster=local")
    if student.is_trained and config.update.optimizer == "adamw_8bit":
        raise UserError(
            "update.optimizer=adamw_8bit keeps blocks of 256 numbers that a shard would cut, and its checkpoints would "
            "load on no other number of ranks: set update.optimizer=adamw_bf16, or cluster=local"
        )
    for name in ("device", "teacher_device"):
        if (getattr(config, name) or "").startswith("cuda:"):
            raise UserError(f"{name}={getattr(config, name)} is one GPU for several ranks: set {name}=cuda")
    if (cluster.gpu or config.device == "cuda") and _shares_ranks(config, teacher):
        raise UserError(SHARED_ENGINE)
