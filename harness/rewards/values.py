r"""Mathematical answers as values: what math-verify reads in a text, and whether two texts have the same value.

Units are split off before (`units`), letters keep their case, and numbers
are compared exactly (`exact`).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from harness.rewards import exact, latex, units
from harness.rewards.units import Measured

_MARK = r"(?:\\(?:circ|degree|deg)(?![A-Za-z])|°)"
_MARKS = re.compile(rf"\^\s*\{{\s*{_MARK}\s*\}}|(?:\^\s*)?{_MARK}|\\?%")
_BASE = re.compile(r"(?<![A-Za-z_^\\])\d(?:[\dA-F]*\d)?\s*_\s*(?:\{\s*(\w+)\s*\}|(\w))")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\s*\d{3})+(?:\.\d+)?")
_DOTS = re.compile(r"\\[lc]?dots[cb]?(?![A-Za-z])|\.{3}|\u2026")
_CLOSED_INFINITY = re.compile(r"\\infty\s*(?:\\right\s*)?\]|\[\s*-\s*\\infty")
_TEXT_ONLY = re.compile(r"\{*\s*\\text\s*\{([^{}]*)\}\s*\}*")
_LETTERS = re.compile(r"[A-Za-z][A-Za-z .,'-]*")
_PLAIN_WORDS = frozenset(
    ["yes", "no", "true", "false", "even", "odd", "none", "neither", "both", "never", "always", "undefined", "infinite"]
)
_COUNTED = re.compile(r"[-+]?[\d.,/]*\d\s+[A-Za-z]{3,}\.?")
_NULL = frozenset(("none", "null", "nan", "n/a", "nil"))
_CONNECTIVES = re.compile(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
_CASES = re.compile(r"\\begin\s*\{[dr]?cases\}|(?<![A-Za-z])(?:if|when|otherwise|unless|whenever)(?![A-Za-z])")
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "gcd", "lcm", "max", "min", "mod", "det",
    "arcsin", "arccos", "arctan", "sqrt", "inf",
}  # fmt: skip


def read(gold: str, answer: str) -> tuple[Measured, Measured]:
    """Both as values with units."""
    wanted = units.of_gold(latex.tidy(gold))
    return wanted, units.of_answer(latex.tidy(answer), wanted)


def both_ways(gold: str, answer: str) -> Iterator[tuple[str, str]]:
    """The texts, and once more without degree and percent marks where there are any (App. D.1)."""
    yield gold, answer
    bare = _MARKS.sub("", gold).strip(), _MARKS.sub("", answer).strip()
    if bare != (gold, answer):
        yield bare


def same_words(gold: str, answer: str) -> bool | None:
    """Whether two words are the same; None where the gold answer or the answer is no word."""
    wanted, given = _word(gold), _word(answer)
    if wanted is None:
        # A word is no product of its letters either.
        return False if given is not None and len(given) > 1 and not re.search(r"[A-Za-z]", gold) else None
    if given is None:
        given = answer.strip() if _LETTERS.fullmatch(answer.strip()) else None
        return None if given is None and len(wanted) == 1 else given is not None and _same_word(wanted, given)
    return _same_word(wanted, given)


def _same_word(a: str, b: str) -> bool:
    """Equal but for a capital at the start: `Yes` is `yes`, and `Co` is neither `CO` nor `co`."""
    a, b = " ".join(a.split()).strip(" .,"), " ".join(b.split()).strip(" .,")
    if a == b:
        return True
    starts = {a[:1].lower() + a[1:], b[:1].lower() + b[1:], *(c.lower() for c in (a, b) if c.istitle() or c.islower())}
    return a.lower() == b.lower() and len(starts) == 1 and (len(a) > 2 or a.lower() == "no")


def _word(value: str) -> str | None:
    r"""The words that an answer consists of: in `\\text{}`, or plain where they are no product of symbols."""
    value = value.strip().strip("$").strip()
    if match := _TEXT_ONLY.fullmatch(value):
        return match[1].strip() if _LETTERS.fullmatch(match[1].strip()) else None
    if _LETTERS.fullmatch(value) and (value.lower() in _PLAIN_WORDS or len(max(value.split(), key=len)) > 4):
        return value
    return None


def clash(gold: Measured, answer: Measured) -> bool:
    """Whether two answers surely differ in what the library does not see: unit, number base, kind of bracket."""
    if units.differ(gold, answer):
        return True
    if _bases(gold.value) != _bases(answer.value):
        return True
    if _repeated_otherwise(gold.value, answer.value):
        return True
    if _anagrams(gold.value.strip(), answer.value.strip()):
        return True
    if any(len(form.findall(gold.value)) != len(form.findall(answer.value)) for form in (_DOTS, _CLOSED_INFINITY)):
        return True
    kinds = {_bracket(gold.value), _bracket(answer.value)}
    return kinds in ({"pair", "list"}, {"pair", "set"})


def _bases(value: str) -> Counter[str]:
    return Counter(match[1] or match[2] for match in _BASE.finditer(value))


def _anagrams(a: str, b: str) -> bool:
    """Two words of the same letters: `DNA` is no product, and so not `AND`. `xyz`, without a vowel, is one."""
    plain = re.compile(r"(?=.*[AEIOUaeiou])[A-Za-z]{3,}")
    return a != b and sorted(a) == sorted(b) and plain.fullmatch(a) is not None


def _repeated_otherwise(gold: str, answer: str) -> bool:
    """Whether other members of two lists occur more than once: to the library `5, 5` is 5."""
    wanted, given = _repeated(gold), _repeated(answer)
    if [count for count, _ in wanted] != [count for count, _ in given]:
        return True
    return not all(any(equal(item, other) for _, other in given) for _, item in wanted)


def _repeated(value: str) -> list[tuple[int, str]]:
    items = [] if _THOUSANDS.fullmatch(value) else latex.items(value)
    return sorted((count, item) for item, count in Counter(map(str.strip, items)).items() if count > 1)


def _bracket(value: str) -> str | None:
    r"""`pair` for `(1, 2)` and `[1, 2)`, `set` for `\{1, 2\}`, `list` for `1, 2`; None for anything else."""
    value = re.sub(r"\\(?:left|right)(?![A-Za-z])|\s", "", latex.joined(value))
    value = re.sub(r"^\([A-Za-z,]+\)=", "", value)
    depth, commas = 0, []
    for character in value:
        depth += (character in "([{") - (character in ")]}")
        if character in ",;":
            commas.append(depth)
    if not commas or re.search(r"\\(?:begin|cup|cap|in)(?![A-Za-z])|[=<>]|\\[lgn]e", value):
        return None
    if 0 in commas:
        return None if _THOUSANDS.fullmatch(value) else "list"
    if value.startswith((r"\{", r"\lbrace")):
        return "set"
    return "pair" if value[0] in "([" and value[-1] in ")]" else None


def equal(gold: str, answer: str) -> bool:
    """Whether math-verify reads equal values in two texts without units."""
    if gold == answer:
        return bool(gold)
    is_complex = _is_complex(gold) or _is_complex(answer)
    wanted, given = _parse(gold, is_complex), _parse(answer, is_complex)
    if wanted is None or given is None:
        return False
    return _equal(wanted, given)


def _equal(wanted: Any, given: Any) -> bool:
    import math_verify
    from sympy import Eq, Interval, Union

    exact.install()
    if _is_equation(given) and not _is_equation(wanted) and not _states_value(given):
        return False
    if isinstance(wanted, Eq) and not _is_equation(given) and _is_name(wanted.lhs):
        if not _is_one_name(wanted.lhs):
            return False
        wanted = wanted.rhs
    ranges = _range(wanted), _range(given)
    if None not in ranges:
        return bool(ranges[0] == ranges[1])
    for one, other in ((ranges[0], given), (ranges[1], wanted)):
        if one is not None and isinstance(other, Interval | Union):
            return bool(one[1] == other)
    # The library's own limits are alarms, which do nothing outside a main thread: the worker's limit replaces them.
    return bool(math_verify.verify(wanted, given, allow_set_relation_comp=True, timeout_seconds=None))


def _range(value: Any) -> Any:
    """The symbol of inequalities and the values that it may have; None for anything else."""
    from sympy import Eq, Ne
    from sympy.core.relational import Relational

    if not all(isinstance(part, Relational) and not isinstance(part, Eq | Ne) for part in _joined(value)):
        return None
    if len(value.free_symbols) != 1:
        return None
    try:
        return value.free_symbols, value.as_set()
    except (NotImplementedError, TypeError, ValueError):
        return None


def _joined(value: Any) -> list[Any]:
    """What `and` and `or` join."""
    from sympy import And, Or

    if not isinstance(value, And | Or):
        return [value]
    return [leaf for part in getattr(value, "_unsorted_args", value.args) for leaf in _joined(part)]


def _is_equation(value: Any) -> bool:
    from math_verify.grader import is_equation

    return bool(is_equation(value))


def _states_value(value: Any) -> bool:
    """Whether an equation, or a chain of them, gives a value for a name: `x = 5`, `f(2) = 5`, `2 + 3 = 5`."""
    parts = getattr(value, "_unsorted_args", (value,))
    first, last = parts[0].lhs, parts[-1].rhs
    constants = [part.rhs for part in parts] + [first]
    known = [c for c in constants if not getattr(c, "free_symbols", ())]
    return (_is_name(first) or not first.free_symbols) and all(exact.same_value(c, last) for c in known)


def _is_name(expression: Any) -> bool:
    """A symbol, a function of symbols or numbers, or sums and products of names: `a + b`, `f(2)`, `e`, `\\cos A`."""
    import sympy
    from sympy.core.function import AppliedUndef
    from sympy.functions.elementary.trigonometric import TrigonometricFunction

    if isinstance(expression, TrigonometricFunction):
        return _is_name(expression.args[0])
    if isinstance(expression, sympy.Symbol | AppliedUndef | sympy.Tuple) or expression == sympy.E:
        return True
    if isinstance(expression, sympy.Add | sympy.Mul | sympy.Pow):
        return any(_is_name(arg) for arg in expression.args) and all(
            _is_name(arg) or arg == -1 for arg in expression.args
        )
    return False


def _is_one_name(expression: Any) -> bool:
    """Whether it is one name: a letter, a segment or angle by its points, a ratio. `x+y=5` and `xy=5` are curves."""
    import sympy

    if isinstance(expression, sympy.Mul):
        return any(isinstance(arg, sympy.Pow) or str(arg)[:1].isupper() for arg in expression.args)
    return not isinstance(expression, sympy.Add | sympy.Pow)


def _is_complex(text: str) -> bool:
    return re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])|\\imath(?![A-Za-z])|\\mathbb\s*\{C\}", text) is not None


@lru_cache(maxsize=256)
def _parse(text: str, is_complex: bool) -> Any:
    """The sympy value that math-verify's parser reads in a text; None where it reads none."""
    import math_verify.parser as parser
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
    from sympy import Basic, Derivative, MatrixBase, Or
    from sympy.logic.boolalg import Boolean

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own limits are off
    if len(parts := latex.alternatives(text)) > 1:
        values = [_parse(part, is_complex) for part in parts]
        return Or(*values) if all(isinstance(value, Boolean) for value in values) else None
    formula = latex.formula(text)
    if not formula:
        return None
    normal = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    try:
        formula = normalize_latex(formula, normal)
        for attempt in dict.fromkeys((formula, parser.get_last_eq(formula), latex.signs(formula))):
            try:
                value = latex2sympy(
                    attempt,
                    is_real=None if is_complex else True,
                    convert_degrees=False,
                    normalization_config=None,
                    conversion_config=ConversionConfig(lowercase_symbols=False),
                )
                break
            except (MemoryError, RecursionError):
                raise
            except Exception:
                continue
        else:
            return None
    except (MemoryError, RecursionError):
        raise  # limits, not verdicts: the worker ends
    except Exception:
        # The parser and its grammar raise what they please on text that is no formula.
        return None
    if not isinstance(value, Basic | MatrixBase):
        return None
    # Sympy takes the derivative of a name for 0.
    return value.replace(lambda part: isinstance(part, Derivative) and part.expr.is_Symbol, _derivative)


