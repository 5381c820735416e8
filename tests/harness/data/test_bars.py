"""Bars in pictures and clips: literal pixels, answers that a reader of pixels finds, and one split for every task."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.bars import BACKGROUNDS, COLOURS, BarClip, BarImage, split_of_question
from harness.data.synthetic import TASKS, draw
from harness.types import MediaLimits

BAR_TASKS = [task for task in TASKS if task != "arithmetic"]
LIMITS = MediaLimits()


def test_a_chart_of_two_bars():
    pixels = np.asarray(BarImage((3, 8), (0, 1)).open())
    assert pixels.shape == (16, 32, 3)
    bar, background = COLOURS[0], BACKGROUNDS[1]
    # 3 units are 6 pixels: rows 10 to 15, columns 2 to 13. 8 units fill all 16 rows, columns 18 to 29.
    assert [tuple(pixels[row, 7]) for row in (9, 10, 15)] == [background, bar, bar]
    assert [tuple(pixels[12, column]) for column in (1, 2, 13, 14)] == [background, bar, bar, background]
    assert tuple(pixels[0, 18]) == tuple(pixels[15, 29]) == bar
    assert tuple(pixels[0, 17]) == tuple(pixels[15, 30]) == background


def test_a_clip_of_one_pair():
    clip = BarClip((4, 1), (3, 0)).open(LIMITS)
    assert clip.frames_FHWC.shape == (2, 16, 16, 3)
    assert clip.frames_FHWC.dtype == np.uint8
    assert clip.times_F == (0.0, 0.5)
    # 4 units are 16 pixels, 1 unit is 4: of 12 columns each.
    lit = (clip.frames_FHWC == COLOURS[3]).all(-1).sum(axis=(1, 2))
    assert lit.tolist() == [16 * 12, 4 * 12]


def test_frames_are_part_of_the_question_whatever_the_limits():
    clip = BarClip((4, 1, 2, 2), (0, 0))
    assert (
        len(clip.open(MediaLimits(fps=0.5)).frames_FHWC) == len(clip.open(MediaLimits(num_frames=2)).frames_FHWC) == 4
    )


def lit_pixels(frame_HWC):
    """Pixels that have not the colour of the upper left corner, which no bar reaches."""
    return int((frame_HWC != frame_HWC[0, 0]).any(-1).sum())


def heights_seen(question):
    """The addends, from pixels alone: a unit has 2x12 of them in a picture and 4x12 in a frame."""
    if question.video is not None:
        frames_FHWC = question.video.open(LIMITS).frames_FHWC
        heights = [lit_pixels(frame) / 48 for frame in frames_FHWC]
        return [a + b for a, b in zip(heights[::2], heights[1::2], strict=True)]
    blocks = []
    for image in question.images:
        pixels = np.asarray(image.open())
        blocks += [pixels[:, x : x + 16] for x in range(0, pixels.shape[1], 16)]
    return [lit_pixels(block) / 24 for block in blocks]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BAR_TASKS), st.integers(1, 4), st.integers(0, 10**6))
def test_the_answer_is_what_a_reader_of_pixels_finds(task, level, seed):
    question, terms = draw(task, random.Random(seed), level, "train")
    assert heights_seen(question) == list(terms[1:])
    start = int(re.search(r"to (\d+)\.", question.text)[1])
    assert start + sum(heights_seen(question)) == int(question.answer)
    assert len(terms) - 1 == level == question.metadata["level"]
    assert all(1 <= addend <= 8 for addend in terms[1:])


def test_wordings_and_what_is_shown():
    shown = {}
    for task in BAR_TASKS:
        question, terms = draw(task, random.Random(0), 3, "train")
        shown[task] = (question.text.replace(str(terms[0]), "N"), len(question.images), question.video is not None)
    assert shown == {
        "bar_chart": ("Add the bar heights in the image to N.", 1, False),
        "bar_cards": ("Add the bar heights in all images to N.", 3, False),
        "bar_clip": ("Add the bar heights in all frames to N.", 0, True),
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_chain_is_in_one_split_in_every_task(task):
    for split in ("train", "held_out"):
        for seed in range(30):
            question, terms = draw(task, random.Random(seed), 2, split)
            text = f"Compute {'+'.join(map(str, terms))}."
            assert question.text == text if task == "arithmetic" else split_of_question(question) == split


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=3), st.lists(st.integers(1, 8), min_size=1, max_size=3),
       st.integers(0, 3), st.integers(0, 3))  # fmt: skip
def test_names_are_equal_exactly_where_pictures_are(first, second, colour, background):
    a, b = BarImage(tuple(first), (0, 0)), BarImage(tuple(second), (colour, background))
    assert (a.name == b.name) == np.array_equal(np.asarray(a.open()), np.asarray(b.open()))


UNITS = st.lists(st.integers(0, 4), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(UNITS, UNITS, st.integers(0, 3), st.integers(0, 3))
def test_names_of_clips_are_equal_exactly_where_their_frames_are(first, second, colour, background):
    a, b = BarClip((1, *first), (0, 0)), BarClip((1, *second), (colour, background))
    assert (a.name == b.name) == np.array_equal(a.open(LIMITS).frames_FHWC, b.open(LIMITS).frames_FHWC)
    assert a.name != BarImage(a.heights, a.look).name
