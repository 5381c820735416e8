r"""One spelling for what may be written in several: `\text{12 cm}` becomes `12\text{ cm}`.

The parser of math-verify reads the result. Where it would misread a form (to it, two numbers in a row are their sum),
the form is made plain here or refused. Letters are never dropped.
"""

from __future__ import annotations

import re

_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_SIGNS = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
        "\u00f7": r"\div ",
        "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u221e": r"\infty ", "\u222a": r"\cup ",
        "\u2229": r"\cap ", "\u2205": r"\emptyset ", "\u2208": r"\in ", "\u00b1": r"\pm ", "\u00a0": " ", "\u202f": " ",
        "\u25b3": r"\triangle ", "\u2220": r"\angle ",
        "\u2032": "'", "\u2019": "'", "\u00bd": r"\frac{1}{2}", "\u2153": r"\frac{1}{3}", "\u2154": r"\frac{2}{3}",
        "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u03b3": r"\gamma ", "\u0393": r"\Gamma ",
    }
)  # fmt: skip
_POWERS = {"\u00b2": "2", "\u00b3": "3", "\u2074": "4"}
_POWER = re.compile(r"(?<=[\w)}\]])([\u00b2\u00b3\u2074])")
_ROOT = re.compile("\u221a" + r"\s*(?:\(([^()]*)\)|(\d+|[a-z]))")
_STYLE = re.compile(
    r"\\(?:boldsymbol|bm|pmb|math(?:bf|it|sf|tt|normal)|text(?:bf|it|sl)|emph|underline"
    r"|(?:display|text|script)style|bf|it|rm|sf|tt|sc|large|Large|LARGE|huge|Huge|small|normalsize|mathstrut)"
    r"(?![A-Za-z])\s*(?:\{([^{}]*)\})?"
)
_TEXT = re.compile(r"\\(?:text(?:rm|normal|up|sf|tt)?|mathrm|mbox|hbox)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z])|\s*$)|~")
_ROWS = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align\*?|alignedat|gathered|gather\*?|equation\*?|split)\}")
_LEAD = re.compile(
    r"\s*(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is\s*:?|\s*[:=])\s*"
    r"|\s*(?:\u6240\u4ee5)?(?:\u6700\u7ec8)?\u7b54\u6848(?:\u662f|\u4e3a)?\s*[:\uff1a]?\s*",
    re.IGNORECASE,
)
_NUMBER_IN_TEXT = re.compile(
    r"\s*((?:(?:Rs\.?|INR|USD|US\$)\s*)?[-+]?\\?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?)(?![\w.])\s*(.*)", re.DOTALL
)
_MIXED = re.compile(r"(?<![\d.])([0-9]+)\s+([0-9]+)/([0-9]+)(?![\d.])")
_THOUSANDS = re.compile(r"(?<![\d.,_^])\d{1,3}(?: \d{3})+(?![\d/])")
_TWO_NUMBERS = re.compile(r"(?<![_^\d.])[\d.]*\d\s+\.?\d|(?<![A-Za-z])\{\s*\d+\s*\}\s*\{\s*\d+\s*\}")
_EXPONENT = re.compile(r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))[eE]([-+]?\d{1,3})")
_POWER_OF_TEN = re.compile(r"(?<=\d)\s*(?:[xX]|\*)\s*(?=10\s*\^)")
_BARE_EXPONENT = re.compile(r"\^\s*(-\d+)")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}")
_DECIMAL = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+|\d*)\.(\d+)(?![\d.])")
_BEFORE_BRACKET = re.compile(r"(?<![_^A-Za-z0-9.\\])(\d+(?:\.\d+)?)\s*(?=(?:\\left\s*)?\()")
_AFTER_BRACKET = re.compile(r"(\)|!)\s*(?=(?:\\left\s*)?\(|\d|\\[dt]?frac)")
_AFTER_FRACTION = re.compile(r"(\\[dt]?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\})\s*(?=\d)")
# The parser takes `tr` for a trace and `da` for a differential; after a number both are products of letters.
_LETTERS = re.compile(r"(?<=\d)\s*(?!and|mod|gcd|det)(?=[A-Za-z]*(?:d|tr))([A-Za-z]{2,3})(?![A-Za-z])")
_PRIME = re.compile(r"\^\s*\{?\s*((?:\\prime\s*)+)\}?")
_PRIMED = re.compile(r"([A-Za-z])('+)(?!_)")
_ALPHABET = re.compile(r"\\math(bb|cal|frak|scr)\s*\{\s*(?!(?<=bb\{)[NZQRC]\})([A-Za-z])\s*\}")
_FULL_STOP = re.compile(r"(?<=[\w)}\]!%|'$])\s*[.\u3002]$")
_ROW_SPACE = re.compile(r"(?<=\\\\)\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]")
_NO_SPACE = re.compile(r"\\!\s*")
_ORDINAL = re.compile(r"(?<=\d)\s*(?:\^\s*\{\s*)?\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?$")
_CURRENCIES = {"\u20ac": "euros", "\u00a3": "pounds", "\u00a2": "cents", "\u20b9": "rupees", "\u00a5": "yen"}
_CURRENCY_BEHIND = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?([\u20ac\u00a3\u00a2\u20b9\u00a5])(?:\s*\})?$")
_SPELLINGS = tuple(
    (re.compile(pattern + ("" if pattern.endswith(("}", ")")) else "(?![A-Za-z])")), other)
    for pattern, other in (
        (r"(\\(?:begin|end)\s*\{)(?:small|psmall|bsmall|B)matrix\}", r"\1pmatrix}"),
        (r"\\colon", ":"), (r"\\varnothing", r"\\emptyset"), (r"\\lbrace", r"\\{"), (r"\\rbrace", r"\\}"),
        (r"\\log\s*_\s*\{?\s*e\s*\}?(?![A-Za-z}])", r"\\ln"), (r"\\lg", r"\\log_{10}"),
        (r"(\\log\s*_\s*(?:\{[^{}]*\}|\w))\s*\{([^{}]*)\}", r"\1(\2)"),
        (r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)(?!\d)\}?", r"\\overline{\1\2\3}"),
        (r"(?<=[\d.])\\(?:dot|bar|overline)\s*(?:\{(\d)\}|(\d)(?!\d))", r"\\overline{\1\2}"),
    )
)  # fmt: skip
_ANGLES = re.compile(r"\\([lr])angle(?![A-Za-z])|([\u27e8\u27e9])")
_ARGUMENT = r"(\\(?:pi|theta|alpha|beta|phi)(?![A-Za-z])|[0-9A-Za-z](?![A-Za-z]*\{))"
_FRACTION = re.compile(rf"(\\[dtc]?frac)\s*(?:{_ARGUMENT}|\{{([^{{}}]*)\}})\s*(?:{_ARGUMENT}|\{{([^{{}}]*)\}})")
_JOINED = r"\s*,?\s*(?:\\text\s*\{{\s*,?\s*{0}\s*\}}|(?<![A-Za-z\\{{]){0}(?![A-Za-z]))\s*"
_AND, _OR = (re.compile(_JOINED.format(word)) for word in ("(?:and|or)", "or"))
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt)")
_BARE_ROOT = re.compile(r"(\\sqrt\s*\[[^\]]*\])\s*([0-9A-Za-z])")


