"""How questions are shown and scored: the part of the configuration that evaluation reads. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config.foreign import FOREIGN, foreign
from harness.config.names import check_name
from harness.config.registry import Registry
from harness.config.values import PositiveShare, Seconds, Text
from harness.errors import UserError, did_you_mean
from harness.types import MediaLimits
from methods.options import Share


@dataclass
class MediaConfig:
    """How large an image and how long a video is shown to a model."""

    min_pixels: PositiveInt = foreign(256 * 32 * 32)
    """Least pixels of an image or a frame (published for evaluation: 256 * 32 * 32). Smaller ones are enlarged in
    proportion."""
    max_pixels: PositiveInt = foreign(1280 * 32 * 32)
    """Most pixels of an image or a frame (published for evaluation: 1280 * 32 * 32). Larger ones are reduced in
    proportion."""
    fps: PositiveFloat | None = foreign(2.0)
    """Frames that are taken of each second of a video, at least 2 in all. Either this or `num_frames` is set; the other
    is `null`."""
    num_frames: PositiveInt | None = foreign(None)
    """Take this many frames of every video, evenly spread. `null`: as many as `fps` gives."""
    max_frames: Annotated[int, Field(ge=2)] = foreign(768)
    """Most frames of a video, 2 or more. A video that has more at `fps` is shown this many, evenly spread."""

    def limits(self) -> MediaLimits:
        return MediaLimits(self.min_pixels, self.max_pixels, self.fps, self.num_frames, self.max_frames)


@dataclass
class BenchmarkOptions:
    """What the paper leaves open about single benchmarks. Each choice is part of the evaluation card."""

    charxiv: Literal["reasoning", "descriptive", "both"] = foreign("reasoning")
    """Questions of CharXiv. `reasoning`: one for each figure; `descriptive`: the figure's four others; `both`: all
    five."""
    dynamath: Literal["average", "worst"] = foreign("average")
    """Score of DynaMath. `average`: the mean over all variants; `worst`: a seed question counts as its worst
    variant."""
    hle: Literal["text_only", "all"] = foreign("text_only")
    """Questions of Humanity's Last Exam. `text_only` leaves out those with a picture, because the column belongs to the
    LLM family."""
    mmlu_redux: Literal["corrected", "printed", "ok"] = foreign("corrected")
    """Questions of MMLU-Redux that the re-annotation found faulty. `corrected` takes the corrected answer where there
    is one, `printed` the printed one; `ok` leaves them out."""
    wemath: Literal["accuracy", "strict", "loose"] = foreign("accuracy")
    """Score of We-Math. `accuracy`: over all questions; `strict` or `loose`: the benchmark's own four-way score over
    composite problems."""
    vlmsareblind: Literal["rows", "tasks"] = foreign("rows")
    """Mean of VLMs are Blind. `rows`: every question weighs the same; `tasks`: every task does."""
    ceval: Literal["rows", "subjects"] = foreign("rows")
    """Mean of C-Eval. `rows`: every question weighs the same; `subjects`: every subject does."""
    ocrbench_v2: Literal["categories", "rows"] = foreign("categories")
    """Mean of OCRBench v2. `categories`: the official one over ability categories; `rows`: every question weighs the
    same."""
    multichallenge: Literal["axes", "rows"] = foreign("axes")
    """Mean of MultiChallenge. `axes`: the official one over four challenge axes; `rows`: every question weighs the
    same."""
    gpqa_seed: int = foreign(0)
    """Seed for the order of the options of GPQA-Diamond, drawn for each question from this and its record id."""
    videomme_subtitles: Literal["all", "frames"] = foreign("all")
    """Subtitles that Video-MME shows. `all`: the complete file; `frames`: what is said at 32 evenly spread times."""
    aime_repeats: PositiveInt = foreign(1)
    """Samples for each problem of AIME 2025 and 2026. The score is their mean; the published one takes a single
    sample."""


BENCHMARKS = Registry(option="eval.benchmarks", group="zppo.benchmarks")
"""Benchmarks of others: each is called without arguments, and gives a `harness.types.OwnBenchmark`. The paper's columns
are a table (`harness.evaluation.benchmarks.columns`)."""
DESCRIPTIONS = (".yaml", ".yml")
"""How the names of files end that describe a benchmark."""
GENERATED = "mini"
"""The suite that generates its questions."""
MINI_TASKS = ("arithmetic", "bar_chart", "bar_cards", "bar_clip")
LIBRARIES = ("lm_eval", "lmms_eval")
"""Libraries whose tasks `eval.tasks` names."""
TASKS = "tasks"
"""Name of a suite of library tasks alone, where none is given."""


@dataclass
class JudgeConfig:
    """A model that compares answers, at an OpenAI-compatible endpoint. The published judge is the 27B teacher,
    greedy."""

    url: Text | None = None
    """Address of the endpoint, such as `http://localhost:8000/v1`. `null`: there is no judge, and what no rule resolves
    counts as wrong."""
    model: Text = "Qwen/Qwen3.5-27B-FP8"
    """Name of the model at the endpoint (published: the 27B teacher)."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Name of the environment variable with the key, if the endpoint wants one."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the judge (published: 0, greedy)."""
    top_p: PositiveShare = 1.0
    """Nucleus sampling of the judge (published: 1)."""
    max_tokens: PositiveInt = 512
    """Most tokens of a verdict (published: 512)."""
    extra_body: dict[str, Any] = field(default_factory=lambda: {"chat_template_kwargs": {"enable_thinking": False}})
    """Further fields of every request. The default keeps Qwen3.5 from thinking, for which `max_tokens` has no room.
    `{}` suits an endpoint that refuses the field."""
    timeout: Seconds = 120.0
    """Seconds that a request may take."""
    retries: NonNegativeInt = 3
    """Further tries of a request that failed for a passing reason: no connection, a timeout, status 408, 409, 425, 429
    or 5xx."""
    concurrency: PositiveInt = 16
    """Requests at a time."""


@dataclass
class EvalJudgeConfig(JudgeConfig):
    """The judge of an evaluation, which may be asked less often."""

    when: Literal["unmatched", "unparsed"] = "unmatched"
    """Which answers the judge sees. `unmatched`: every answer that no rule matches, except another valid option;
    `unparsed`: only replies without a readable answer."""


@dataclass
class EvalConfig:
    """What a student is scored on. Defaults of decoding are the published protocol."""

    suite: Text | None = foreign(None)
    """Name of the suite, which `eval=` chooses: an option file that lists `eval.benchmarks`. `null` evaluates
    nothing."""
    benchmarks: list[str] = field(default_factory=list)
    """What the suite has: columns of the paper's tables (`zppo eval --list`), YAML files that describe a benchmark,
    names of installed packages, or `package.module:function`. Empty: what the option file of the suite lists; `mini`
    generates its questions."""
    every: NonNegativeInt = 0
    """Also evaluate after every so many rollout steps. 0: only at the end."""
    tasks: list[str] = field(default_factory=list)
    """Tasks, groups and tags of lm-eval and lmms-eval, as `[lm_eval:gsm8k, lmms_eval:mme]`. Each keeps its own prompts,
    decoding and metrics. `zppo eval --list lm_eval` has their names."""
    task_paths: list[Text] = field(default_factory=list)
    """Folders with task files of one's own, in the libraries' YAML. Their names come before the libraries'."""
    apply_chat_template: bool = foreign(False)
    """Put prompts of lm-eval's tasks into the student's chat template. Off by default, as in lm-eval. Tasks of
    lmms-eval are always chats."""
    num_fewshot: NonNegativeInt | None = foreign(None)
    """Examples in the prompts of library tasks. `null`: as many as each task says."""
    allow_code: bool = False
    """Evaluate library tasks that run code which the student has written. It runs in processes with limits, which are
    no sandbox."""
    mini_tasks: list[str] = field(default_factory=lambda: list(MINI_TASKS), metadata=FOREIGN)
    """Tasks that `mini` generates: `arithmetic` (LLM), `bar_chart` and `bar_cards` (VLM), `bar_clip` (Video). Each is a
    benchmark at each level."""
    levels: list[int] = field(default_factory=lambda: [1, 2, 3, 4], metadata=FOREIGN)
    """Difficulty levels of `mini`, some of 1 to 4."""
    num_questions: PositiveInt = foreign(200)
    """Held-out questions of `mini` for each level of a task."""
    seed: int = foreign(0)
    """Decides the questions of `mini` and the sampling of all suites, so that scores do not depend on the run's
    `seed`."""
    num_samples: PositiveInt = foreign(1)
    """Samples for each question of the suite. Above 1 the score is their mean, and `samples.csv` has pass@k and maj@k.
    Library tasks have repeats of their own."""
    temperature: NonNegativeFloat = foreign(0.6)
    """Sampling temperature of the student (published: 0.6). 0 is greedy."""
    top_p: PositiveShare = foreign(0.95)
    """Sample from the likeliest tokens whose probabilities reach this sum (published: 0.95). 1 takes all."""
    top_k: NonNegativeInt = foreign(20)
    """Sample from this many likeliest tokens (published: 20). 0 takes all."""
    min_p: Share = foreign(0.0)
    """Drop tokens below this share of the likeliest token's probability (published: 0). 0 drops none."""
    presence_penalty: float = foreign(1.5)
    """Subtracted from the logits of tokens that the response has already (published: 1.5). 0 is no penalty."""
    repetition_penalty: PositiveFloat = foreign(1.0)
    """Divides the logits of tokens that occurred already (published: 1.0). 1 is no penalty."""
    max_response_tokens: PositiveInt = foreign(12_288)
    """Most new tokens of a response (published: 12,288)."""
    media: MediaConfig = field(default_factory=MediaConfig)
    """These limits hold in evaluation. Training has its own, `data.media`."""
    columns: list[str] = field(default_factory=list, metadata=FOREIGN)
    """Run only these benchmarks of the suite. Empty: all."""
    limit: PositiveInt | None = foreign(None)
    """Most questions of each benchmark, evenly spread over it. `null`: all. For `mini` it is of the questions that
    `eval.num_questions` makes."""
    data_root: Text | None = None
    """Folder with copies of the benchmarks' repositories, `OWNER/NAME` each. `null` loads them from the hub."""
    stage: Literal["all", "generate", "judge"] = "all"
    """Which part to do. `generate`: answer and mark by rule; `judge`: ask the judge about what is left, without the
    student; `all`: both."""
    options: BenchmarkOptions = field(default_factory=BenchmarkOptions)
    judge: EvalJudgeConfig = field(default_factory=EvalJudgeConfig)
    """This judge is asked in evaluation. Training has its own, `reward.judge`."""

    def __post_init__(self) -> None:
        if self.suite is None and self.tasks:
            self.suite = TASKS


