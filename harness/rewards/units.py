r"""Units of answers: `12\text{ cm}` is 12 and a unit, `3m` is a product of 3 and a symbol.

A unit is a word, or an abbreviation in `\text{}` or `\mathrm{}`. A plain abbreviation of two letters or more is one in
an answer too, where none of its letters is a symbol of the gold answer. Units are compared, not converted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_ABBREVIATIONS = {
    "metre": "m", "centimetre": "cm", "millimetre": "mm", "decimetre": "dm", "kilometre": "km", "nanometre": "nm",
    "gram": "g gm", "kilogram": "kg kgs", "milligram": "mg", "tonne": "t", "second": "s sec secs", "millisecond": "ms",
    "minute": "min mins", "hour": "h hr hrs", "year": "yr yrs", "litre": "l L", "millilitre": "ml mL", "inch": "in",
    "foot": "ft", "yard": "yd yds", "mile": "mi", "pound": "lb lbs", "ounce": "oz", "gallon": "gal", "pint": "pt",
    "newton": "N", "kilonewton": "kN", "joule": "J", "kilojoule": "kJ", "watt": "W", "kilowatt": "kW", "volt": "V",
    "ampere": "A", "milliampere": "mA", "coulomb": "C", "farad": "F", "tesla": "T", "kelvin": "K", "pascal": "Pa",
    "kilopascal": "kPa", "hertz": "Hz", "kilohertz": "kHz", "megahertz": "MHz", "mole": "mol", "electronvolt": "eV",
    "radian": "rad rads", "degree": "deg", "calorie": "cal", "kilocalorie": "kcal", "hectare": "ha", "dollar": "USD",
    "euro": "EUR", "rupee": "Rs INR", "rpm": "rpm", "mile/hour": "mph", "kilometre/hour": "kmh kph kmph", "unit": "u",
}  # fmt: skip
_WORDS = {
    "dollar": "bucks", "cent": "", "rupee": "", "euro": "", "yuan": "", "yen": "", "pound": "",
    "penny": "pence pennies",
    "metre": "meter meters", "centimetre": "centimeter centimeters", "millimetre": "millimeter millimeters",
    "kilometre": "kilometer kilometers", "decimetre": "decimeter decimeters", "inch": "inches", "foot": "feet",
    "yard": "", "mile": "", "gram": "", "kilogram": "", "milligram": "", "tonne": "ton tons", "ounce": "", "second": "",
    "minute": "", "hour": "", "day": "", "week": "", "month": "", "year": "", "decade": "", "century": "centuries",
    "litre": "liter liters", "millilitre": "milliliter milliliters", "gallon": "", "quart": "", "pint": "", "cup": "",
    "degree": "", "radian": "", "percent": "percentage pct", "unit": "", "point": "", "time": "", "way": "",
    "person": "people persons", "man": "men", "woman": "women", "child": "children", "student": "", "apple": "",
    "newton": "", "joule": "", "watt": "", "volt": "", "ampere": "amp amps", "ohm": "", "coulomb": "", "pascal": "",
    "hertz": "", "kelvin": "", "calorie": "", "mole": "", "acre": "", "hectare": "", "side": "", "edge": "",
    "digit": "",
    "integer": "", "coin": "", "book": "", "ticket": "", "tile": "", "page": "", "step": "", "mark": "", "number": "",
    "piece": "", "marble": "", "triangle": "", "celsius": "", "fahrenheit": "", "mph": "", "knot": "",
}  # fmt: skip
_SAFE_IN_GOLD = {"cm", "mm", "km", "kg", "dm", "ft", "lbs", "mph", "kmh", "kmph", "hrs", "mins", "yrs", "Hz", "kHz"}
"""Abbreviations that are a unit in a gold answer too, after a number and a space: nobody writes a product like that."""

_NO_UNITS = {
    "halves", "thirds", "quarters", "fourths", "fifths", "sixths", "sevenths", "eighths", "ninths", "tenths",
    "hundredths", "thousandths", "hundreds", "thousands", "millions", "billions", "trillions", "dozens",
    "scores", "pairs", "twos", "threes", "fours", "tens", "minus", "less", "plus", "unless", "does", "this",
    "thus", "is", "was", "has", "negatives", "roots", "squares", "cubes", "powers", "factors", "multiples",
    "times", "logs", "bases", "primes", "modulus", "mods", "its", "others", "yes", "versus", "radius",
}  # fmt: skip
_MODIFIERS = ("square", "sq", "cubic", "cu", "squared", "cubed", "per")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(r"\s*(?:\\text\s*\{\s*)?(hundred|thousand|million|billion|trillion)(?![A-Za-z])\s*(.*)", re.DOTALL)
_CURRENCY = re.compile(
    r"\s*(-?)\s*(?:(US\s*\\?\$|\\?\$|USD(?![a-z]))|(?:\\text\s*\{\s*)?(Rs\.?|INR|\u20b9)(?:\s*\})?(?![A-Za-z])"
    r"|(\u20ac|\\euro(?![A-Za-z])|EUR(?![a-z]))|(\u00a3|\\pounds(?![A-Za-z]))|(\u00a5|\\yen(?![A-Za-z])))\s*(?=[-\d.\\])"
)
_CURRENCIES = ("dollar^1", "rupee^1", "euro^1", "pound^1", "yen^1")
_TEMPERATURE = re.compile(r"(?:\^\s*\{?\s*\\circ\s*\}?|\u00b0)\s*(?:\\text\s*\{\s*([CF])\s*\}|([CF]))\s*$")
_DEGREE = re.compile(r"(?:\\(?:circ|degree|deg)|\u00b0)\s*\}?\s*$")
_PERCENT = re.compile(r"%\s*$")
_TOKEN = re.compile(
    r"\\text\s*\{[^{}]*\}(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?|[A-Za-z]+\.?(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
    r"|\\cdot|/|\s+|\\[A-Za-z]+|.",
    re.DOTALL,
)
_FACTOR = re.compile(r"([A-Za-z]+)\.?\s*(?:\^\s*\{?\s*(-?\d)\s*\}?|([23]))?")
_COMMAND = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value as it is written, and the unit it stands with; None without one."""

    value: str
    unit: str | None = None


