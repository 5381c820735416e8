"""The records that flow through a run: Question -> Prompt -> Rollout -> RolloutGroup -> TrainingSample -> TokenBatch.

This module and `methods.base` are all that a method needs to import. No torch is imported here.

Shape suffixes used in this project: N trained tokens of one chunk, V vocabulary, H hidden, B sequences, T tokens of a
sequence, G rollouts of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

AnswerType = Literal["math", "choice", "text", "reasoning_gym"]
PromptKind = Literal["plain", "bcq", "ncq", "hint", "prefix", "extra", "compress", "write_hint"]
"""`plain` groups decide mastery; `extra` is another group on its prompt; the last two ask the teacher to rewrite."""
Sampler = Literal["student", "teacher"]
FinishReason = Literal["stop", "length"]
Verdict = Literal["correct", "wrong", "unparsable", "timeout", "ungraded"]
"""`timeout`: the answer used up its own CPU time, reward 0. `ungraded`: nobody could say, so there is no reward."""
Match = Literal["positive", "negative", "other"]
Message = dict[str, str]  # {"role": ..., "content": ...}


class ImageRef(Protocol):
    """A picture that is opened when it is needed and not kept."""

    @property
    def name(self) -> str:
        """What it is, for messages: a path, a cell of a table, a recipe."""

    def open(self) -> Image:
        """The decoded RGB picture. Raises `harness.data.images.MediaError`, which names it."""

    def content(self) -> Iterator[bytes]:
        """All that decides what it shows, in pieces and undecoded: another picture may have the same name."""


class VideoRef(Protocol):
    """A clip that is decoded when it is needed, only the frames that are used."""

    @property
    def name(self) -> str: ...

    def open(self, limits: MediaLimits) -> Clip: ...

    def content(self) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class MediaLimits:
    """How large a picture and how long a clip a model is shown. None leaves it to the model's processor."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    """Frames a second of video; not together with `num_frames`."""
    num_frames: int | None = None
    """This many frames of every video, evenly spread."""
    max_frames: int = 768


@dataclass(frozen=True, eq=False)
class Clip:
    """Decoded frames, uint8 [F, height, width, 3], and when each is shown, in seconds."""

    frames_FHWC: np.ndarray
    times_F: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of the data. `id` is unique within a source and stable over runs.

    Example: `Question(id="arithmetic/2/17", text="Compute 37+8+5.", answer="50")`.
    """

    id: str
    text: str
    answer: str
    answer_type: AnswerType = "math"
    messages: tuple[Message, ...] = ()
    """What comes before the last user turn, which is `text`: a system message, earlier turns."""
    source: str = ""
    images: tuple[ImageRef, ...] = ()
    """Shown where `<image>` stands in the text or an earlier turn; before the last turn's text where it never does."""
    video: VideoRef | None = None
    """Shown where `<video>` stands, likewise."""
    limits: MediaLimits = MediaLimits()
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)
    """Whatever the verifier of `answer_type` needs (a reasoning-gym entry, choices); JSON values only."""
    other_answers: tuple[str, ...] = ()
    """Further gold answers: a reply that matches any of them is right."""
    closing: str | None = None
    """What every prompt ends with instead of the usual instruction; empty: nothing. None: the usual one."""
    scorer: str = ""
    """`package.module:function` that grades instead of the rules of `answer_type`."""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    """Further columns of the row by name, for methods and scorers; JSON values only."""

    @property
    def golds(self) -> tuple[str, ...]:
        """All gold answers."""
        return (self.answer, *self.other_answers)


@dataclass(frozen=True, kw_only=True)
class OwnBenchmark:
    """A benchmark of one's own, a column of tables: what a function that `eval.benchmarks` names gives.

    Example: `OwnBenchmark(name="sums", family="LLM", questions=[Question(id="1", text="Compute 1+1.", answer="2")])`.
    """

    name: str
    family: Literal["LLM", "VLM", "Video"]
    """What averages are formed over."""
    questions: Sequence[Question]
    mark: Callable[[Question, str | None], float] | None = None
    """The score in [0, 1] of an answer, the content of the box. None: the grader compares it with the gold answer."""
    judged: bool = False
    """The judge is asked about answers that the rule does not match (`eval.judge`)."""


