"""The numbers and formulas that stand in a text, each as an answer that a grader can read.

What a hint shows may be the answer in another spelling: 0.5, 50/100 or one half for 1/2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MATHS = re.compile(r"\$\$?(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_GROUP = r"(?:\{[^{}]*\}|\d)"
_FACTOR = r"-?\d{0,20}\s?"
_LATEX = re.compile(
    rf"{_FACTOR}\\[dt]?frac\s{{0,3}}{_GROUP}\s{{0,3}}{_GROUP}"
    rf"|{_FACTOR}\\sqrt\s{{0,3}}(?:\[\d+\])?\s{{0,3}}{_GROUP}"
)
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![\w)}])[-\u2212])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.\d+|(?<![\d.])\.\d+)?"
    r"(?:[eE][-+]?\d+|\s{0,3}/\s{0,3}\d+|\s{0,3}\^\s{0,3}\{?-?\d+\}?)?(?:\s{0,3}\\?%)?(?!\w|\.\d)"
)
_ATOM = r"[-+]?[\w.(){}^\\!]+"
_FORMULA = re.compile(rf"(?<![\w.(){{}}^\\!]){_ATOM}(?:\s{{0,3}}[-+*/=\u00d7\u00b7\u2212]\s{{0,3}}{_ATOM})+")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_PIECE = re.compile(r"[\d\\^+*/=(){}\[\]\u00d7\u00b7\u2212-]|^[b-zB-HJ-Z]\W*$")  # `a` and `I` are words
_END = re.compile(r"[,;:.?]$")
_MORE_THAN_NUMBERS = re.compile(r"[\\^({\[]|\d(?:!|(?!(?:st|nd|rd|th)\b)[A-Za-z])")

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_CARDINALS = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, 2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_PARTS = {"half": 2, "halves": 2}
_ORDINALS = {"third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_PARTS |= _ORDINALS | {f"{word}s": value for word, value in _ORDINALS.items()}


def shown_values(text: str) -> list[str]:
    """Every number and formula in a text, each once: in digits, in words, in LaTeX, and each side of an equation.

    Example: `so $x = 0.5$, not twelve` gives `x = 0.5`, `0.5` and `12`. A letter alone is left out, since it has no
    other spelling; so is the word `one`, which mostly stands for an article.
    """
    found = [*_formulas(text), *(match[0] for match in _NUMBER.finditer(text)), *_in_words(text)]
    cleaned = [value.strip(" \n\t.,;:?").replace("\u2212", "-") for value in found]
    both = [form for value in cleaned for form in (value, value.strip("!"))]  # a factorial, or an exclamation
    return list(dict.fromkeys(value for value in both if _is_whole(value)))


def _is_whole(value: str) -> bool:
    is_letter = len(value) == 1 and value.isalpha()
    return bool(value) and not is_letter and value.count("{") == value.count("}")


def _formulas(text: str) -> Iterator[str]:
    inner = [next(filter(None, match.groups())) for match in _MATHS.finditer(text)]
    bare = [match[0] for match in _FORMULA.finditer(text) if not _WORD.search(match[0])]
    for formula in (*inner, *bare, *_runs(_MATHS.sub(" ", text))):
        yield formula
        if "=" in formula:
            yield from formula.split("=")
    yield from (match[0] for match in _LATEX.finditer(text))


def _runs(text: str) -> Iterator[str]:
    r"""Formulas that stand in a text without dollars, where they are more than numbers and operators: `3 \times 10^4`,
    `(1, 2)`, `15cm`."""
    run: list[str] = []
    depth = 0
    for piece in [*text.split(), ""]:
        is_piece = _PIECE.search(piece) is not None and _WORD.search(piece) is None
        if is_piece:
            run.append(piece)
            depth += sum((c in "([{") - (c in ")]}") for c in piece)
        if run and (not is_piece or (depth <= 0 and _END.search(piece))):
            joined = " ".join(run)
            if _MORE_THAN_NUMBERS.search(joined):
                yield joined
            run, depth = [], 0


def _in_words(text: str) -> Iterator[str]:
    """Cardinals below a billion as digits, and fractions of them: `two thirds` is 2/3."""
    run: list[str] = []
    for word in [*re.findall(r"[a-z]+|[^a-z\s-]", text.lower()), "."]:
        if word in _CARDINALS or (run and word in _SCALES) or (run and word == "and" and run[-1] in _SCALES):
            run.append(word)
            continue
        value = _cardinal(run)
        if word in _PARTS and (value is not None or word == "half"):
            yield f"{1 if value is None else value}/{_PARTS[word]}"
        elif value is not None and run != ["one"]:
            yield str(value)
        run = []


def _cardinal(words: list[str]) -> int | None:
    total = part = 0
    for word in words:
        if word == "hundred":
            part *= 100
        elif word in _SCALES:
            total, part = total + part * _SCALES[word], 0
        else:
            part += _CARDINALS.get(word, 0)
    return total + part if words else None
