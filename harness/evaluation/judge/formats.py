"""All forms of judging by name, and what identifies their wording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from harness.evaluation.judge import official
from harness.rewards.judge.forms import SHARED, JudgeFormat
from harness.types import Question

FORMATS: dict[str, JudgeFormat] = {
    "shared": SHARED,
    "mmvet": official.MMVET,
    "multichallenge": official.MULTICHALLENGE,
    "mmvu": official.MMVU,
    "hle": official.HLE,
    "charxiv": official.CHARXIV,
}


def wording(name: str) -> str:
    """A short hash of all that a form says besides its questions: of what it asks about samples of each kind."""
    asked = [
        FORMATS[name].messages(question, "A response.", answer)
        for question in _samples(name)
        for answer in (None, "An answer.")
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def _samples(name: str) -> Iterable[Question]:
    """A question for every branch of a form's wording."""

    def sample(**metadata: object) -> Question:
        return Question(id="sample", text="A question.", answer="A reference.", metadata=metadata)

    if name == "charxiv":
        yield from (sample(kind="reasoning", category=category) for category in range(1, 5))
        yield from (sample(kind="descriptive", template=template) for template in range(1, 20))
    elif name == "multichallenge":
        yield sample(target_question="A criterion?", pass_criteria="YES")
    else:
        yield sample()
        yield sample(choices=["one", "two"])
