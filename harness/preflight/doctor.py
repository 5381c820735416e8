"""`zppo doctor`: what this machine can run, ahead of a run. Reads configurations and tokenizers, never weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.compose import compose
from harness.config.deployment import Deployment, build_method, gpu_problems
from harness.config.schema import ModelConfig, RunConfig, from_hydra
from harness.errors import UserError, first_line
from harness.preflight.endpoints import check_endpoint, check_judge, check_port
from harness.preflight.machine import OWN_ENVIRONMENT, Check, check_vllm, machine_checks
from harness.preflight.placement import place_texts
from methods.base import Method

VLLM_SECONDS = 300.0
"""In which vLLM has to name its architectures; importing it takes ten seconds, the first time longer."""
PROBE = "2 + 2 ="
MIN_WIDTH = 60
MAX_WIDTH = 120


@dataclass(frozen=True)
class Actor:
    """A model that the run asks, and its part in it."""

    role: str
    config: ModelConfig
    in_vllm: bool
    """Loaded by a vLLM of this machine, in process or as `vllm serve`."""
    serves: bool
    """The run starts its endpoint."""
    urls: tuple[str, ...]
    """Endpoints that the run asks."""
    gives_text: bool
    """Endpoints that give text alone answer for it, and nothing of it is read here."""
    scores: bool = False
    """Endpoints are asked for its distribution."""


def doctor(overrides: Sequence[str], config_dir: str | None = None) -> tuple[str, int]:
    """The report, and the exit code: 0 where nothing failed, 2 otherwise.

    Without overrides the machine is checked, with them the configuration that they give as well.
    """
    checks = run_checks(overrides, config_dir)
    width = min(MAX_WIDTH, max(MIN_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns))
    return report(checks, width), 2 if any(check.state == "fail" for check in checks) else 0


def run_checks(overrides: Sequence[str], config_dir: str | None = None) -> list[Check]:
    """All checks in the order of the report."""
    if not overrides and config_dir is None:
        return machine_checks(RunConfig.outputs, needs_vllm=None)
    try:
        config = from_hydra(compose(list(overrides), config_dir=config_dir))
        method = build_method(config)
    except UserError as error:
        refused = Check("fail", "configuration", str(error))
        return [*machine_checks(RunConfig.outputs, needs_vllm=None), refused]
    needs_vllm = any(actor.in_vllm for actor in actors_of(config, Deployment.of(config, method)))
    checks = machine_checks(config.outputs, needs_vllm=needs_vllm)
    with _offline(unless=any(check.name == "hub" and check.state == "ok" for check in checks)):
        return [*checks, *config_checks(config, method)]


@contextmanager
def _offline(*, unless: bool) -> Iterator[None]:
    """The hub is not asked: its client would try half a minute for each file."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not unless
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def report(checks: Sequence[Check], width: int) -> str:
    """One check a line, with aligned columns; longer texts go on below, and a remedy has a line of its own."""
    indent = 6 + max(len(check.name) for check in checks) + 2
    lines = []
    for check in checks:
        head = f"{check.state:<6}{check.name}".ljust(indent)
        lines += _wrapped(check.text, head, " " * indent, width)
        if check.remedy:
            lines += _wrapped(check.remedy, " " * indent + "-> ", " " * (indent + 3), width)
    counts = {state: sum(check.state == state for check in checks) for state in ("fail", "warn")}
    plural = "" if counts["warn"] == 1 else "s"
    failed = f"{counts['fail']} failed" if counts["fail"] else "nothing failed"
    return "\n".join([*lines, "", f"{len(checks)} checks: {failed}, {counts['warn']} warning{plural}"])


def _wrapped(text: str, first: str, rest: str, width: int) -> list[str]:
    text = " ".join(text.split())
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def actors_of(config: RunConfig, deployment: Deployment) -> list[Actor]:
    """The student, and the teacher if the method asks it."""
    student, place = config.student, deployment.teacher
    actors = [
        Actor(
            role="student",
            config=student,
            in_vllm=deployment.student.in_vllm,
            serves=deployment.student.serves,
            urls=tuple(student.urls),
            gives_text=student.api == "text" and bool(student.urls),
        )
    ]
    if place is not None and config.teacher is not None:
        teacher = config.teacher
        actors.append(
            Actor(
                role="teacher",
                config=teacher,
                in_vllm=place.in_vllm,
                serves=place.serves,
                urls=tuple(teacher.urls) if place.asks else (),
                gives_text=teacher.api == "text" and place.num_urls > 0 and not place.num_copies,
                scores=place.is_scored_by_server,
            )
        )
    return actors


