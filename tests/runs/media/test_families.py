"""Vision-language families: what is sampled and trained is what transformers' own forward pass gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness.app import main
from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.models.batching import one_pass, pad
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_tokenizer
from harness.models.probe import open_model
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.teacher.base import hidden_of
from harness.types import MediaLimits, Prompt, Question, RolloutGroup, TrainingSample
from methods.base import rollout_sample
from tests.support.families import CLIPS, VISION, vision_family

LIMITS = MediaLimits(min_pixels=784, max_pixels=4096)
SAMPLE = ("llava", "qwen3_vl")
"""One whose media only the model's own code can place, and one whose tower gives features to several layers."""
FAMILIES = [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in VISION]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Path:
    return vision_family(request.param, tmp_path_factory.mktemp("models") / request.param)


def asked(name: str, shown: Any, clips: bool) -> list[Prompt]:
    """Text, two pictures where their marks are, and a clip."""
    first, second = shown.Noise(1, 64, 48), shown.Noise(2, 40, 80)
    questions = {
        "text": Question(id="text", text="Compute 17+25.", answer="42"),
        "image": Question(id="image", text="<image> or <image>?", answer="1", images=(first, second), limits=LIMITS),
    }
    if clips:
        questions["clip"] = Question(id="clip", text="Then?", answer="1", video=shown.NoiseClip(3), limits=LIMITS)
    messages = {kind: ({"role": "user", "content": question.text},) for kind, question in questions.items()}
    return [Prompt(uid=kind, question=q, messages=messages[kind]) for kind, q in questions.items()]