def undressed(text: str) -> str:
    """Signs as LaTeX, and commands of layout and style gone."""
    text = _undelimited(text.strip().translate(_SIGNS))
    if len(dollars := re.findall(r"(?<!\\)\$", text)) and len(dollars) % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text)  # formulas in a sentence: `$1$ and $2$`
    text = _POWER.sub(lambda match: "^" + _POWERS[match[1]], text)
    text = _ROOT.sub(lambda match: f"\\sqrt{{{match[1] or match[2]}}}", text)
    text = _rows(_ROW_SPACE.sub("", text))
    for _ in range(3):
        text = _STYLE.sub(_plain, text)
    return _SPACE.sub(" ", _NO_SPACE.sub("", text).replace("{,}", ","))


def tidy(text: str) -> str:
    """Without layout, one command for text, numbers outside of it."""
    text = re.sub(r"\\mathrm\s*\{([ei])\}", r"\1", undressed(text))
    text = without_lead(_TEXT.sub(_number_outside, text))
    text = _ORDINAL.sub("", _CURRENCY_BEHIND.sub(lambda match: f"\\text{{ {_CURRENCIES[match[1]]}}}", text))
    text = _ANGLES.sub(lambda match: "(" if match[1] == "l" or match[2] == "\u27e8" else ")", text)
    for pattern, other in _SPELLINGS:
        text = pattern.sub(other, text)
    return text


def without_lead(text: str) -> str:
    """Without `the answer is`, a full stop, and braces around all of it."""
    text = text.strip()
    if lead := _LEAD.match(text):
        text = text[lead.end() :]
    return _undelimited(_FULL_STOP.sub("", text.strip()))


