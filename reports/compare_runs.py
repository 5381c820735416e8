"""`zppo report --compare A B`: what differs between two run folders, as aligned text for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reports.cost import duration, run_cost
from reports.plots.data import RUN_KEYS
from reports.runs.collect import Run, flatten, score_files
from reports.runs.damage import config_problem, json_rows

ABSENT = "(absent)"
SAME = "  the same"
Rows = list[list[str]]


def compare_runs(a: Path, b: Path) -> str:
    """Configuration, versions, evaluation cards, scores and cost of two runs; what is equal is left out, except scores.

    A difference of scores is given only where both have the same evaluation card. Then it is also given how many
    questions score higher and lower in B (paired by `uid`, of `rows.jsonl`; equal cards ask the same questions).
    Raises ValueError where a folder has no readable run.
    """
    runs = [_run(Path(folder)) for folder in (a, b)]
    cards = [_cards(run) for run in runs]
    sections = [
        "\n".join(f"{name}  {run.folder} ({run.info['status']})" for name, run in zip("AB", runs, strict=True)),
        _section("Configuration", _differences(*map(_config, runs))),
        _section("Versions", _differences(*map(_versions, runs))),
        _section("Evaluation cards", _card_lines(*cards), "of the benchmarks that both were evaluated on"),
        _section("Scores", _score_lines(runs), "in percent"),
        _section("Cost", _cost_lines(runs)),
    ]
    return "\n\n".join(sections)


def _run(folder: Path) -> Run:
    file = folder / "run.json"
    if not file.is_file():
        raise ValueError(f"no run in {folder}: name a run folder, such as outputs/quickstart/zppo/tiny_s/seed0")
    info = _json(file)
    for name in ("status", "started", *RUN_KEYS):
        if not isinstance(info, dict) or name not in info:
            raise ValueError(f"{file} has no '{name}': it was not written by this harness, name another folder")
    return Run(folder, info, None)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}): copy the run again") from error


def _section(title: str, lines: list[str], note: str = "") -> str:
    return "\n".join([title + (f" ({note})" if note else ""), *(lines or [SAME])])


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """A line for each key whose values differ, in alphabetical order."""
    keys = [key for key in sorted(a.keys() | b.keys()) if _text(a, key) != _text(b, key)]
    return _aligned([["", "A", "B"], *([key, _text(a, key), _text(b, key)] for key in keys)]) if keys else []


def _text(values: Mapping[str, Any], key: str) -> str:
    """The value as JSON, which shows types and escapes what could steer a terminal."""
    return json.dumps(values[key], sort_keys=True, default=str) if key in values else ABSENT


def _aligned(rows: Rows, side: Callable[[str, int], str] = str.ljust) -> list[str]:
    """Columns two spaces apart, the first to the left, the others to `side`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = [str.ljust, *[side] * (len(widths) - 1)]
    return [
        "  " + "  ".join(put(cell, w) for put, cell, w in zip(sides, row, widths, strict=True)).rstrip() for row in rows
    ]


def _config(run: Run) -> dict[str, Any]:
    file = run.folder / "config.yaml"
    if problem := config_problem(run.folder, run.info):
        raise ValueError(f"{run.folder}: {problem}: copy the complete run folder")
    try:
        return flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} cannot be read as YAML: copy the run again") from error


def _versions(run: Run) -> dict[str, Any]:
    fields = {name: run.info.get(name) for name in ("schema_version", "git_commit", "method_class", "machine")}
    return fields | (run.info.get("versions") or {})


