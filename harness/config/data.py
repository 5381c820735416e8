"""Which questions a run trains on and where they come from: that part of the configuration. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from omegaconf import MISSING
from pydantic import Field, PositiveInt

from harness.config.evaluation import MediaConfig, check_media
from harness.config.registry import Registry
from harness.config.values import Text
from harness.errors import UserError


@dataclass
class ColumnsConfig:
    """Which column of a file holds what. Dots reach into records and lists: `extra.answer`, `prompt.0.content`."""

    question: Text = "question"
    """Column with the question: a text, or a list of chat messages whose last user turn it is. Every row needs it."""
    answer: Text = "answer"
    """Column with the gold answer, or a list of them of which any is right. Every row needs it."""
    system: Text | None = None
    """Column with a system message for each row. A question in messages may bring its own."""
    choices: Text | None = "choices"
    """Column with the options of a multiple choice, `options` where there is no `choices`. Rows without it have none;
    `null` ignores options."""
    source: Text | None = None
    """Column that says where a row is from. `null` takes the file's name. Metrics and rollouts have it."""
    extra: list[Text] = field(default_factory=list)
    """Further columns that methods and `data.reward` are given, as `Question.extra`."""
    id: Text | None = None
    """Column with an id that no other row has. `null` makes ids from the file's name and the row's number."""
    answer_type: Text | None = None
    """Column with `math`, `choice` or `text` for each row. `null` gives all rows the type `data.answer_type`."""
    images: Text | None = "images"
    """Column with one image or a list of them: paths relative to the file, embedded bytes, base64 or data URIs; `image`
    where there is no `images`. Rows without it have no image; `null` ignores images."""
    video: Text | None = "video"
    """Column with the path or the bytes of one video, `videos` where there is no `video`. Rows without it have no
    video; `null` ignores videos."""


@dataclass
class DataConfig:
    """The questions that a run trains on."""

    source: Text = MISSING
    """Where questions come from. `synthetic` and `reasoning_gym` generate them; `jsonl` (JSON and CSV as well) and
    `parquet` read files; `hub` reads a data set of the Hugging Face hub. `package.module:function` is one's own."""
    batch_size: PositiveInt = 384
    """New questions of a rollout step (Table 8: 384). All ranks together take this many, in equal shares."""
    epochs: PositiveInt = 1
    """Passes over the questions (Table 8: one). A rest that fills no batch is dropped at the end of each pass."""
    shuffle: bool = True
    """Draw a new order for each pass from the run's `seed`. `false` keeps the order of the source in every pass."""
    pool_size: PositiveInt | None = None
    """Use only this many questions (a seeded choice), so that each is met several times when `epochs` > 1. `null` uses
    all."""
    seed: int = 0
    """Decides which questions are generated and which enter the pool. The order of questions follows the run's `seed`
    instead."""
    num_questions: PositiveInt = 10_000
    """How many questions a generated source has (`synthetic`, `reasoning_gym`)."""
    levels: Annotated[list[Annotated[int, Field(ge=1, le=4)]], Field(min_length=1)] = field(
        default_factory=lambda: [2, 3, 4]
    )
    """Difficulty levels of `synthetic`, some of 1 to 4, drawn evenly."""
    tasks: list[str] = field(default_factory=lambda: ["arithmetic"])
    """Tasks of `synthetic`: `arithmetic` (text), `bar_chart`, `bar_cards` (images) or `bar_clip` (video). Several take
    turns."""
    dataset: Text | None = None
    """Name of the data set of `reasoning_gym`, such as `chain_sum`. That source requires it."""
    dataset_config: dict[str, Any] = field(default_factory=dict)
    """Options of the `reasoning_gym` data set by name, such as `data.dataset_config.max_terms=4`. A source of one's own
    finds its options here, too."""
    path: Text | list[Text] | None = None
    """Where the questions are. `jsonl`, `parquet`: a file, a folder of files, or a list of those; `hub`: a data set's
    id, or a local folder with its files."""
    weights: list[Annotated[float, Field(gt=0)]] = field(default_factory=list)
    """Shares of the questions that each entry of `data.path` gives, such as `[2,1]`. As many questions are used as the
    shares allow, each once. Without it all of them are."""
    split: Text = "train"
    """Split of a `hub` data set. `train[:1000]` is a part of one."""
    config_name: Text | None = None
    """Configuration of a `hub` data set that has several."""
    revision: Text | None = None
    """Branch, tag or commit of a `hub` data set. `null` takes the newest."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    answer_type: Literal["math", "choice", "text"] = "math"
    """How answers are graded where no column says so (`jsonl`, `parquet`, `hub`). `math` compares expressions, `choice`
    letters of options, `text` normalised words."""
    answer_pattern: Text | None = None
    """Regular expression with one group that finds the gold answer in the answer column; the last match counts. `null`
    takes what follows `####` in the last line, or the content of the last box, or all of the text."""
    system: Text | None = None
    """System message of the questions that bring none."""
    closing: str | None = None
    """Instruction that every training prompt ends with. `null` is the paper's, which asks for `<think>` and a box;
    `data.closing=` is none. The benchmarks of the paper keep theirs."""
    reward: Text | None = None
    """Scorer that grades replies instead of the rules, `package.module:function`. It takes question, response and gold,
    and gives a reward in [0, 1], or that and the answer."""
    recheck: bool = False
    """Read and check all rows anew. Otherwise the index of an earlier launch is taken where file and options are the
    same."""
    max_bad_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows that may be unusable, from 0 up to but not including 1. They are skipped and counted; more of them
    refuse the file."""
    media: MediaConfig = field(default_factory=MediaConfig)
    """These limits hold in training. Evaluation has its own, `eval.media`."""


