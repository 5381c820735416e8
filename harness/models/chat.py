"""Prompts to ids and media, ids to text, how replies end and what they may not have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.config.schema import ModelConfig
from harness.data.images import MediaError
from harness.errors import UserError
from harness.models.loading import PROCESSOR_FILES, source_file
from harness.models.template import Template, end_ids, media_ids
from harness.models.vision import MediaInputs, PackedMedia, Vision
from harness.types import Message, Prompt
from methods.base import CLOSING

MARKER = re.compile("<(image|video)>")
"""Where a question shows its media; data sets of the field write it so."""
MEDIA = re.compile("image|img|video|vision|audio|media", re.IGNORECASE)
"""In the names of special tokens that stand for media or around them."""
TAGS = frozenset(re.findall("</?[a-z]+>", CLOSING))
"""What our own instruction asks a reply to write, whether a tokenizer has it as a special token or not."""
IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"


@dataclass(frozen=True)
class PackedPrompt:
    """A prompt as every model is given it: ids with one placeholder a vision feature, and the media."""

    ids: list[int]
    media: PackedMedia | None = None


class Chat:
    """A tokenizer with its chat template.

    - `stop_ids`: any of these ends a completion. They are the end ids of generation config, config and tokenizer, and
      the token that the template puts after an assistant's turn.
    - `end_id`: the last of these, for supervised targets.
    - `banned_ids`: what no reply may have, so that sampler, trainer and teacher all give it probability 0. These are
      ids without a piece, padding, the start of a text, what opens a turn, and placeholders of media and their marks.
      Stop ids are not among them, and other special tokens, such as the mark of a channel, a model may write.
    - `num_tokens`: ids from here on only pad a model's vocabulary.

    Raises UserError for a template that is of no use (`Template`), and where nothing says which token ends a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
        self.tokenizer = tokenizer
        self._config = config
        self._template = Template(tokenizer, config)
        used = set(tokenizer.get_vocab().values())
        self.num_tokens = max(used) + 1
        special = set(tokenizer.all_special_ids)
        special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        text = {i: self._decode([i]) for i in special}
        tags = {i for i in special if text[i] in TAGS}
        pieces = sorted({text[i] for i in special - tags if len(text[i]) > 1}, key=len)
        self._control = re.compile("|".join(map(re.escape, reversed(pieces)))) if pieces else None
        terminator = self._template.terminator(special - tags)
        if terminator is None:
            raise UserError(f"{config.path}: neither the chat template nor the tokenizer says which token ends a reply")
        self.end_id: int = terminator
        self.stop_ids: frozenset[int] = frozenset({self.end_id, tokenizer.eos_token_id, *end_ids(config)} - {None})
        self._unread = special - tags
        banned = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id} & special
        banned |= self._template.openers(special - tags, set(self.stop_ids))
        banned |= {i for i in special - tags if MEDIA.search(text[i])} | media_ids(config)
        banned |= set(range(self.num_tokens)) - used
        self.banned_ids: list[int] = sorted(banned - self.stop_ids)
        self.shown: dict[str, tuple[list[int], MediaInputs]] = {}
        """Ids and tensors of the first prompt that was packed with each kind of medium, for the probe of a model."""

    @cached_property
    def vision(self) -> Vision:
        """The processor of images and video. Raises UserError for a model that reads text only."""
        return Vision(self._config)

    def processing(self) -> list[object]:
        """What decides how a prompt is written, besides tokenizer and template: how media become tokens."""
        files = [source_file(self._config, name) for name in PROCESSOR_FILES]
        contents = [
            None if file is None else Path(file).read_text(encoding="utf-8", errors="replace") for file in files
        ]
        return [self._config.enable_thinking, self._config.chat_template, *contents]

    @property
    def placeholder_ids(self) -> tuple[int, int]:
        """The ids that stand for a feature of a picture and of a clip. KeyError for a model that reads text only."""
        return self._token_id(IMAGE), self._token_id(VIDEO)

    def pack(self, prompt: Prompt) -> PackedPrompt:
        """The prompt up to where the reply starts, without `prefix_ids`; nothing is ever cut off.

        Contents are data: a special token's text in them (`<|im_end|>` in a question or in a candidate) is broken by a
        space, so that it cannot end a turn. Tags that our own instruction names are no such tokens. Media stand where
        `<image>` and `<video>` do, or, where there is no such mark, before the text of the last turn. A clip becomes a
        time and its placeholders for each pair of frames.

        Raises MediaError for media that cannot be used or do not match the marks, UserError for a model without eyes.
        """
        if prompt.ids:
            return PackedPrompt(list(prompt.ids))
        question = prompt.question
        if not question.images and question.video is None:
            return PackedPrompt(self._ids(self._text(prompt.messages)))
        messages, vision = _with_marks(prompt), self.vision
        text = self._text([{**message, "content": self._parts(message["content"])} for message in messages])
        self._template.check_media({kind for message in messages for kind in MARKER.findall(message["content"])})
        media = vision.pack(question, text)
        ids = list(media.ids) or list(self._expand(self._ids(text), media))
        for kind in ("image",) * bool(question.images) + ("video",) * (question.video is not None):
            if kind not in self.shown:
                self.shown[kind] = ids, media.inputs()
        return PackedPrompt(ids, media)

    def num_tokens_of(self, prompt: Prompt) -> int:
        """Tokens of prompt and prefix together. Raises like `pack`."""
        return len(self.pack(prompt).ids) + len(prompt.prefix_ids)

    def num_tokens_of_texts(self, prompts: Sequence[Prompt]) -> list[int]:
        """`num_tokens_of` of many prompts without media, in a fraction of the time. A template is rendered for each."""
        texts = [self._text(prompt.messages) for prompt in prompts]
        return [num + len(prompt.prefix_ids) for num, prompt in zip(self._num_tokens(texts), prompts, strict=True)]

    def _num_tokens(self, texts: list[str]) -> list[int]:
        """Of each text. The tokenizer's own core makes no lists of ids, which take longer than the tokens."""
        if not texts:
            return []
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        self.tokenizer(texts[:1], add_special_tokens=False)  # takes back what its file says about cutting and padding
        return list(map(len, backend.encode_batch_fast(texts, add_special_tokens=False)))

    def as_text(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """A conversation in the chat template, contents as they are: what an evaluation library makes prompts of.

        Without a generation prompt the last turn goes on. A template that knows no system turn is given none.
        """
        options: dict[str, Any] = {
            "reply": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self._template.render(messages, **options)
        except UserError:
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise
            return self._template.render(others, **options)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, without start or end tokens. What reads as a special token is not one."""
        return self.tokenizer(self.as_data(text), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a reply: special tokens are dropped, tags such as <think> stay, special or not."""
        return self._decode([i for i in ids if i not in self._unread])

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """Text of a prompt as the model sees it, special tokens included; for the run's records."""
        return self._decode(ids)

    def as_data(self, content: str) -> str:
        """A content in which what reads as a special token is broken by a space."""
        return content if self._control is None else self._control.sub(lambda m: f"{m[0][0]} {m[0][1:]}", content)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation up to where the reply starts; a content is a text of data, or parts."""
        contents = [m["content"] if isinstance(m["content"], list) else self.as_data(m["content"]) for m in messages]
        turns = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        text = self._template.render(turns)
        self._template.check(text, turns)
        return text

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

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


def thinking_conflict(
    tokenizer: PreTrainedTokenizerBase, config: ModelConfig, closing: str | None = None
) -> str | None:
    """How a chat template is in the way of the closing instruction, which asks to reason inside `<think>`; None if not.

    `closing` replaces the usual one. A template that reads `enable_thinking` writes an empty block of thinking where
    it is false, or leaves its start out.
    """
    if config.enable_thinking or "<think>" not in (CLOSING if closing is None else closing):
        return None
    turn = [{"role": "user", "content": "question"}]
    template = Template(tokenizer, config)
    forms = [template.render(turn, enable_thinking=thinking) for thinking in (True, False)]
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
