"""What those who ask endpoints share: this machine's own names, errors in a line, headers. Imports no torch."""

from __future__ import annotations

from typing import Any

import httpx

from harness.config.engines import api_key
from harness.errors import first_line

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that a proxy is never asked for (`trust_env=host not in LOOPBACK`)."""


def bearer(option: str, variable: str) -> dict[str, str]:
    """The header with the key in an environment variable, if there is one. Raises UserError like `api_key`."""
    key = api_key(option, variable)
    return {"Authorization": f"Bearer {key}"} if key else {}


def reason(error: BaseException) -> str:
    """An error in half a line."""
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return first_line(error)


def retry_after(response: httpx.Response) -> float | None:
    """The seconds that the endpoint asks for, if any."""
    header = response.headers.get("Retry-After")
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # the header may be a date


def json_of(response: httpx.Response) -> Any:
    """The body, None where it is no JSON."""
    try:
        return response.json()
    except ValueError:
        return None


def detail(response: httpx.Response) -> str:
    """What the endpoint says about an error, in a line: OpenAI's form, or the body as it is, without the key that it
    was sent."""
    body = json_of(response)
    error = body.get("error", body) if isinstance(body, dict) else response.text
    text = error.get("message", error) if isinstance(error, dict) else error
    line = " ".join(str(text).split())
    if key := response.request.headers.get("Authorization", "").removeprefix("Bearer "):
        line = line.replace(key, "***")
    return line[:300] or "no reason given"
