r"""Short answers that need no mathematics: words, and letters of multiple-choice options."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|normal)?|math(?:bf|it|rm|sf|tt)|[mf]box|operatorname|boldsymbol|bm|emph|underline)"
    r"\s*\{([^{}]*)\}"
)
_LAYOUT = re.compile(
    r"\\(?:[,;:! ]|$|(?:left|right|q?quad|(?:display|text)style|bf|rm|it|sf|tt|sc|sl|em|cal|tiny|small|large|huge"
    r"|bfseries|itshape|rmfamily|text(?:bf|it|rm|sf|tt|up|normal|circled)?|math(?:bf|it|rm|sf|tt|bb|cal)|boldsymbol|bm"
    r"|circled|boxed|fbox|[mh]box)(?![a-z]))|~|[{}_]",
    re.IGNORECASE,
)
_SURROUNDING = " .,;:!?\"'`*$\u2018\u2019\u201c\u201d\u3002"
_WORD = r"(?:(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:option|choice|answer|letter)(?:\s+is)?\s*[:=]?\s*)"
_CHINESE = (
    "(?:(?:\u6240\u4ee5|\u56e0\u6b64|\u6545)?\\s*(?:\u6b63\u786e|\u6700\u7ec8)?(?:\u7b54\u6848|\u9009\u9879)?"
    "\\s*(?:\u662f|\u4e3a|\u5e94\u9009|\u9009\u62e9|\u9009)?\\s*:?\\s*)"
)
_LEAD = rf"(?:{_WORD}{{0,2}}|{_CHINESE})"
_FORMULA = re.compile(r"[$\\^_=+*/<>]|^\W*\w{1,2}\W*$")
_LETTER = re.compile(
    rf"{_LEAD}[(\[{{\u3010]?\s*([A-Z])\s*[)\]}}\u3011]?(?:\s*(?:option|choice|\u9009?\u9879))?", re.IGNORECASE
)
_LETTER_AND_TEXT = re.compile(rf"{_LEAD}(?:[(\[]([A-Z])[)\]]|([A-Z])\s*[).:\u3001])\s*\S", re.IGNORECASE)


def normal_text(text: str) -> str:
    r"""Casefolded, whitespace collapsed, `\text{}` unwrapped (three levels), surrounding punctuation and dollars gone.

    Brackets, signs and percent marks stay: they carry meaning (`-5`, `(a, b)`).
    """
    for _ in range(3):
        text = _COMMAND.sub(r"\1", text)
    return " ".join(text.casefold().split()).strip(_SURROUNDING)


def choice_letter(text: str, choices: Sequence[str] = ()) -> str | None:
    r"""The option that a text names: `B`, `(B)`, `B.`, `B) text`, `Option B`, `\bf{B}`, or an option's text.

    Full-width letters and signs are read as plain ones, look-alikes of other alphabets are not. None if it names
    none, or a letter beyond the options. Without `choices` every letter is an option.
    """
    plain = normal_text(text)
    if (bare := _LETTER.fullmatch(plain)) and (letter := _existing(bare[1], choices)):
        return letter
    for index, option in enumerate(choices):
        if plain and normal_text(option) == plain and (_FORMULA.search(option) is None or _bare(option) == _bare(text)):
            return chr(ord("A") + index)
    label = normal_text(_LAYOUT.sub(" ", unicodedata.normalize("NFKC", text)))
    named = _LETTER.fullmatch(label) or _LETTER_AND_TEXT.match(label)
    return _existing(named[named.lastindex or 1], choices) if named else None


def _bare(text: str) -> str:
    """A formula without its white space and dollars: its letters keep their case."""
    return "".join(_COMMAND.sub(r"\1", text).split()).strip(_SURROUNDING)


def is_bare_letter(text: str) -> bool:
    """Whether a text is the letter of an option and nothing else, be there such an option or not."""
    return _LETTER.fullmatch(normal_text(text)) is not None


def _existing(letter: str, choices: Sequence[str]) -> str | None:
    letter = letter.upper()
    return letter if not choices or ord(letter) - ord("A") < len(choices) else None


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def lettered(choices: Sequence[str]) -> str:
    """The options of a question, one a line: `A. red`. The same form in all benchmarks."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
