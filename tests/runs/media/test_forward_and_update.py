"""One set of numbers for prompts with pictures and clips, sampled, scored and trained: alone, padded and mixed.

On the hybrid tiny model too, because linear attention leaks through padding where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.config.schema import UpdateConfig
from harness.models.batching import pad, pad_for_teacher
from harness.models.forward import LanguageModel, gather_logprobs
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.teacher.local import LocalScorer
from harness.training.update import Updater
from harness.types import Prompt, Rollout, RolloutGroup, TrainingSample
from methods import registry
from methods.base import plain_prompt
from methods.prompts import hint_text, user_turn
from methods.samples import rollout_sample

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def groups(shown: Any, setup: Any) -> list[RolloutGroup]:
    """Three rollouts of every question, sampled in one batch that mixes text, images and video."""
    prompts = [plain_prompt(q) for q in shown.QUESTIONS]
    return list(setup.engine.generate(prompts, Sampling(num_rollouts=3, max_new_tokens=16)))


def logprobs(model: LanguageModel, rollouts: Sequence[Rollout], *, side: str) -> list[torch.Tensor]:
    """Of every completion, in one batch that is padded on `side`."""
    sequences = [[*r.prompt_ids, *r.completion_ids] for r in rollouts]
    width = max(map(len, sequences)) + 3
    ids, mask = [], []
    for sequence in sequences:
        padding = [0] * (width - len(sequence))
        ids.append(padding + sequence if side == "left" else sequence + padding)
        ones = [1] * len(sequence)
        mask.append(padding + ones if side == "left" else ones + padding)
    media = [None if r.media is None else r.media.inputs() for r in rollouts]
    with torch.no_grad():
        hidden_BTH = model.hidden(torch.tensor(ids), torch.tensor(mask), media=media)
    result = []
    for row, (rollout, sequence) in enumerate(zip(rollouts, sequences, strict=True)):
        end = width if side == "left" else len(sequence)
        start = end - len(rollout.completion_ids)
        logits_NV = model.logits(hidden_BTH[row, start - 1 : end - 1])
        result.append(gather_logprobs(logits_NV, torch.tensor(rollout.completion_ids)))
    return result


@pytest.mark.parametrize("side", ["left", "right"])
def test_logprobs_are_equal_alone_and_in_a_mixed_padded_batch(
    setup: Any, groups: list[RolloutGroup], side: str
) -> None:
    rollouts = [group.rollouts[0] for group in groups]
    together = logprobs(setup.model, rollouts, side=side)
    for rollout, batched in zip(rollouts, together, strict=True):
        (alone,) = logprobs(setup.model, [rollout], side="right")
        torch.testing.assert_close(batched, alone, atol=TOLERANCE, rtol=0)


def test_the_engines_logprobs_are_the_trainers(setup: Any, groups: list[RolloutGroup]) -> None:
    for group in groups:
        for rollout in group.rollouts:
            (own,) = logprobs(setup.model, [rollout], side="right")
            torch.testing.assert_close(torch.tensor(rollout.rollout_logprobs), own, atol=TOLERANCE, rtol=0)


def test_logprobs_are_those_of_transformers_own_forward(setup: Any, groups: list[RolloutGroup]) -> None:
    for group in groups[1:]:
        rollout = group.rollouts[0]
        assert rollout.media is not None
        inputs = rollout.media.inputs()
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        config = setup.model.module.config
        with torch.no_grad():
            logits_1TV = setup.model.module(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **inputs.arguments,
                mm_token_type_ids=(ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int(),
            ).logits
        logits_1TV[..., setup.model.banned_ids] = -1e9
        start = len(rollout.prompt_ids)
        theirs = gather_logprobs(logits_1TV[0, start - 1 : -1], ids[0, start:])
        (own,) = logprobs(setup.model, [rollout], side="right")
        torch.testing.assert_close(own, theirs, atol=TOLERANCE, rtol=0)


def test_what_is_shown_matters(shown: Any, setup: Any, groups: list[RolloutGroup]) -> None:
    rollout = groups[1].rollouts[0]
    other = setup.chat.vision.pack(replace(shown.QUESTIONS[1], images=(shown.Noise(9, 64, 32),)))
    (own,) = logprobs(setup.model, [rollout], side="right")
    (changed,) = logprobs(setup.model, [replace(rollout, media=other)], side="right")
    assert (own - changed).abs().max() > 100 * TOLERANCE


def test_vision_tokens_are_never_sampled(setup: Any, groups: list[RolloutGroup]) -> None:
    vocab = setup.chat.tokenizer.get_vocab()
    vision = {vocab[t] for t in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")}
    assert vision <= set(setup.model.banned_ids)
    assert not any(vision & set(r.completion_ids) for group in groups for r in group.rollouts)


def test_a_prefix_behind_media_and_a_group_over_several_batches(shown: Any, setup: Any) -> None:
    prefix = tuple(setup.chat.encode_text("<think>37+8=45"))
    prompts = [replace(plain_prompt(q), prefix_ids=prefix) for q in shown.QUESTIONS[1:4]]
    engine = TransformersEngine(setup.model, setup.chat, sampler="student", max_sequences=2)
    for group in engine.generate(prompts, Sampling(num_rollouts=3, max_new_tokens=20)):
        assert len(group.rollouts) == 3
        for rollout in group.rollouts:
            assert rollout.completion_ids[: len(prefix)] == list(prefix)
            (own,) = logprobs(setup.model, [rollout], side="right")
            sampled = torch.tensor(rollout.rollout_logprobs[len(prefix) :])
            torch.testing.assert_close(sampled, own[len(prefix) :], atol=TOLERANCE, rtol=0)


# --- the vision tower's calls


class Tower:
    """Counts the calls and the patches of a model's vision tower."""

    def __init__(self, model: LanguageModel) -> None:
        self.calls: list[int] = []
        tower = model.module.base_model.visual
        self._handle = tower.register_forward_pre_hook(lambda module, args, kwargs: self._see(args), with_kwargs=True)

    def _see(self, args: tuple[torch.Tensor, ...]) -> None:
        self.calls.append(len(args[0]))

    def __enter__(self) -> Tower:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