@cache
def suites() -> dict[str, list[str]]:
    """The benchmarks that our option files of `eval=` list, by suite."""
    found: dict[str, list[str]] = {}
    for file in sorted(files("conf").joinpath("eval").iterdir(), key=lambda file: file.name):
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "benchmarks" in options:
            found[str(options["suite"])] = options["benchmarks"]
    return found


def benchmarks_of(config: EvalConfig) -> list[str]:
    """What the suite has; nothing where it generates its questions. One of ours may be named alone.

    Raises UserError for a suite that has no benchmarks, and for a name that no benchmark can have.
    """
    names = config.benchmarks or suites().get(str(config.suite), [])
    if not names and not config.tasks and config.suite != GENERATED:
        raise UserError(
            f"eval.suite={config.suite} is not known.{did_you_mean(str(config.suite), [*suites(), GENERATED])} "
            "A suite of one's own lists eval.benchmarks."
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"eval.benchmarks has {twice} twice: name it once")
    ours = {name for members in suites().values() for name in members}
    for name in set(names) - ours:
        if not name.endswith(DESCRIPTIONS):
            BENCHMARKS.entry(name, ours)
    return names


def library_task(entry: str) -> tuple[str, str]:
    """Library and name of an entry of `eval.tasks`. Whether there is such a task, the library's files say.

    Example: `lm_eval:gsm8k` gives `("lm_eval", "gsm8k")`. Raises UserError for anything else.
    """
    library, colon, name = entry.partition(":")
    if entry in MINI_TASKS:
        raise UserError(f"eval.tasks={entry} is a task of the suite mini: write eval.mini_tasks=[{entry}]")
    if colon and name and library in LIBRARIES:
        return library, name
    near = did_you_mean(library, LIBRARIES) if colon else f" Write lm_eval:{entry} or lmms_eval:{entry}."
    raise UserError(f"eval.tasks={entry} names no library.{near} zppo eval --list lm_eval has the names.")