def config_checks(config: RunConfig, method: Method | None) -> list[Check]:
    """What keeps this configuration from running here."""
    deployment = Deployment.of(config, method)
    actors = actors_of(config, deployment)
    names = " and ".join(actor.config.path for actor in actors)
    checks = [Check("ok", "configuration", f"{config.method['name']} with {names}")]
    if deployment.teacher is not None:
        samples, scores = place_texts(deployment.teacher)
        checks.append(
            Check("ok", "placement", f"where it is asked, the teacher samples by {samples}; its distribution: {scores}")
        )
    windows: dict[str, int] = {}
    for actor in actors:
        checks += check_model(actor, windows)
    readable = all(check.state == "ok" for check in checks)
    checks += check_architectures(actors)
    found, probe_ids = check_tokenizers(actors) if readable else ([], None)
    checks += found
    for actor in actors:
        for url in actor.urls:
            checks += check_endpoint(
                actor.role, actor.config, url, config.server, windows, probe_ids=probe_ids, scores=actor.scores
            )
    if any(actor.in_vllm for actor in actors) and config.rollout.vllm.max_model_len is not None:
        windows["rollout.vllm.max_model_len"] = config.rollout.vllm.max_model_len
    checks += check_context(config, method, windows)
    checks += check_device(config, deployment)
    if any(actor.serves for actor in actors) and config.server.port:
        checks.append(check_port(config.server.port))
    if method is not None:
        checks += check_data(config)
        checks += check_judge(config.reward.judge, "reward.judge")
    if config.eval.suite is not None and config.eval.stage != "generate":
        checks += check_judge(config.eval.judge)
    return [*checks, *check_wandb(config.tracker.wandb)]


def check_model(actor: Actor, windows: dict[str, int]) -> list[Check]:
    """Whether the model's configuration can be read; its context window goes to `windows`."""
    from harness.models.loading import resolve_path

    model = actor.config
    if actor.gives_text:
        return []
    try:
        path = resolve_path(model)
        config = _read_config(model)
    except UserError as error:
        return [Check("fail", actor.role, str(error))]
    except OSError as error:
        why = first_line(error)
        text = f"there is no folder {path}, and the hub does not give it (offline, misspelt or private?): {why}"
        if Path(path).is_dir():
            text = f"{path} is not the folder of a model: {why}"
        return [Check("fail", actor.role, text, f"set {actor.role}.path to a folder, or to a hub id that can be read")]
    except (ValueError, ImportError) as error:
        remedy = f"a newer transformers may know it, or set {actor.role}.path to another model"
        return [Check("fail", actor.role, f"the configuration of {path} cannot be read: {first_line(error)}", remedy)]
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(window, int):
        windows[f"the {actor.role}'s context window"] = window
    names = ", ".join(getattr(config, "architectures", None) or ["no architecture named"])
    size = f", context window {window}" if window else ""
    return [Check("ok", actor.role, f"{names}{size}, {path}")]


def _read_config(model: ModelConfig) -> Any:
    """The model's configuration. Raises UserError, and what transformers raises for one that it cannot read."""
    from transformers import AutoConfig

    from harness.models.loading import resolve_path

    path = resolve_path(model)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise UserError(f"{path} has no config.json: it is not the folder of a model")
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    return AutoConfig.from_pretrained(path, **{k: v for k, v in options.items() if v is not None})


def check_architectures(actors: Sequence[Actor]) -> list[Check]:
    """Whether vLLM has the architectures of the models that it would load."""
    wanted: dict[str, list[str]] = {}
    checks: list[Check] = []
    for actor in actors:
        if not actor.in_vllm:
            continue
        try:
            wanted[actor.role] = list(_read_config(actor.config).architectures or [])
        except (UserError, OSError, ValueError, ImportError):  # check_model has said so
            continue
    if not wanted or any(check.state == "fail" for check in check_vllm(needed=True)):
        return checks
    known, problem = vllm_architectures()
    if problem:
        return [*checks, Check("fail", "vllm", f"does not load: {problem}", OWN_ENVIRONMENT)]
    for role, names in wanted.items():
        if known & set(names):
            checks.append(Check("ok", "vllm", f"knows the {role}'s architecture {', '.join(names)}"))
        else:
            text = f"lacks the {role}'s architecture {', '.join(names) or '(its config.json names none)'}"
            checks.append(Check("fail", "vllm", text, "use rollout=transformers and no serve=true, or a newer vLLM"))
    return checks


