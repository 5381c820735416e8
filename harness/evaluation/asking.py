"""What a library's model asks of the live student: texts from its engine, log-probabilities from its forward pass.

Every answer goes to the store as it comes, and what is there already is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.evaluation.protocol import Setup
from harness.evaluation.store import Sample, SampleStore
from harness.evaluation.student import Progress
from harness.rollout.base import RolloutEngine, Sampling
from harness.types import Prompt, Rollout

if TYPE_CHECKING:
    from harness.models.chat import Chat
    from harness.models.forward import LanguageModel

logger = logging.getLogger(__name__)

CHUNK = 256
"""Log-probabilities that are asked for before they are stored."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """What library tasks read of a student besides its engine."""

    chat: Chat
    model: LanguageModel | None = None
    """Its weights in this process; None where an endpoint has them, or where they are cut over ranks."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request of a task."""

    task: str
    uid: str
    """Decides the random draws."""
    question_id: str
    what: Sequence[Any]
    """All that decides the answer besides the model and the uid, as JSON."""


@dataclass(frozen=True, kw_only=True)
class TextAsk(Ask):
    sampling: Sampling
    prompt: Callable[[], Prompt]
    """Made where the answer is not stored."""


@dataclass(frozen=True, kw_only=True)
class ScoreAsk(Ask):
    pairs: Callable[[], list[tuple[list[int], list[int]]]]
    """Context and continuation of each window. Their log-probabilities are added up."""


class Asker:
    """The student as a library sees it. Without an `engine` the store has to have all answers."""

    def __init__(
        self, engine: RolloutEngine | None, live: Live | None, *, store: SampleStore, identity: str, setup: Setup
    ) -> None:
        self.failed = False
        """Whether the student could not answer: then it is no fault of a task."""
        self.samples: dict[str, Sample] = {}
        """What was answered, by uid."""
        self.asked: dict[str, list[Any]] = {}
        """All that was asked of each task, in order: what is hashed into its card."""
        self._engine = engine
        self._live = live
        self._store = store
        self._base = [identity, asdict(setup)]

    @property
    def is_live(self) -> bool:
        """Whether the student's tokenizer is there."""
        return self._live is not None

    @property
    def chat(self) -> Chat:
        assert self._live is not None
        return self._live.chat

    @property
    def context_window(self) -> int:
        """Tokens of prompt and reply together. Raises UserError without an engine."""
        if self._engine is None:
            raise UserError("the answers of library tasks are not there: generate them first, with eval.stage=all")
        return self._engine.context_window

    def texts(self, asks: Sequence[TextAsk], decode: Callable[[Rollout], str]) -> list[str]:
        """The replies in order, stop texts at their ends. All that are missing reach the engine at once, by decoding.

        Raises UserError where replies are missing and there is no engine.
        """
        keys = [self._key("text", ask) for ask in asks]
        missing = self._missing(asks, keys)
        if not missing:
            return [sample.response for sample in self._present(asks, keys)]
        assert self._engine is not None
        by_uid = {asks[i].uid: keys[i] for i in missing}
        assert len(by_uid) == len(missing), "two requests have one uid"
        tasks = {ask.uid: ask for ask in asks}
        waiting: dict[Sampling, list[Prompt]] = defaultdict(list)
        for i in missing:
            waiting[asks[i].sampling].append(asks[i].prompt())
        progress = Progress(len(asks))
        progress.skip(len(asks) - len(missing))
        for sampling, prompts in waiting.items():
            ordered = sorted(prompts, key=lambda prompt: -len(prompt.ids))  # a batch is as wide as its longest prompt
            with self._students_work():
                for group in self._engine.generate(ordered, sampling):
                    (rollout,) = group.rollouts
                    num_tokens = len(rollout.completion_ids)
                    self._add(tasks[group.uid], by_uid[group.uid], decode(rollout), num_tokens, rollout.finish_reason)
                    progress.add(num_tokens)
        progress.report()
        return [sample.response for sample in self._present(asks, keys)]

    @contextmanager
    def _students_work(self) -> Iterator[None]:
        """What goes wrong in the block is the student's fault, not the task's: `failed` says so."""
        try:
            yield
        except Exception:
            self.failed = True
            raise

    def logprobs(self, asks: Sequence[ScoreAsk]) -> list[tuple[float, bool]]:
        """Natural-log probability of each continuation, and whether greedy decoding would give it.

        They are those of the trainer's forward pass over every row of the head, in fp32. Raises UserError where some
        are missing and the weights are not in this process.
        """
        keys = [self._key("logprob", ask) for ask in asks]
        missing = self._missing(asks, keys)
        if missing and (self._live is None or self._live.model is None):
            raise UserError(
                f"{asks[missing[0]].task} asks for log-probabilities, which need the student's weights in one process: "
                "evaluate the finished run or the model, zppo eval with rollout=transformers"
            )
        progress = Progress(len(asks))
        progress.skip(len(asks) - len(missing))
        for start in range(0, len(missing), CHUNK):
            from harness.evaluation.library.loglikelihood import score

            assert self._live is not None and self._live.model is not None
            chunk = missing[start : start + CHUNK]
            windows = [asks[i].pairs() for i in chunk]
            with self._students_work():
                scored = iter(score(self._live.model.unrestricted, [pair for pairs in windows for pair in pairs]))
            for i, pairs in zip(chunk, windows, strict=True):
                parts = [next(scored) for _ in pairs]
                found = [sum(logprob for logprob, _ in parts), all(greedy for _, greedy in parts)]
                num_tokens = sum(len(continuation) for _, continuation in pairs)
                self._add(asks[i], keys[i], json.dumps(found), num_tokens, "stop")
                progress.add(num_tokens)
        progress.report()
        stored = [json.loads(sample.response) for sample in self._present(asks, keys)]
        return [(float(logprob), bool(greedy)) for logprob, greedy in stored]

    def _missing(self, asks: Sequence[Ask], keys: Sequence[str]) -> list[int]:
        missing = [i for i, key in enumerate(keys) if self._store.get(key) is None]
        if missing and self._engine is None:
            raise UserError(
                f"{len(missing)} of {len(asks)} answers to {asks[missing[0]].task} are not there: "
                "generate them first, with eval.stage=generate or all"
            )
        return missing

    def _present(self, asks: Sequence[Ask], keys: Sequence[str]) -> list[Sample]:
        found = [self._store.get(key) for key in keys]
        present = [sample for sample in found if sample is not None]
        assert len(present) == len(keys), "the engine lost groups"
        self.samples |= {ask.uid: sample for ask, sample in zip(asks, present, strict=True)}
        for ask in asks:
            self.asked.setdefault(ask.task, []).append([ask.uid, ask.what])
        return present

    def _add(self, ask: Ask, key: str, response: str, num_tokens: int, finish_reason: str) -> None:
        sample = Sample(
            key=key,
            benchmark=ask.task,
            uid=ask.uid,
            question_id=ask.question_id,
            response=response,
            num_tokens=num_tokens,
            finish_reason=finish_reason,
        )
        self._store.add(sample)

    def _key(self, kind: str, ask: Ask) -> str:
        parts = [*self._base, kind, ask.uid, list(ask.what)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
