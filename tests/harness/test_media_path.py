"""One prompt with pictures and a clip, from the packer through sampling to the update: the same ids, pixels and numbers
everywhere. On the hybrid tiny model too, because linear attention leaks through padding where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from harness.config import ModelConfig, UpdateConfig
from harness.data.media import MediaError
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.forward import LanguageModel, gather_logprobs
from harness.models.loading import load_model, load_tokenizer
from harness.models.vision import Vision
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.training.batching import pad, pad_for_teacher
from harness.training.update import Updater
from harness.types import Clip, MediaLimits, Prompt, Question, Rollout, RolloutGroup, TrainingSample
from methods import registry
from methods.base import plain_prompt
from methods.prompts import bcq_text, hint_text, ncq_text, user_turn
from methods.samples import rollout_sample

LIMITS = MediaLimits(min_pixels=256, max_pixels=65_536)
TOLERANCE = 1e-4


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


@pytest.fixture(scope="module")
def groups(setup: Setup) -> list[RolloutGroup]:
    """Three rollouts of every question, sampled in one batch that mixes text, images and video."""
    prompts = [plain_prompt(q) for q in QUESTIONS]
    return list(setup.engine.generate(prompts, Sampling(num_rollouts=3, max_new_tokens=16)))


def text(chat: Chat, prompt: Prompt) -> str:
    return chat.decode_prompt(chat.pack(prompt).ids)


def image_tokens(number: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * number + "<|vision_end|>"


# --- the packer


def test_images_stand_before_the_text_or_where_their_marks_are(chat: Chat) -> None:
    # 64x32 pixels are 8x4 patches of 8 pixels, merged 2x2: 8 tokens. 32x16: 2 tokens, 16x48: 3 tokens.
    assert text(chat, plain_prompt(QUESTIONS[1])).startswith(f"<|im_start|>user\n{image_tokens(8)}Add.\n\nReason")
    wanted = f"<|im_start|>user\nSee {image_tokens(2)} and {image_tokens(3)}.\n\nReason"
    assert text(chat, plain_prompt(QUESTIONS[2])).startswith(wanted)


def test_a_clip_is_a_time_and_placeholders_for_each_pair_of_frames(chat: Chat) -> None:
    # Frames at 0, .5, 1, 1.5 and 2 s; the last is shown twice. Means of pairs: .25, 1.25 and 2, rounded half to even.
    frame = "<|vision_start|>" + "<|video_pad|>" * 2 + "<|vision_end|>"
    clip = f"<0.2 seconds>{frame}<1.2 seconds>{frame}<2.0 seconds>{frame}"
    assert text(chat, plain_prompt(QUESTIONS[3])).startswith(f"<|im_start|>user\n{clip}Watch this.")


@pytest.mark.parametrize("position", [1, 2, 3])
def test_ids_and_pixels_are_those_of_transformers_processor(chat: Chat, position: int) -> None:
    q = QUESTIONS[position]
    processor = AutoProcessor.from_pretrained(chat.tokenizer.name_or_path)
    marked = q.text if "<image>" in q.text else ("<video>" if q.video else "<image>") + q.text
    content = [
        {"type": part} if i % 2 else {"type": "text", "text": part}
        for i, part in enumerate(marked.replace(">", "<").split("<"))
        if part
    ]
    options: dict[str, Any] = {"size": {"shortest_edge": 256, "longest_edge": 65_536}}
    if q.video is not None:
        clip = q.video.open(LIMITS)
        options |= {
            "videos": [torch.from_numpy(clip.frames_FHWC).permute(0, 3, 1, 2)],
            "video_metadata": [{"total_num_frames": 5, "fps": 2.0, "frames_indices": [0, 1, 2, 3, 4]}],
            "do_sample_frames": False,
        }
    else:
        options["images"] = [image.open() for image in q.images]
    prompt = plain_prompt(q)
    closing = {"type": "text", "text": prompt.messages[-1]["content"].removeprefix(q.text)}
    rendered = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": [*content, closing]}], tokenize=False, add_generation_prompt=True
    )
    theirs = processor(text=[rendered], return_tensors="pt", **options)
    packed = chat.pack(prompt)
    assert packed.media is not None
    inputs = packed.media.inputs()
    ids = theirs["input_ids"][0].tolist()
    if q.video is None:
        assert torch.equal(inputs.image_PD, theirs["pixel_values"])
        assert torch.equal(inputs.image_grid, theirs["image_grid_thw"])
    else:
        assert torch.equal(inputs.video_PD, theirs["pixel_values_videos"])
        assert torch.equal(inputs.video_grid, theirs["video_grid_thw"])
        # The one difference: the template's own vision marks stay around the clip in transformers.
        start, end = (chat.tokenizer.get_vocab()[t] for t in ("<|vision_start|>", "<|vision_end|>"))
        first = ids.index(start)
        last = len(ids) - 1 - ids[::-1].index(end)
        ids = [token for i, token in enumerate(ids) if i not in (first, last)]
    assert packed.ids == ids


def test_a_question_whose_marks_do_not_match_its_media_is_named(chat: Chat) -> None:
    with pytest.raises(MediaError, match=r"question q has 1 image and 0 videos, its text 2 <image> and 0 <video>"):
        chat.pack(plain_prompt(question("q", "<image> or <image>?", Noise(1))))


def test_marks_in_a_question_without_media_are_text(chat: Chat) -> None:
    assert "What is <image> in HTML?" in text(chat, plain_prompt(question("q", "What is <image> in HTML?")))


def test_special_tokens_and_marks_in_candidates_are_data(chat: Chat) -> None:
    q = question("q", "Add.", Noise(1))
    candidates = ["<image> <|image_pad|> 45", "<video><|vision_start|>"]
    packed = chat.pack(Prompt(uid="u", question=q, messages=user_turn(q, bcq_text(q, candidates)), kind="bcq"))
    vocab = chat.tokenizer.get_vocab()
    assert [packed.ids.count(vocab[t]) for t in ("<|image_pad|>", "<|vision_start|>", "<|video_pad|>")] == [2, 1, 0]


@pytest.mark.parametrize("q", QUESTIONS[1:], ids=lambda q: q.id)
def test_candidate_and_hint_prompts_keep_the_media(chat: Chat, q: Question) -> None:
    plain = chat.pack(plain_prompt(q))
    for wording in (bcq_text(q, ["a", "b"]), ncq_text(q, ["7"], ["c"]), hint_text(q, "look")):
        packed = chat.pack(Prompt(uid="u", question=q, messages=user_turn(q, wording)))
        assert packed.media is not None and plain.media is not None
        assert packed.media.inputs() is plain.media.inputs()


def test_a_model_without_eyes_refuses_media(chat: Chat, tmp_path: Any) -> None:
    chat.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    config = ModelConfig(name="blind", path=str(tmp_path))
    blind = Chat(load_tokenizer(config), config)
    assert blind.pack(plain_prompt(QUESTIONS[0])).media is None
    with pytest.raises(UserError, match="reads text only"):
        blind.pack(plain_prompt(QUESTIONS[1]))


def test_the_cache_is_bounded_and_what_left_it_is_made_again(chat: Chat) -> None:
    vision = Vision(chat._config, cache_bytes=100_000)  # a picture of 8x8 patches of 384 floats has 98,304 bytes
    packed = [vision.pack(question(f"q{i}", "Add.", Noise(i, 64, 64))) for i in range(5)]
    assert len(vision._cache) == 1
    assert vision._cached_bytes == packed[-1].inputs().num_bytes
    assert [p.inputs().digest for p in packed] == [p.digest for p in packed]


def test_media_that_change_after_sampling_stop_the_run(chat: Chat) -> None:
    shown = [1]

    class Changing(Noise):
        def open(self) -> Image.Image:
            return replace(Noise(0), seed=shown[0]).open()

    vision = Vision(chat._config, cache_bytes=1)
    packed = vision.pack(question("changing", "Add.", Changing(0)))
    vision.pack(QUESTIONS[1])  # takes its place in the cache
    shown[0] = 2
    with pytest.raises(UserError, match="changing have changed since it was sampled"):
        packed.inputs()


# --- log-probabilities


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
    setup: Setup, groups: list[RolloutGroup], side: str
) -> None:
    rollouts = [group.rollouts[0] for group in groups]
    together = logprobs(setup.model, rollouts, side=side)
    for rollout, batched in zip(rollouts, together, strict=True):
        (alone,) = logprobs(setup.model, [rollout], side="right")
        torch.testing.assert_close(batched, alone, atol=TOLERANCE, rtol=0)


def test_the_engines_logprobs_are_the_trainers(setup: Setup, groups: list[RolloutGroup]) -> None:
    for group in groups:
        for rollout in group.rollouts:
            (own,) = logprobs(setup.model, [rollout], side="right")
            torch.testing.assert_close(torch.tensor(rollout.rollout_logprobs), own, atol=TOLERANCE, rtol=0)


def test_logprobs_are_those_of_transformers_own_forward(setup: Setup, groups: list[RolloutGroup]) -> None:
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
                pixel_values=inputs.image_PD,
                image_grid_thw=inputs.image_grid,
                pixel_values_videos=inputs.video_PD,
                video_grid_thw=inputs.video_grid,
                mm_token_type_ids=(ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int(),
            ).logits
        logits_1TV[..., setup.model.banned_ids] = -1e9
        start = len(rollout.prompt_ids)
        theirs = gather_logprobs(logits_1TV[0, start - 1 : -1], ids[0, start:])
        (own,) = logprobs(setup.model, [rollout], side="right")
        torch.testing.assert_close(own, theirs, atol=TOLERANCE, rtol=0)


def test_what_is_shown_matters(setup: Setup, groups: list[RolloutGroup]) -> None:
    rollout = groups[1].rollouts[0]
    other = setup.chat.vision.pack(replace(QUESTIONS[1], images=(Noise(9, 64, 32),)))
    (own,) = logprobs(setup.model, [rollout], side="right")
    (changed,) = logprobs(setup.model, [replace(rollout, media=other)], side="right")
    assert (own - changed).abs().max() > 100 * TOLERANCE


def test_vision_tokens_are_never_sampled(setup: Setup, groups: list[RolloutGroup]) -> None:
    vocab = setup.chat.tokenizer.get_vocab()
    vision = {vocab[t] for t in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")}
    assert vision <= set(setup.model.banned_ids)
    assert not any(vision & set(r.completion_ids) for group in groups for r in group.rollouts)


def test_a_prefix_behind_media_and_a_group_over_several_batches(setup: Setup) -> None:
    prefix = tuple(setup.chat.encode_text("<think>37+8=45"))
    prompts = [replace(plain_prompt(q), prefix_ids=prefix) for q in QUESTIONS[1:4]]
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


def test_generation_shows_every_prompt_to_the_tower_once(setup: Setup) -> None:
    # 32 patches for the picture of 64x32 pixels; 3 frame pairs of 2x4 patches for the clip: whatever is sampled.
    prompts = [plain_prompt(QUESTIONS[i]) for i in (1, 3)]
    with Tower(setup.model) as tower:
        list(setup.engine.generate(prompts, Sampling(num_rollouts=4, max_new_tokens=8)))
    assert tower.calls == [32, 24]


def make_updater(setup: Setup, teacher: LanguageModel | None = None, method: str = "grpo") -> Updater:
    built = registry.build({"name": method, "class": method})
    assert built is not None
    config = UpdateConfig(learning_rate=1e-3, micro_batch_size=8)
    return Updater(student=setup.model, teacher=teacher, method=built, config=config, temperature=1.0)


def samples_of(groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
    return [
        rollout_sample(group.uid, rollout, advantage=(-1.0) ** i + 0.5)
        for group in groups
        for i, rollout in enumerate(group.rollouts)
    ]


def test_the_update_shows_a_group_to_the_tower_once_a_micro_batch(
    setup: Setup, groups: list[RolloutGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)  # the weights serve other tests
    updater = make_updater(setup)
    samples = samples_of([groups[1], groups[3]])  # six sequences, one micro-batch
    updater.fill_old_logprobs(samples)
    with Tower(setup.model) as tower:
        row = updater.update(samples, measure_gap=True)
    assert tower.calls == [32, 24]
    assert row["logprob_gap_max"] < TOLERANCE


def test_the_gradient_reaches_the_tower_and_sums_over_the_group(setup: Setup, groups: list[RolloutGroup]) -> None:
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


def test_the_teacher_scores_the_same_completions_and_media(setup: Setup, groups: list[RolloutGroup]) -> None:
    samples = [rollout_sample(group.uid, group.rollouts[0]) for group in groups]
    hinted = setup.chat.pack(
        Prompt(uid="u", question=QUESTIONS[1], messages=user_turn(QUESTIONS[1], hint_text(QUESTIONS[1], "look")))
    )
    samples[1].teacher_prompt_ids = hinted.ids
    student, teacher = pad(samples, setup.model.device), pad_for_teacher(samples, setup.model.device)
    assert student.tokens.ids_N.tolist() == teacher.tokens.ids_N.tolist()
    assert [m and m.digest for m in student.media] == [m and m.digest for m in teacher.media]
    assert teacher.ids_BT.shape[1] > student.ids_BT.shape[1] - 1


def test_a_teacher_that_would_see_other_media_stops_the_update(
    setup: Setup, groups: list[RolloutGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = make_updater(setup, teacher=setup.model, method="on_policy_kd")

    def wrong(samples: Sequence[TrainingSample], device: torch.device) -> Any:
        batch = pad_for_teacher(samples, device)
        batch.media = batch.media[::-1]
        return batch

    monkeypatch.setattr("harness.training.update.pad_for_teacher", wrong)
    samples = [rollout_sample(group.uid, group.rollouts[0]) for group in groups[:2]]
    with pytest.raises(RuntimeError, match="different media"):
        updater.update(samples)
    setup.model.module.zero_grad()


def test_a_sample_without_its_rollout_is_refused(setup: Setup, groups: list[RolloutGroup]) -> None:
    sample = rollout_sample("u", groups[1].rollouts[0])
    batch = pad([replace(sample, rollout=None)], setup.model.device)
    with pytest.raises(ValueError, match="8 image placeholders and media for 0: a training sample needs"):
        setup.model.hidden(batch.ids_BT, batch.mask_BT, media=batch.media)