def vllm_architectures(seconds: float = VLLM_SECONDS) -> tuple[set[str], str]:
    """What vLLM can load, and why it could not be asked or "". Asked in a process of its own: importing vLLM is slow,
    and changes the process."""
    code = "import json, vllm; print(json.dumps(sorted(vllm.ModelRegistry.get_supported_archs())))"
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return set(), f"no answer in {seconds:g} s"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        return set(), errors[-1] if errors else f"exit code {done.returncode}"
    return set(json.loads(lines[-1])), ""


def check_tokenizers(actors: Sequence[Actor]) -> tuple[list[Check], list[int] | None]:
    """Every id has to mean the same to both actors. With it a few ids of plain text that endpoints can be asked with.

    Fixed ids would not do: in a small vocabulary they may be placeholders of media.
    """
    from harness.models.chat import THINKING_REMEDY, thinking_conflict
    from harness.models.loading import load_tokenizer, same_tokenizer

    read = [actor.config for actor in actors if not actor.gives_text]
    try:
        tokenizers = [load_tokenizer(model) for model in read]
    except UserError as error:
        return [Check("fail", "tokenizer", str(error))], None
    if not tokenizers:
        return [], None
    probe_ids: list[int] = tokenizers[0](PROBE, add_special_tokens=False)["input_ids"]
    conflict = thinking_conflict(tokenizers[0], actors[0].config)
    warned = [Check("warn", "thinking", conflict, THINKING_REMEDY)] if conflict else []
    if len(tokenizers) == 1:
        return [Check("ok", "tokenizer", f"{read[0].path} has one, with a chat template"), *warned], probe_ids
    difference = same_tokenizer(*tokenizers)
    if difference is None:
        return [Check("ok", "tokenizer", "the teacher's is the student's"), *warned], probe_ids
    text = f"teacher {read[1].name} and student {read[0].name} have different ones: {difference}"
    return [Check("fail", "tokenizer", text, "choose a teacher of the student's family"), *warned], probe_ids


def check_context(config: RunConfig, method: Method | None, windows: dict[str, int]) -> list[Check]:
    """The limits of prompt and response in tokens, against the smallest of the context windows."""
    if not windows:
        return []
    place = min(windows, key=lambda name: windows[name])
    window = windows[place]
    rollout = config.rollout
    prompt, response = rollout.max_prompt_tokens, rollout.max_response_tokens
    if method is None:  # only its evaluation asks the student
        prompt, response = 0, config.eval.max_response_tokens
        named, lower = f"eval.max_response_tokens={response}", "eval.max_response_tokens"
    else:
        named = f"rollout.max_prompt_tokens={prompt} + max_response_tokens={response}"
        lower = "rollout.max_response_tokens"
    if prompt >= window:
        text = f"rollout.max_prompt_tokens={prompt} leaves no room for a reply in {place}, {window} tokens"
        return [Check("fail", "context", text, f"lower rollout.max_prompt_tokens below {window}")]
    if prompt + response > window:
        text = f"{named} are more than {place}, {window} tokens: long replies are cut there"
        return [Check("warn", "context", text, f"lower {lower} to {window - prompt}, or enlarge the window")]
    return [Check("ok", "context", f"{named} tokens fit into {place}, {window}")]


def check_device(config: RunConfig, deployment: Deployment) -> list[Check]:
    """GPUs that the run takes have to be there."""
    import torch

    return [Check("fail", "device", text) for text in gpu_problems(config, deployment, torch.cuda.device_count())]


def check_data(config: RunConfig) -> list[Check]:
    """Whether the files of questions are there; other sources have none."""
    from harness.data.files import files_of

    data = config.data
    if data.source not in ("jsonl", "parquet"):
        return []
    try:
        num_files = len(files_of(data))
    except UserError as error:
        return [Check("fail", "data", str(error), f"set data.path to what {Path.cwd()} has")]
    return [Check("ok", "data", f"{data.path} is there" + (f", {num_files} files" if num_files > 1 else ""))]


def check_wandb(mode: str) -> list[Check]:
    if mode == "disabled":
        return []
    told = {"offline": "`wandb sync` sends what the run folder keeps", "online": "needs an account: `wandb login`"}
    return [Check("ok", "wandb", f"{mode}: {told[mode]}")]
