"""What ZPPO-77K is made of: sources with their schemas, sub-datasets with their tiers, limits. Data only.

Tiers, caps and limits are the paper's (arXiv 2606.18216, appendix B.1). Names are those that the sources give, as far
as public code that reads them shows (docs/corpus.md says where each was seen).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

MAX_ANSWER_CHARS = 512
MIN_SIDE = 100
"""Pixels of the shorter side of a picture."""
MAX_PASS_RATE = 0.5
"""Questions that Qwen3-VL-4B-Thinking solves more often are dropped from MMFineReason."""

Tier = Literal[1, 2]
Kind = Literal["text", "number", "id", "image"]


@dataclass(frozen=True)
class SourceField:
    """A column of a source: its path (dots reach into records) and what it holds."""

    path: str
    kind: Kind


@dataclass(frozen=True)
class Source:
    """A public data set. Those that come first in `SOURCES` have priority."""

    name: str
    hub_id: str
    fields: Mapping[str, SourceField]
    """By what the builder calls them: subset, question, answer, image, id and, where there is one, pass_rate."""


SOURCES = (
    Source(
        name="vero",
        hub_id="zlab-princeton/Vero-600k",
        fields={
            "subset": SourceField("data_source", "text"),
            "id": SourceField("id", "id"),
            "question": SourceField("extra_info.question", "text"),
            "answer": SourceField("reward_model.ground_truth", "text"),
            "image": SourceField("image.bytes", "image"),
        },
    ),
    Source(
        name="mmfinereason",
        hub_id="OpenDataArena/MMFineReason-SFT-586K-Qwen3-VL-235B-Thinking",
        fields={
            "subset": SourceField("source", "text"),
            "id": SourceField("id", "id"),
            "question": SourceField("question", "text"),
            "answer": SourceField("answer", "text"),
            "image": SourceField("image.bytes", "image"),
            "pass_rate": SourceField("pass_rate", "number"),
        },
    ),
)


@dataclass(frozen=True)
class SubDataset:
    """A canonical name, its tier, and what each source calls it; empty where the paper takes none from there."""

    name: str
    tier: Tier
    vero: tuple[str, ...] = ()
    mmfinereason: tuple[str, ...] = ()

    def names(self, source: str) -> tuple[str, ...]:
        return {"vero": self.vero, "mmfinereason": self.mmfinereason}[source]


SUB_DATASETS = (
    SubDataset("ai2d", 1, ("stem-ai2d_merged",), ("FineVision-ai2d_merged",)),
    SubDataset("geo170k", 1, ("stem-geo170k",), ("FineVision-geo170k(qa)",)),
    SubDataset("geomverse", 1, ("stem-geomverse",)),
    SubDataset("geoqa_plus", 1, ("stem-geoqa_plus",)),
    SubDataset("mmk12", 1, ("stem-mmk12",), ("MMK12",)),
    SubDataset("cosyn_math", 1, ("stem-CoSyn_400k_math",)),
    SubDataset("cosyn_chart", 1, ("chart_ocr-CoSyn_400k_chart",)),
    SubDataset("cosyn_diagram", 1, ("chart_ocr-CoSyn_400k_diagram",)),
    SubDataset("cosyn_table", 1, ("chart_ocr-CoSyn_400k_table",)),
    SubDataset(
        "wemath", 1, ("stem-wemath20_standard", "stem-wemath20_pro"), ("WeMath2-Standard", "WeMath2-Pro", "WeMath2-SFT")
    ),
    SubDataset("tqa", 1, ("stem-tqa",), ("FineVision-tqa",)),
    SubDataset("visualwebinstruct", 1, ("stem-visualwebinstruct",), ("FineVision-visualwebinstruct(filtered)",)),
    SubDataset("chartqa", 1, ("chart_ocr-chartqa_difficulty",)),
    SubDataset("arxivqa", 1, ("chart_ocr-arxivqa_formatted",)),
    SubDataset("mmr1", 1, (), ("MMR1",)),
    SubDataset("euclid", 1, (), ("Euclid30K",)),
    SubDataset("geo3k", 1, (), ("FineVision-geometry3k(mathv360k)", "Geo3K", "Geometry3K")),
    SubDataset("mm_openr1", 1, (), ("mmopenr1-8k",)),
    SubDataset("bmmr", 1, (), ("BMMR",)),
    SubDataset("scienceqa", 1, (), ("FineVision-scienceqa",)),
    SubDataset("virl39k", 1, (), ("ViRL39K",)),
    SubDataset("pathvqa", 2, ("stem-pathvqa",)),
    SubDataset("vqarad", 2, ("stem-vqarad",)),
    SubDataset("raven", 2, ("stem-raven",), ("FineVision-raven",)),
    SubDataset("evochart", 2, ("chart_ocr-evochart",)),
    SubDataset("infographic_vqa", 2, ("chart_ocr-infographic_vqa",)),
    SubDataset("aokvqa", 2, ("knowledge_recognition-aokvqa",)),
    SubDataset("gqa", 2, ("knowledge_recognition-gqa",)),
    SubDataset("iconqa", 2, ("knowledge_recognition-iconqa",)),
    SubDataset("vqav2", 2, ("knowledge_recognition-vqav2",)),
    SubDataset("visual7w", 2, ("knowledge_recognition-visual7w",)),
    SubDataset("tallyqa", 2, ("counting_grounding_search-tallyqa",)),
    SubDataset("pixelreasoner", 2, ("counting_grounding_search-pixelreasoner",)),
    SubDataset("multihop", 2, ("counting_grounding_search-multihop", "counting_grounding_search-multihop_qa")),
    SubDataset("pixmo", 2, ("counting_grounding_search-pixmo",)),
    SubDataset("visual_probe", 2, ("counting_grounding_search-visual_probe",)),
    SubDataset("visualsphinx", 2, (), ("VisualSphinx",)),
    SubDataset("puzzleqa", 2, (), ("PuzzleQA",)),
    SubDataset("llava_cot", 2, (), ("LLaVA-CoT",)),
    SubDataset("zebra_cot", 2, (), ("Zebra-CoT-Physics",)),
)

NOT_LISTED: Mapping[str, tuple[str, ...]] = {
    "vero": (
        "stem-mavis_math_metagen", "stem-mavis_math_rule_geo", "stem-CoSyn_400k_chemical", "chart_ocr-ecd_vqa",
        "chart_ocr-reachqa", "knowledge_recognition-indoor_qa", "knowledge_recognition-vizwiz",
        "knowledge_recognition-viquae", "knowledge_recognition-vcrqa", "knowledge_recognition-kvqa",
        "knowledge_recognition-kvg", "counting_grounding_search-objects365", "counting_grounding_search-objects365_qa",
        "counting_grounding_search-refcocog", "counting_grounding_search-aerialvg",
        "counting_grounding_search-groundui", "counting_grounding_search-oodvqa",
        "counting_grounding_search-osatlas", "spatial_action-game_QA",
        "spatial_action-visual_jigsaw_2d", "spatial_action-visual_jigsaw_3d", "spatial_action-magma_mind2web",
        "spatial_action-magma_aitw", "spatial_action-spatial_ssrl", "spatial_action-stvqa", "spatial_action-robo2vlm",
        "captioning_IF-PixMo-AskAnything", "captioning_IF-PixMo-CapQA", "captioning_IF-PixMo-Cap",
        "captioning_IF-MM-RLVR-IFEval", "captioning_IF-MMIF-23K", "captioning_IF-Flickr30K",
    ),
    "mmfinereason": ("WaltonColdStart", "GameQA-140K"),
}  # fmt: skip
"""Sub-datasets that the sources have and the paper does not list: left out and counted, no reason to stop."""

_PREFIX = re.compile(
    r"\A(?:stem|chart_ocr|knowledge_recognition|counting_grounding_search|spatial_action|captioning_if|finevision)-"
)


def fold(text: str) -> str:
    """Text without differences of case, width and composition of characters; twice is the same as once."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def plain_name(raw: str) -> str:
    """A name as it is compared: without a source's prefix, letters and digits only, casefolded.

    Example: `stem-ai2d_merged`, `AI2D_Merged` and `FineVision-ai2d_merged` are `ai2dmerged`.
    """
    folded = _PREFIX.sub("", fold(raw).strip())
    return "".join(char for char in folded if char.isalnum())


def canonical_name(source: str, raw: str) -> str | None:
    """The sub-dataset that a source's name means; None where the table has none."""
    return _canonical_names(source).get(plain_name(raw))


def is_left_out(source: str, raw: str) -> bool:
    """Whether the paper is known not to list this sub-dataset of a source."""
    return plain_name(raw) in _left_out(source)


def sub_datasets() -> dict[str, SubDataset]:
    """By canonical name."""
    return {subset.name: subset for subset in SUB_DATASETS}


@cache
def _canonical_names(source: str) -> dict[str, str]:
    """The paper's names of the sub-datasets that it takes from a source, by the source's names and its own."""
    taken = [subset for subset in SUB_DATASETS if subset.names(source)]
    names = {plain_name(subset.name): subset.name for subset in taken}
    return names | {plain_name(raw): subset.name for subset in taken for raw in subset.names(source)}


@cache
def _left_out(source: str) -> frozenset[str]:
    return frozenset(map(plain_name, NOT_LISTED[source]))