def differ(gold: Measured, answer: Measured) -> bool:
    return gold.unit is not None and answer.unit is not None and gold.unit != answer.unit


def of_gold(text: str) -> Measured:
    """A gold answer: only words, text and abbreviations that can be no product are units."""
    return _measured(text, None, None)


def of_answer(text: str, gold: Measured) -> Measured:
    return _measured(text, gold.unit, symbols(gold.value))


def symbols(value: str) -> frozenset[str]:
    """Plain letters of a value, and its names in `\\text{}`."""
    names = re.findall(r"\\text\s*\{\s*([^{}]*?)\s*\}", value)
    return frozenset([*re.findall(r"[A-Za-z]", _COMMAND.sub(" ", value)), *names])


def _measured(text: str, gold_unit: str | None, gold_symbols: frozenset[str] | None) -> Measured:
    unit = None
    if currency := _CURRENCY.match(text):
        text = currency[1] + text[currency.end() :]
        unit = next(name for name, group in zip(_CURRENCIES, currency.groups()[1:], strict=True) if group)
    if temperature := _TEMPERATURE.search(text):
        scale = temperature[1] or temperature[2]
        return Measured(value=text[: temperature.start()], unit="celsius^1" if scale == "C" else "fahrenheit^1")
    tokens = _TOKEN.findall(text)
    start = len(tokens)
    while start > 1 and _may_be_unit(tokens[start - 1]):
        start -= 1
    for first in range(max(start, len(tokens) - 16), len(tokens)):
        value, tail = "".join(tokens[:first]), "".join(tokens[first:])
        if scale := _SCALE.fullmatch(tail):
            power = f" \\times 10^{{{_SCALES[scale[1]]}}}"
            rest = scale[2].strip().removesuffix("}").strip()
            name = _unit_name(f"\\text{{{rest}}}") if rest else None
            if re.search(r"\d\s*$", value) and (name or not rest):
                return Measured(value=value.rstrip() + power, unit=unit or name)
        found = _unit(tail, value, gold_unit, gold_symbols)
        if found and re.search(r"[\w})\]%!]\s*$", value):
            return Measured(value=value.rstrip(), unit=unit or found)
    if unit is None and _DEGREE.search(text):
        unit = "degree^1"
    elif unit is None and _PERCENT.search(text):
        unit = "percent^1"
    return Measured(value=text, unit=unit)