class PromptMedia(Protocol):
    """The pictures and the clip of a prompt, packed for a model: `harness.models.vision` makes it."""

    @property
    def digest(self) -> str:
        """Digest of the pixels and their layout; equal digests mean the same input."""

    def inputs(self) -> Any:
        """The pixels, as the model's forward pass takes them."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a sampler is asked. `uid` is unique within a rollout step and names the group of its rollouts."""

    uid: str
    question: Question
    messages: tuple[Message, ...]
    kind: PromptKind = "plain"
    ids: tuple[int, ...] = ()
    """The prompt as ids, where it is no chat: `messages` are then not read."""
    prefix_ids: tuple[int, ...] = ()
    """Tokens that start every completion and are masked in the loss."""
    reference: str | None = None
    """For `Actors.rewrite`: the response that is rewritten, whose answer the rewrite is compared with."""
    positive_answer: str | None = None
    negative_answers: tuple[str, ...] = ()
    """Candidate prompts, for the audit: boxed answers of the right trace (an NCQ shows none) and of the wrong ones."""
    positive_position: int | None = None
    """Where the right trace stands among the candidates of a BCQ, from 0."""


@dataclass(kw_only=True)
class Rollout:
    """One completion. `completion_ids` are the sampled ids (never re-tokenised text), the end token included.
    The first `num_prefix` completion tokens were given, not sampled: their log-probability is 0.0 and they are masked.
    """

    sampler: Sampler
    index: int
    prompt_ids: list[int]
    completion_ids: list[int]
    rollout_logprobs: list[float]
    """Engine's natural-log probability of each completion token at the sampling temperature; same length."""
    text: str
    finish_reason: FinishReason
    num_prefix: int = 0
    media: PromptMedia | None = None
    """What the prompt shows with its text: the very thing that sampler, trainer and teacher are given."""
    answer: str | None = None
    reward: float = 0.0
    """Says nothing where the verdict is `ungraded`."""
    verdict: Verdict = "wrong"
    training_reward: float | None = None
    """A shaped or random reward that `credit` uses in the place of `reward`; records and buffer keep the graded one."""

    @property
    def is_graded(self) -> bool:
        return self.verdict != "ungraded"


@dataclass(kw_only=True)
class RolloutGroup:
    """The rollouts of one prompt. Siblings share it for advantage centring.

    A rollout without a verdict is neither right nor wrong: it is in no mean and in no list of this class.
    """

    uid: str
    prompt: Prompt
    rollouts: list[Rollout]
    replayed: bool = False
    mini_batch: int | None = None
    """Number of its mini-batch in the step, dealt before `credit`; None where it is not trained."""

    @property
    def accuracy(self) -> float:
        """Mean reward of the student's graded rollouts (rbar of the paper); 0 for a group without any of the student's.

        NaN where too few of them are graded (`comparable`). It is neither below a threshold nor at least that: such a
        group is neither hard nor easy.
        """
        student = [r for r in self.rollouts if r.sampler == "student"]
        rewards = [r.reward for r in comparable(student)]
        if student and not rewards:
            return math.nan
        return sum(rewards) / len(rewards) if rewards else 0.0

    def correct(self, sampler: Sampler | None = None) -> list[Rollout]:
        return [r for r in self._graded(sampler) if r.reward > 0.5]

    def wrong(self, sampler: Sampler | None = None) -> list[Rollout]:
        """Those that may be shown as wrong. A `timeout` may not: its reward is 0, its answer may be right."""
        return [r for r in self._graded(sampler) if r.reward <= 0.5 and r.verdict != "timeout"]

    def _graded(self, sampler: Sampler | None) -> list[Rollout]:
        return [r for r in self.rollouts if r.is_graded and sampler in (None, r.sampler)]


