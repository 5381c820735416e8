"""What can refuse a run before any weights are read. A run ends at the first refusal, `zppo doctor` shows all of them.

Each of `CHECKS` makes a part of the run or looks at what it needs, and tells what it finds. None of them writes. torch
and transformers are imported only when a check is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.deployment import gpu_problems
from harness.config.engines import ENGINES
from harness.errors import UserError
from harness.models.shapes import LINEAR
from harness.preflight.parts import Actor, Finding, Preflight, Warn, found_by
from harness.types import Question, TrainingSample
from methods.base import plain_prompt

if TYPE_CHECKING:
    from harness.rollout.server_engine import ServerEngine
    from harness.serving.endpoints import Endpoints

PROBE = "2 + 2 = ?"
FP8_CAPABILITY = (8, 9)
"""Older GPUs get FP8 weights as 16-bit ones."""
SLOW_LINEAR = "an update takes 2.3 times as long at 0.8B, 1.5 times at 9B (estimated)"
PROBE_SECONDS = 60.0
"""For an endpoint's first token, and for one that answers with errors: it may be busy, or compile."""


def gpus(run: Preflight) -> Iterator[Finding]:
    import torch

    for problem in gpu_problems(run.config, run.deployment, torch.cuda.device_count()):
        yield UserError(problem)


def model_files(run: Preflight) -> Iterator[Finding]:
    """What their files say without weights."""
    return found_by(*(part for actor in run.read for part in (_weights(actor), _description(run, actor))))


def _weights(actor: Actor) -> Iterator[Finding]:
    """That they are there, and safe to read. Those of a hub id are looked for when they are loaded."""
    from harness.models.loading import check_weights, resolve_path

    if (actor.is_loaded or actor.in_vllm) and Path(resolve_path(actor.config)).is_dir():
        check_weights(actor.config)
    yield from ()


def _description(run: Preflight, actor: Actor) -> Iterator[Finding]:
    from harness.models.loading import auto_model, read_config

    described = run.described[actor.role] = read_config(actor.config)
    if actor.is_loaded:
        auto_model(actor.config, described)
    names = ", ".join(described.architectures or ["no architecture named"])
    window = _window(described)
    size = "" if window is None else f", context window {window}"
    yield f"the {actor.role}'s is {names}{size}, {actor.config.path}"


def kernels(run: Preflight) -> Iterator[Finding]:
    """What transformers takes for its layers on a GPU, and is no part of it. A layer of each kind is tried there."""
    import torch

    if torch.cuda.is_available() and run.deployment.num_gpus:
        yield from found_by(*(_kernels(run, actor) for actor in run.read if actor.is_loaded))


def _kernels(run: Preflight, actor: Actor) -> Iterator[Finding]:
    import torch

    from harness.models.kernels import INSTALL, has_fp8, missing_linear, try_fp8, try_linear

    described = run.described[actor.role]
    quantized = getattr(described, "quantization_config", None) or {}
    if quantized.get("quant_method") == "fp8" and torch.cuda.get_device_capability() >= FP8_CAPABILITY:
        if not has_fp8():
            raise UserError(
                f"{actor.config.path} has FP8 weights, which transformers multiplies with the package kernels, and a "
                f"release that it takes is not installed: {INSTALL}"
            )
        yield f"an FP8 layer runs, {try_fp8('cuda'):.1%} from its product in fp32"
    if LINEAR not in (getattr(described.get_text_config(), "layer_types", None) or ()):
        return
    if missing := missing_linear():
        text = f"without {' and '.join(missing)} the {actor.role}'s linear attention is slow: {SLOW_LINEAR}"
        yield Warn(text, INSTALL)
    else:
        try_linear("cuda")
        yield "a linear-attention layer runs by flash-linear-attention and causal-conv1d"


def vllm(run: Preflight) -> Iterator[Finding]:
    """A vLLM that fits this machine, and has the architectures that it is to load."""
    from harness.preflight.machine import OWN_ENVIRONMENT, check_vllm, vllm_architectures

    actors = [actor for actor in run.actors if actor.in_vllm]
    for check in check_vllm(needed=True) if actors else ():
        if check.state == "fail":
            raise UserError(f"{check.text}: {check.remedy}")
        yield check.text
    if not actors:
        return
    known, problem = vllm_architectures()
    if problem:
        raise UserError(f"vLLM does not load ({problem}): {OWN_ENVIRONMENT}")
    yield from found_by(*(_architecture(run, actor, known) for actor in actors))


