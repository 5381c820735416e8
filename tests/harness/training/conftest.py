"""A small random student and samples for it."""

from tests.support.samples import chat, make_samples, make_student

__all__ = ["chat", "make_samples", "make_student"]
