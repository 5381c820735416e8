"""How questions are shown and scored: the part of the configuration that evaluation reads. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.errors import UserError
from harness.types import MediaLimits


@dataclass
class MediaConfig:
    """How images and videos are shown to a model."""

    min_pixels: int = 256 * 32 * 32
    max_pixels: int = 1280 * 32 * 32
    """Of one image or one frame: smaller and larger ones are scaled, their proportions kept."""
    fps: float | None = 2.0
    """Frames a second that are taken of a video; null with `num_frames`."""
    num_frames: int | None = None
    """This many frames of every video instead, evenly spread."""
    max_frames: int = 768

    def limits(self) -> MediaLimits:
        return MediaLimits(self.min_pixels, self.max_pixels, self.fps, self.num_frames, self.max_frames)


@dataclass
class BenchmarkOptions:
    """What the paper leaves open about single benchmarks. Each choice is part of the evaluation card."""

    charxiv: str = "reasoning"
    """reasoning: one question a figure; descriptive: the figure's four; both."""
    dynamath: str = "average"
    """average: over all variants; worst: a seed question counts as its worst variant."""
    hle: str = "text_only"
    """text_only: without the questions that show a picture (the column is one of the LLM family); all."""
    mmlu_redux: str = "corrected"
    """Of questions that the re-annotation found faulty. corrected: kept, with the corrected answer where there is one;
    printed: kept, with the printed answer; ok: left out."""
    wemath: str = "accuracy"
    """accuracy: over all questions; strict or loose: the four-way score of We-Math over each composite problem."""
    vlmsareblind: str = "rows"
    """rows: every question weighs the same; tasks: every task does."""
    ceval: str = "rows"
    """rows or subjects, likewise."""
    ocrbench_v2: str = "categories"
    """categories: the official mean over the ability categories of a language; rows."""
    multichallenge: str = "axes"
    """axes: the official mean over the four challenge axes; rows."""
    gpqa_seed: int = 0
    """Of the order of options, which is drawn for each question from this and its record id."""
    videomme_subtitles: str = "all"
    """all: the whole subtitle file; frames: only what is said while a shown frame is on screen."""
    aime_repeats: int = 1
    """Samples a problem of AIME 2025 and 2026; the score is their mean. The paper takes one."""


OPTION_CHOICES = {
    "charxiv": ("reasoning", "descriptive", "both"),
    "dynamath": ("average", "worst"),
    "hle": ("text_only", "all"),
    "mmlu_redux": ("corrected", "printed", "ok"),
    "wemath": ("accuracy", "strict", "loose"),
    "vlmsareblind": ("rows", "tasks"),
    "ceval": ("rows", "subjects"),
    "ocrbench_v2": ("categories", "rows"),
    "multichallenge": ("axes", "rows"),
    "videomme_subtitles": ("all", "frames"),
}


@dataclass
class JudgeConfig:
    """A model behind an OpenAI-compatible endpoint. The paper's judge is the 27B teacher, greedy (METHOD section 8)."""

    url: str | None = None
    """http://host:port/v1; null: no judge, and what no rule resolves counts as wrong."""
    model: str = "Qwen/Qwen3.5-27B"
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the key, if the endpoint wants one."""
    when: str = "unmatched"
    """unmatched: every answer that no rule matches, but for another valid option; unparsed: only what has no readable
    answer."""
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    extra_body: dict[str, Any] = field(default_factory=lambda: {"chat_template_kwargs": {"enable_thinking": False}})
    """Sent with every request. Qwen3.5 behind vLLM or SGLang thinks unless it is told not to, and `max_tokens` have no
    room for that; for an endpoint that refuses the field: {}."""
    timeout: float = 120.0
    """Seconds a request may take."""
    retries: int = 3
    """After the first try, for what may pass: no connection, a timeout, status 429 or 5xx."""
    concurrency: int = 16
    """Requests at a time."""


@dataclass
class EvalConfig:
    """Decoding defaults are the paper's protocol (METHOD section 8)."""

    suite: str | None = None
    """mini; paper31, llm10, vlm16 or video5 (`zppo eval --list`); or none."""
    every: int = 0
    """Also evaluate every this many steps; 0 = only at the end."""
    tasks: list[str] = field(default_factory=lambda: ["arithmetic", "bar_chart", "bar_cards", "bar_clip"])
    """mini: arithmetic (LLM), bar_chart, bar_cards (VLM), bar_clip (Video); a benchmark each a level."""
    levels: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    num_questions: int = 200
    """Held-out questions a level of a task."""
    seed: int = 0
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    min_p: float = 0.0
    presence_penalty: float = 1.5
    repetition_penalty: float = 1.0
    max_response_tokens: int = 12_288
    media: MediaConfig = field(default_factory=MediaConfig)
    """What the questions' images and videos are scaled and cut to; `data.media` is for training."""
    columns: list[str] = field(default_factory=list)
    """Only these benchmarks of the suite; empty: all."""
    limit: int | None = None
    """At most this many questions a benchmark, evenly spread over it. mini has `num_questions` instead."""
    data_root: str | None = None
    """A folder with copies of the benchmarks' repositories, `<owner>/<name>` each; null: the hub."""
    stage: str = "all"
    """generate: answer and mark by rule; judge: only ask the judge about what is left, without the student; all."""
    options: BenchmarkOptions = field(default_factory=BenchmarkOptions)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


CHOICES = {
    "eval.suite": (None, "mini", "paper31", "llm10", "vlm16", "video5"),
    "eval.stage": ("all", "generate", "judge"),
    "eval.judge.when": ("unmatched", "unparsed"),
    **{f"eval.options.{name}": choices for name, choices in OPTION_CHOICES.items()},
}


def check_media(section: str, media: MediaConfig) -> None:
    """Raises UserError for limits of `<section>.media` that contradict each other."""
    if not 0 < media.min_pixels <= media.max_pixels:
        raise UserError(
            f"{section}.media.min_pixels={media.min_pixels} must be above 0 and at most max_pixels={media.max_pixels}"
        )
    if (media.fps is None) == (media.num_frames is None):
        raise UserError(
            f"{section}.media.fps={media.fps} and num_frames={media.num_frames}: set one and make the other null"
        )
    if media.max_frames < 2:
        raise UserError(f"{section}.media.max_frames must be at least 2, got {media.max_frames}")
    if media.fps is not None and not 0 < media.fps < float("inf"):
        raise UserError(f"{section}.media.fps must be a number above 0, got {media.fps}")
    if media.num_frames is not None and not 1 <= media.num_frames <= media.max_frames:
        raise UserError(
            f"{section}.media.num_frames must lie in 1 to max_frames={media.max_frames}, got {media.num_frames}"
        )