def _derivative(derivative: Any) -> Any:
    """One name: `dy/dx` is no number."""
    from sympy import Symbol

    return Symbol(str(derivative), real=True)


def gold_problem(gold: str) -> str | None:
    """Why a mathematical gold answer has no one value that the rule can compare; None if it has."""
    text = latex.tidy(gold)
    if text.strip().lower() in _NULL or _words_of(text) in [[null] for null in _NULL]:
        return "is null"
    if _CASES.search(text):
        return "tells cases apart"
    value = units.of_gold(text).value
    if _word(value) is not None and len(_words_of(value)) == 1:
        return None
    if len(_words_of(value)) > 1:
        return "is words"
    if _COUNTED.fullmatch(value.strip()):
        return "ends in a word that is no unit"
    formulas = [part for part in _CONNECTIVES.split(re.sub(r"\\text\s*\{\s*(and|or)\s*\}", r" \1 ", value)) if part]
    if sum("=" in part and re.match(r"\s*,?\s*[A-Za-z]\s*\(", part) is not None for part in formulas) > 1:
        return "has two formulas"
    return None


def _words_of(text: str) -> list[str]:
    text = re.sub(r"_\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", " ", text)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\operatorname\s*\{[^{}]*\}|\\begin\s*\{[^{}]*\}|\\end\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = re.findall(r"(?<![A-Za-z])[A-Za-z]{3,}(?![A-Za-z])", _CONNECTIVES.sub(" ", text))
    return [word.lower() for word in words if word.lower() not in _FUNCTIONS]


def is_plain_word(text: str) -> bool:
    r"""Whether a text is words that stand for no answer by themselves: `proof`; not `yes`, `\text{even}` or `abc`."""
    return _LETTERS.fullmatch(text) is not None and text.lower() not in _PLAIN_WORDS and _word(text) is not None


def readable(gold: str) -> bool:
    """Whether math-verify reads a value in a gold answer, one that equals itself: asked for both graders."""
    value = units.of_gold(latex.tidy(gold)).value
    bare = _MARKS.sub("", value).strip()
    if _word(value) is not None:
        return True
    parsed = _parse(bare, _is_complex(bare))
    return parsed is not None and _equal(parsed, parsed)
