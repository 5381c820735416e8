"""What a run builds of its teacher, what `zppo plan` counts and what `zppo doctor` looks at, for every combination of
options that decide it.

`open_teacher` really builds each deployment, with the smallest tiny model and an endpoint of this machine. Of what
needs GPUs or vLLM, the arguments are kept: devices of weights and of the scorer's process, GPUs of engine and server.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.config.compose import compose
from harness.config.deployment import Deployment, TeacherPlace, build_method
from harness.config.schema import ModelConfig, RunConfig, from_hydra
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer, text_config
from harness.models.shapes import ModelShape, shape_of
from harness.preflight.parts import actors_of
from harness.preflight.plan import costs
from harness.preflight.plan.cells import memory_of
from harness.preflight.plan.counting import Assumptions, StepCount, count_step
from harness.training import models as build
from methods.base import Method
from tests.support.model_server import ServedModel, serve

XS = ModelConfig(name="xs", path="tiny:xs", dtype="float32")
METHODS = ("grpo", "zppo", "grpo_teacher_response", "on_policy_kd", "off_policy_kd")
KINDS = {"TransformersEngine": "transformers", "_Engine": "vllm", "ServerEngine": "server"}


@dataclass
class Built:
    """What a node's ranks have opened. A GPU is its number on the node, None a CPU."""

    loads: list[int | None] = field(default_factory=list)
    """Of the weights that ranks have."""
    processes: list[int | None] = field(default_factory=list)
    vllm: list[list[str]] = field(default_factory=list)
    """The GPUs of each engine in vLLM; none: whatever it sees."""
    servers: list[list[str]] = field(default_factory=list)
    urls: tuple[str, ...] = ()
    """Endpoints that the first rank asks."""
    engine: str | None = None
    scorer: str | None = None

    @property
    def indices(self) -> set[int]:
        """GPUs of which the number is given."""
        placed = {gpu for gpu in (*self.loads, *self.processes) if gpu is not None}
        return placed | {int(name) for names in (*self.vllm, *self.servers) for name in names}


class _Engine:
    """vLLM's engine, of which only the GPUs are kept."""

    def __init__(self, folder: str, chat: Chat, *, gpus: list[str], **options: Any) -> None:
        RECORDED[-1].vllm.append(gpus)

    def close(self) -> None: ...


class _Process:
    def __init__(self, config: ModelConfig, *, device: str, **options: Any) -> None:
        RECORDED[-1].processes.append(gpu_of(device))

    def close(self) -> None: ...


class _Server:
    """`vllm serve`, whose endpoint is another one of this machine."""

    url = ""

    def __init__(self, *args: Any, gpus: list[str], **options: Any) -> None:
        RECORDED[-1].servers.append(gpus)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def restart(self) -> None: ...


RECORDED: list[Built] = []
RANK: list[int] = [0]
"""Which local rank builds."""


def gpu_of(device: str) -> int | None:
    """As torch takes a device on a GPU machine: without a number it is the one that a rank has set, or the first."""
    kind, _, number = device.partition(":")
    return None if kind == "cpu" else int(number) if number else RANK[0]


def of_a_gpu_machine(name: str) -> str:
    return "cuda" if name == "auto" else name


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(ServedModel(XS)) as server:
        yield server.url


def combinations(url: str) -> Iterator[tuple[RunConfig, Method]]:
    """Every combination of the options that decide where a teacher is, those that are refused among them."""
    for method, engine in itertools.product(METHODS, ("transformers", "vllm")):
        words = [f"method={method}", f"rollout={engine}", "student=tiny_xs", "teacher=hf", "teacher.path=tiny:xs"]
        words += ["teacher.dtype=float32", "teacher.served_name=tiny:xs", "data.batch_size=6"]
        base = from_hydra(compose(words))
        chosen = build_method(base)
        assert base.teacher is not None and chosen is not None
        for served, score, process, own, device, teacher_device, ranks in itertools.product(
            ("none", "serve", "urls"), (True, False), (False, True), (0, 2), ("auto", "cpu"),
            (None, "cuda", "cuda:1", "cpu"), (1, 3),
        ):  # fmt: skip
            urls = [url] if served == "urls" else []
            config = replace(
                base,
                teacher=replace(base.teacher, serve=served == "serve", urls=urls),
                server=replace(base.server, score=score),
                teacher_process=process,
                device=device,
                teacher_device=teacher_device,
                cluster=replace(base.cluster, teacher_gpus=own, student_gpus=ranks, gpu="H100-80GB"),
            )
            yield config, chosen