SOURCES = Registry(
    option="data.source",
    group="zppo.sources",
    ours=("synthetic", "reasoning_gym", "jsonl", "parquet", "hub"),
)
"""Each is called with `DataConfig`, and gives the questions (`harness.data.sources`)."""

SCORERS = Registry(option="data.reward", group="zppo.scorers")
"""Each is called with question, response and gold, in a process that may be killed (`harness.rewards.scorer`)."""


def paths_of(data: DataConfig) -> list[str]:
    """The entries of `data.path`."""
    return [data.path] if isinstance(data.path, str) else list(data.path or ())


def check_data(data: DataConfig) -> None:
    """Raises UserError for a source without what it needs, and for contradicting limits of media."""
    SOURCES.entry(data.source)
    if data.source == "reasoning_gym" and not data.dataset:
        raise UserError("data=reasoning_gym needs the name of a data set: data.dataset=chain_sum")
    paths = paths_of(data)
    if data.source in ("jsonl", "parquet") and not (paths and all(paths)):
        raise UserError(f"data={data.source} needs a file: data.path=FILE")
    if data.source == "hub" and not (paths and all(paths)):
        raise UserError("data=hub needs a data set: data.path=OWNER/NAME, or a local folder")
    if len(set(paths)) < len(paths):
        raise UserError(f"data.path={paths} names one twice: raise its share by data.weights")
    if data.weights and (len(data.weights) != len(paths) or not all(map(math.isfinite, data.weights))):
        raise UserError(f"data.weights={data.weights} for {len(paths)} paths: give a finite number for each of them")
    if data.answer_pattern is not None:
        _check_pattern(data.answer_pattern)
    if data.reward is not None:
        SCORERS.entry(data.reward)
    check_media("data", data.media)


def _check_pattern(pattern: str) -> None:
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"data.answer_pattern={pattern} is no regular expression ({error}): correct it") from error
    if num_groups != 1:
        raise UserError(f"data.answer_pattern={pattern} has {num_groups} groups: put the answer, and only it, into ( )")
