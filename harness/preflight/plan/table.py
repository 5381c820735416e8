"""A plan as tables of at most 120 columns, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from harness.config.cluster import ClusterConfig
from harness.config.gpus import GPUS
from harness.models.kernels import Kernels
from harness.models.shapes import ModelShape
from harness.preflight.placement import place_texts
from harness.preflight.plan.cells import Plan
from harness.preflight.plan.costs import published
from harness.preflight.plan.counting import OF_OTHERS, STEPS_PER_SECOND, Assumptions
from harness.preflight.plan.power import Detectable, detectable_leads
from harness.training.memory import GB

WIDTH = 120
MEMORY_COLUMNS = {
    "weights": ("weights", "16-bit copies"),
    "grad.": ("gradients",),
    "optim.": ("optimizer",),
    "gathered": ("gathered weights", "gathered gradients"),
    "activ.": ("activations", "backward", "logits"),
    "engine": ("engine", "cache"),
    "teacher": ("teacher", "teacher's engine", "teacher's head", "teacher's cache", "scoring"),
    "other": ("runtime",),
}
"""Parts of `harness.training.memory`, as they are added up in the table."""
NOT_IN_IT = (
    "Not in it: evaluation, loading, weights to the engines, responses of one step that end at different times, and "
    "what else runs on the GPUs."
)


def plan_text(plans: Sequence[Plan], assumed: Assumptions, kernels: Kernels) -> str:
    """Models, memory, cost, disk, and what is assumed."""
    cluster = plans[0].config.cluster
    trained = [plan for plan in plans if plan.cost is not None]
    parts: list[Any] = [_head(plans, cluster), "", "Parameters, millions", _models(plans)]
    if trained:
        parts += ["", "Where the teacher is", _places(trained)] if any(plan.teacher for plan in trained) else []
        parts += ["", _memory_title(cluster), _memory(trained), "", "Cost of a run", _costs(trained)]
        parts += [
            "",
            *_totals(plans, trained, cluster),
            "",
            *dict.fromkeys(note for plan in plans for note in plan.notes),
            *_assumptions(trained, assumed, kernels),
        ]
    if leads := detectable_leads(plans, assumed):
        parts += [
            "",
            "Smallest lead that is found with probability 0.8, percentage points",
            _power(leads),
            _spread(assumed),
        ]
    console = Console(width=WIDTH, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(Group(*(part if isinstance(part, Table) else Text(part) for part in parts)))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def plan_json(plans: Sequence[Plan], assumed: Assumptions, kernels: Kernels) -> str:
    """The plans with all digits: bytes, FLOPs, seconds."""
    return json.dumps(
        {
            "cluster": dataclasses.asdict(plans[0].config.cluster),
            "assumed": dataclasses.asdict(assumed) | {"kernels": kernels},
            "cells": [_record(plan) for plan in plans],
            "detectable": [
                {name: _known(value) for name, value in dataclasses.asdict(lead).items()}
                for lead in detectable_leads(plans, assumed)
            ],
        },
        indent=1,
    )


def _record(plan: Plan) -> dict[str, Any]:
    cost, count = plan.cost, plan.count
    paper = published(plan.label, plan.config, plan.cost)
    return {
        "label": plan.label,
        "method": plan.method,
        "student": plan.config.student.name,
        "teacher": None if plan.teacher is None or plan.config.teacher is None else plan.config.teacher.name,
        "num_seeds": plan.num_seeds,
        "learning_rate": None if cost is None else plan.config.update.learning_rate,
        "parameters": plan.student.parameters,
        "teacher_parameters": None if plan.teacher is None else plan.teacher.parameters,
        "memory": plan.memory,
        "peak": plan.peak,
        "tokens": None if count is None else count.tokens,
        "longest": None if count is None else count.longest,
        "num_steps": None if cost is None else cost.num_steps,
        "flops_step": None if cost is None else cost.step_flops,
        "flops_run": None if cost is None else cost.run_flops,
        "seconds_step": None if cost is None else cost.step_seconds,
        "hours": None if cost is None else cost.hours,
        "disk": None if cost is None else cost.disk_bytes,
        "paper": None if paper is None else {"hours": paper[0], "flops": paper[1]},
        "problems": plan.problems,
        "notes": plan.notes,
    }


def _head(plans: Sequence[Plan], cluster: ClusterConfig) -> str:
    num_cells = sum(plan.num_seeds for plan in plans)
    where = f"cluster {cluster.name}: {cluster.num_nodes} node{'s' * (cluster.num_nodes > 1)} x "
    where += f"({cluster.student_gpus} student + {cluster.teacher_gpus} teacher GPUs)"
    kind = f" of {cluster.gpu}" if cluster.gpu else ", GPU not stated: set cluster.gpu for limits and hours"
    return f"{plans[0].config.study}: {num_cells} cells; {where}{kind}"


def _models(plans: Sequence[Plan]) -> Table:
    table = _table(
        "model", "vision", "embed.", "head", "linear att.", "full att.", "all", "known from", left=(0, 7), wrap=(7,)
    )
    seen: dict[str, ModelShape] = {}
    for plan in plans:
        seen[plan.config.student.name] = plan.student
    for plan in plans:
        if plan.teacher is not None and plan.config.teacher is not None:
            seen.setdefault(f"{plan.config.teacher.name} (teacher)", plan.teacher)
    for name, shape in seen.items():
        parts = shape.parameters
        head = "tied" if shape.tied else f"{parts['head'] / 1e6:,.0f}"
        kinds = (parts["linear attention layers"], parts["full attention layers"])
        table.add_row(
            name,
            f"{parts['vision'] / 1e6:,.0f}",
            f"{parts['embeddings'] / 1e6:,.0f}",
            head,
            *(f"{number / 1e6:,.0f}" for number in kinds),
            f"{shape.num_parameters / 1e6:,.1f}",
            shape.source,
        )
    return table


def _places(plans: Sequence[Plan]) -> Table:
    table = _table("samples", "its distribution", "rows", left=(0, 1, 2), wrap=(2,))
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for plan in plans:
        if plan.deployment.teacher is not None:
            samples, scores = place_texts(plan.deployment.teacher)
            rows.setdefault((samples if _is_asked(plan) else "-", scores), {})[plan.label] = None
    for texts, labels in rows.items():
        table.add_row(*texts, ", ".join(labels))
    return table


def _is_asked(plan: Plan) -> bool:
    return plan.count is not None and plan.count.tokens.get("tokens/teacher_generated", 0.0) > 0


def _memory_title(cluster: ClusterConfig) -> str:
    gpu = GPUS.get(cluster.gpu)
    room = f" of {gpu.memory_gb:g}" if gpu else ""
    return (
        f"Memory of a student's GPU, GB{room} (10^9 bytes), at the longest sequence: the parts of an update, and what "
        "sampling takes"
    )


def _memory(plans: Sequence[Plan]) -> Table:
    rows = len(MEMORY_COLUMNS) + 3
    table = _table("student", *MEMORY_COLUMNS, "update", "sampling", "rows", left=(0, rows), wrap=(rows,))
    groups: dict[tuple[str, ...], list[Plan]] = {}
    for plan in plans:
        groups.setdefault((plan.config.student.name, *_memory_cells(plan)), []).append(plan)
    for cells, same in groups.items():
        table.add_row(*cells, ", ".join(plan.label for plan in same))
    return table


def _memory_cells(plan: Plan) -> list[str]:
    assert plan.memory is not None
    update = plan.memory["update"]
    cells = [sum(update.get(part, 0.0) for part in parts) / GB for parts in MEMORY_COLUMNS.values()]
    totals = [sum(parts.values()) / GB for parts in plan.memory.values()]
    return [*(_gigabytes(cell) for cell in cells), *map(_gigabytes, totals)]


def _gigabytes(number: float) -> str:
    return f"{number:.1f}" if number >= 0.05 else f"{number:.1g}" if number else "-"


def _costs(plans: Sequence[Plan]) -> Table:
    table = _table(
        "student", "row", "lr", "student\nMtok", "teacher\nMtok", "update\nMtok", "steps", "FLOPs", "Table 9\nFLOPs",
        "hours", "Table 9\nhours", "disk\nGB", left=(0, 1), wrap=(1,),
    )  # fmt: skip
    for plan in plans:
        assert plan.cost is not None and plan.count is not None
        tokens, cost = plan.count.tokens, plan.cost
        paper = published(plan.label, plan.config, plan.cost)
        sampled = [tokens.get(f"tokens/{name}_generated", 0.0) / 1e6 for name in ("student", "teacher")]
        table.add_row(
            plan.config.student.name,
            plan.label,
            f"{plan.config.update.learning_rate:g}",
            *(f"{number:.1f}" if number else "-" for number in sampled),
            f"{tokens['tokens/student_update'] / 1e6:.1f}",
            str(cost.num_steps),
            f"{cost.run_flops:.1e}",
            "-" if paper is None else f"{paper[1]:.1e}",
            "-" if cost.hours is None else f"{cost.hours:.1f}",
            "-" if paper is None else f"{paper[0]:.0f}",
            f"{cost.disk_bytes / GB:,.0f}",
        )
    return table


def _power(leads: Sequence[Detectable]) -> Table:
    table = _table(
        "student", "suite", "family", "labels", "seeds", "benchmarks", "questions", "one benchmark\nalone",
        "one benchmark\ncorrected", "macro avg\ncorrected", left=(0, 1, 2), wrap=(0,),
    )  # fmt: skip
    for lead in leads:
        questions = f"{min(lead.num_questions):,}", f"{max(lead.num_questions):,}"
        table.add_row(
            lead.student,
            lead.suite,
            lead.family,
            str(lead.num_labels),
            str(lead.num_seeds),
            str(len(lead.num_questions)),
            " to ".join(dict.fromkeys(questions)),
            *(_points(pair) for pair in (lead.alone, lead.corrected, (lead.macro, lead.macro))),
        )
    return table


def _points(pair: tuple[float, float]) -> str:
    """The lead on the largest and on the smallest benchmark."""
    if math.isnan(pair[0]):
        return "one run"
    return " to ".join(dict.fromkeys(f"{lead:.1f}" for lead in pair))


def _known(value: Any) -> Any:
    """NaN is no JSON."""
    if isinstance(value, tuple):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _spread(assumed: Assumptions) -> str:
    return (
        f"By formula: a run's accuracy has the standard deviation {assumed.run_sd:g} over seeds (--run-sd), a response "
        f"{assumed.response_sd:g} about its question's own (--response-sd); --spread STUDY takes both from "
        "a study's runs. Corrected over the labels and benchmarks of a table. One run says nothing about a method."
    )


def _totals(plans: Sequence[Plan], trained: Sequence[Plan], cluster: ClusterConfig) -> list[str]:
    disk = sum(plan.num_seeds * plan.cost.disk_bytes for plan in trained if plan.cost)
    lines = [f"All {sum(plan.num_seeds for plan in plans)} cells: {disk / 1e12:.2f} TB of disk"]
    if all(plan.cost is not None and plan.cost.hours is not None for plan in trained):
        hours = sum(plan.num_seeds * (plan.cost.hours or 0.0) for plan in trained if plan.cost)
        gpus = cluster.num_nodes * (cluster.student_gpus + cluster.teacher_gpus)
        lines[0] += f", {hours:,.0f} hours one after another, {hours * gpus:,.0f} GPU hours"
    return [*lines, NOT_IN_IT]


def _assumptions(plans: Sequence[Plan], assumed: Assumptions, kernels: Kernels) -> list[str]:
    asked = [plan.deployment.teacher.is_aside for plan in plans if plan.deployment.teacher and _is_asked(plan)]
    length = (
        f"{assumed.response_tokens} tokens" if assumed.response_tokens else "as long as it may be, the paper's rule"
    )
    rate = f"{assumed.rollout_rate:g} tokens a second on a GPU"
    steps = assumed.max_steps_per_second or STEPS_PER_SECOND.get(plans[0].deployment.student.engine, OF_OTHERS)
    decode = f"{assumed.bandwidth:.0%} of the memory's bandwidth, a sequence at {steps:g} tokens a second at most"
    how = "flash-linear-attention and causal-conv1d" if kernels == "fla" else "transformers' own code, without kernels"
    together = "hidden by the student's as far as it fits" if any(asked) else "after the student's"
    together += ", where it has GPUs or endpoints of its own" if any(asked) and not all(asked) else ""
    return [
        f"Assumed: every response is {length} (--response-tokens), a prompt {assumed.prompt_tokens} (--prompt-tokens); "
        f"mean accuracy {assumed.accuracy:g} (--accuracy), the teacher's {assumed.teacher_accuracy:g} "
        f"(--teacher-accuracy); the replay buffer is full; {assumed.num_questions:,} questions where only the data say "
        f"(--num-questions); {assumed.mfu:.0%} of the bf16 peak in updates and scoring (--mfu); decoding at "
        f"{rate if assumed.rollout_rate else decode} (--rollout-rate, --bandwidth, --max-steps-per-second); the "
        f"teacher's work is {together}; "
        f"linear attention by {how} (--kernels).",
        "FLOPs are what the harness computes (docs/run_folder.md): every token enters once, samples without advantage "
        "are left out. The paper's Table 9 multiplies RL by the updates a step and is 1.40 to 1.46 times its own rule.",
    ]


def _table(*columns: str, left: Sequence[int], wrap: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in left else "right", no_wrap=i not in wrap, overflow="fold")
    return table