def _cards(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """The flattened evaluation card of each (suite, benchmark); one that the folder does not hold is only its hash."""
    found = {}
    for file in score_files(run.folder):
        beside = file.with_name("protocol.json")
        described = _json(beside) if beside.is_file() else {}
        # Before version 2 all benchmarks of a suite shared one protocol.
        cards = described.get("cards") or {described.get("protocol"): described.get("settings")}
        for benchmark, _, protocol in _scores(file):
            known = cards.get(protocol)
            found[file.parent.name, benchmark] = (flatten(known) if known else {}) | {"hash": protocol}
    return found


def _scores(file: Path) -> list[tuple[str, float | None, str | None]]:
    """Benchmark, score in percent and protocol of each row, None for what a benchmark that could not be run lacks."""
    table = pd.read_csv(file, dtype={"benchmark": str, "protocol": str})
    for name in ("benchmark", "score", "protocol"):
        if name not in table:
            raise ValueError(f"{file} has no column '{name}': evaluate the run again")
    scores = [None if pd.isna(score) else float(score) for score in pd.to_numeric(table["score"], errors="coerce")]
    protocols = [None if pd.isna(protocol) else str(protocol) for protocol in table["protocol"]]
    return list(zip(map(str, table["benchmark"]), scores, protocols, strict=True))


def _card_lines(a: dict[tuple[str, str], dict[str, Any]], b: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Benchmarks with the same differences share a line."""
    by_difference: dict[tuple[str, ...], list[str]] = {}
    for key in a:
        # A benchmark that could not be run has no card.
        if key not in b or None in (a[key]["hash"], b[key]["hash"]) or a[key]["hash"] == b[key]["hash"]:
            continue
        lines = tuple(_differences(*(_without_hash(card[key]) for card in (a, b))))
        unknown = (f"  only the hashes are known: {a[key]['hash']} and {b[key]['hash']}",)
        by_difference.setdefault(lines or unknown, []).append("/".join(key))
    return [line for lines, names in by_difference.items() for line in (f"  {', '.join(names)}:", *lines)]


def _without_hash(card: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in card.items() if name != "hash"}


def _score_lines(runs: list[Run]) -> list[str]:
    tables = [_by_benchmark(run) for run in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    if not keys:
        return ["  neither run is evaluated"]
    marks = [_marks(run) for run in runs]
    rows = [["benchmark", "A", "B", "B - A", "higher in B", "lower in B", "paired", ""]]
    for key in keys:
        (a, card_a), (b, card_b) = (table.get(key, (None, None)) for table in tables)
        cells = ["/".join(key), *("-" if value is None else f"{value:.1f}" for value in (a, b))]
        if a is None or b is None:
            rows.append([*cells, "-", "-", "-", "-", "no score of " + " and ".join(_missing(a, b))])
        elif card_a != card_b:
            rows.append([*cells, "-", "-", "-", "-", "other evaluation card: not compared"])
        else:
            rows.append([*cells, f"{b - a:+.1f}", *_flips(marks[0].get(key, {}), marks[1].get(key, {})), ""])
    return _aligned(rows, str.rjust)


def _missing(a: float | None, b: float | None) -> list[str]:
    return [name for name, value in (("A", a), ("B", b)) if value is None]


def _by_benchmark(run: Run) -> dict[tuple[str, str], tuple[float | None, str | None]]:
    """Score in percent (None: a hole) and protocol by (suite, benchmark)."""
    return {
        (file.parent.name, benchmark): (score, protocol)
        for file in score_files(run.folder)
        for benchmark, score, protocol in _scores(file)
    }


def _marks(run: Run) -> dict[tuple[str, str], dict[str, float]]:
    """The mark in [0, 1] of each graded question by its uid, by (suite, benchmark)."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for scores in score_files(run.folder):
        file = scores.with_name("rows.jsonl")
        for row in json_rows(file)[0]:
            if not {"benchmark", "uid", "score"} <= row.keys():
                raise ValueError(f"{file} has rows without benchmark, uid or score: evaluate the run again")
            if row["score"] is not None:
                found.setdefault((file.parent.name, row["benchmark"]), {})[row["uid"]] = float(row["score"])
    return found


def _flips(a: dict[str, float], b: dict[str, float]) -> list[str]:
    """Paired questions whose mark is higher in B, those where it is lower, and how many are paired."""
    paired = a.keys() & b.keys()
    if not paired:
        return ["-", "-", "-"]
    higher, lower = (sum(sign * (b[uid] - a[uid]) > 0 for uid in paired) for sign in (1, -1))
    return [str(higher), str(lower), str(len(paired))]


def _cost_lines(runs: list[Run]) -> list[str]:
    a, b = map(run_cost, runs)
    rows = [["", "A", "B", "B / A"]]
    for name in dict.fromkeys([*max(a, b, key=len), *a, *b]):
        values = [costs.get(name, float("nan")) for costs in (a, b)]
        if not all(pd.isna(value) for value in values):
            ratio = values[1] / values[0] if values[0] else float("nan")
            rows.append([name, *(_amount(name, value) for value in values), "-" if pd.isna(ratio) else f"{ratio:.2f}"])
    return _aligned(rows, str.rjust) if len(rows) > 1 else ["  not known of either run"]


def _amount(name: str, value: float) -> str:
    if name.endswith("_seconds"):
        return duration(value)
    if pd.isna(value):
        return "-"
    return f"{value:.3g}" if name.startswith("flops") else f"{value:,.0f}"