def _may_be_unit(token: str) -> bool:
    return token.startswith(r"\text") or token[0].isalpha() or token in ("/", r"\cdot") or token.isspace()


def _unit(tail: str, value: str, gold_unit: str | None, gold_symbols: frozenset[str] | None) -> str | None:
    name = _unit_name(tail)
    if name is None:
        return None
    in_text = re.findall(r"\\text\s*\{\s*([^{}]*?)\s*\}", tail)
    plain = re.findall(r"[A-Za-z]+", _COMMAND.sub(" ", tail))
    if gold_symbols is None:
        after_number = re.search(r"\d\s*$", value) is not None and (tail[:1].isspace() or value[-1:].isspace())
        return name if all(_is_word(w) or (w in _SAFE_IN_GOLD and after_number) for w in plain) else None
    if gold_unit == name:
        return name
    if gold_symbols.intersection(in_text):
        return None
    return name if all(len(w) > 1 and (_is_word(w) or not gold_symbols.intersection(w)) for w in plain) else None


@lru_cache(maxsize=1024)
def _unit_name(tail: str) -> str | None:
    """One name for all spellings of a unit; None for what is none."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", tail).replace(r"\cdot", " ").strip()
    text = re.sub(r"\bper\b", "/", text)
    parts = [part.strip() for part in text.split("/")]
    if not text or not all(parts):
        return None
    powers: dict[str, int] = {}
    for index, part in enumerate(parts):
        for name, power in _factors(part) or [("", 0)]:
            if not name:
                return None
            over = name.split("/")
            for position, base in enumerate(over):
                sign = -1 if (index > 0) != (position > 0) else 1
                powers[base] = powers.get(base, 0) + sign * power
    return " ".join(f"{name}^{power}" for name, power in sorted(powers.items()) if power) or None


def _factors(text: str) -> list[tuple[str, int]] | None:
    found: list[tuple[str, int]] = []
    power = 1
    position = 0
    while position < len(text):
        match = _FACTOR.match(text, position)
        if match is None:
            return None
        position = match.end()
        while position < len(text) and text[position].isspace():
            position += 1
        word = match[1]
        lower = word.lower()
        if lower in ("square", "sq", "cubic", "cu") and position < len(text):
            power = 2 if lower.startswith("sq") else 3
        elif lower in ("squared", "cubed") and found:
            found[-1] = (found[-1][0], 2 if lower == "squared" else 3)
        else:
            name = _named(word)
            if name is None or (power != 1 and (match[2] or match[3])):
                return None
            found.append((name, int(match[2] or match[3] or power)))
            power = 1
    return found


def _is_word(word: str) -> bool:
    """A word that is a unit by itself: no abbreviation, and no plural that the list lacks."""
    return len(word) > 2 and word not in _short() and (word.lower() in _long() or word.lower() in _MODIFIERS)


def _named(word: str) -> str | None:
    if word in _short():
        return _short()[word]
    lower = word.lower()
    if lower in _long():
        return _long()[lower]
    # The plural of something that is counted: apples, marbles, students.
    is_plural = len(lower) > 3 and lower.endswith("s") and not lower.endswith(("ss", "us", "is"))
    return lower[:-1] if is_plural and lower not in _NO_UNITS else None


@lru_cache(maxsize=1)
def _short() -> dict[str, str]:
    return {short: name for name, all_short in _ABBREVIATIONS.items() for short in all_short.split()}


@lru_cache(maxsize=1)
def _long() -> dict[str, str]:
    """Words, their plural by `s`, and other spellings."""
    words = {other: name for name, others in _WORDS.items() for other in (name, f"{name}s", *others.split())}
    return words
