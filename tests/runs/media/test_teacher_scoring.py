"""A teacher that scores what is shown: in a process of its own as beside the student; not behind a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import harness.teacher.process as process_module
from harness.errors import UserError
from harness.models.batching import pad
from harness.rollout.base import Sampling
from harness.teacher.base import check_same
from harness.teacher.local import LocalScorer
from harness.teacher.server import ServerScorer
from harness.training.models import open_scorer
from harness.types import TrainingSample
from methods.base import plain_prompt, rollout_sample

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def micro_batches(shown: Any, setup: Any) -> list[list[TrainingSample]]:
    """Text, pictures and clips mixed; the two rollouts of a question share what they show."""
    prompts = [plain_prompt(question) for question in shown.QUESTIONS]
    groups = list(setup.engine.generate(prompts, Sampling(num_rollouts=2, max_new_tokens=8)))
    samples = [rollout_sample(group.uid, rollout) for group in groups for rollout in group.rollouts]
    assert any(sample.media is None for sample in samples) and any(sample.media is not None for sample in samples)
    return [samples[:3], samples[3:]]


def test_the_process_sees_the_same_media(
    setup: Any, micro_batches: list[list[TrainingSample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalScorer(setup.model, 1.0)
    process = open_scorer(setup.chat._config, setup.chat, "process", temperature=1.0)
    try:
        for samples, ours, theirs in zip(
            micro_batches, local.score(micro_batches), process.score(micro_batches), strict=True
        ):
            check_same(theirs, pad(samples, torch.device("cpu")))
            num_tokens = len(ours.ids_N)
            assert torch.equal(ours.between(0, num_tokens).logits_NV, theirs.between(0, num_tokens).logits_NV)

        arrays = process_module._arrays
        monkeypatch.setattr(
            process_module,
            "_arrays",
            lambda media: tuple({n: a + (a.dtype.kind == "f") for n, a in part.items()} for part in arrays(media)),
        )
        scores = next(process.score(micro_batches[1:]))  # brighter pixels on their way to the process
        with pytest.raises(RuntimeError, match="different media"):
            check_same(scores, pad(micro_batches[1], torch.device("cpu")))
    finally:
        process.close()


def test_a_server_refuses_media(micro_batches: Sequence[Sequence[TrainingSample]]) -> None:
    class Nobody:
        def map(self, path: str, bodies: Any) -> Any:
            raise AssertionError("nothing is to be sent")

    scorer = ServerScorer(Nobody(), top_k=4, temperature=1.0, num_tokens=100)
    with pytest.raises(UserError, match="a served teacher scores text only"):
        scorer.score(micro_batches)