@pytest.fixture(scope="module", params=[11, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def rows(url: str, request: pytest.FixtureRequest) -> list[tuple[RunConfig, Method]]:
    """Every accepted combination, or every eleventh: options have 2, 3, 4 or 5 values, so that all pairs occur."""
    found = []
    for config, chosen in itertools.islice(combinations(url), 0, None, request.param):
        with suppress(UserError):
            Deployment.of(config, chosen)
            found.append((config, chosen))
    return found


@pytest.fixture(scope="module")
def built(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`built(config, method)`: what the ranks of a node open; each deployment is built once."""
    chat, log = Chat(load_tokenizer(XS), XS), tmp_path_factory.mktemp("logs") / "log"
    model, text = LanguageModel.for_chat(load_model(XS, "cpu"), chat), text_config(XS)
    known: dict[Any, Built] = {}

    def recorded(config: ModelConfig, device: str, *args: Any, **options: Any) -> Any:
        RECORDED[-1].loads.append(gpu_of(device))
        return model

    def build_one(config: RunConfig, method: Method) -> Built:
        place = Deployment.of(config, method).teacher
        key = (place, config.cluster.student_gpus, config.device)
        if key not in known:
            known[key] = build_ranks(config, method, place, chat, log)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
        patch.setattr(_Server, "url", url)
        patch.setattr(build, "open_model", recorded)
        patch.setattr(build, "device_of", of_a_gpu_machine)
        # Each takes a tenth of a second.
        patch.setattr(build, "num_parameters", lambda model: 1)
        patch.setattr("harness.models.loading.text_config", lambda model: text)
        patch.setattr("harness.rollout.vllm_engine.VllmEngine", _Engine)
        patch.setattr("harness.teacher.process.ProcessScorer", _Process)
        patch.setattr("harness.serving.server.Server", _Server)
        yield build_one


def build_ranks(config: RunConfig, method: Method, place: TeacherPlace | None, chat: Chat, log: Path) -> Built:
    """As `harness.distributed.build` does: the first rank, then the others if they have the teacher too."""
    kept = Built()
    RECORDED.append(kept)
    with ExitStack() as stack:
        for rank in range(config.cluster.student_gpus if place is not None and place.is_everywhere else 1):
            RANK[0] = 0 if config.device == "cpu" else rank  # such a rank sets none
            part = None if place is None else place.at(rank)
            opened = build.open_teacher(
                method, config, part, chat, log=log, stack=stack, local_rank=rank, urls=kept.urls if rank else ()
            )
            names = [None if one is None else type(one).__name__ for one in (opened.engine, opened.scorer)]
            if rank == 0:
                kept.urls, (kept.engine, kept.scorer) = opened.urls, names
            else:
                assert names[1] == kept.scorer, "ranks score differently"
    RANK[0] = 0
    return kept


def asks(count: StepCount) -> bool:
    return count.tokens.get("tokens/teacher_generated", 0.0) > 0


def on_the_students(built: Built, config: RunConfig, count: StepCount) -> dict[str, float]:
    """Copies and engines of the teacher on the GPU of the first rank's student, from what was built."""
    here = gpu_of(of_a_gpu_machine(config.device))
    held = {
        "teacher": [*built.loads, *built.processes].count(here),
        "teacher's engine": ([] in built.vllm) + ([] in built.servers),
        "teacher's head": (here not in built.processes) if built.processes else 0,
        "teacher's cache": built.engine == "TransformersEngine" and asks(count) and here in built.loads,
        "scoring": (built.scorer == "LocalScorer" and here in built.loads) or here in built.processes,
    }
    if config.device == "cpu":  # all ranks have the same one
        held["teacher"] = min(held["teacher"], built.loads[:1].count(here) + built.processes[:1].count(here))
    return {name: float(number) for name, number in held.items() if number}


@cache
def shape(role: str, path: str) -> ModelShape:
    """One of each, so that they differ in identity."""
    return shape_of(ModelConfig(name=role, path=path))


def planned(config: RunConfig, deployment: Deployment, count: StepCount) -> tuple[dict[str, float], set[str]]:
    """Likewise of the plan: parts of the student's GPU, as numbers of copies, and the engine that costs ask for."""
    assert config.teacher is not None
    teacher = None if deployment.teacher is None else shape("teacher", config.teacher.path)
    memory = memory_of(config, deployment, shape("student", config.student.path), teacher, count, "fla")
    parts = {name: size for phase in memory.values() for name, size in phase.items() if size}
    held = {name: 1.0 for name in parts if name.startswith("teacher's") or name == "scoring"}
    if teacher is not None and "teacher" in parts:
        held["teacher"] = parts["teacher"] / teacher.weight_bytes
    engines: set[str] = set()
    rate = costs.decode_rate

    def seen(asked: ModelShape, *args: Any, engine: str, **options: Any) -> float:
        if asked is teacher:
            engines.add(engine)
        return rate(asked, *args, engine=engine, **options)

    costs.decode_rate = seen
    try:
        costs.cost_of(config, deployment, shape("student", config.student.path), teacher, count, Assumptions())
    finally:
        costs.decode_rate = rate
    return held, engines


def disagreements(config: RunConfig, method: Method, built: Built, count: StepCount) -> Iterator[str]:
    """Of the decision, the plan, the doctor and the scheduler with what was built."""
    deployment = Deployment.of(config, method)
    place = deployment.teacher
    if place is None:
        if built != Built():
            yield "deployment: a teacher that no method needs"
    else:
        if KINDS.get(built.engine or "") != place.samples:
            yield "deployment: samples"
        if {"LocalScorer": "local", "_Process": "process", "ServerScorer": "server"}.get(
            built.scorer or ""
        ) != place.scores:
            yield "deployment: scores"
        gpus = [list(map(str, place.own_gpus))]
        if (built.vllm or built.servers) != (gpus if place.in_vllm else []) or bool(built.servers) != place.serves:
            yield "deployment: engines and servers"
        if bool(built.urls) != place.asks or bool(built.loads) != place.loads:
            yield "deployment: asks, loads"
    held, engines = planned(config, deployment, count)
    if held != on_the_students(built, config, count):
        yield "plan: memory"
    if engines != ({KINDS[built.engine or ""]} if asks(count) else set()):
        yield "plan: costs"
    actors = [actor for actor in actors_of(config, deployment) if actor.role == "teacher"]
    seen = [(actor.in_vllm, actor.serves, bool(actor.urls), actor.scores) for actor in actors]
    real = (
        bool(built.vllm or built.servers), bool(built.servers), bool(built.urls) and not built.servers,
        built.scorer == "ServerScorer",
    )  # fmt: skip
    if seen != ([real] if built != Built() else []):
        yield "doctor: actors"
    if max(built.indices, default=-1) >= deployment.num_gpus:
        yield "scheduler: GPUs"


def words_of(config: RunConfig) -> str:
    """The options of the table that a configuration has."""
    assert config.teacher is not None
    return (
        f"method={config.method['name']} rollout={config.rollout.engine} teacher.serve={config.teacher.serve} "
        f"teacher.urls={config.teacher.urls} server.score={config.server.score} device={config.device} "
        f"teacher_process={config.teacher_process} teacher_device={config.teacher_device} "
        f"cluster.teacher_gpus={config.cluster.teacher_gpus} cluster.student_gpus={config.cluster.student_gpus}"
    )


def test_plan_doctor_and_run_agree_on_every_combination(rows, built):
    counts: dict[str, StepCount] = {}
    found: dict[str, list[RunConfig]] = {}
    num_wrong = 0
    for config, method in rows:
        name = config.method["name"]
        if name not in counts:
            counts[name] = count_step(method, config, Assumptions(response_tokens=64))
        wrong = list(disagreements(config, method, built(config, method), counts[name]))
        num_wrong += bool(wrong)
        for text in wrong:
            found.setdefault(text, []).append(config)
    print(f"{num_wrong} of {len(rows)} accepted combinations disagree")
    assert not num_wrong, {text: (len(configs), words_of(configs[0])) for text, configs in found.items()}
    assert len(rows) > 180


def test_a_gpu_of_the_teachers_own_is_never_the_students(rows, built):
    """However the teacher is held: as weights, in a process, an engine or a server. Ranks take its GPUs in turn."""
    for config, method in rows:
        ranks, own = config.cluster.student_gpus, config.cluster.teacher_gpus
        if own and config.teacher_device is None and config.device == "auto":
            found = built(config, method)
            assert not found.indices & set(range(ranks))
            for held in (found.loads, found.processes):
                assert held == [ranks + rank % own for rank in range(len(held))]
            assert all(gpus == [str(ranks + i) for i in range(own)] for gpus in (*found.vllm, *found.servers))
