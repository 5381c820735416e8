"""Questions that show pictures and clips of random pixels, and the two tiny models that are asked them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from harness.config.schema import ModelConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import Clip, MediaLimits, Question

LIMITS = MediaLimits(min_pixels=256, max_pixels=65_536)


@dataclass(frozen=True)
class Noise:
    """A picture of random pixels."""

    seed: int
    width: int = 32
    height: int = 16

    @property
    def name(self) -> str:
        return repr(self)

    def open(self) -> Image.Image:
        pixels = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def content(self) -> Iterator[bytes]:
        yield self.name.encode()


@dataclass(frozen=True)
class NoiseClip:
    """Frames of random pixels, two a second."""

    seed: int
    num_frames: int = 4

    @property
    def name(self) -> str:
        return repr(self)

    def open(self, limits: MediaLimits) -> Clip:
        pixels = np.random.default_rng(self.seed).integers(0, 256, (self.num_frames, 16, 32, 3), dtype=np.uint8)
        return Clip(pixels, tuple(i / 2 for i in range(self.num_frames)))

    def content(self) -> Iterator[bytes]:
        yield self.name.encode()


def question(name: str, text: str, *images: Noise, video: NoiseClip | None = None) -> Question:
    return Question(id=name, text=text, answer="45", images=images, video=video, limits=LIMITS)


QUESTIONS = [
    question("text", "Compute 37+8."),
    question("image", "Add.", Noise(1, 64, 32)),
    question("images", "See <image> and <image>.", Noise(2), Noise(3, 16, 48)),
    question("video", "Watch this.", video=NoiseClip(1, 5)),
    question("both", "<video>Both<image>", Noise(5), video=NoiseClip(2)),
]


@dataclass(frozen=True)
class Setup:
    chat: Chat
    model: LanguageModel
    engine: TransformersEngine


@pytest.fixture(scope="module", params=["s", "hybrid"])
def setup(request: pytest.FixtureRequest) -> Setup:
    config = ModelConfig(name="tiny", path=f"tiny:{request.param}", dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    model = LanguageModel.for_chat(load_model(config, "cpu"), chat)
    return Setup(chat, model, TransformersEngine(model, chat, sampler="student", max_sequences=64))


@pytest.fixture(scope="module")
def chat(setup: Setup) -> Chat:
    return setup.chat


@pytest.fixture(scope="session")
def shown() -> SimpleNamespace:
    """What the questions show, for tests of this folder."""
    return SimpleNamespace(Noise=Noise, NoiseClip=NoiseClip, question=question, QUESTIONS=QUESTIONS, LIMITS=LIMITS)
