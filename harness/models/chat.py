"""The only place where a chat template is applied: messages to ids, ids to text, and how replies end."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.config import ModelConfig
from harness.errors import UserError
from harness.models.loading import source_file
from harness.types import Message, Prompt

_REPLY = "reply"


class Chat:
    """A tokenizer with its chat template.

    - `stop_ids`: any of these ends a completion: the end ids of the generation config, the tokenizer's end id, and the
      token that the template puts behind an assistant's turn.
    - `end_id`: the last of these, for supervised targets.
    - `banned_ids`: special ids that are no stop ids (padding, turn starts, image placeholders) and ids without a piece.
      No reply may have them, so sampler, trainer and teacher all give them probability 0.
    - `num_tokens`: ids from here on only pad a model's vocabulary.

    Raises UserError where nothing says which token ends a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
        self.tokenizer = tokenizer
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

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of the prompt up to where the reply starts, without `prefix_ids`.

        Contents are data: a special token's text in them (`<|im_end|>` in a question or in a candidate) is broken by a
        space, so that it cannot end a turn.

        Raises UserError for a question with images or video, which this text-only rendering would drop silently.
        """
        question = prompt.question
        if question.images or question.video is not None:
            raise UserError(f"question {question.id} has images or video: prompts are text only")
        messages = [{**message, "content": self._as_data(message["content"])} for message in prompt.messages]
        return self._render(messages, add_generation_prompt=True, tokenize=True, return_dict=False)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, without start or end tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a reply: special tokens are dropped, tags such as <think> are ordinary tokens and stay."""
        return self._decode(ids, skip_special_tokens=True)

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """Text of a prompt as the model sees it, special tokens included; for the run's records."""
        return self._decode(ids, skip_special_tokens=False)

    def _as_data(self, content: str) -> str:
        return content if self._control is None else self._control.sub(lambda m: f"{m[0][0]} {m[0][1:]}", content)

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _render(self, messages: Sequence[Message], **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(list(messages), enable_thinking=self._enable_thinking, **options)

    def _terminator(self, special: set[int]) -> int | None:
        """The first special token behind the content of an assistant's turn, else the tokenizer's end token."""
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _REPLY}]
        text: str = self._render(turns, add_generation_prompt=False, tokenize=False)
        behind = self.encode_text(text.rpartition(_REPLY)[2])
        return next((i for i in behind if i in special), self.tokenizer.eos_token_id)


def _generation_ends(config: ModelConfig) -> set[int]:
    """End ids of the model's generation_config.json; empty where it has none."""
    file = source_file(config, "generation_config.json")
    if file is None:
        return set()
    ends = json.loads(Path(file).read_text(encoding="utf-8")).get("eos_token_id")
    return {ends} if isinstance(ends, int) else set(ends or ())