def formula(value: str) -> str | None:
    """What the parser is given for a value without a unit. None for a text that it would misread."""
    value = _FRACTION.sub(_braced, value.strip().replace(r"\$", ""))
    value = _BARE_ROOT.sub(r"\1{\2}", joined(value))
    if exponent := _EXPONENT.fullmatch(value):
        value = f"{exponent[1]} \\times 10^{{{int(exponent[2])}}}"
    value = _BARE_EXPONENT.sub(r"^{\1}", _POWER_OF_TEN.sub(r"\\times ", value))
    value = _PRIME.sub(lambda match: "'" * match[1].count("prime"), value)
    value = _PRIMED.sub(lambda match: f"{match[1]}_{{prime{len(match[2])}}}", value)
    value = _ALPHABET.sub(r"\\text{\1\2}", value)
    # The library has one constant for both letters. `\Gamma(x)` stays the function.
    value = re.sub(r"\\gamma(?![A-Za-z])", r"\\text{lowergamma}", value)
    value = re.sub(r"\\Gamma(?![A-Za-z])(?!\s*(?:\\left)?\s*\()", r"\\text{uppergamma}", value)
    value = _THOUSANDS.sub(lambda match: match[0].replace(" ", ""), value)
    value = _MIXED.sub(r"\1\\frac{\2}{\3}", value)
    if _TWO_NUMBERS.search(_fractions(value)) or "'" in value or "$" in value:
        return None
    value = _AFTER_BRACKET.sub(r"\1\\cdot ", _BEFORE_BRACKET.sub(r"\1\\cdot ", value))
    value = _AFTER_FRACTION.sub(r"\1\\cdot ", value)
    if r"\int" not in value:
        value = _LETTERS.sub(lambda match: "".join(f"{{{name}}}" for name in match[1]), value)
    return _DECIMAL.sub(_fraction, _REPEATING.sub(_repeating, value))


def joined(value: str) -> str:
    """A list for what `and` or `or` joins."""
    return _AND.sub(", ", value)


def alternatives(value: str) -> list[str]:
    """The inequalities that `or` joins; the value itself where it joins none."""
    parts = _OR.split(value)
    return parts if all(map(_RELATION.search, parts)) else [value]


def signs(value: str) -> str:
    r"""Each value with `\pm` as two of a list."""
    both = [(part.replace(r"\pm", "+").replace(r"\mp", "-"), part.replace(r"\pm", "-").replace(r"\mp", "+"))
            for part in items(value)]  # fmt: skip
    return ", ".join(", ".join(dict.fromkeys(two)) for two in both)


def items(value: str) -> list[str]:
    """The members of a list, outside of all brackets."""
    depth, parts = 0, [""]
    for character in value:
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _undelimited(text: str) -> str:
    for start, end in _DELIMITERS:
        inner = text[len(start) : -len(end)]
        if text.startswith(start) and text.endswith(end) and len(text) > len(start + end) and start not in inner:
            return inner.strip()
    for _ in range(3):
        if text.startswith("{") and _closing(text) == len(text) - 1 and r"\choose" not in text:
            text = text[1:-1].strip()
    return text


def _closing(text: str) -> int:
    """Where the brace at the start is closed; -1 where it is not."""
    depth = 0
    for match in _BRACES.finditer(text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return -1


def _rows(text: str) -> str:
    """Rows of an `aligned` block as a chain (`x &= 2+3 \\\\ &= 5`) or as a list of equations."""
    if not _ROWS.search(text):
        return text
    rows = [row.strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?", _ROWS.sub("", text)) if row.strip()]
    chain = ""
    for row in rows:
        continues = row.replace("&", "").lstrip().startswith("=")
        chain += (" " if continues or not chain else ", ") + row.replace("&", "")
    return chain.strip()


def _plain(match: re.Match[str]) -> str:
    content = match[1]
    if content is None:
        return " "
    if match[0].startswith((r"\text", r"\emph")) and len(content.strip()) > 1:
        return f"\\text{{{content}}}"
    return f" {content.strip()} " if len(content.strip()) == 1 or content.strip().isdigit() else f"{{{content}}}"


def _number_outside(match: re.Match[str]) -> str:
    content = _LEAD.sub("", match[1], count=1)
    number = _NUMBER_IN_TEXT.fullmatch(content)
    if number:
        return number[1] + (f"\\text{{ {number[2].strip()}}}" if number[2].strip() else "")
    return f"\\text{{{content}}}" if any(map(str.isalpha, content)) else content


def _braced(match: re.Match[str]) -> str:
    command, *arguments = match.groups()
    return command + "".join(f"{{{argument}}}" for argument in arguments if argument is not None)


def _fractions(value: str) -> str:
    return re.sub(r"\\[dtc]?frac\s*(?:\d\s*\d|\{\s*\d+\s*\}\s*\{\s*\d+\s*\})", "F", value)


def _fraction(match: re.Match[str]) -> str:
    whole, part = match[1].replace(",", ""), match[2]
    return f"\\frac{{{int(whole + part)}}}{{{10 ** len(part)}}}" if len(whole + part) < 4000 else match[0]


def _repeating(match: re.Match[str]) -> str:
    whole, part, period = match.groups()
    if len(whole + part + period) > 1000:
        return match[0]
    numerator = int(whole + part + period) - int((whole + part) or "0")
    return f"\\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(part)}}}"