def _architecture(run: Preflight, actor: Actor, known: set[str]) -> Iterator[Finding]:
    names = run.described[actor.role].architectures or []
    if not known & set(names):
        raise UserError(
            f"vLLM lacks the {actor.role}'s architecture {', '.join(names) or '(its config.json names none)'}: use "
            "rollout=transformers and no serve=true, or a newer vLLM"
        )
    yield f"it knows the {actor.role}'s architecture {', '.join(names)}"


def tokenizer(run: Preflight) -> Iterator[Finding]:
    from harness.models.chat import THINKING_REMEDY, Chat, thinking_conflict
    from harness.models.loading import load_tokenizer

    model = run.config.student
    run.chat = Chat(load_tokenizer(model), model)
    yield f"{model.path} has one, with a chat template"
    closing = None if run.method is None else run.config.data.closing
    if conflict := thinking_conflict(run.chat.tokenizer, model, closing):
        yield Warn(conflict, THINKING_REMEDY)


def teacher_tokenizer(run: Preflight) -> Iterator[Finding]:
    """One tokenizer renders every prompt for both actors, so the teacher has to share it."""
    from harness.models.loading import load_tokenizer, same_tokenizer

    for model in run.teachers:
        if (difference := same_tokenizer(run.chat.tokenizer, load_tokenizer(model))) is not None:
            raise UserError(
                f"teacher {model.name} and student {run.config.student.name} have different tokenizers "
                f"({difference}): token ids mean other text to the teacher; choose a teacher of the student's family"
            )
        yield "the teacher's is the student's"


def endpoints(run: Preflight) -> Iterator[Finding]:
    """Endpoints of somebody else's: those of the run are not there yet."""
    return found_by(*(_endpoint(run, actor, url) for actor in run.actors for url in actor.urls))


def _endpoint(run: Preflight, actor: Actor, url: str) -> Iterator[Finding]:
    """It serves the model, and gives what the run will ask it for: a token is sampled, and scored where scores are
    read."""
    from harness.rollout.server_engine import ServerEngine
    from harness.serving.endpoints import Endpoints

    model, options = actor.config, run.config.server
    name = model.served_name or model.path
    probing = replace(
        options, timeout=min(options.timeout, PROBE_SECONDS), max_wait=min(options.max_wait, PROBE_SECONDS)
    )
    with closing(Endpoints([url], name, probing, role=actor.role)) as asked:
        window = asked.check()
        if window is not None:
            run.stated.setdefault(actor.role, []).append(window)
        yield f"{url} serves {name}" + ("" if window is None else f", context window {window}")
        if model.api == "text":
            return
        rows = run.described[actor.role].get_text_config().vocab_size
        engine = ServerEngine(asked, run.chat, actor.role, context_window=1 << 20, vocab_size=rows)
        _probe(run, actor, engine, asked)
        yield f"{url} gives ids and log-probabilities"


def _probe(run: Preflight, actor: Actor, engine: ServerEngine, asked: Endpoints) -> None:
    from harness.rollout.base import Sampling
    from harness.teacher.server import ServerScorer

    prompt = plain_prompt(Question(id="probe", text=PROBE, answer=""))
    (group,) = engine.generate([prompt], Sampling(max_new_tokens=1))
    if not actor.scores:
        return
    rollout, top_k = group.rollouts[0], run.config.server.top_k
    sample = TrainingSample(
        uid=prompt.uid,
        token_ids=[*rollout.prompt_ids, *rollout.completion_ids],
        loss_mask=[*[0] * len(rollout.prompt_ids), *[1] * len(rollout.completion_ids)],
    )
    scorer = ServerScorer(
        asked, top_k=top_k, temperature=1.0, num_tokens=run.chat.num_tokens, banned_ids=run.chat.banned_ids
    )
    try:
        next(scorer.score([[sample]]))
    except UserError as error:
        raise type(error)(f"{error}; vLLM gives as many log-probabilities with --max-logprobs={top_k}") from error


