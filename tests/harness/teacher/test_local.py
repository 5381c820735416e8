"""A teacher that this process holds: exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.models.batching import pad
from harness.teacher.base import check_same
from harness.teacher.local import LocalScorer

TEMPERATURE = 0.7
pytestmark = pytest.mark.usefixtures("forked")


@pytest.mark.clause("C075", "C077")
def test_a_local_teacher_scores_each_position_as_a_plain_forward_pass(teacher: Any, micro_batches: Any) -> None:
    scorer = LocalScorer(teacher, TEMPERATURE)
    for samples, scores in zip(micro_batches, scorer.score(micro_batches), strict=True):
        check_same(scores, pad(samples, torch.device("cpu")))
        rows = []
        for sample in samples:
            prompt = sample.teacher_prompt_ids or sample.token_ids[: sample.num_prompt]
            ids = torch.tensor([[*prompt, *sample.token_ids[sample.num_prompt :]]])
            with torch.no_grad():
                rows.append(teacher.logits(teacher.hidden(ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1]))
        expected_NV = torch.cat(rows) / TEMPERATURE
        torch.testing.assert_close(scores.between(2, 7).logits_NV, expected_NV[2:7], rtol=1e-4, atol=1e-4)
