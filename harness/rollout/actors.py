"""Student and teacher as methods see them: an engine plus the reward; groups come back graded."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from harness.config.schema import RolloutConfig
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.devices import device_pool
from harness.process.preemption import fault_point
from harness.process.step_clock import Activity, StepClock
from harness.rewards.boxed import ends_with_box, last_boxed
from harness.rewards.judge.judged import JudgedGrader
from harness.rewards.workers import Grader
from harness.rollout.base import RolloutEngine, Sampling
from harness.types import GroupStream, Prompt, Question, Rewrite, Rollout, RolloutGroup

TAG_TOKENS = 16
"""Room for the opening and closing tag around a rewrite of the allowed length."""


class Stream:
    """A `GroupStream` that its actor's two threads fill: one samples, the other grades what is there already.

    `source` notes in `uids` which prompts it was given.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        grading: ThreadPoolExecutor,
        source: Callable[[], Iterable[RolloutGroup]],
        grade: Callable[[RolloutGroup], None],
        uids: list[str],
    ) -> None:
        self._uids = uids
        self._done: list[RolloutGroup] = []
        self._changed = threading.Condition()
        self._grading = grading
        self._grade = grade
        self._future: Future[None] = pool.submit(self._fill, source)
        self._future.add_done_callback(lambda _: self._note())

    def _fill(self, source: Callable[[], Iterable[RolloutGroup]]) -> None:
        graded: list[Future[None]] = []
        try:
            for group in source():
                graded.append(self._grading.submit(self._arrive, group))
            for future in graded:
                future.result()
        finally:
            for future in graded:
                future.cancel()

    def _arrive(self, group: RolloutGroup) -> None:
        self._grade(group)
        self._note(group)

    def _note(self, *arrived: RolloutGroup) -> None:
        with self._changed:
            self._done += arrived
            self._changed.notify_all()

    def __iter__(self) -> Iterator[RolloutGroup]:
        position = 0
        while True:
            with self._changed:
                while position == len(self._done) and not self._future.done():
                    self._changed.wait()
                arrived = self._done[position:]
            if not arrived:
                self._future.result()  # raises what sampling or grading raised
                assert len(self._done) == len(self._uids), "an engine returned fewer groups than prompts"
                return
            yield from arrived
            position += len(arrived)

    def list(self) -> list[RolloutGroup]:
        by_uid = {group.uid: group for group in self}
        return [by_uid[uid] for uid in self._uids]