def port(run: Preflight) -> Iterator[Finding]:
    """The port of a server that the run starts."""
    from harness.serving.server import free_port

    if run.config.server.port and any(actor.serves for actor in run.actors):
        yield f"server.port={free_port(run.config.server.port)} is free"


def suite(run: Preflight) -> Iterator[Finding]:
    """What the evaluation would refuse is refused before the training."""
    from harness.evaluation.library.isolation import preserved_state
    from harness.evaluation.library_tasks import load_tasks
    from harness.evaluation.suites import load_suite, refuse_golds

    config = run.config.eval
    if config.suite is None:
        return
    if run.method is not None and config.stage == "judge":
        raise UserError("eval.stage=judge generates nothing, and a run that trains has no responses yet: set all")
    found = load_suite(config)
    refuse_golds(found, run.grader.gold_errors)
    num_questions = sum(len(benchmark.questions) for benchmark in found.benchmarks)
    if found.benchmarks:
        yield f"{config.suite}: {num_questions} questions of {len(found.benchmarks)} benchmarks"
    with preserved_state():
        tasks, holes = load_tasks(config)
    if config.tasks:
        yield f"library tasks: {', '.join(task.entry for task in tasks) or 'none can be loaded'}"
    if holes and not tasks and not found.benchmarks:
        raise UserError(next(iter(holes.values())))
    for hole in dict.fromkeys([*found.holes.values(), *holes.values()]):
        yield Warn(f"not evaluated: {hole}")
    for benchmark in found.benchmarks if found.strict else ():
        run.chat.pack(plain_prompt(benchmark.questions[0]))


def engine(run: Preflight) -> Iterator[Finding]:
    """One of others is found and imported; it is opened with its model."""
    name = run.config.rollout.engine
    if (path := ENGINES.entry(name)) is not None:
        ENGINES.load(name)
        yield f"{path} is there"


def evaluation_judge(run: Preflight) -> Iterator[Finding]:
    """A judge that is away now may be there when the evaluation asks it."""
    from harness.rewards.judge.client import JudgeClient

    config = run.config.eval
    if config.suite is None or config.stage == "generate" or config.judge.url is None:
        return
    try:
        JudgeClient(config.judge).check()
    except UserError as error:
        yield Warn(str(error), "what it is not there to judge has no score, until stage=judge is run again")
    else:
        yield f"{config.judge.url} can be reached"


def grader(run: Preflight) -> Iterator[Finding]:
    from harness.rewards.workers import Grader

    run.grader = run.judged = run.stack.enter_context(Grader(run.config.reward))
    yield run.config.reward.grader


def judge(run: Preflight) -> Iterator[Finding]:
    """The training's: evaluation has a judge of its own."""
    from harness.rewards.judge.judged import JudgedGrader

    if run.method is None or run.config.reward.judge.url is None:
        return
    judged = JudgedGrader(run.grader, run.config.reward.judge)
    judged.check()
    run.judged = judged
    yield f"{run.config.reward.judge.url} can be reached"


def questions(run: Preflight) -> Iterator[Finding]:
    from harness.data.sampler import QuestionSampler
    from harness.data.sources import load_questions
    from harness.models.identity import prompt_identity

    if run.method is None:
        return
    data, limit = run.config.data, run.config.rollout.max_prompt_tokens
    loaded = load_questions(
        data,
        gold_errors=run.grader.gold_errors,
        measure=lambda question: run.chat.num_tokens_of(plain_prompt(question)),
        measure_texts=lambda questions: run.chat.num_tokens_of_texts([plain_prompt(q) for q in questions]),
        max_prompt_tokens=limit,
        depends=lambda: prompt_identity(run.chat, run.config.reward.grader),
    )
    for note in loaded.notes:
        yield Warn(note)
    for message in loaded.bad:
        yield Warn(f"skipped {message}")
    yield (
        f"{len(loaded.questions)} questions ({loaded.num_bad} bad, {loaded.num_too_long} with more than {limit} tokens)"
    )
    if loaded.num_duplicates:
        yield Warn(f"{loaded.num_duplicates} of {loaded.num_rows} rows repeat the question of another row")
    if loaded.num_unused:
        option = "data.weights" if data.weights else f"data.pool_size={data.pool_size}"
        remedy = "data.weights=[]" if data.weights else "data.pool_size=null"
        yield Warn(f"{option} leaves out {loaded.num_unused} of them", f"{remedy} trains on all")
    run.num_prompt_tokens = int(loaded.num_tokens.max())
    run.sampler = QuestionSampler(
        loaded.questions, batch_size=data.batch_size, epochs=data.epochs, shuffle=data.shuffle, seed=run.config.seed
    )


