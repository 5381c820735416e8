r"""Answers that look like arithmetic and are none: times of day, dates, ratios, letters of several options.

To a parser `3:30` is a tenth, `2024-01-15` is 2008, and `2:3:4` is a sixth. Here they are compared by what they say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from math import gcd

from harness.rewards import latex

_WRAPPED = re.compile(r"\\(?:text(?:rm|bf|it)?|math(?:rm|bf)|mbox)\s*\{([^{}]*)\}")
_SIZE = re.compile(r"\$|\\(?:left|right)(?![A-Za-z])")
_COLON = re.compile(r"\{\s*:\s*\}|\\colon(?![A-Za-z])|(?<=\d)\s+to\s+(?=\d)")
_TIME = re.compile(r"(\d{1,2})(?:\s*:\s*([0-5]\d))?(?:\s*:\s*([0-5]\d))?(?:\s*([ap])\.?\s*m\.?)?", re.IGNORECASE)
_DATE = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})|(\d{1,2})([-/.])(\d{1,2})\6(\d{4})")
_NO_RATIO = re.compile(r"\\[{}]|\\(?:in|to|mid|mapsto|le|ge)(?![A-Za-z])|[|<>]")
_LETTER = r"(?:[A-Z]|\(\s*[A-Z]\s*\))"
_LETTERS = re.compile(rf"{_LETTER}(?:\s*(?:,\s*and\b|,|;|&|\band\b)\s*{_LETTER})+\.?")

Equal = Callable[[str, str], bool]


def same(gold: str, answer: str, equal: Equal) -> bool | None:
    """Whether both say the same; None where neither is such a form. `equal` compares two formulas."""
    wanted, given = _plain(gold), _plain(answer)
    if wanted == given:
        return bool(wanted) or None
    if (letters := _letters(wanted)) is not None:
        return letters == (_letters(given) or (frozenset(given) if given.isupper() else None))
    if _DATE.fullmatch(wanted) or _DATE.fullmatch(given):
        return _date(wanted) == _date(given)
    times = _time(wanted), _time(given)
    if times[0] is not None and (_is_time(wanted) or (times[1] is not None and times[1][0])):
        return times[1] is not None and _same_time(*times[0], *times[1])
    return _same_ratio(_terms(wanted), _terms(given), equal)


def reads(gold: str) -> bool:
    """Whether a gold answer is one of these forms."""
    text = _plain(gold)
    return bool(_letters(text) or _DATE.fullmatch(text) or _is_time(text) or len(_terms(text)) > 1)


def _plain(text: str) -> str:
    """Without `\\text{}` and spacing commands, white space collapsed."""
    text = latex.without_lead(_WRAPPED.sub(r"\1", latex.undressed(text)))
    return " ".join(_COLON.sub(":", _SIZE.sub(" ", text)).split())


def _letters(text: str) -> frozenset[str] | None:
    return frozenset(re.findall("[A-Z]", text)) if _LETTERS.fullmatch(text) else None


def _date(text: str) -> tuple[int, ...] | None:
    """The numbers as they are written."""
    match = _DATE.fullmatch(text)
    return tuple(int(part) for part in match.groups() if part and part.isdigit()) if match else None


def _is_time(text: str) -> bool:
    """Whether it has a.m. or p.m., or hours and minutes that are no ratio in its lowest terms."""
    match = _TIME.fullmatch(text)
    if match is None or not match[2]:
        return match is not None and match[4] is not None
    return bool(match[3] or match[4]) or int(match[2]) == 0 or gcd(int(match[1]), int(match[2])) > 1


def _time(text: str) -> tuple[str, int] | None:
    """Half of the day, empty where it is not said, and seconds."""
    match = _TIME.fullmatch(text)
    if match is None or not (match[2] or match[4]):
        return None
    hour, minute, second = (int(part or 0) for part in match.groups()[:3])
    return (match[4] or "").lower(), 3600 * hour + 60 * minute + second


def _same_time(half: str, seconds: int, other_half: str, other_seconds: int) -> bool:
    """A half that is missing may be either; 15:30 is 3:30 p.m."""
    if not half and not other_half:
        return seconds == other_seconds
    return not _of_day(half, seconds).isdisjoint(_of_day(other_half, other_seconds))


def _of_day(half: str, seconds: int) -> set[int]:
    """Seconds since midnight that a time may mean."""
    noon = 12 * 3600
    if not half and seconds >= noon + 3600:
        return {seconds}
    morning = seconds % noon
    return {morning + noon * (half == "p")} if half else {morning, morning + noon}


def _terms(text: str) -> list[str]:
    """The terms of a ratio; one for anything else. `a:b = 2:3` is `2:3`."""
    text = text.rpartition("=")[2].strip()
    if re.fullmatch(r"\([^()]*:[^()]*\)|\[[^\[\]]*:[^\[\]]*\]", text):
        text = text[1:-1]
    terms = [] if _NO_RATIO.search(text) else [term.strip() for term in text.split(":")]
    return terms if terms and all(terms) else [text]


def _same_ratio(gold: list[str], answer: list[str], equal: Equal) -> bool | None:
    if len(gold) == 1:
        return False if len(answer) > 2 else None
    if len(answer) == 1:
        return len(gold) == 2 and equal(_quotient(*gold), answer[0])
    if len(gold) != len(answer):
        return False
    # Both may be times of day; the terms of a gold answer have no common divisor.
    if "0" in (*gold, *answer) or all(_TIME.fullmatch(":".join(terms)) for terms in (gold, answer)):
        return [term.lstrip("0") for term in gold] == [term.lstrip("0") for term in answer]
    return all(equal(_quotient(*a), _quotient(*b)) for a, b in zip(pairwise(gold), pairwise(answer), strict=True))


def _quotient(a: str, b: str) -> str:
    return f"\\frac{{{a}}}{{{b}}}"
