"""The tables against App. B.1, and names against what the sources write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.builders.corpus.options import BuildOptions
from harness.builders.corpus.tables import (
    NOT_LISTED,
    SOURCES,
    SUB_DATASETS,
    canonical_name,
    fold,
    is_left_out,
    plain_name,
    sub_datasets,
)

VERO_TIER1 = (
    "ai2d", "geo170k", "geomverse", "geoqa_plus", "mmk12", "cosyn_math", "cosyn_chart", "cosyn_diagram", "cosyn_table",
    "wemath", "tqa", "visualwebinstruct", "chartqa", "arxivqa",
)  # fmt: skip
VERO_TIER2 = (
    "pathvqa", "vqarad", "raven", "evochart", "infographic_vqa", "aokvqa", "gqa", "iconqa", "vqav2", "visual7w",
    "tallyqa", "pixelreasoner", "multihop", "pixmo", "visual_probe",
)  # fmt: skip
MMFINEREASON_TIER1 = (
    "mmr1", "euclid", "geo170k", "geo3k", "mm_openr1", "wemath", "visualwebinstruct", "bmmr", "tqa", "ai2d",
    "scienceqa", "virl39k",
)  # fmt: skip
MMFINEREASON_TIER2 = ("raven", "visualsphinx", "puzzleqa", "llava_cot", "zebra_cot")
RAW = [
    (source.name, raw, subset.name)
    for source in SOURCES
    for subset in SUB_DATASETS
    for raw in subset.names(source.name)
]


@pytest.mark.clause("C100")
def test_the_tiers_are_those_of_the_paper() -> None:
    tiers = {tier: {s.name for s in SUB_DATASETS if s.tier == tier} for tier in (1, 2)}
    assert tiers[1] == {*VERO_TIER1, *MMFINEREASON_TIER1}
    assert tiers[2] == {*VERO_TIER2, *MMFINEREASON_TIER2}
    assert {s.name for s in SUB_DATASETS if s.vero} == {*VERO_TIER1, *VERO_TIER2}
    # MMK12 is in MMFineReason as well; the paper lists it once, without a source.
    assert {s.name for s in SUB_DATASETS if s.mmfinereason} == {*MMFINEREASON_TIER1, *MMFINEREASON_TIER2, "mmk12"}


@pytest.mark.clause("C100")
def test_the_caps_bound_the_corpus_as_the_paper_says() -> None:
    # 14 of Vero and 7 more of MMFineReason in tier 1, 15 and 4 more in tier 2: 21 * 2800 + 19 * 1400 = 58800 + 26600.
    caps = BuildOptions().caps()
    assert len(VERO_TIER1) + len(VERO_TIER2) == 29
    assert sum(caps[subset.tier] for subset in SUB_DATASETS) == 85_400


@pytest.mark.clause("C101")
@pytest.mark.parametrize(("source", "raw", "name"), RAW)
def test_names_of_the_sources(source: str, raw: str, name: str) -> None:
    assert canonical_name(source, raw) == name
    assert canonical_name(source, raw.partition("-")[2] or raw) in (name, None)
    assert not is_left_out(source, raw)


@pytest.mark.parametrize(
    ("source", "raw", "name"),
    [
        ("vero", "ai2d_merged", "ai2d"),
        ("vero", "AI2D", "ai2d"),
        ("vero", "CoSyn_400k_math", "cosyn_math"),
        ("vero", "cosyn_math", "cosyn_math"),
        ("vero", "wemath20_pro", "wemath"),
        ("vero", "MMR1", None),
        ("mmfinereason", "Geometry3K", "geo3k"),
        ("mmfinereason", "geo170k(qa)", "geo170k"),
        ("mmfinereason", "FineVision-geo170k(align)", None),
        ("mmfinereason", "mm-openr1", "mm_openr1"),
        ("mmfinereason", "gqa", None),
        ("mmfinereason", "", None),
    ],
)
def test_other_spellings(source: str, raw: str, name: str | None) -> None:
    assert canonical_name(source, raw) == name


def test_no_name_means_two_things() -> None:
    for source in SOURCES:
        plain = [plain_name(raw) for subset in SUB_DATASETS for raw in subset.names(source.name)]
        assert len(plain) == len(set(plain))
        assert not {plain_name(raw) for raw in NOT_LISTED[source.name]} & {*plain, *map(plain_name, sub_datasets())}
        assert all(is_left_out(source.name, raw) for raw in NOT_LISTED[source.name])


@given(st.text())
def test_folding_and_plain_names_are_done_once(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    assert plain_name(plain_name(text)) == plain_name(text)


@given(st.sampled_from(RAW), st.sampled_from(["", " ", "\t"]), st.sampled_from("-_ ."))
def test_case_space_and_separators_do_not_matter(entry: tuple[str, str, str], space: str, separator: str) -> None:
    source, raw, name = entry
    prefix, dash, rest = raw.partition("-") if source == "vero" or raw.startswith("FineVision-") else ("", "", raw)
    other = prefix + dash + rest.replace("_", separator)
    assert canonical_name(source, space + other.upper() + space) == name
    assert canonical_name(source, space + other.lower() + space) == name
