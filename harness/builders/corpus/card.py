"""The data card: `card.json` for programs, `README.md` for people. Nothing in it depends on when it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.builders.corpus.reasons import KEPT, REASONS
from harness.builders.corpus.tables import SUB_DATASETS, Tier

FORMAT = 1
Table = Sequence[tuple[int, str, str, str, int]]
"""(number of the source, its name for the sub-dataset, canonical name or "", reason, rows)."""


def card(
    inputs: Mapping[str, Any],
    fingerprint: str,
    sources: Sequence[str],
    table: Table,
    examples: Mapping[str, Sequence[str]],
    caps: Mapping[Tier, int],
    shards: Mapping[str, str],
) -> dict[str, Any]:
    """Every row of the sources is counted once: under `kept`, `over_cap` or one reason of rejection."""
    totals: Counter[str] = Counter()
    by_subset: dict[str, Counter[str]] = {subset.name: Counter() for subset in SUB_DATASETS}
    by_name: dict[tuple[str, str], Counter[str]] = {}
    for source, raw, canonical, reason, number in table:
        totals[reason] += number
        by_name.setdefault((sources[source], raw), Counter())[reason] += number
        if canonical:
            by_subset[canonical][reason] += number
    tiers: Counter[str] = Counter()
    for subset in SUB_DATASETS:
        tiers[str(subset.tier)] += by_subset[subset.name][KEPT]
    return {
        "format": FORMAT,
        "name": "zppo77k",
        "fingerprint": fingerprint,
        "num_rows": totals[KEPT],
        "tiers": dict(sorted(tiers.items())),
        "reasons": _ordered(totals),
        "near_duplicates_removed": None
        if inputs["near_duplicates"] is None
        else totals["near_duplicate_text"] + totals["near_duplicate_image"],
        "sub_datasets": {
            subset.name: {
                "tier": subset.tier,
                "cap": caps[subset.tier],
                "num_rows": by_subset[subset.name][KEPT],
                "reasons": _ordered(by_subset[subset.name]),
            }
            for subset in SUB_DATASETS
        },
        "names": [
            {"source": source, "name": raw, "reasons": _ordered(counts)}
            for (source, raw), counts in sorted(by_name.items())
        ],
        "examples": {reason: list(examples[reason]) for reason in REASONS if reason in examples},
        "shards": dict(shards),
        **inputs,
    }


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown, with the header by which the hub's libraries find the shards."""
    options = card["options"]
    near = card["near_duplicates"]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: train-*.parquet",
        "---",
        "# ZPPO-77K",
        "",
        f"{card['num_rows']} questions with a picture and a short gold answer, built by `zppo data build zppo77k` "
        f"(seed {options['seed']}): {card['tiers']['1']} of tier 1, {card['tiers']['2']} of tier 2.",
        "",
        "Train on it with `zppo train data=zppo77k data.path=FOLDER`. Everything here is in `card.json` as well, with "
        "the digests of the shards.",
        "",
        "## Sources",
        "",
        *_table(
            ("source", "from", "revision", "rows"),
            [(n, s["location"], s["revision"] or "-", s["num_rows"]) for n, s in card["sources"].items()],
        ),
        "",
        "## What became of their rows",
        "",
        *_table(
            ("rows", "reason", "meaning"),
            [
                (number, reason, "in the corpus" if reason == KEPT else REASONS[reason])
                for reason, number in card["reasons"].items()
            ],
        ),
        "",
        "Near duplicates of benchmarks: "
        + (
            "not looked for (`--near-duplicates`)."
            if near is None
            else f"{card['near_duplicates_removed']} rows removed, by {sum(near['questions'].values())} questions of "
            f"{len(near['questions'])} benchmarks."
        ),
        "",
        "## Sub-datasets",
        "",
        *_table(
            ("sub-dataset", "tier", "cap", "rows", "left out"),
            [
                (name, s["tier"], s["cap"], s["num_rows"], _left_out(s["reasons"]))
                for name, s in card["sub_datasets"].items()
            ],
        ),
        "",
        "## Examples of what was left out",
        "",
        *(f"- {reason}: {message}" for reason, messages in card["examples"].items() for message in messages),
        "",
        "## Options and versions",
        "",
        *(f"- {name}: {value}" for name, value in {**options, **card["prompt"], **card["versions"]}.items()),
    ]
    return "\n".join(lines) + "\n"


def summary(card: Mapping[str, Any], folder: str) -> str:
    """What the command prints in the end."""
    width = max(len(str(number)) for number in card["reasons"].values())
    near = card["near_duplicates_removed"]
    lines = [
        *(
            f"{number:>{width}}  {reason:<21}{'in the corpus' if reason == KEPT else REASONS[reason]}"
            for reason, number in card["reasons"].items()
        ),
        "near duplicates of benchmarks: " + ("not looked for" if near is None else f"{near} removed"),
        f"{card['num_rows']} rows in {len(card['shards'])} shards: {folder} (README.md, card.json)",
        f"train on it: zppo train data=zppo77k data.path={folder}",
    ]
    return "\n".join(lines)


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return {reason: counts[reason] for reason in (KEPT, *REASONS) if counts[reason]}


def _left_out(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items() if reason != KEPT) or "-"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows)]
