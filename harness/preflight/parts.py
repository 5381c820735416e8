"""What a run has before any weights are read, and what its checks say. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.config.deployment import Deployment
from harness.config.schema import ModelConfig, RunConfig
from harness.errors import UserError
from harness.types import Sampler
from methods.base import Method

if TYPE_CHECKING:
    from harness.data.sampler import QuestionSampler
    from harness.models.chat import Chat
    from harness.rewards.judge.judged import JudgedGrader
    from harness.rewards.workers import Grader


@dataclass(frozen=True)
class Warn:
    """What a run goes on with, and what a user may do about it."""

    text: str
    remedy: str = ""


class NotMade(Exception):
    """A check cannot be made: it needs what the check that the text names gives."""


Finding = str | Warn | UserError | NotMade
"""What a check finds: that all is well, a warning, or a problem."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A model that the run asks, and its part in it."""

    role: Sampler
    config: ModelConfig
    in_vllm: bool
    """Loaded by a vLLM of this machine, in process or as `vllm serve`."""
    is_loaded: bool
    """Loaded by transformers."""
    serves: bool
    """The run starts its endpoint."""
    urls: tuple[str, ...]
    """Endpoints that the run asks."""
    gives_text: bool
    """Endpoints that give text alone answer for it: of its files none is read."""
    samples: bool = True
    scores: bool = False
    """Endpoints are asked for its distribution."""


def actors_of(config: RunConfig, deployment: Deployment) -> list[Actor]:
    """The student, and the teacher if the method asks it."""
    student, place = deployment.student, deployment.teacher
    actors = [
        Actor(
            role="student",
            config=config.student,
            in_vllm=student.in_vllm,
            is_loaded=student.device is not None,
            serves=student.serves,
            urls=tuple(config.student.urls),
            gives_text=config.student.api == "text" and bool(config.student.urls),
        )
    ]
    if place is not None and config.teacher is not None:
        teacher = config.teacher
        actors.append(
            Actor(
                role="teacher",
                config=teacher,
                in_vllm=place.in_vllm,
                is_loaded=place.num_copies > 0,
                serves=place.serves,
                urls=tuple(teacher.urls) if place.asks else (),
                gives_text=teacher.api == "text" and place.num_urls > 0 and not place.num_copies,
                samples=place.samples is not None,
                scores=place.is_scored_by_server,
            )
        )
    return actors


def _not_made() -> Any:
    raise NotMade("model files")


class Preflight:
    """The parts of one run that need no weights. `CHECKS` makes them, each from those before it.

    A part that its check has not made raises NotMade. `stack` ends what the checks start.
    """

    chat: Chat
    grader: Grader
    """The evaluation's, by rules."""
    judged: Grader | JudgedGrader
    """The training's."""
    sampler: QuestionSampler
    num_prompt_tokens: int
    """Tokens of the longest plain prompt."""
    num_steps: int | None = None
    """How many steps the run trains; None without training."""
    most_steps: int | None = None
    """How many the data give."""

    MADE_BY: ClassVar = {
        "chat": "tokenizer", "grader": "grader", "sampler": "questions", "num_prompt_tokens": "questions",
    }  # fmt: skip
    """The check that makes each part."""

    def __init__(self, config: RunConfig, method: Method | None, deployment: Deployment, stack: ExitStack) -> None:
        self.config, self.method, self.deployment, self.stack = config, method, deployment, stack
        self.actors = [] if self.only_judges else actors_of(config, deployment)
        self.read = [actor for actor in self.actors if not actor.gives_text]
        """Those of which files are read."""
        self.teachers = [actor.config for actor in self.read if actor.role == "teacher"]
        """One at most."""
        self.described: dict[str, Any] = defaultdict(_not_made)
        """The models' configurations, by role."""
        self.stated: dict[str, list[int]] = {}
        """Context windows that endpoints state, by role."""

    if not TYPE_CHECKING:  # there a part that is not named above is a mistake

        def __getattr__(self, part: str) -> Any:
            if part in self.MADE_BY:
                raise NotMade(self.MADE_BY[part])
            raise AttributeError(part)

    @property
    def is_idle(self) -> bool:
        """Nothing is trained and nothing evaluated, so nothing is loaded."""
        return self.method is None and self.config.eval.suite is None

    @property
    def only_judges(self) -> bool:
        """The responses are there, so no model is loaded."""
        return self.method is None and self.config.eval.stage == "judge"


def found_by(*parts: Iterable[Finding]) -> Iterator[Finding]:
    """What all of the parts find, each although another one has failed."""
    for part in parts:
        try:
            yield from part
        except (UserError, NotMade) as problem:
            yield problem
