"""What those who ask endpoints share: what may pass, errors in a line, lists of models. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that a proxy is never asked for (`trust_env=host not in LOOPBACK`)."""
MODELS_BYTES = 4 << 20
"""A list of models has at most so many."""


class Passing(Exception):
    """What may pass: no connection, a timeout, status 408, 409, 425, 429 or 5xx, an answer that cannot be read."""

    def __init__(self, reason: str, detail: str = "", *, pause: float | None = None, refused: bool = False) -> None:
        super().__init__(f"{reason}, {detail}" if detail else reason)
        self.reason = reason
        self.pause = pause
        """Seconds to wait, if the endpoint says."""
        self.refused = refused
        """Nobody listens there."""


def retry_after(response: httpx2.Response) -> float | None:
    """The seconds that the endpoint asks for, if any."""
    header = response.headers.get("Retry-After")
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # the header may be a date


def json_of(response: httpx2.Response) -> Any:
    """The body, None where it is no JSON or nested without end."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def detail(response: httpx2.Response) -> str:
    """What the endpoint says about an error, in a line: OpenAI's form, or the body as it is, without the key that it
    was sent."""
    body = json_of(response)
    # Its header may name a character set that Python has and that reads no text.
    error = body.get("error", body) if isinstance(body, dict) else response.content.decode("utf-8", "replace")
    text = error.get("message", error) if isinstance(error, dict) else error
    line = " ".join(str(text)[:10_000].split())
    if key := response.request.headers.get("Authorization", "").removeprefix("Bearer "):
        line = line.replace(key, "***")
    return line[:300] or "no reason given"


def models_of(answer: Any) -> list[tuple[str, Any]] | None:
    """Name and stated context window of each model in a list of models; None for another answer."""
    models = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(models, list):
        return None
    named = [model for model in models if isinstance(model, dict) and "id" in model]
    return [(str(model["id"]), model.get("max_model_len")) for model in named]


def window_of(stated: Any) -> int | None:
    """A context window in tokens, None where there is none. Raises ValueError for what is no such number."""
    if stated is not None and (type(stated) is not int or stated < 1):
        raise ValueError(f"a context window of {str(stated)[:50]}")
    return stated


def listed(names: list[str], most: int = 10) -> str:
    """Names of models in a message; a server may list thousands."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(name[:100] for name in names[:most]) or "nothing") + more
