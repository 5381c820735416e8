r"""Measures the tiny family and writes `card.json`: what each member can do before any method trains it.

All questions are held out. The card has:

- plain accuracy per task and level, greedy and at temperature 1;
- BCQ, NCQ and hint accuracy on hard questions;
- whether the teacher's summaries are faithful and its hints usable.

Candidates and hints are made as in a run: sampled by student and teacher, compressed or turned into a hint by the
teacher.
`python -m harness.builders.tiny.card` measures the weights of the package anew.
"""

from __future__ import annotations

import json
import platform
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from harness.config.schema import ModelConfig
from harness.data.arithmetic import LEVELS, count_questions
from harness.data.synthetic import TASKS, make_questions
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.models.tiny import SIZES, STUDENTS, WEIGHTS
from harness.rewards.boxed import last_boxed
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import Prompt, Question
from methods.prompts import bcq_text, compress_text, hint_text, ncq_text, plain_text, write_hint_text

CARD = WEIGHTS.with_name("card.json")
GROUP, TEACHER_GROUP = 8, 4
MAX_NEW_TOKENS = 96
BATCH = 256
CANDIDATE_TASKS = ("arithmetic", "bar_chart", "bar_clip")
"""One a modality."""


@dataclass(frozen=True)
class Member:
    """One model of the family, loaded to be measured (fp32), with the rollout engine that runs use."""

    model: Any
    engine: TransformersEngine

    @classmethod
    def load(cls, folder: Path) -> Member:
        config = ModelConfig(name=folder.name, path=str(folder), dtype="float32")
        chat = Chat(load_tokenizer(config), config)
        model = load_model(config, "cpu")
        language_model = LanguageModel.for_chat(model, chat)
        return cls(model, TransformersEngine(language_model, chat, sampler="student", max_sequences=BATCH))

    def reply(self, asked: Sequence[tuple[Question, str]], *, temperature: float, seed: int = 0) -> list[str]:
        """One completion of every user turn, shown with its question's media; temperature 0 is greedy."""
        prompts = [
            Prompt(uid=str(i), question=question, messages=({"role": "user", "content": turn},))
            for i, (question, turn) in enumerate(asked)
        ]
        prompts.sort(key=lambda prompt: len(prompt.messages[0]["content"]))  # less padding
        sampling = Sampling(seed=seed, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS)
        replies = {int(group.uid): group.rollouts[0].text for group in self.engine.generate(prompts, sampling)}
        return [replies[i] for i in range(len(asked))]


NOTHING = Question(id="", text="", answer="")
"""The question of a turn that rewrites text: such a turn shows no media."""


def held_out(task: str, level: int, num_questions: int, *, seed: int = 0) -> list[Question]:
    """Held-out questions of one task and level; all there are where that is fewer."""
    if (task, level) == ("arithmetic", 1):
        num_questions = min(num_questions, count_questions(1)["held_out"])
    return make_questions([task], [level], num_questions, seed=seed, split="held_out")


def plain_accuracy(
    member: Member, task: str, level: int, num_questions: int, *, temperature: float, seed: int = 0
) -> float | None:
    """Accuracy on held-out questions of one task and level."""
    prompts = [(q, plain_text(q)) for q in held_out(task, level, num_questions, seed=seed)]
    return accuracy(member, prompts, temperature=temperature, seed=seed)


def groups(member: Member, questions: Sequence[Question], size: int, *, seed: int) -> list[list[str]]:
    """`size` plain completions of every question at temperature 1."""
    replies = member.reply([(q, plain_text(q)) for q in questions for _ in range(size)], temperature=1.0, seed=seed)
    return [replies[i * size : (i + 1) * size] for i in range(len(questions))]


def compress(teacher: Member, responses: Sequence[str]) -> list[str | None]:
    """The teacher's summary of every response, greedy; None where a reply has no summary."""
    turns = [(NOTHING, compress_text(response, max_lines=5)) for response in responses]
    return [between("summary", reply) for reply in teacher.reply(turns, temperature=0.0)]


def write_hints(teacher: Member, responses: Sequence[str]) -> list[str]:
    """The teacher's hint from every response, greedy; empty where a reply has no hint."""
    turns = [(NOTHING, write_hint_text(response)) for response in responses]
    return [between("hint", reply) or "" for reply in teacher.reply(turns, temperature=0.0)]


def between(tag: str, reply: str) -> str | None:
    match = re.search(f"<{tag}>(.*?)</{tag}>", reply, re.DOTALL)
    return match[1].strip() if match else None


@dataclass(frozen=True)
class Case:
    """A question that the student finds hard, one right teacher response (if any) and the student's wrong ones."""

    question: Question
    right: str | None
    wrong: list[str]


def hard_cases(student: Member, teacher: Member, questions: Sequence[Question], *, seed: int) -> list[Case]:
    """The questions that the student fails in more than half of its group."""
    rng = random.Random(seed)
    cases = []
    student_groups = groups(student, questions, GROUP, seed=seed)
    teacher_groups = groups(teacher, questions, TEACHER_GROUP, seed=seed)
    for q, ours, theirs in zip(questions, student_groups, teacher_groups, strict=True):
        wrong = [reply for reply in ours if last_boxed(reply) != q.answer]
        right = [reply for reply in theirs if last_boxed(reply) == q.answer]
        if 2 * len(wrong) > GROUP:
            cases.append(Case(q, rng.choice(right) if right else None, wrong))
    return cases


