"""lm-eval's own tasks on the live student: its `LM` is the rollout engine and the trainer's forward pass.

A prompt's ids and the end of a reply are made as in the library's `HFLM`. So its own command with `--model hf` gives
the same samples and scores on the exported student. Imports lm-eval, which is slow.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from lm_eval import evaluator
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry as LibraryEntry
from lm_eval.tasks._index import Kind
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.config.schema import EvalConfig
from harness.errors import UserError
from harness.evaluation.asking import Asker, ScoreAsk, TextAsk
from harness.evaluation.library.code import limited_results
from harness.evaluation.library.index import Entry
from harness.rollout.base import Sampling
from harness.types import Prompt, Question, Rollout

LIBRARY = "lm_eval"
MAX_NEW_TOKENS = 256
"""What the library takes where a task says nothing."""
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the limit, the first that is there counts."""
SAMPLED = {"top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float, "presence_penalty": float}
WITHOUT_EFFECT = {"num_beams": 1, "use_cache": True, "early_stopping": None, "num_return_sequences": 1}
"""Options that change nothing at these values; None: at any."""
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234}
BOOTSTRAP_ITERS = 1000


class StudentLM(LM):
    """lm-eval's view of the student."""

    def __init__(self, asker: Asker, config: EvalConfig) -> None:
        super().__init__()
        self._asker, self._config = asker, config

    # --- what is asked ---

    def generate_until(self, requests: list[Instance]) -> list[str]:
        met: Counter[int] = Counter()
        asks, stops = [], []
        for request in requests:
            context, options = request.args[0], dict(request.args[1])
            sampling, until = decoding(f"{LIBRARY}:{request.task_name}", options, self._config.seed)
            number = met[id(request)]  # the library asks a request again for each of its repeats
            met[id(request)] += 1
            asks.append(self._text_ask(request, context, sampling, number))
            stops.append(until)
        replies = self._asker.texts(asks, self._decoded)
        ends = [self._end_text()] if stops and self._asker.is_live else []
        return [_cut(reply, [*until, *ends]) for reply, until in zip(replies, stops, strict=True)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self._asker.logprobs([self._score_ask(request, request.args, self._pair) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        asks = [self._score_ask(request, request.args, self._windows) for request in requests]
        return [logprob for logprob, _ in self._asker.logprobs(asks)]

    def _text_ask(self, request: Instance, context: str, sampling: Sampling, number: int) -> TextAsk:
        task = f"{LIBRARY}:{request.task_name}"
        uid = f"eval/{task}/{request.doc_id}/{request.idx}/{number}"
        return TextAsk(
            task=task,
            uid=uid,
            question_id=str(request.doc_id),
            what=[context, sampling.changed()],
            sampling=sampling,
            prompt=lambda: self._prompt(task, uid, context, sampling),
        )

    def _score_ask(self, request: Instance, texts: Sequence[str], pairs: Any) -> ScoreAsk:
        task = f"{LIBRARY}:{request.task_name}"
        return ScoreAsk(
            task=task,
            uid=f"eval/{task}/{request.doc_id}/{request.request_type}/{request.idx}",
            question_id=str(request.doc_id),
            what=list(texts),
            pairs=lambda: pairs(*texts),
        )

    # --- from text to ids, as HFLM does it ---

    def _prompt(self, task: str, uid: str, context: str, sampling: Sampling) -> Prompt:
        room = self._asker.context_window - sampling.max_new_tokens
        if room <= 0:
            raise UserError(
                f"{task} asks for {sampling.max_new_tokens} new tokens, and the student's context has "
                f"{self._asker.context_window}: it leaves no room for a prompt"
            )
        begins = self._tokenizer.bos_token is not None and context.startswith(self._tokenizer.bos_token)
        ids = self._tokenizer.encode(context, **({"add_special_tokens": False} if begins else {}))
        ids = ids[-room:] or [self._prefix_id]
        question = Question(id=uid, text=context, answer="")
        return Prompt(uid=uid, question=question, messages=(), ids=tuple(ids))

    def _pair(self, context: str, continuation: str) -> list[tuple[list[int], list[int]]]:
        """Ids of both. Spaces at the end of the context belong to the continuation, whose first token they begin."""
        if context == "":
            ids = self._tokenizer.encode(continuation, add_special_tokens=False)
            return [(ids[:1], ids[1:])] if ids[:1] == [self._prefix_id] else [([self._prefix_id], ids)]
        stripped = context.rstrip()
        everything = self._encode(context + continuation)
        given = self._encode(stripped)
        return [(given, everything[len(given) :])]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A long text in windows: every token is predicted once, with as much before it as there is room for."""
        windows = get_rolling_token_windows(
            token_list=self._encode(text),
            prefix_token=self._prefix_id,
            max_seq_len=self._asker.context_window,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def _encode(self, text: str) -> list[int]:
        """With the tokenizer's start token, unless the text begins with it."""
        prefix = self._tokenizer.decode([self._prefix_id])
        begins = bool(prefix) and text.startswith(prefix)
        return self._tokenizer.encode(text, **({"add_special_tokens": False} if begins else {}))

    def _decoded(self, rollout: Rollout) -> str:
        return self._tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)

    def _end_text(self) -> str:
        return self._tokenizer.decode([self._tokenizer.eos_token_id])

    @property
    def _tokenizer(self) -> Any:
        return self._asker.chat.tokenizer

    @property
    def _prefix_id(self) -> int:
        first = self._tokenizer.bos_token_id
        return self._tokenizer.eos_token_id if first is None else first

    # --- chat templates ---

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._asker.chat.as_text(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._tokenizer.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return str(self._tokenizer.name_or_path).replace("/", "__")


def decoding(task: str, options: Mapping[str, Any], seed: int) -> tuple[Sampling, list[str]]:
    """A request's decoding, and the texts that end its reply.

    `do_sample=false`, or no temperature, is greedy. Raises UserError for an option that the engine does not have.
    """
    options = dict(options)
    until = options.pop("until", None) or []
    until = [until] if isinstance(until, str) else list(until)
    limits = [limit for limit in (options.pop(name, None) for name in TOKEN_LIMITS) if limit is not None]
    temperature, samples = options.pop("temperature", None), options.pop("do_sample", None)
    if samples is None:
        samples = bool(temperature)
    greedy = not samples or temperature == 0.0
    values = {name: kind(options.pop(name)) for name, kind in SAMPLED.items() if options.get(name) is not None}
    for name, value in options.items():
        known = name in SAMPLED or (name in WITHOUT_EFFECT and WITHOUT_EFFECT[name] in (None, value))
        if value is not None and not known:
            raise UserError(f"{task} sets {name}={value} for its replies, which the rollout engine does not have")
    if greedy:
        values = {name: value for name, value in values.items() if name.endswith("penalty")}
    sampling = Sampling(
        num_rollouts=1,
        seed=seed,
        step=0,
        temperature=0.0 if greedy else float(1.0 if temperature is None else temperature),
        max_new_tokens=int(limits[0]) if limits else MAX_NEW_TOKENS,
        stop=tuple(filter(None, until)),
        unrestricted=True,
        **values,
    )
    return sampling, list(sampling.stop)


def _cut(text: str, until: Sequence[str]) -> str:
    """The text up to the first of each stop text."""
    for stop in filter(None, until):
        text = text.split(stop)[0]
    return text


# --- tasks ---


def task_manager(index: Mapping[str, Entry]) -> TaskManager:
    """The library's, with names that were read before: its own way to them takes half a minute."""
    manager = TaskManager(include_defaults=False)
    kinds = {"task": Kind.TASK, "python_task": Kind.PY_TASK, "group": Kind.GROUP, "tag": Kind.TAG}
    manager._index = {
        name: LibraryEntry(name=name, kind=kinds[entry.kind], yaml_path=entry.file, tags=set(entry.tasks))
        for name, entry in index.items()
    }
    return manager


class LoadedTask:
    """A task, group or tag with its data."""

    def __init__(self, name: str, index: Mapping[str, Entry], config: EvalConfig) -> None:
        """Loads the data. Raises whatever the library or the task does."""
        self._config = config
        self._random_state()
        found = task_manager(index).load([name])
        # A task may draw when it prepares its data, so its draws go on where they are now.
        self._states = random.getstate(), np.random.get_state()
        self.tasks: dict[str, Task] = found["tasks"]
        for task in self.tasks.values():
            if getattr(task, "UNSAFE_CODE", False):
                limited = partial(limited_results, task.process_results, task.aggregation)
                task.process_results = limited  # type: ignore[method-assign]
        groups: dict[str, Group] = found.get("groups", {})
        inner = {child for group in groups.values() for child in group.child_names}
        self._specs = [
            *(group for key, group in groups.items() if key not in inner),
            *(task for key, task in self.tasks.items() if key not in inner),
        ]

    @property
    def data(self) -> list[str]:
        return sorted({str(task.get_config("dataset_path")) for task in self.tasks.values()})

    def evaluate(self, asker: Asker) -> dict[str, Any]:
        """The library's results, with every sample."""
        if self._config.allow_code:
            os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the library's metric asks for it
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        results = evaluator.simple_evaluate(
            model=StudentLM(asker, self._config),
            tasks=list(self._specs),
            task_manager=TaskManager(include_defaults=False),
            num_fewshot=self._config.num_fewshot,
            limit=self._config.limit,
            apply_chat_template=self._config.apply_chat_template,
            fewshot_as_multiturn=self._config.apply_chat_template,
            confirm_run_unsafe_code=self._config.allow_code,
            bootstrap_iters=BOOTSTRAP_ITERS,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
        assert results is not None, "evaluation runs on the main process only"
        return dict(results)

    @staticmethod
    def _random_state() -> None:
        random.seed(SEEDS["random_seed"])
        np.random.seed(SEEDS["numpy_random_seed"])