class LiveActors:
    """The `Actors` of a run.

    `begin(step)` starts a step's counters and its clock; random streams follow (seed, step). Raises UserError when a
    method asks for a teacher and there is none.
    """

    def __init__(
        self,
        *,
        student: RolloutEngine,
        teacher: RolloutEngine | None,
        chat: Chat,
        grader: Grader | JudgedGrader,
        config: RolloutConfig,
        seed: int,
    ) -> None:
        self._engines = {"student": student, "teacher": teacher}
        self._pools = {name: device_pool(1, name) for name in self._engines}
        self._grading = {name: device_pool(1, f"{name}-grades") for name in self._engines}
        self._chat = chat
        self._grader = grader
        self._config = config
        self._seed = seed
        self._step = 0
        self.clock = StepClock()
        self.rewritten: list[RolloutGroup] = []
        """What the teacher rewrote in this step, for the records; the reward says whether the answer was kept."""
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @property
    def step(self) -> int:
        return self._step

    def begin(self, step: int) -> None:
        self._step = step
        self.clock.start()
        self.rewritten = []
        self._counts = defaultdict(float)

    @property
    def counts(self) -> dict[str, float]:
        """What this step's sampling added up: `tokens/*` and whatever the method counted."""
        with self._lock:
            return dict(self._counts)

    def count(self, name: str, value: float = 1.0) -> None:
        with self._lock:
            self._counts[name] += value

    def student(self, prompts: Iterable[Prompt], num_rollouts: int) -> GroupStream:
        return self._sample("student", prompts, num_rollouts)

    def teacher(self, prompts: Iterable[Prompt], num_rollouts: int) -> GroupStream:
        return self._sample("teacher", prompts, num_rollouts)

    def rewrite(
        self, prompts: Sequence[Prompt], *, tag: str, max_tokens: int, sample: bool = False, budget: int | None = None
    ) -> list[Rewrite]:
        budget = max_tokens + TAG_TOKENS if budget is None else budget
        sampling = self._sampling(1, temperature=1.0 if sample else 0.0, max_new_tokens=budget)
        fits = self._fits("teacher", prompts, max_tokens + TAG_TOKENS)
        fitting = [prompt for prompt, fitted in zip(prompts, fits, strict=True) if fitted]
        future = self._pools["teacher"].submit(lambda: list(self._generate("teacher", fitting, sampling)))
        by_uid = {group.uid: group for group in future.result()}
        done = self._read_rewrites([by_uid[prompt.uid] for prompt in fitting], tag, max_tokens, sample)
        return [done.get(prompt.uid) or _lost(prompt) for prompt in prompts]

    def _read_rewrites(
        self, groups: Sequence[RolloutGroup], tag: str, max_tokens: int, sample: bool
    ) -> dict[str, Rewrite]:
        """What the teacher's replies say, by uid; records them."""
        self.rewritten += groups
        texts = [between_tags(group.rollouts[0].text, tag) for group in groups]
        answers = [last_boxed(text) for text in texts]
        references = [last_boxed(group.prompt.reference or "") for group in groups]
        with self.clock.running("grade"):
            same = self._grader.same(list(zip(references, answers, strict=True)))
        rewrites = {}
        for group, text, answer, equal in zip(groups, texts, answers, same, strict=True):
            rollout = group.rollouts[0]
            rollout.index, rollout.answer, rollout.reward = int(sample), answer, float(equal)
            rollout.verdict = "correct" if equal else "wrong"
            truncated = rollout.finish_reason == "length" or len(self._chat.encode_text(text)) > max_tokens
            rewrites[group.uid] = Rewrite(
                uid=group.uid,
                text=text,
                answer=answer,
                same_answer=equal,
                truncated=truncated,
                ends_with_box=ends_with_box(text),
            )
        return rewrites

    def demonstrate(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[RolloutGroup]:
        groups = []
        for prompt, text in zip(prompts, texts, strict=True):
            completion = [*self._chat.encode_text(text), self._chat.end_id]
            packed = self._chat.pack(prompt)
            rollout = Rollout(
                sampler="teacher",
                index=0,
                prompt_ids=packed.ids,
                media=packed.media,
                completion_ids=completion,
                rollout_logprobs=[0.0] * len(completion),
                text=text,
                finish_reason="stop",
                answer=last_boxed(text),
                reward=1.0,
                verdict="correct",
            )
            groups.append(RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=[rollout]))
        return groups

    def fits(self, prompts: Sequence[Prompt]) -> list[bool]:
        return self._fits("student", prompts, self._config.max_response_tokens)

    def boxed(self, completion_ids: Sequence[int]) -> str | None:
        return last_boxed(self._chat.decode(completion_ids))

    def are_right(self, answers: Sequence[tuple[Question, str]]) -> list[bool]:
        with self.clock.running("grade"):
            return self._grader.are_right(answers)

    def close(self) -> None:
        for pool in (*self._pools.values(), *self._grading.values()):
            pool.shutdown(wait=False, cancel_futures=True)

    def _fits(self, name: str, prompts: Sequence[Prompt], max_reply: int) -> list[bool]:
        """Whether each prompt leaves room for a reply of so many tokens, its prefix included.

        A group whose replies are cut shorter than those of plain groups would learn that its prompt makes them wrong.
        A window of less than two such replies has to hold half a window after the prompt: else nothing would fit.
        """
        window = self._engine(name).context_window
        rooms = [min(max(1, max_reply - len(prompt.prefix_ids)), window // 2) for prompt in prompts]
        return [self._chat.num_tokens_of(p) + room <= window for p, room in zip(prompts, rooms, strict=True)]

    def _sample(self, name: str, prompts: Iterable[Prompt], num_rollouts: int) -> Stream:
        sampling = self._sampling(num_rollouts)
        uids: list[str] = []

        def source() -> Iterator[RolloutGroup]:
            late = self._engine(name).takes_late_prompts
            return self._generate(name, prompts if late else list(prompts), sampling, uids)

        return Stream(self._pools[name], self._grading[name], source, self._grade, uids)

    def _sampling(self, num_rollouts: int, **changes: float) -> Sampling:
        config = self._config
        options: dict = {"temperature": config.temperature, "max_new_tokens": config.max_response_tokens}
        return Sampling(num_rollouts=num_rollouts, seed=self._seed, step=self._step, **(options | changes))

    def _grade(self, group: RolloutGroup) -> None:
        question = group.prompt.question
        with self.clock.running("grade"):
            grades = self._grader.grade([(rollout.text, question) for rollout in group.rollouts])
        for rollout, grade in zip(group.rollouts, grades, strict=True):
            rollout.answer, rollout.verdict, rollout.reward = grade.answer, grade.verdict, grade.reward
        if judged := [grade for grade in grades if grade.judged]:
            self.count("reward/judged", len(judged))
            self.count("reward/judge_failures", sum(grade.verdict == "ungraded" for grade in judged))
            self.count("reward/judge_malformed", sum(grade.malformed for grade in judged))

    def _generate(
        self, name: str, prompts: Iterable[Prompt], sampling: Sampling, uids: list[str] | None = None
    ) -> Iterator[RolloutGroup]:
        """The engine's groups, with the time from the prompt to its group on the clock."""
        activity: Activity = "rollout" if name == "student" else "teacher"
        taken: list[str] = [] if uids is None else uids
        num_done = 0

        def taking() -> Iterator[Prompt]:
            for prompt in prompts:
                taken.append(prompt.uid)
                self.clock.enter(activity)
                yield prompt

        try:
            given = list(taking()) if isinstance(prompts, Sequence) else taking()
            for group in self._engine(name).generate(given, sampling):
                num_done += 1
                self.clock.leave(activity)
                num_tokens = sum(len(r.completion_ids) - r.num_prefix for r in group.rollouts)
                self.count(f"tokens/{name}_generated", num_tokens)
                self.count(f"tokens/{name}_prompt", len(group.rollouts[0].prompt_ids) + group.rollouts[0].num_prefix)
                yield group
            fault_point(f"sampled-{name}")
        finally:
            self.clock.leave(activity, len(taken) - num_done)

    def _engine(self, name: str) -> RolloutEngine:
        engine = self._engines[name]
        if engine is None:
            raise UserError("this method needs a teacher: set teacher=tiny_teacher, or teacher=hf teacher.path=FOLDER")
        return engine


def _lost(prompt: Prompt) -> Rewrite:
    """A trace that the teacher's window does not hold: as if its rewrite had been cut off."""
    return Rewrite(uid=prompt.uid, text="", answer=None, same_answer=False, truncated=True)


def between_tags(text: str, tag: str) -> str:
    """Content of the last pair of tags after the thinking, which may name the tags itself. Linear in its length."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    found, place = "", text.rfind("</think>") + 1
    while (start := text.find(opening, place)) >= 0 and (end := text.find(closing, start)) >= 0:
        found, place = text[start + len(opening) : end], end + len(closing)
    return found.strip()
