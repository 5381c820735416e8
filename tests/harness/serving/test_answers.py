"""How large an answer can be, and numbers and texts of answers; tests of those who ask have complete ones."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.serving.answers import WrongAnswer, listed_logprobs, logprob, most_bytes, readable

MIB = 1 << 20


def test_the_largest_answer_follows_from_the_request() -> None:
    assert most_bytes({}) == MIB
    assert most_bytes({"messages": [], "max_tokens": 512}) == MIB + 512 * 1024
    assert most_bytes({"prompt": [1, 2, 3], "max_tokens": 10, "n": 8}) == MIB + 83 * 1024
    assert most_bytes({"prompt": [1, 2, 3], "prompt_logprobs": 64}) == MIB + 3 * 1024 + 3 * 65 * 256


@pytest.mark.parametrize("scores", [None, 4])
def test_a_real_answer_takes_a_small_part_of_it(served_model, scores) -> None:
    """Without the MiB that every answer may have; the loopback gives what vLLM gives, but for decoded tokens."""
    body = {"model": "tiny:teacher", "prompt": [105, 120, 130] * 20, "max_tokens": 40, "n": 4, "logprobs": 0}
    body |= {"return_token_ids": True, "temperature": 1.0} | ({} if scores is None else {"prompt_logprobs": scores})
    size = len(json.dumps(served_model.complete(body)))
    assert 0 < size < (most_bytes(body) - MIB) / 4


@settings(max_examples=50)
@given(st.floats(max_value=0.0, allow_nan=False, allow_infinity=False))
def test_a_log_probability_stays_as_it_is(value: float) -> None:
    assert logprob(value) == value


@settings(max_examples=50)
@given(st.floats(min_value=1.1e-4) | st.just(math.nan) | st.just(-math.inf) | st.none() | st.text() | st.booleans())
def test_what_is_no_log_probability_is_refused(value) -> None:
    with pytest.raises(WrongAnswer, match="gives log-probabilities"):
        logprob(value)


def test_the_list_of_a_position_has_ids_and_a_mass_of_at_most_1() -> None:
    half = {"logprob": math.log(0.5)}
    assert listed_logprobs({"7": half, "12": half}, 2) == {7: math.log(0.5), 12: math.log(0.5)}
    for entry in (
        {"7": half, "8": half, "9": half},
        {"07": half, "7": half},
        {"-7": half},
        {"\u0667": half},
        {"x": half},
    ):
        with pytest.raises(WrongAnswer):
            listed_logprobs(entry, 3)


@given(st.text(st.characters()) | st.text(st.sampled_from("a\ud800\udfff\x00")))
def test_text_is_what_utf_8_holds(text: str) -> None:
    assert readable(text).encode().decode() == readable(text) and len(readable(text)) == len(text)
