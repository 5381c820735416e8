r"""The candidate-match audit (arXiv 2606.18216, App. F.7): whose answer does a reply to a candidate prompt give?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from harness.types import Match, Prompt, PromptKind, Rollout, RolloutGroup

CANDIDATE_KINDS: tuple[PromptKind, ...] = ("bcq", "ncq")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def normal_answer(answer: str) -> str:
    r"""A boxed answer as the audit compares it: `\text{}` stripped, white space collapsed, lower case.

    Example: `\text{ Blue }  whale` becomes `blue whale`.
    """
    return " ".join(_TEXT.sub(r"\1", answer).split()).lower()


def candidate_match(rollout: Rollout, prompt: Prompt) -> Match | None:
    """Whether a reply gives the right trace's answer, a wrong one's, or another; None for a prompt without candidates.

    The audit compares strings, not values: that is the grader's affair.
    """
    if prompt.kind not in CANDIDATE_KINDS:
        return None
    if rollout.answer is None:
        return "other"
    answer = normal_answer(rollout.answer)
    if prompt.positive_answer is not None and answer == normal_answer(prompt.positive_answer):
        return "positive"
    return "negative" if answer in map(normal_answer, prompt.negative_answers) else "other"


def match_counts(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Graded replies to candidate prompts by verdict and match: `<kind>/right_positive` to `<kind>/wrong_other`."""
    counts: Counter[str] = Counter()
    for group in groups:
        for rollout in group.rollouts:
            match = candidate_match(rollout, group.prompt)
            if match is not None and rollout.is_graded:
                verdict = "right" if rollout.reward > 0.5 else "wrong"
                counts[f"{group.prompt.kind}/{verdict}_{match}"] += 1
    return {name: float(count) for name, count in counts.items()}