def candidate_accuracy(
    student: Member, teacher: Member, task: str, level: int, num_questions: int, *, seed: int = 0
) -> dict[str, float | None]:
    """Accuracy of BCQ, NCQ, hint and plain prompts (temperature 1) on the hard questions among `num_questions`.

    `bcq_both_wrong` has two wrong candidates in the place of a right and a wrong one: a student that reads them does
    badly there. `same_right` and `same_wrong` are the shares of right and wrong traces whose summary keeps the answer,
    or has none where the trace has none; only such summaries are candidates. `good_hints` is the share of right traces
    whose hint is used (`good_hint`).
    """
    rng = random.Random(seed)
    cases = hard_cases(student, teacher, held_out(task, level, num_questions, seed=seed), seed=seed)
    right = [case.right for case in cases if case.right is not None]
    hints = dict(zip(right, write_hints(teacher, right), strict=True))
    wrong = [reply for case in cases for reply in case.wrong]
    summary = dict(zip((*right, *wrong), compress(teacher, (*right, *wrong)), strict=True))

    bcq, both_wrong, ncq, hinted = [], [], [], []
    for case in cases:
        used = [text for reply in case.wrong if same_answer(reply, summary[reply]) and (text := summary[reply])]
        if used and case.right is not None and same_answer(case.right, summary[case.right]):
            pair = [summary[case.right] or "", rng.choice(used)]
            rng.shuffle(pair)
            bcq.append((case.question, bcq_text(case.question, pair)))
        if len(set(used)) > 1:
            both_wrong.append((case.question, bcq_text(case.question, rng.sample(sorted(set(used)), 2))))
        if case.right is not None and good_hint(hints[case.right], case.question.answer):
            hinted.append((case.question, hint_text(case.question, hints[case.right])))
        answers = list(dict.fromkeys(answer for reply in case.wrong if (answer := last_boxed(reply)) is not None))
        ncq.append((case.question, ncq_text(case.question, answers, used)))
    plain = [(case.question, plain_text(case.question)) for case in cases]
    return {
        "num_hard": len(cases),
        "bcq": accuracy(student, bcq, temperature=1.0, seed=seed),
        "bcq_both_wrong": accuracy(student, both_wrong, temperature=1.0, seed=seed),
        "ncq": accuracy(student, ncq, temperature=1.0, seed=seed),
        "hint": accuracy(student, hinted, temperature=1.0, seed=seed),
        "plain": accuracy(student, plain, temperature=1.0, seed=seed),
        "same_right": mean([same_answer(reply, summary[reply]) for reply in right]),
        "same_wrong": mean([same_answer(reply, summary[reply]) for reply in wrong]),
        "good_hints": mean([good_hint(hints[case.right], case.question.answer) for case in cases if case.right]),
    }


def same_answer(response: str, summary: str | None) -> bool:
    return summary is not None and last_boxed(summary) == last_boxed(response)


def good_hint(hint: str, answer: str) -> bool:
    """There is a hint, it has no box, and the answer is none of its numbers."""
    return hint != "" and "\\boxed" not in hint and answer not in re.findall(r"\d+", hint)


def accuracy(member: Member, prompts: Sequence[tuple[Question, str]], *, temperature: float, seed: int) -> float | None:
    """Share of user turns whose reply boxes the answer of their question."""
    replies = member.reply(prompts, temperature=temperature, seed=seed)
    return mean([last_boxed(reply) == q.answer for (q, _), reply in zip(prompts, replies, strict=True)])


def mean(values: Sequence[bool]) -> float | None:
    """None of nothing."""
    return round(sum(values) / len(values), 4) if values else None


def measure(size: str, weights: Path, num_questions: int, report: Callable[[str], None] = print) -> dict[str, Any]:
    """The card's entry of one size."""
    member = Member.load(weights / size)
    record = json.loads((weights / size / "build.json").read_text())
    record["parameters"] = sum(p.numel() for p in member.model.parameters())
    record["text_parameters"] = sum(p.numel() for p in member.model.model.language_model.parameters())
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        record[name] = {
            task: {
                str(level): plain_accuracy(member, task, level, num_questions, temperature=temperature)
                for level in LEVELS
            }
            for task in TASKS
        }
        report(f"{size} {name} {record[name]}")
    if size in STUDENTS:
        teacher = Member.load(weights / "teacher")
        record["candidates"] = {}
        for task in CANDIDATE_TASKS:
            record["candidates"][task] = {
                str(level): candidate_accuracy(member, teacher, task, level, num_questions) for level in LEVELS
            }
            report(f"{size} {task} {record['candidates'][task]}")
    return record


def write_card(weights: Path = WEIGHTS, path: Path = CARD, *, num_questions: int = 240) -> None:
    """Measure every size that is in `weights` and write the card."""
    torch.set_num_threads(1)
    sizes = [size for size in SIZES if (weights / size).is_dir()]
    card = {
        "num_questions": num_questions,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "machine": f"{platform.machine()}, 1 thread",
        "models": {size: measure(size, weights, num_questions) for size in sizes},
    }
    path.write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    write_card()
