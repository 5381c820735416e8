"""A question that is a list of chat messages: the last user turn is the question, what comes before it stays.

Roles are those of chat templates, and ShareGPT's (`from` with `human` and `gpt`, `value`). A content is a text, or a
list of parts (`{"type": "text"}`, `{"type": "image"}`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.data.columns import Steps
from harness.types import Message

ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
    "bard": "assistant", "bing": "assistant", "model": "assistant", "bot": "assistant", "system": "system",
    "developer": "system", "tool": "tool",
}  # fmt: skip
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_IMAGE_PARTS, _VIDEO_PARTS = ("image", "image_url", "input_image"), ("video", "video_url")


class BadTurns(ValueError):
    """Why a list of messages gives no question; the text follows the name of its column."""


@dataclass(frozen=True)
class Asked:
    """A question out of messages. `pictures` are those that parts bring along, each with the way to it."""

    text: str
    messages: tuple[Message, ...]
    pictures: tuple[tuple[Steps, Any], ...] = ()


def is_turns(value: Any) -> bool:
    """Whether a value is a list of chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and any(key in turn for key in _ROLE_KEYS) for turn in value)
    )


def asked(turns: Sequence[dict[str, Any]]) -> Asked:
    """The last user turn and all before it. Turns after it, the answer of a conversation, are left out."""
    read = [_turn(turn, index) for index, turn in enumerate(turns)]
    users = [index for index, (message, _) in enumerate(read) if message["role"] == "user"]
    if not users:
        raise BadTurns("has no turn of a user")
    last = users[-1]
    text = read[last][0]["content"]
    if not text:
        raise BadTurns("has an empty turn of a user")
    return Asked(
        text=text,
        messages=tuple(message for message, _ in read[:last]),
        pictures=tuple(found for _, pictures in read[: last + 1] for found in pictures),
    )


def answered(turns: Sequence[dict[str, Any]]) -> str:
    """The last turn of the assistant: the answer of a conversation. Raises BadTurns."""
    replies = [
        message["content"]
        for message, _ in (_turn(turn, index) for index, turn in enumerate(turns))
        if message["role"] == "assistant"
    ]
    if not replies or not replies[-1]:
        raise BadTurns("has no turn of an assistant")
    return replies[-1]


def _turn(turn: dict[str, Any], index: int) -> tuple[Message, list[tuple[Steps, Any]]]:
    name = next((turn[key] for key in _ROLE_KEYS if turn.get(key) is not None), None)
    role = ROLES.get(str(name).lower())
    if role is None:
        raise BadTurns(f"has a turn of the role {name!r}: {', '.join(sorted(set(ROLES.values())))} are read")
    key = next((key for key in _CONTENT_KEYS if key in turn), None)
    content = None if key is None else turn[key]
    if isinstance(content, list):
        text, pictures = _parts(content, (index, str(key)))
    elif isinstance(content, str) or content is None:
        text, pictures = content or "", []
    else:
        raise BadTurns(f"has a turn whose content is a {type(content).__name__}")
    return {"role": role, "content": text.strip()}, pictures


def _parts(parts: Sequence[Any], place: Steps) -> tuple[str, list[tuple[Steps, Any]]]:
    """The text with a mark for each picture, and the pictures that parts bring along."""
    texts: list[str] = []
    pictures: list[tuple[Steps, Any]] = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind in ("text", "input_text"):
            texts.append(str(part.get("text") or part.get("content") or ""))
        elif kind in _IMAGE_PARTS:
            texts.append("<image>")
            key = next((key for key in ("image", "image_url", "path", "url", "bytes") if part.get(key)), None)
            if key is not None:
                pictures.append(((*place, index, key), part[key]))
        elif kind in _VIDEO_PARTS:
            texts.append("<video>")
        else:
            raise BadTurns(f"has a part of the type {kind!r}: text, image and video are read")
    return "".join(texts), pictures
