"""From the rows of a table to questions, by the columns that the options name. Every bad row says why.

Images and videos are references that are opened later: what is wrong with the files themselves shows when they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from harness.config.data import ColumnsConfig, DataConfig
from harness.data.columns import ABSENT, Record, Steps, lookup, missing_column, needed, record_names, sought, steps_of
from harness.data.options import Options, options
from harness.data.pictures import BadPicture, Place, picture
from harness.data.rows import BadRow
from harness.data.scalars import text_of
from harness.data.tables import TableVideo, resolve
from harness.data.turns import Asked, BadTurns, answered, asked, is_turns
from harness.data.video import VideoFile
from harness.errors import UserError, did_you_mean
from harness.rewards.gold import NoGold, short_gold
from harness.types import AnswerType, ImageRef, Message, Question, VideoRef

ANSWER_TYPES = tuple(name for name in get_args(AnswerType) if name != "reasoning_gym")
"""A reasoning-gym answer needs its entry, which a file does not have."""

_MARK = re.compile("<(image|video)>")
_NUMBERED = re.compile(r"<(image)[ _-]?([1-9]\d?)>")
_MEDIA_NAMES = re.compile(r"image|img|picture|photo|video|clip|frame", re.IGNORECASE)
_LETTERED = re.compile(r"(?<![A-Za-z])[(\[]?([A-E])\s*[)\].:]")


@dataclass(frozen=True)
class Row:
    """A row as a file has it: its number, its values or why there are none, and where its line starts."""

    number: int
    record: Any
    offset: int | None = None


@dataclass(kw_only=True)
class Reader:
    """Makes questions of the rows of one source. Relative paths start at `folder`; `name` begins the ids.

    `known` are the columns of a table; empty, those of the first row count.
    """

    config: DataConfig
    origin: str
    folder: str
    name: str
    known: list[str]

    def __post_init__(self) -> None:
        self._needed, self._sought = needed(self.config), sought(self.config)
        default = ColumnsConfig()
        self._asked = {
            name for name in self._sought if getattr(self.config.columns, name) != getattr(default, name)
        }  # fmt: skip
        self._limits = self.config.media.limits()

    def questions(self, rows: Iterable[Row]) -> Iterator[tuple[int, Question | BadRow]]:
        """The number of each row with its question, or why it gives none.

        Raises UserError in the end for no rows at all, and for a column that no row has.
        """
        unseen, is_empty = dict(self._needed), True
        numbers: dict[str, int] = {}
        has_ids = "id" in self._needed
        for row in rows:
            is_empty = False
            try:
                if isinstance(row.record, BadRow):
                    raise row.record
                if not isinstance(row.record, dict):
                    raise BadRow("not a JSON object")
                self.known = self.known or record_names(row.record)
                if unseen:
                    unseen = {key: name for key, name in unseen.items() if lookup(row.record, name) is ABSENT}
                question = self._question(row)
                if has_ids and numbers.setdefault(question.id, row.number) != row.number:
                    raise BadRow(f"id {question.id!r} was used before, in row {numbers[question.id]}")
            except BadRow as reason:
                yield row.number, reason
            else:
                yield row.number, question
        if is_empty:
            raise UserError(f"{self.origin} is empty: give a file with at least one row")
        for key, column in unseen.items():
            if self.known:
                raise missing_column(self.origin, key, column, self.known)

    def _question(self, row: Row) -> Question:
        record, config, columns = row.record, self.config, self.config.columns
        place = Place(self.origin, row.number, row.offset)
        answer_type: str = config.answer_type
        if columns.answer_type is not None:
            answer_type = self._scalar(record, columns.answer_type)
        if answer_type not in ANSWER_TYPES:
            raise BadRow(f"answer type {answer_type!r} is not known.{did_you_mean(answer_type, ANSWER_TYPES)}")
        turn, text_place = self._asked_in(record)
        choices = self._options(record)
        if choices is not None and answer_type == "math" and columns.answer_type is None:
            answer_type = "choice"
        images = self._images(record, place, turn, text_place)
        video = self._video(record)
        turn, images = _by_number(turn, images)
        self._check_marks(turn, images, video)
        text = turn.text
        if choices is not None and not choices.shown_in(text):
            text = f"{text}\n\n{choices.shown()}"
        elif choices is None and answer_type == "choice" and not (images or video is not None):
            _check_lettered(text)
        answer, *others = self._golds(record, answer_type, choices)
        extra = {name: _as_json(found) for name in columns.extra if (found := lookup(record, name)) is not ABSENT}
        return Question(
            id=self._scalar(record, columns.id) if columns.id is not None else f"{self.name}/{row.number}",
            text=text,
            answer=answer,
            other_answers=tuple(others),
            answer_type=answer_type,  # type: ignore[arg-type]
            messages=self._messages(record, turn),
            source=self._scalar(record, columns.source) if columns.source is not None else self.name,
            images=images,
            video=video,
            limits=self._limits,
            metadata={} if choices is None else {"choices": list(choices.texts)},
            closing=config.closing,
            scorer=config.reward or "",
            extra=extra,
        )

    def _asked_in(self, record: Record) -> tuple[Asked, Steps]:
        """The question with what comes before it, and where its column is."""
        column = self.config.columns.question
        value = lookup(record, column)
        if not is_turns(value):
            return Asked(self._scalar(record, column), ()), ()
        try:
            found = asked(value)
            for content in (*(message["content"] for message in found.messages), found.text):
                text_of(content)
        except (BadTurns, ValueError) as error:
            raise BadRow(f"{column!r} {error}") from error
        return found, steps_of(record, column) or (column,)

    def _messages(self, record: Record, turn: Asked) -> tuple[Message, ...]:
        """System message and earlier turns. The row's own goes first, then its column, then the option."""
        if any(message["role"] == "system" for message in turn.messages):
            return turn.messages
        column, system = self.config.columns.system, self.config.system
        if column is not None and (value := lookup(record, column)) not in (ABSENT, None, ""):
            try:
                system = text_of(value)
            except ValueError as error:
                raise BadRow(f"{column!r} {error}") from error
        return ({"role": "system", "content": system}, *turn.messages) if system else turn.messages

    def _options(self, record: Record) -> Options | None:
        for column in self._sought.get("choices", ()):
            value = lookup(record, column)
            if value is ABSENT or value is None:
                continue
            try:
                if (found := options(value)) is not None:
                    return found
            except ValueError as error:
                raise BadRow(f"an entry of {column!r} {error}") from error
        return None

    def _golds(self, record: Record, answer_type: str, choices: Options | None) -> list[str]:
        column = self.config.columns.answer
        value = lookup(record, column)
        if is_turns(value):
            try:
                value = answered(value)
            except BadTurns as error:
                raise BadRow(f"{column!r} {error}") from error
        if self.config.reward is not None and _is_nested(value):
            return [json.dumps(_as_json(value))]  # the scorer reads it
        values = value if isinstance(value, list) else [value]
        if not values:
            raise BadRow(f"{column!r} is empty")
        golds = []
        for one in values:
            letter = None
            if choices is not None and answer_type == "choice" and isinstance(one, str | int | float):
                letter = choices.letter(one)
            gold = letter or self._short(_text(column, one), answer_type, column)
            if letter is None and choices is not None and answer_type == "choice":
                gold = choices.letter(gold) or gold
            golds.append(gold)
        return list(dict.fromkeys(golds))

    def _short(self, text: str, answer_type: str, column: str) -> str:
        if self.config.reward is not None and self.config.answer_pattern is None:
            return text  # the scorer reads it
        try:
            return short_gold(text, answer_type, self.config.answer_pattern)
        except NoGold as error:
            shown = repr(text) if len(text) <= 40 else repr(f"{text[:40]}...")
            raise BadRow(f"{column!r} {shown} {error}") from error

    def _images(self, record: Record, place: Place, turn: Asked, text_place: Steps) -> tuple[ImageRef, ...]:
        found: list[ImageRef] = []
        for steps, value in turn.pictures:
            found.append(self._picture(value, place, (*text_place, *steps)))
        if found:
            return tuple(found)
        column, value = self._medium(record, "images")
        if column is None:
            return ()
        here = steps_of(record, column) or (column,)
        if not isinstance(value, list):
            return (self._picture(value, place, here),)
        for index, item in enumerate(value):
            if item in (None, "", b""):
                raise BadRow(f"an entry of {column!r} is empty")
            found.append(self._picture(item, place, (*here, index)))
        return tuple(found)

    def _picture(self, value: Any, place: Place, steps: Steps) -> ImageRef:
        try:
            return picture(value, place, steps, self.folder)
        except BadPicture as error:
            raise BadRow(f"{'.'.join(str(s) for s in steps if isinstance(s, str))!r} {error}") from error

    def _medium(self, record: Record, kind: str) -> tuple[str | None, Any]:
        """The column that has a row's media, and its value; None where the row has none."""
        for column in self._sought.get(kind, ()):
            value = lookup(record, column)
            if value is not ABSENT and value is not None and value != "" and value != []:
                return column, value
        return None, None

    def _video(self, record: Record) -> VideoRef | None:
        column, value = self._medium(record, "video")
        if isinstance(value, list):
            if len(value) > 1:
                raise BadRow(f"{column!r} holds {len(value)} videos: a question has one")
            value = value[0]
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            value = value["path"]
        if value in (None, ""):
            return None
        if isinstance(value, TableVideo):
            return value
        if not isinstance(value, str):
            raise BadRow(f"{column!r} is a {type(value).__name__}, not the path of a video")
        return VideoFile(resolve(self.folder, value))

    def _check_marks(self, turn: Asked, images: tuple[ImageRef, ...], video: VideoRef | None) -> None:
        """A mark in the place of media that the row does not have would be read as text."""
        if images or video is not None:
            return
        contents = [*(message["content"] for message in turn.messages), turn.text]
        marks = [mark for content in contents for mark in _MARK.findall(content)]
        for kind, option in (("image", "images"), ("video", "video")):
            if kind not in marks or option not in self._sought:
                continue
            like = [name for name in self.known if _MEDIA_NAMES.search(name)]
            named = f", such as {like[0]!r}" if like else ""
            raise BadRow(
                f"the text has <{kind}> and the row no {kind}: set data.columns.{option} to the column that holds it"
                f"{named}, or to null where the mark is plain text"
            )

    def _scalar(self, record: Record, column: str) -> str:
        return _text(column, lookup(record, column))


