"""The only place where a chat template is applied: prompts to ids and media, ids to text, and how replies end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.config.schema import ModelConfig
from harness.data.images import MediaError
from harness.errors import UserError, first_line
from harness.models.loading import source_file
from harness.models.vision import PackedMedia, Vision
from harness.types import Message, Prompt
from methods.base import CLOSING

_REPLY = "reply"
MARKER = re.compile("<(image|video)>")
"""Where a question shows its media; data sets of the field write it so."""
IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"


@dataclass(frozen=True)
class PackedPrompt:
    """A prompt as every model is given it: ids with one placeholder a vision feature, and the media."""

    ids: list[int]
    media: PackedMedia | None = None


class Chat:
    """A tokenizer with its chat template.

    - `stop_ids`: any of these ends a completion: the end ids of the generation config, the tokenizer's end id, and the
      token that the template puts after an assistant's turn.
    - `end_id`: the last of these, for supervised targets.
    - `banned_ids`: special ids that are no stop ids (padding, turn starts, image placeholders) and ids without a piece.
      No reply may have them, so sampler, trainer and teacher all give them probability 0.
    - `num_tokens`: ids from here on only pad a model's vocabulary.

    Raises UserError where nothing says which token ends a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
        self.tokenizer = tokenizer
        self._config = config
        self._enable_thinking = config.enable_thinking
        used = set(tokenizer.get_vocab().values())
        self.num_tokens = max(used) + 1
        special = set(tokenizer.all_special_ids)
        special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        pieces = sorted({t for i in special if len(t := self._decode([i], skip_special_tokens=False)) > 1}, key=len)
        self._control = re.compile("|".join(map(re.escape, reversed(pieces)))) if pieces else None
        terminator = self._terminator(special)
        if terminator is None:
            raise UserError(f"{config.path}: neither the chat template nor the tokenizer says which token ends a reply")
        self.end_id: int = terminator
        ends = {tokenizer.eos_token_id, *_generation_ends(config)} - {None}
        self.stop_ids: frozenset[int] = frozenset({self.end_id, *ends})
        unused = set(range(self.num_tokens)) - used
        self.banned_ids: list[int] = sorted((special | unused) - self.stop_ids)

    @cached_property
    def vision(self) -> Vision:
        """The processor of images and video. Raises UserError for a model that reads text only."""
        return Vision(self._config)

    @property
    def placeholder_ids(self) -> tuple[int, int]:
        """The ids that stand for a feature of a picture and of a clip. KeyError for a model that reads text only."""
        return self._token_id(IMAGE), self._token_id(VIDEO)

    def pack(self, prompt: Prompt) -> PackedPrompt:
        """The prompt up to where the reply starts, without `prefix_ids`; nothing is ever cut off.

        Contents are data: a special token's text in them (`<|im_end|>` in a question or in a candidate) is broken by a
        space, so that it cannot end a turn. Media stand where `<image>` and `<video>` do, or, where there is no such
        mark, before the text of the last turn. A clip becomes a time and its placeholders for each pair of frames.

        Raises MediaError for media that cannot be used or do not match the marks, UserError for a model without eyes.
        """
        if prompt.ids:
            return PackedPrompt(list(prompt.ids))
        question = prompt.question
        if not question.images and question.video is None:
            return PackedPrompt(self._ids(prompt.messages))
        messages = _with_marks(prompt)
        media = self.vision.pack(question)
        ids = self._ids([{**message, "content": self._parts(message["content"])} for message in messages])
        return PackedPrompt(list(self._expand(ids, media)), media)

    def num_tokens_of(self, prompt: Prompt) -> int:
        """Tokens of prompt and prefix together. Raises like `pack`."""
        return len(self.pack(prompt).ids) + len(prompt.prefix_ids)

    def as_text(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """A conversation in the chat template, contents as they are: what an evaluation library makes prompts of.

        Without a generation prompt the last turn goes on. A template that knows no system turn is given none.
        """
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self._render(messages, **options)
        except UserError:
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise
            return self._render(others, **options)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, without start or end tokens. What reads as a special token is not one."""
        return self.tokenizer(self.as_data(text), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a reply: special tokens are dropped, tags such as <think> are ordinary tokens and stay."""
        return self._decode(ids, skip_special_tokens=True)

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """Text of a prompt as the model sees it, special tokens included; for the run's records."""
        return self._decode(ids, skip_special_tokens=False)

    def as_data(self, content: str) -> str:
        """A content in which what reads as a special token is broken by a space."""
        return content if self._control is None else self._control.sub(lambda m: f"{m[0][0]} {m[0][1:]}", content)

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        contents = [m["content"] if isinstance(m["content"], list) else self.as_data(m["content"]) for m in messages]
        turns = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        return self._render(turns, add_generation_prompt=True, tokenize=True, return_dict=False)

    def _parts(self, content: str) -> list[dict[str, str]]:
        """A content with marks as the parts that chat templates take: texts, and marks between them."""
        pieces = MARKER.split(content)
        parts = [{"type": p} if i % 2 else {"type": "text", "text": self.as_data(p)} for i, p in enumerate(pieces)]
        return [part for part in parts if part.get("text") != ""]

    def _expand(self, ids: Sequence[int], media: PackedMedia) -> Iterator[int]:
        """Placeholders from one a medium to one a feature.

        Every pair of frames has vision marks of its own, so those that the template puts around a clip are dropped.
        Models were trained without them, though transformers 5.23 leaves them in.
        """
        image, video, start, end = map(self._token_id, (IMAGE, VIDEO, START, END))
        images = iter(media.image_tokens)
        position, clips = 0, 0
        while position < len(ids):
            if ids[position] == image:
                yield from [image] * next(images)
            elif list(ids[position : position + 3]) == [start, video, end]:
                for seconds in media.frame_times:
                    yield from self.tokenizer(f"<{seconds:.1f} seconds>", add_special_tokens=False)["input_ids"]
                    yield from (start, *[video] * media.frame_tokens, end)
                position += 2
                clips += 1
            else:
                yield ids[position]
            position += 1
        assert next(images, None) is None, "the chat template dropped an image"
        assert clips == bool(media.frame_times), "the chat template writes a clip in another way"

    def _token_id(self, token: str) -> int:
        return self.tokenizer.get_vocab()[token]

    def _render(self, messages: Sequence[dict[str, Any]], **options: Any) -> Any:
        return _render(self.tokenizer, self._config, messages, enable_thinking=self._enable_thinking, **options)

    def _terminator(self, special: set[int]) -> int | None:
        """The first special token after the content of an assistant's turn, else the tokenizer's end token."""
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _REPLY}]
        text: str = self._render(turns, add_generation_prompt=False, tokenize=False)
        behind = self.tokenizer(text.rpartition(_REPLY)[2], add_special_tokens=False)["input_ids"]
        return next((i for i in behind if i in special), self.tokenizer.eos_token_id)


