"""Additions whose addends are bars: in one picture, in several pictures, or in the frames of a clip.

The same chains as `arithmetic`, with the same split, so that reading is the one thing that differs between modalities:
`Add the bar heights in the image to 37.` with bars of 8 and 5 units is `37+8+5`. Level k has k addends, each 1 to 8. An
addend takes 16x16 pixels, the area of one vision token of the tiny family. Drawn when a reference is opened.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.data.arithmetic import Split, Terms, draw_terms, split_of, text_of
from harness.types import Clip, MediaLimits, Question

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SIDE = 16
MARGIN = 2
"""Pixels of background on either side of a bar."""
MAX_ADDEND = 8
UNIT, FRAME_UNIT = 2, 4
"""Pixels of a unit of height, in a picture and in a frame."""
MAX_FRAME_HEIGHT = 4
FPS = 2.0
COLOURS = ((220, 60, 50), (240, 200, 60), (90, 190, 90), (250, 250, 250))
BACKGROUNDS = ((0, 0, 0), (25, 25, 70), (60, 20, 40), (20, 50, 45))
Look = tuple[int, int]
"""Numbers of a colour and of a background."""
LOOKS: tuple[Look, ...] = tuple((c, b) for c in range(len(COLOURS)) for b in range(len(BACKGROUNDS)))


@dataclass(frozen=True)
class BarImage:
    """Bars next to each other, of these heights in units."""

    heights: tuple[int, ...]
    look: Look

    @property
    def name(self) -> str:
        return f"bars({','.join(map(str, self.heights))})/{self.look[0]}{self.look[1]}"

    def open(self) -> Image:
        """RGB, 16 pixels high and 16 wide a bar."""
        import numpy as np
        from PIL import Image

        return Image.fromarray(np.concatenate([_block(h * UNIT, self.look) for h in self.heights], axis=1))

    def content(self) -> Iterator[bytes]:
        yield self.name.encode()


@dataclass(frozen=True)
class BarClip:
    """A bar a frame; the two heights of a pair of frames are one addend."""

    heights: tuple[int, ...]
    look: Look

    @property
    def name(self) -> str:
        return f"frames({','.join(map(str, self.heights))})/{self.look[0]}{self.look[1]}"

    def open(self, limits: MediaLimits) -> Clip:
        """All its frames, two a second, whatever `limits` say about frames: each is part of the question."""
        import numpy as np

        frames_FHWC = np.stack([_block(h * FRAME_UNIT, self.look) for h in self.heights])
        return Clip(frames_FHWC, tuple(i / FPS for i in range(len(self.heights))))

    def content(self) -> Iterator[bytes]:
        yield self.name.encode()


def draw_bars(rng: random.Random, level: int, split: Split) -> Terms:
    """A random chain of this level and split whose addends are bars."""
    while max((terms := draw_terms(rng, level, split))[1:]) > MAX_ADDEND:
        pass
    return terms


def chart_question(rng: random.Random, terms: Terms, limits: MediaLimits) -> Question:
    """All bars in one picture."""
    look = rng.choice(LOOKS)
    return _question("bar_chart", "in the image", terms, look, limits, images=(BarImage(terms[1:], look),))


def cards_question(rng: random.Random, terms: Terms, limits: MediaLimits) -> Question:
    """A picture a bar."""
    look = rng.choice(LOOKS)
    images = tuple(BarImage((addend,), look) for addend in terms[1:])
    return _question("bar_cards", "in all images", terms, look, limits, images=images)


def clip_question(rng: random.Random, terms: Terms, limits: MediaLimits) -> Question:
    """Two frames a bar: how an addend is divided over its pair of frames is drawn."""
    look = rng.choice(LOOKS)
    heights: list[int] = []
    for addend in terms[1:]:
        first = rng.randint(max(0, addend - MAX_FRAME_HEIGHT), min(MAX_FRAME_HEIGHT, addend))
        heights += [first, addend - first]
    return _question("bar_clip", "in all frames", terms, look, limits, video=BarClip(tuple(heights), look))


def _question(
    task: str,
    where: str,
    terms: Terms,
    look: Look,
    limits: MediaLimits,
    *,
    images: tuple[BarImage, ...] = (),
    video: BarClip | None = None,
) -> Question:
    level = len(terms) - 1
    chain = "+".join(map(str, terms))
    shown = "" if video is None else f"/{''.join(map(str, video.heights))}"
    return Question(
        id=f"{task}/L{level}/{chain}{shown}/{look[0]}{look[1]}",
        text=f"Add the bar heights {where} to {terms[0]}.",
        answer=str(sum(terms)),
        source=task,
        images=images,
        video=video,
        limits=limits,
        metadata={"level": level},
    )


def split_of_question(question: Question) -> Split:
    """The split of the chain that a question was made from."""
    chain = question.id.split("/")[2]
    return split_of(text_of(tuple(map(int, chain.split("+")))))


def _block(height: int, look: Look) -> np.ndarray:
    """uint8 [16, 16, 3]: a bar of `height` pixels that stands on the lower edge."""
    import numpy as np

    block_HWC = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    block_HWC[:] = BACKGROUNDS[look[1]]
    block_HWC[SIDE - height :, MARGIN : SIDE - MARGIN] = COLOURS[look[0]]
    return block_HWC