@pytest.fixture(scope="module")
def model(family: Path, shown: Any) -> tuple[LanguageModel, Chat, list[Prompt]]:
    config = ModelConfig(name=family.name, path=str(family), dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    prompts = asked(family.name, shown, family.name in CLIPS)
    for prompt in prompts:
        chat.pack(prompt)
    return open_model(config, "cpu", chat), chat, prompts


@pytest.fixture(scope="module")
def groups(model: tuple[LanguageModel, Chat, list[Prompt]]) -> list[RolloutGroup]:
    engine = TransformersEngine(model[0], model[1], "student", 8)
    return list(engine.generate(model[2], Sampling(num_rollouts=2, max_new_tokens=6, seed=1)))


def samples_of(groups: list[RolloutGroup]) -> list[TrainingSample]:
    return [rollout_sample(group.uid, rollout, advantage=1.0) for group in groups for rollout in group.rollouts]


def own_logprobs(module: Any, model: LanguageModel, sample: TrainingSample) -> torch.Tensor:
    """Of every trained token, by the call that a user of transformers makes; ids that we never sample are left out."""
    ids = torch.tensor([sample.token_ids])
    media = None if sample.media is None else sample.media.inputs()
    given: dict[str, Any] = {} if media is None else media.for_sequence(ids.shape[1], ids.device, torch.float32)
    if hasattr(module.model, "get_rope_index") and media is not None:
        config = module.config
        given["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    logits = module(input_ids=ids, attention_mask=torch.ones_like(ids), **given).logits[0, :, : model.num_tokens]
    logits = logits.index_fill(1, torch.tensor(model.banned_ids), -1e9).log_softmax(-1)
    places = [i for i, mask in enumerate(sample.loss_mask) if mask]
    return logits[[i - 1 for i in places], ids[0, places]]


def test_ids_and_tensors_are_the_processors(model, family, shown):
    """The rendered prompt of two pictures, given to the processor by a user of transformers."""
    _, chat, prompts = model
    packed = chat.pack(prompts[1])
    processor = AutoProcessor.from_pretrained(family)
    parts = [{"type": "image"}, {"type": "text", "text": " or "}, {"type": "image"}, {"type": "text", "text": "?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    images = [image.open() for image in prompts[1].question.images]
    options: dict[str, Any] = {"add_special_tokens": False, "return_tensors": "pt"}
    if hasattr(processor.image_processor, "merge_size"):
        options["images_kwargs"] = {"size": {"shortest_edge": 784, "longest_edge": 4096}}
    made = processor(text=[text], images=images, **options)
    assert packed.ids == made["input_ids"][0].tolist()
    given = packed.media.inputs()
    assert "pixel_values" in given.arguments
    for name, value in (given.arguments | given.token_arguments).items():
        assert torch.equal(value, made[name].to(value.dtype))


def test_engine_and_trainer_are_transformers_own_forward(model, groups):
    """All kinds of prompts in one padded micro-batch."""
    language_model, _, prompts = model
    samples = samples_of(groups)
    batch = pad(one_pass(samples), language_model.device)
    assert {sample.media is not None for sample in samples} == {True, False}
    with torch.no_grad():
        logits = language_model.logits(hidden_of(language_model, batch)).log_softmax(-1)
        trained = logits.gather(1, batch.tokens.ids_N.unsqueeze(1)).squeeze(1)
        own = torch.cat([own_logprobs(language_model.module, language_model, sample) for sample in samples])
    sampled = torch.tensor([p for s in samples for p, m in zip(s.rollout_logprobs, s.loss_mask, strict=True) if m])
    assert len(own) == len(trained) == len(sampled) > len(prompts)
    assert (trained - own).abs().max() < 1e-4
    assert (sampled - own).abs().max() < 1e-4


def test_the_gradient_is_that_of_transformers_own_forward(model, groups):
    language_model, _, _ = model
    samples = samples_of(groups)[::2]
    parameters = dict(language_model.module.named_parameters())

    def gradients(loss: torch.Tensor) -> list[torch.Tensor | None]:
        return list(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))

    batch = pad(one_pass(samples), language_model.device)
    logits = language_model.logits(hidden_of(language_model, batch)).log_softmax(-1)
    ours = gradients(logits.gather(1, batch.tokens.ids_N.unsqueeze(1)).mean())
    own = torch.cat([own_logprobs(language_model.module, language_model, sample) for sample in samples])
    exact = gradients(own.mean())
    compared = 0
    for name, a, b in zip(parameters, ours, exact, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert (a - b).abs().max() <= 5e-5 * max(1.0, float(b.abs().max())), name
            compared += 1
    assert compared > 20


def test_a_clip_is_refused_by_a_family_without_clips(model, family, shown):
    if family.name in CLIPS:
        pytest.skip("it reads clips")
    question = Question(id="clip", text="Then?", answer="1", video=shown.NoiseClip(3), limits=LIMITS)
    prompt = Prompt(uid="clip", question=question, messages=({"role": "user", "content": "Then?"},))
    with pytest.raises(UserError, match=r"reads pictures and no clips|drops every video"):
        model[1].pack(prompt)


@pytest.mark.parametrize("compute", [None, torch.bfloat16], ids=["weights", "autocast"])
def test_the_probe_takes_16_bit(family, shown, compute):
    """A tower may cast its pixels to the type of its weights, which the exact reference has in fp32."""
    config = ModelConfig(name=family.name, path=str(family), dtype="bfloat16")
    chat = Chat(load_tokenizer(config), config)
    for prompt in asked(family.name, shown, family.name in CLIPS):
        chat.pack(prompt)
    dtype = {} if compute is None else {"dtype": "float32", "compute_dtype": compute}
    assert open_model(config, "cpu", chat, **dtype).path != "own"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "on_policy_kd"])
def test_two_steps_are_trained_and_the_model_loads_in_transformers(family, shown, tmp_path, method):
    for number in range(4):
        shown.Noise(number, 64, 48).open().save(tmp_path / f"{number}.png")
    rows = [f'{{"question": "What?", "answer": "{i}", "images": ["{i}.png"]}}' for i in range(4)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    words = ["train", f"method={method}", "student=hf", f"student.path={family}", "student.dtype=float32"]
    words += ["teacher=hf", f"teacher.path={family}", "teacher.dtype=float32"] if method == "on_policy_kd" else []
    words += ["data=jsonl", f"data.path={tmp_path / 'data.jsonl'}", "data.batch_size=2", "steps=2", "eval=none"]
    words += ["rollout.max_response_tokens=8", "num_threads=1", f"outputs={tmp_path / 'out'}"]
    assert main([*words, *(["method.group_size=2"] if method == "grpo" else [])]) == 0
    (saved,) = (tmp_path / "out").rglob("model")
    _, found = AutoModelForImageTextToText.from_pretrained(saved, output_loading_info=True)
    assert not any(found.values())
    AutoProcessor.from_pretrained(saved)