def test_generation_shows_every_prompt_to_the_tower_once(shown: Any, setup: Any) -> None:
    # 32 patches for the picture of 64x32 pixels; 3 frame pairs of 2x4 patches for the clip: whatever is sampled.
    prompts = [plain_prompt(shown.QUESTIONS[i]) for i in (1, 3)]
    with Tower(setup.model) as tower:
        list(setup.engine.generate(prompts, Sampling(num_rollouts=4, max_new_tokens=8)))
    assert tower.calls == [32, 24]


def make_updater(setup: Any, teacher: LanguageModel | None = None, method: str = "grpo") -> Updater:
    built = registry.build({"name": method, "class": method})
    assert built is not None
    config = UpdateConfig(learning_rate=1e-3)
    scorer = None if teacher is None else LocalScorer(teacher, 1.0)
    return Updater(student=setup.model, teacher=scorer, method=built, config=config, temperature=1.0)


def samples_of(groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
    return [
        rollout_sample(group.uid, rollout, advantage=(-1.0) ** i + 0.5)
        for group in groups
        for i, rollout in enumerate(group.rollouts)
    ]


def test_the_update_shows_a_group_to_the_tower_once_a_micro_batch(
    setup: Any, groups: list[RolloutGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)  # the weights serve other tests
    updater = make_updater(setup)
    samples = samples_of([groups[1], groups[3]])  # six sequences, one micro-batch
    updater.fill_old_logprobs(samples)
    with Tower(setup.model) as tower:
        updater.update(samples, measure_gap=True)
    assert tower.calls == [32, 24]
    assert updater.gap.finish()["mismatch/max"] < TOLERANCE


def test_the_gradient_reaches_the_tower_and_sums_over_the_group(setup: Any, groups: list[RolloutGroup]) -> None:
    """A shared picture gives the gradient of a picture a sequence."""
    samples = samples_of([groups[1]])

    def gradient(parts: list[list[TrainingSample]]) -> torch.Tensor:
        setup.model.module.zero_grad()
        for part in parts:
            batch = pad(part, setup.model.device)
            hidden_BTH = setup.model.hidden(batch.ids_BT, batch.mask_BT, media=batch.media)
            logits_NV = setup.model.logits(hidden_BTH[batch.rows_N, batch.columns_N])
            gather_logprobs(logits_NV, batch.tokens.ids_N).sum().backward()
        tower: Any = setup.model.module.base_model.visual
        grad = tower.patch_embed.proj.weight.grad.clone()
        setup.model.module.zero_grad()
        return grad

    shared = gradient([samples])
    assert shared.abs().max() > 0
    torch.testing.assert_close(shared, gradient([[s] for s in samples]), atol=1e-4, rtol=1e-3)


def test_the_teacher_scores_the_same_completions_and_media(shown: Any, setup: Any, groups: list[RolloutGroup]) -> None:
    samples = [rollout_sample(group.uid, group.rollouts[0]) for group in groups]
    hinted = setup.chat.pack(
        Prompt(
            uid="u",
            question=shown.QUESTIONS[1],
            messages=user_turn(shown.QUESTIONS[1], hint_text(shown.QUESTIONS[1], "look")),
        )
    )
    samples[1].teacher_prompt_ids = hinted.ids
    student, teacher = pad(samples, setup.model.device), pad_for_teacher(samples, setup.model.device)
    assert student.tokens.ids_N.tolist() == teacher.tokens.ids_N.tolist()
    assert [m and m.digest for m in student.media] == [m and m.digest for m in teacher.media]
    assert teacher.ids_BT[1].tolist() != student.ids_BT[1].tolist()


def test_a_teacher_that_would_see_other_media_stops_the_update(
    setup: Any, groups: list[RolloutGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = make_updater(setup, teacher=setup.model, method="on_policy_kd")

    def wrong(samples: Sequence[TrainingSample], device: torch.device, *, share: bool) -> Any:
        batch = pad_for_teacher(samples, device, share=share)
        batch.media = batch.media[::-1]
        return batch

    monkeypatch.setattr("harness.teacher.local.pad_for_teacher", wrong)
    samples = [rollout_sample(group.uid, group.rollouts[0]) for group in groups[:2]]
    with pytest.raises(RuntimeError, match="different media"):
        updater.update(samples)
    setup.model.module.zero_grad()


def test_a_sample_without_its_rollout_is_refused(setup: Any, groups: list[RolloutGroup]) -> None:
    sample = rollout_sample("u", groups[1].rollouts[0])
    batch = pad([replace(sample, rollout=None)], setup.model.device)
    with pytest.raises(ValueError, match="8 image placeholders and media for 0: a training sample needs"):
        setup.model.hidden(batch.ids_BT, batch.mask_BT, media=batch.media)
