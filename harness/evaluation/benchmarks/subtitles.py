"""What is said in a video and when: SubRip files (`.srt`)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TIME = r"(\d+):(\d+):(\d+)(?:[,.](\d+))?"
_TIMES = re.compile(rf"{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True, order=True)
class Cue:
    """A text on screen from `start` until `end`, in seconds."""

    start: float
    end: float
    text: str


def read_cues(path: Path) -> list[Cue]:
    """The cues of a file, by time; those without text are left out."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if _TIMES.match(line.strip())]
    cues = []
    for start, following in itertools.zip_longest(starts, starts[1:]):
        match = _TIMES.match(lines[start].strip())
        assert match is not None
        text = _plain(lines[start + 1 : following], numbered=following is not None)
        if text:
            cues.append(Cue(_seconds(*match.groups()[:4]), _seconds(*match.groups()[4:]), text))
    return sorted(cues)


def spoken(cues: Sequence[Cue], times: Sequence[float] | None = None) -> str:
    """The texts, one a line, a text that repeats the one before it only once.

    With `times`, only what is on screen at one of them.
    """
    shown = [cue for cue in cues if times is None or any(cue.start <= time < cue.end for time in times)]
    texts = [cue.text for cue in shown]
    return "\n".join(text for before, text in zip(["", *texts], texts, strict=False) if text != before)


def evenly_spread(last: float, number: int) -> list[float]:
    """`number` times from 0 to `last`."""
    return [last * i / max(number - 1, 1) for i in range(number)]


def _plain(lines: Sequence[str], *, numbered: bool) -> str:
    """The text of a cue. `numbered`: another follows, whose number is the last line."""
    kept = [line.strip() for line in lines]
    if numbered:
        while kept and not kept[-1]:
            kept.pop()
        if kept and kept[-1].isdecimal():
            kept.pop()
    return " ".join(_TAG.sub("", " ".join(kept)).split())


def _seconds(hours: str, minutes: str, seconds: str, fraction: str | None) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + (float(f"0.{fraction}") if fraction else 0.0)