def media(run: Preflight) -> Iterator[Finding]:
    """One processor packs every medium for both actors, so the teacher's vision tower has to take its patches."""
    from harness.models.vision import Vision

    place = run.deployment.teacher
    if place is None or not run.sampler.has_media:
        return
    if not place.sees_media:
        text = "questions have pictures or clips, and a served teacher is asked text alone: a run ends at the first one"
        yield Warn(text, "let the run load the teacher: teacher.serve=false, teacher.urls=[]")
    for model in run.teachers:
        ours, theirs = run.chat.vision.settings(), Vision(model).settings()
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise UserError(
                    f"teacher {model.name} and student {run.config.student.name} see media differently ({name} is "
                    f"{theirs.get(name)} and {value}): choose a teacher of the student's family"
                )
        yield "the teacher sees pictures and clips as the student does"


def steps(run: Preflight) -> Iterator[Finding]:
    if run.method is None:
        return
    data = run.config.data
    run.most_steps = possible = run.sampler.num_steps
    run.num_steps = possible if run.config.steps is None else run.config.steps
    if run.num_steps > possible:
        raise UserError(
            f"steps={run.num_steps} of {data.batch_size} questions: the data give {possible} steps in "
            f"data.epochs={data.epochs}; raise data.epochs or lower steps"
        )
    yield f"{run.num_steps} of {data.batch_size} questions; the data give {possible}"


def context(run: Preflight) -> Iterator[Finding]:
    """Prompts and responses, against the context windows of the models that are asked."""
    return found_by(*(_room(run, actor) for actor in run.actors if actor.samples))


def _room(run: Preflight, actor: Actor) -> Iterator[Finding]:
    rollout = run.config.rollout
    window = min(run.stated.get(actor.role, ()), default=None)
    if window is None and not actor.gives_text:
        window = _window(run.described[actor.role])
    if actor.in_vllm and rollout.vllm.max_model_len is not None:
        window = rollout.vllm.max_model_len
    if window is None:
        return
    prompt, response = rollout.max_prompt_tokens, rollout.max_response_tokens
    named, lower = f"rollout.max_prompt_tokens={prompt} + max_response_tokens={response}", "one of them"
    if run.method is None:  # only its evaluation asks the student
        prompt, response = 0, run.config.eval.max_response_tokens
        named, lower = f"eval.max_response_tokens={response}", "it"
    elif run.num_prompt_tokens >= window:
        raise UserError(
            f"a question's prompt has {run.num_prompt_tokens} tokens and the context window of the {actor.role} "
            f"{window}: set rollout.max_prompt_tokens to less, which leaves such questions out"
        )
    if prompt + response > window:
        text = f"{named} are more than the context window of the {actor.role}, {window}: long replies are cut there"
        yield Warn(text, f"lower {lower}, or enlarge the window")
    else:
        yield f"{named} tokens fit into the context window of the {actor.role}, {window}"


def _window(described: Any) -> int | None:
    """The context window that a model's configuration states."""
    window = getattr(described.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) else None


CHECKS: tuple[Callable[[Preflight], Iterable[Finding]], ...] = (
    gpus, model_files, kernels, vllm, tokenizer, teacher_tokenizer, endpoints, port, engine, grader, suite,
    evaluation_judge, judge, questions, media, steps, context,
)  # fmt: skip
"""All that can refuse a run before its models are loaded, once `harness.config.deployment` has accepted it."""