def check_suite(config: EvalConfig) -> None:
    """Raises UserError as `benchmarks_of`, and for a suite whose name is no folder's."""
    if config.suite is None:
        if config.benchmarks:
            raise UserError("eval.benchmarks is a suite without a name: set eval.suite=NAME")
        return
    check_name("eval.suite", config.suite)
    benchmarks_of(config)
    if config.num_samples > 1 and config.temperature == 0.0:
        raise UserError(
            f"eval.num_samples={config.num_samples} at eval.temperature=0 would draw the same reply every time: "
            "set eval.temperature=0.6"
        )
    for task in config.tasks:
        library_task(task)
    if twice := next((task for task in config.tasks if config.tasks.count(task) > 1), None):
        raise UserError(f"eval.tasks has {twice} twice: name it once")
    if (
        config.benchmarks
        and config.benchmarks != suites().get(config.suite, [])
        and config.suite in (*suites(), GENERATED)
    ):
        raise UserError(
            f"eval.suite={config.suite} has benchmarks of its own: set another eval.suite=NAME, or choose some "
            "of them with eval.columns"
        )


def check_media(section: str, media: MediaConfig) -> None:
    """Raises UserError for limits of `<section>.media` that contradict each other."""
    if media.min_pixels > media.max_pixels:
        raise UserError(f"{section}.media.min_pixels={media.min_pixels} must be at most max_pixels={media.max_pixels}")
    if (media.fps is None) == (media.num_frames is None):
        raise UserError(
            f"{section}.media.fps={media.fps} and num_frames={media.num_frames}: set one and make the other null"
        )
    if media.num_frames is not None and media.num_frames > media.max_frames:
        raise UserError(f"{section}.media.num_frames={media.num_frames} must be at most max_frames={media.max_frames}")
