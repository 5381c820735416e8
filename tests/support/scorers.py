"""Scorers as a user writes them, `data.reward=tests.support.scorers:NAME`."""

import math


def length(question, response, gold):
    """Longer replies are better, and are their own answer."""
    return min(len(response) / 10, 1.0), response.upper()


def contains(question, response, gold):
    golds = gold if isinstance(gold, list) else [gold]
    return any(one in response for one in golds)


def has_unit(question, response, gold, extra):
    return float(extra["unit"] in response)


def fragile(question, response, gold):
    """Right replies are graded; others lead it astray."""
    if "boxed" in response:
        return 1.0
    if response == "raise":
        raise RuntimeError("no luck\nat all")
    while response == "spin":
        pass
    return {"text": "good", "nan": math.nan, "two": 2.0, "none": None}[response]


def raises(question, response, gold):
    raise RuntimeError("no luck")


def gives_text(question, response, gold):
    return "1.0"


def gives_nan(question, response, gold):
    return math.nan


def spins(question, response, gold):
    while True:
        pass