def _is_nested(value: Any) -> bool:
    """Whether a value is a record, or a list that has records or lists in it."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict | list) for one in value))


def _as_json(value: Any) -> Any:
    """The value as JSON has it: what JSON does not know becomes text, bytes their number."""
    return json.loads(
        json.dumps(value, default=lambda one: f"{len(one)} bytes" if isinstance(one, bytes) else str(one))
    )


def _text(column: str, value: Any) -> str:
    if value is ABSENT:
        raise BadRow(f"no column {column!r}")
    if value is None:
        raise BadRow(f"{column!r} is empty")
    try:
        text = text_of(value)
    except ValueError as error:
        raise BadRow(f"{column!r} {error}") from error
    if not text:
        raise BadRow(f"{column!r} is empty")
    return text


def _by_number(turn: Asked, images: tuple[ImageRef, ...]) -> tuple[Asked, tuple[ImageRef, ...]]:
    """Marks with a number (`<image1>`, `<image 2>`) say which picture they mean: pictures in the order of the marks."""
    contents = [*(message["content"] for message in turn.messages), turn.text]
    numbers = [int(number) for content in contents for _, number in _NUMBERED.findall(content)]
    if not images or not numbers:
        return turn, images
    if max(numbers) > len(images):
        raise BadRow(f"the text has <image{max(numbers)}> and the row {len(images)} of them")
    *earlier, text = (_NUMBERED.sub("<image>", content) for content in contents)
    messages = tuple({**message, "content": new} for message, new in zip(turn.messages, earlier, strict=True))
    return Asked(text, messages), tuple(images[number - 1] for number in numbers)


def _check_lettered(text: str) -> None:
    """Of a multiple choice without options in columns of their own, that its text holds them."""
    if not {"A", "B"} <= set(_LETTERED.findall(text)):
        raise BadRow(
            "has the answer type choice and no options: set data.columns.choices to the column that holds them"
        )