def _render(
    tokenizer: PreTrainedTokenizerBase, config: ModelConfig, messages: Sequence[dict[str, Any]], **options: Any
) -> Any:
    """Raises UserError for a template that cannot be rendered, since it comes with the model."""
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except Exception as error:  # a template is a program, and raises what it pleases
        raise UserError(
            f"the chat template of {config.path} cannot be rendered ({first_line(error)}): "
            "repair it, or give another (student.chat_template=FILE, teacher.chat_template=FILE)"
        ) from error


def thinking_conflict(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> str | None:
    """How a chat template is in the way of the closing instruction, which asks to reason inside `<think>`; None if not.

    One that reads `enable_thinking` writes an empty block of thinking where it is false, or leaves its start out.
    """
    if config.enable_thinking or "<think>" not in CLOSING:
        return None
    turn = [{"role": "user", "content": "question"}]
    forms = [
        _render(tokenizer, config, turn, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        for thinking in (True, False)
    ]
    if forms[0] == forms[1]:
        return None
    return "student.enable_thinking=false keeps replies from thinking, while every prompt asks to reason inside <think>"


THINKING_REMEDY = "set student.enable_thinking=true; method.rewrite_tokens gives a teacher's rewrites room for it"


def _with_marks(prompt: Prompt) -> list[Message]:
    """The messages, a mark for every medium in them. Raises MediaError where their numbers differ."""
    question, messages = prompt.question, list(prompt.messages)
    wanted = {"image": len(question.images), "video": int(question.video is not None)}
    found = [name for message in messages for name in MARKER.findall(message["content"])]
    if not found:
        last = messages[-1]
        marks = "<image>" * wanted["image"] + "<video>" * wanted["video"]
        messages[-1] = {**last, "content": marks + last["content"]}
    elif any(found.count(name) != number for name, number in wanted.items()):
        raise MediaError(
            f"question {question.id} has {_number(wanted, 'image')} and {_number(wanted, 'video')}, "
            f"its text {found.count('image')} <image> and {found.count('video')} <video>"
        )
    return messages


def _number(wanted: dict[str, int], name: str) -> str:
    return f"{wanted[name]} {name}{'' if wanted[name] == 1 else 's'}"


def _generation_ends(config: ModelConfig) -> set[int]:
    """End ids of the model's generation_config.json; empty where it has none."""
    file = source_file(config, "generation_config.json")
    if file is None:
        return set()
    try:
        ends = json.loads(Path(file).read_text(encoding="utf-8")).get("eos_token_id")
        return {ends} if isinstance(ends, int) else set(ends or ())
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}): take another copy of the model") from error
