"""What a model's chat template makes of a conversation, and the one place where it is applied.

A template is a program that comes with the model. What it does is read off conversations that it renders, so that one
which loses the question, or never opens a reply, is refused before anything is sampled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.config.schema import ModelConfig
from harness.errors import UserError, first_line
from harness.models.loading import source_file

QUESTION, REPLY, NEXT, SYSTEM = "How many are 17 and 25?", "It is 42.", "And twice as many?", "Reply in English."
REMEDY = "repair it, or give another (student.chat_template=FILE, teacher.chat_template=FILE)"


class Template:
    """The chat template of a tokenizer.

    `takes_parts`: a content has to be a list of parts (`{"type": "text", "text": ...}`), a string would be lost.

    Raises UserError for a template that cannot be rendered, shows no question or ignores `add_generation_prompt`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._shows: set[str] = set()
        self.takes_parts = self._takes_parts()
        self._refuse_without_reply()

    def render(self, messages: Sequence[Mapping[str, Any]], *, reply: bool = True, **options: Any) -> str:
        """The text of a conversation; with `reply` up to where the assistant's next turn starts.

        Raises UserError where the template cannot be rendered.
        """
        if self.takes_parts:
            messages = [{**message, "content": _as_parts(message["content"])} for message in messages]
        options = {"enable_thinking": self._config.enable_thinking} | options
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),  # type: ignore[arg-type]
                tokenize=False,
                add_generation_prompt=reply,
                **options,
            )
        except Exception as error:  # a template is a program, and raises what it pleases
            raise UserError(
                f"the chat template of {self._config.path} cannot be rendered ({first_line(error)}): {REMEDY}"
            ) from error
        assert isinstance(text, str)
        return text

    def check(self, text: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError where a user's text is not in the rendered `text`; blanks do not count."""
        shown = "".join(text.split())
        for message in messages:
            contents = [message["content"]] if isinstance(message["content"], str) else _texts(message["content"])
            for content in contents if message["role"] == "user" else ():
                if "".join(content.split()) not in shown:
                    raise UserError(f"the chat template of {self._config.path} drops the question's text: {REMEDY}")

    def check_media(self, kinds: set[str]) -> None:
        """Raises UserError where the template writes nothing for a picture or a clip."""
        for kind in kinds - self._shows:
            part = {"type": "text", "text": QUESTION}
            forms = [self.render([{"role": "user", "content": parts}]) for parts in ([part], [{"type": kind}, part])]
            if forms[0] == forms[1]:
                raise UserError(f"the chat template of {self._config.path} drops every {kind}: {REMEDY}")
            self._shows.add(kind)

    def terminator(self, special: set[int]) -> int | None:
        """The first special token after the content of an assistant's turn, else the tokenizer's end token."""
        try:
            text = self.render([_user(QUESTION), _assistant(REPLY)], reply=False)
        except UserError:  # it asks and lets nobody answer
            text = ""
        _, found, ending = text.rpartition(REPLY)
        ids = self._ids(ending) if found else []
        return next((i for i in ids if i in special), self._tokenizer.eos_token_id)

    def openers(self, special: set[int], ends: set[int]) -> set[int]:
        """The special tokens that begin a turn, of which no reply may have one.

        Of what stands before a reply only the first one counts. A template may write more there, such as the mark of a
        channel, which a model has to write itself.
        """
        try:
            text = self.render([_user(QUESTION), _assistant(REPLY), _user(NEXT)])
        except UserError:  # it knows one turn alone
            text = self.render([_user(QUESTION)])
        places = [text.find(content) for content in (QUESTION, REPLY, NEXT)]
        if -1 in places or places != sorted(places):  # it shows less than all of it: all that it writes counts
            return {i for i in self._ids(text) if i in special - ends}
        first, reply, following = places
        before_reply = self._special(text[first + len(QUESTION) : reply], special - ends)
        opened = self._special(text[following + len(NEXT) :], special - ends)
        others = [*self._special(text[:first], special - ends), *self._before_system(special - ends)]
        others += self._special(text[reply + len(REPLY) : following], special - ends)
        parts = {*before_reply[1:], *opened[1:]}
        return {*before_reply[:1], *opened[:1], *(set(others) - parts)}

    def _before_system(self, special: set[int]) -> list[int]:
        try:
            text = self.render([{"role": "system", "content": SYSTEM}, _user(QUESTION)])
        except UserError:  # many templates know no system turn
            return []
        return self._special(text.partition(SYSTEM)[0], special)

    def _special(self, text: str, special: set[int]) -> list[int]:
        return [i for i in self._ids(text) if i in special]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _takes_parts(self) -> bool:
        """Raises UserError where a question is shown neither as a string nor as parts."""
        problem: UserError | None = None
        for takes_parts in (False, True):
            self.takes_parts = takes_parts
            try:
                if QUESTION in self.render([_user(QUESTION)]):
                    return takes_parts
            except UserError as error:
                problem = problem or error
        raise problem or UserError(
            f"the chat template of {self._config.path} drops the question: a user's text is not in what it renders; "
            f"{REMEDY}"
        )

    def _refuse_without_reply(self) -> None:
        """A prompt has to end where an assistant's turn begins, by `add_generation_prompt` or as it is."""
        asked = self.render([_user(QUESTION)])
        if asked != self.render([_user(QUESTION)], reply=False):
            return
        try:
            answered = self.render([_user(QUESTION), _assistant(REPLY)], reply=False)
        except UserError:  # no reply can be rendered, so nothing says how it would begin
            return
        begun, found, _ = answered.partition(REPLY)
        if found and "".join(begun.split()) != "".join(asked.split()):
            raise UserError(
                f"the chat template of {self._config.path} ignores add_generation_prompt: its prompts end with the "
                f"question and open no reply; {REMEDY}"
            )


def end_ids(config: ModelConfig) -> set[int]:
    """The ids that end a reply by generation_config.json and by config.json; empty where these have none."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        for part in _parts(config, name):
            ends = part.get("eos_token_id")
            found |= {ends} if isinstance(ends, int) else _integers(source_file(config, name), ends)
    return found


def media_ids(config: ModelConfig) -> set[int]:
    """The ids that config.json names and that are no text: placeholders of media, and marks around them."""
    text = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id")
    return {
        value
        for part in _parts(config, "config.json")[:1]
        for name, value in part.items()
        if name.endswith(("_token_id", "_token_index")) and name not in text and type(value) is int
    }


def _parts(config: ModelConfig, name: str) -> list[dict[str, Any]]:
    """The object in a JSON file of the model and, in it, that of the language part."""
    file = source_file(config, name)
    if file is None:
        return []
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        parts = [content, content.get("text_config")]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}): take another copy of the model") from error
    return [part for part in parts if isinstance(part, dict)]


def _integers(file: str | None, value: Any) -> set[int]:
    if value is None:
        return set()
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise UserError(f"{file} is damaged (eos_token_id is {value!r}): take another copy of the model")
    return set(value)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _as_parts(content: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(parts: Sequence[Mapping[str, str]]) -> list[str]:
    return [part["text"] for part in parts if "text" in part]
