"""What vLLM is asked, in which order; with vLLM itself: `tests/vllm`. A CPU build has no memory to give back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness.config.engines import RolloutConfig
from harness.config.schema import ModelConfig
from harness.rollout import vllm_engine
from harness.rollout.vllm_engine import VllmEngine
from harness.testing.lab import lab

MODEL = ModelConfig(name="s", path="tiny:xs")


class Recorder:
    """In place of a `vllm.LLMEngine` on a GPU."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.asleep: set[str] = set()
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 320))
        worker = SimpleNamespace(reload_weights=self.reload_weights, get_model=lambda: torch.nn.Module())
        self.model_executor = SimpleNamespace(driver_worker=SimpleNamespace(worker=worker))

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.calls.append(("sleep", level))
        self.asleep = {"weights", "kv_cache"}

    def wake_up(self, tags: list[str] | None = None) -> bool:
        self.calls.append(("wake", tags))
        self.asleep -= set(tags or self.asleep)
        return not self.asleep

    def is_sleeping(self) -> bool:
        return bool(self.asleep)

    def reload_weights(self, weights_iterator) -> None:
        assert "weights" not in self.asleep
        self.calls.append(("weights", [name for name, _ in weights_iterator]))

    def reset_prefix_cache(self) -> bool:
        assert not self.asleep
        return True

    def reset_mm_cache(self) -> None: ...

    def reset_encoder_cache(self) -> None: ...


@pytest.fixture
def engine(monkeypatch) -> VllmEngine:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm_engine, "_start", lambda *args, **kwargs: Recorder())
    return VllmEngine("", lab().chat, sampler="student", model=MODEL, config=RolloutConfig(), empty=True)


def test_weights_are_not_kept_asleep_and_the_cache_wakes_after_the_transfer(engine):
    tensors = [("a", torch.zeros(1))]
    engine.load_weights(tensors)  # at the start nothing sleeps
    engine.sleep()
    engine.wake()
    engine.load_weights(tensors)
    engine.wake()  # of an engine that is awake
    engine.load_weights(tensors)
    assert engine._engine.calls == [
        ("weights", ["a"]), ("sleep", 2), ("wake", ["weights"]), ("weights", ["a"]), ("wake", ["kv_cache"]),
        ("weights", ["a"]),
    ]  # fmt: skip
