"""A conformance kit: what every method has to hold, whoever wrote it. One line in a plugin's tests runs it::

    from harness.testing import conformance_test
    test_conformance = conformance_test(MaxRL)

Each check runs the method on the smallest tiny student with the tiny teacher, through the real engine, grader and
update. Needs pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.testing.checks import CHECKS, Check, assert_same_run, run_metrics
from harness.testing.lab import Case
from harness.testing.scripted import ScriptedTeacher, right_trace, wrong_trace
from methods.base import Method

__all__ = [
    "CHECKS",
    "Case",
    "ScriptedTeacher",
    "assert_same_run",
    "conformance_test",
    "right_trace",
    "run_metrics",
    "wrong_trace",
]


def conformance_test(
    method_class: type[Method], *, teacher: ScriptedTeacher | None = None, **options: Any
) -> Callable[..., None]:
    """A pytest function with one case a check. `options` are those of the class; small ones are filled in.

    `teacher` gives replies that lead to the method's own prompts and rewrites. Without it the tiny teacher answers, as
    it always does in the check of complete runs.
    """
    import pytest

    case = Case(method_class, options, teacher)

    @pytest.mark.parametrize("check", list(CHECKS.values()), ids=list(CHECKS))
    def test_conformance(check: Check, tmp_path: Path) -> None:
        check(case, tmp_path)

    return test_conformance
