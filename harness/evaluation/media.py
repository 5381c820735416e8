"""What pictures and clips show, by content: a name may come to mean another picture."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

from harness.types import ImageRef, Question, VideoRef


class MediaDigests:
    """Digests of the content of pictures and clips. Each is read once, however many questions show it."""

    def __init__(self) -> None:
        self._known: dict[Hashable, str] = {}

    def of(self, question: Question) -> list[str]:
        """Digests of each picture, then of the clip. Raises MediaError for one that cannot be read."""
        shown: list[ImageRef | VideoRef] = [*question.images]
        if question.video is not None:
            shown.append(question.video)
        return [self._digest(medium) for medium in shown]

    def _digest(self, medium: ImageRef | VideoRef) -> str:
        assert isinstance(medium, Hashable)
        if medium not in self._known:
            digest = hashlib.sha256()
            for piece in medium.content():
                digest.update(piece)
            self._known[medium] = digest.hexdigest()
        return self._known[medium]
