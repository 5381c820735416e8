"""The grader under hostile answers, and beside the libraries it uses: `python -m benchmarks.grading`.

Grades `--gradings` replies, `--hostile` of them hostile, in the worker processes of a run: rate, verdicts, workers that
had to be replaced. Then the agreement with math-verify and mathruler on pairs whose truth is known.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import get_args

from benchmarks.grading_cases import PAIRS, Case, boxed, hostile, question
from harness.config.schema import RewardConfig
from harness.rewards.workers import Grader
from harness.types import Verdict

Judge = Callable[[str, str], bool]
"""Whether an answer is right, given the gold answer."""


def ordinary(num: int, rng: random.Random) -> list[Case]:
    """Replies that need a library (decimals against fractions), half of them right."""
    cases = []
    for _ in range(num):
        numerator, right = rng.randrange(1, 10_000), rng.random() < 0.5
        answer = f"\\frac{{{numerator if right else numerator + 1}}}{{8}}"
        verdict = "correct" if right else "wrong"
        asked = question(str(numerator / 8))
        cases.append(Case(kind="ordinary", response=boxed(answer), question=asked, verdict=verdict))
    return cases


def mixed(num: int, hostile_share: float, seed: int) -> list[Case]:
    """`num` cases in a random order, the hostile ones drawn from all kinds alike."""
    rng = random.Random(seed)
    num_hostile = round(num * hostile_share)
    pool: list[Case] = []
    while len(pool) < num_hostile:
        pool += rng.sample(hostile(), len(hostile()))
    cases = ordinary(num - num_hostile, rng) + pool[:num_hostile]
    rng.shuffle(cases)
    return cases


def as_expected(case: Case, verdict: str) -> bool:
    return verdict != "correct" if case.verdict == "not correct" else verdict == case.verdict


def rate(cases: list[Case], config: RewardConfig, name: str) -> None:
    """Grade `cases` in blocks like a run's and print a line."""
    counts: Counter[str] = Counter()
    unexpected = 0
    with Grader(config) as grader:
        grader.grade([(boxed("0.5"), question("1/2"))] * 8)  # the workers are up
        started = time.perf_counter()
        for start in range(0, len(cases), 512):
            block = cases[start : start + 512]
            grades = grader.grade([(case.response, case.question) for case in block])
            counts.update(grade.verdict for grade in grades)
            unexpected += sum(not as_expected(case, g.verdict) for case, g in zip(block, grades, strict=True))
        seconds = time.perf_counter() - started
        verdicts = ", ".join(f"{counts[name]} {name}" for name in get_args(Verdict))
        print(
            f"{name}: {len(cases)} gradings in {seconds:.1f} s, {len(cases) / seconds:.0f}/s; {verdicts}; "
            f"{unexpected} unexpected; {grader.num_replaced} workers replaced",
            flush=True,
        )


def by_math_verify(gold: str, answer: str) -> bool:
    """As its README has it: the gold answer in dollars, the reply with its box."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(boxed(answer))))


def by_mathruler(gold: str, answer: str) -> bool:
    from mathruler.grader import extract_boxed_content, grade_answer

    return bool(grade_answer(extract_boxed_content(boxed(answer)), gold))


LIBRARIES: dict[str, Judge] = {"math_verify": by_math_verify, "mathruler": by_mathruler}


def installed() -> dict[str, Judge]:
    return {name: judge for name, judge in LIBRARIES.items() if find_spec(name)}


def by_grader(grader: Grader, gold: str, answer: str) -> bool:
    return grader.grade([(boxed(answer), question(gold))])[0].verdict == "correct"


def agreement(library: str) -> dict[str, tuple[int, int, int, list[tuple[str, str]]]]:
    """By kind: pairs, those the library is right about, those the grader with it is, and where only the library is."""
    rows = {}
    with Grader(RewardConfig(grader=library)) as grader:
        for kind, pairs in PAIRS.items():
            theirs = [LIBRARIES[library](gold, answer) == truth for gold, answer, truth in pairs]
            ours = [by_grader(grader, gold, answer) == truth for gold, answer, truth in pairs]
            lost = [pair[:2] for pair, a, b in zip(pairs, theirs, ours, strict=True) if a and not b]
            rows[kind] = (len(pairs), sum(theirs), sum(ours), lost)
    return rows


def print_agreement() -> None:
    tables = {name: agreement(name) for name in installed()}
    missing = [name for name in LIBRARIES if name not in tables]
    print(f"\nRight about pairs of answers{'; not installed: ' + ', '.join(missing) if missing else ''}\n")
    columns = [f"{name} alone | grader with {name}" for name in tables]
    print("| pairs | number | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * (1 + 2 * len(tables)))
    for kind, pairs in PAIRS.items():
        cells = [f"{table[kind][1]} | {table[kind][2]}" for table in tables.values()]
        print(f"| {kind} | {len(pairs)} | " + " | ".join(cells) + " |")
    for name, table in tables.items():
        lost = [pair for row in table.values() for pair in row[3]]
        print(f"\n{name} right where the grader with it is not: {lost or 'nowhere'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gradings", type=int, default=10_000)
    parser.add_argument("--hostile", type=float, default=0.02, help="share of hostile replies")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpu-seconds", type=float, default=5.0)
    parser.add_argument("--grader", default="math_verify", choices=tuple(LIBRARIES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = RewardConfig(grader=args.grader, num_workers=args.workers, cpu_seconds=args.cpu_seconds)
    print(f"load of the machine {os.getloadavg()[0]:.1f}; {args.workers} workers, {args.cpu_seconds:g} s of CPU time")
    for share in (0.0, args.hostile):
        rate(mixed(args.gradings, share, args.seed), config, f"{args.grader}, {share:.0%} hostile")
    print_agreement()


if __name__ == "__main__":
    main()