def comparable(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The graded ones of a group's rollouts; none where fewer than two of several are: one alone compares with nothing.
    Verdicts [correct, ungraded, wrong] leave two, [correct, ungraded] none, and [correct] alone is kept."""
    graded = [rollout for rollout in rollouts if rollout.is_graded]
    return graded if len(graded) >= min(2, len(rollouts)) else []


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """Teacher text that is no answer to a question: a compressed trace or a hint."""

    uid: str
    text: str
    """What the reply says between its tags; empty if it has none."""
    answer: str | None
    same_answer: bool
    """The rewrite's boxed answer equals the reference's (both None counts as equal)."""
    truncated: bool
    ends_with_box: bool = True
    """Nothing but punctuation follows the box of the answer."""


@dataclass(frozen=True, kw_only=True)
class ReplayedQuestion:
    """A question drawn from the buffer. `visits` counts its earlier draws since admission."""

    question: Question
    visits: int
    entry_accuracy: float


class QuestionBatch(Protocol):
    """The questions of one rollout step."""

    new: Sequence[Question]
    replayed: Sequence[ReplayedQuestion]
    step: int
    num_steps: int

    def more(self, num_questions: int) -> list[Question]:
        """Further new questions from the run's cursor; fewer when the data end. They count as seen."""


class GroupStream(Protocol):
    """Groups that are being sampled and graded. Sampling has started when the stream exists."""

    def __iter__(self) -> Iterator[RolloutGroup]:
        """Yield groups as they finish; from any thread, and again from the first."""

    def list(self) -> list[RolloutGroup]:
        """Wait for all groups; in the order of the prompts."""


class Actors(Protocol):
    """What a method may ask of the two models."""

    def student(self, prompts: Iterable[Prompt], num_rollouts: int) -> GroupStream:
        """Start rollouts of each prompt. Prompts may depend on another stream that is still filling: engines that can
        do so start on those that are there."""

    def teacher(self, prompts: Iterable[Prompt], num_rollouts: int) -> GroupStream: ...

    def rewrite(
        self, prompts: Sequence[Prompt], *, tag: str, max_tokens: int, sample: bool = False, budget: int | None = None
    ) -> list[Rewrite]:
        """Teacher text between `<tag>` and `</tag>`, at most `max_tokens`, greedy unless `sample`; in the order of the
        prompts. The reply with its thinking may have `budget` tokens: by default as many, and some for the tags."""

    def demonstrate(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[RolloutGroup]:
        """Given texts as completions (with the token that ends a turn), one a prompt; nothing is sampled."""

    def fits(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Whether each prompt leaves room for the longest reply allowed, a prefix included, or for half the window."""

    def boxed(self, completion_ids: Sequence[int]) -> str | None:
        """What a grader would read in a reply of these tokens: the content of its last complete box."""

    def are_right(self, answers: Sequence[tuple[Question, str]]) -> list[bool]:
        """Whether each answer, as the content of a box, is right by the run's rule; a judge is not asked."""

    def count(self, name: str, value: float = 1.0) -> None:
        """Add to the step's metric `section/name`."""


@dataclass(kw_only=True)
class TrainingSample:
    """One sequence that `Method.credit` hands to the trainer. All per-token lists have the length of `token_ids`.

    Example of a prompt of 2 tokens with a completion of 3, whose first is a masked prefix: `token_ids=[5, 6, 7, 8, 2]`,
    `loss_mask=[0, 0, 0, 1, 1]`, `advantages=[0, 0, 0, 1.5, 1.5]`.
    """

    uid: str
    token_ids: list[int]
    loss_mask: list[int]
    """1 where the token is trained. The first token can never be trained: nothing predicts it."""
    advantages: list[float] | None = None
    weights: list[float] | None = None
    """Weight of each token's loss; default 1."""
    norm: float | None = None
    """Share of the mini-batch's denominator; default the number of trained tokens."""
    rollout_logprobs: list[float] | None = None
    old_logprobs: list[float] | None = None
    """Filled by the trainer where a sample has none."""
    teacher_prompt_ids: list[int] | None = None
    """The prompt that the teacher sees, where it differs from the student's."""
    inert: bool = False
    """Contributes no gradient (all advantages zero and no other term): skipped, its norm is kept."""
    rollout: Rollout | None = None
    """The rollout this sample was made from: for the run's records, and for the media of its prompt."""

    @property
    def media(self) -> PromptMedia | None:
        """What the prompt shows with its text, to the student and to a teacher that scores."""
        return None if self.rollout is None else self.rollout.media

    @property
    def num_trained(self) -> int:
        return sum(self.loss_mask)

    @property
    def num_prompt(self) -> int:
        """Tokens before the completion."""
        return len(self.rollout.prompt_ids) if self.rollout is not None else self.loss_mask.index(1)

    @property
    def denominator(self) -> float:
        return float(self.num_trained) if self.norm is None else self.norm


@dataclass(kw_only=True)
class TokenBatch:
    """The N trained tokens of one chunk, flattened over sequences (fp32 tensors of shape [N], ids int64)."""

    ids_N: torch.Tensor
    advantages_N: torch.Tensor
    old_logprobs_N: torch.Tensor
    rollout_logprobs_N: torch.Tensor
    sequence_N: torch.Tensor
    """Index of the sequence that each token belongs to, within the mini-batch."""


class TeacherDistribution:
    """The teacher's distribution at the same N positions: full as `logits_NV`, or partial as the K likeliest tokens.

    The partial form is what a server gives: distinct ids (int64, -1 fills up shorter lists) and their natural-log
    probabilities (fp32) in the full vocabulary. What is left of the mass is the tail's. `methods.base` has
    `distillation_loss`, which takes either form.
    """

    def __init__(
        self,
        *,
        logits_NV: torch.Tensor | None = None,
        topk_ids_NK: torch.Tensor | None = None,
        topk_logprobs_NK: torch.Tensor | None = None,
    ) -> None:
        """Raises ValueError unless exactly one form is given."""
        if (topk_ids_NK is None) != (topk_logprobs_NK is None) or (logits_NV is None) == (topk_ids_NK is None):
            raise ValueError("give logits_NV, or topk_ids_NK with topk_logprobs_NK")
        self._logits_NV = logits_NV
        self._topk = None if topk_ids_NK is None or topk_logprobs_NK is None else (topk_ids_NK, topk_logprobs_NK)

    @property
    def is_partial(self) -> bool:
        return self._topk is not None

    @property
    def logits_NV(self) -> torch.Tensor:
        """At the temperature of the student's (`Method.logit_temperature`). Raises ValueError for the partial form."""
        if self._logits_NV is None:
            raise ValueError(
                "the served teacher gives top-k log-probabilities, not logits_NV: use methods.base.distillation_loss, "
                "or load the teacher next to the student (teacher.serve=false, teacher.urls=[])"
            )
        return self._logits_NV

    @property
    def topk_ids_NK(self) -> torch.Tensor:
        return self._partial()[0]

    @property
    def topk_logprobs_NK(self) -> torch.Tensor:
        return self._partial()[1]

    def to(self, device: torch.device) -> TeacherDistribution:
        if self._topk is None:
            return TeacherDistribution(logits_NV=self.logits_NV.to(device))
        ids_NK, logprobs_NK = self._topk
        return TeacherDistribution(topk_ids_NK=ids_NK.to(device), topk_logprobs_NK=logprobs_NK.to(device))

    def _partial(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._topk is None:
            raise ValueError("this teacher gives its complete distribution: read logits_NV")
        return self._topk


@dataclass(kw_only=True)
class LossOutput:
    """`loss_N` before weights; `sums` are token sums of detached statistics, logged a token."""

    loss_N: torch.Tensor
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
