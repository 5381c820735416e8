"""A prompt with pictures and a clip as ids and pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from harness.config.schema import ModelConfig
from harness.data.images import MediaError
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.models.vision import Vision
from harness.types import Prompt
from methods.base import plain_prompt
from methods.prompts import bcq_text, hint_text, ncq_text, user_turn


def text(chat: Chat, prompt: Prompt) -> str:
    return chat.decode_prompt(chat.pack(prompt).ids)


def image_tokens(number: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * number + "<|vision_end|>"


def test_images_stand_before_the_text_or_where_their_marks_are(shown: Any, chat: Chat) -> None:
    # 64x32 pixels are 8x4 patches of 8 pixels, merged 2x2: 8 tokens. 32x16: 2 tokens, 16x48: 3 tokens.
    assert text(chat, plain_prompt(shown.QUESTIONS[1])).startswith(f"<|im_start|>user\n{image_tokens(8)}Add.\n\nWork")
    wanted = f"<|im_start|>user\nSee {image_tokens(2)} and {image_tokens(3)}.\n\nWork"
    assert text(chat, plain_prompt(shown.QUESTIONS[2])).startswith(wanted)


def test_a_clip_is_a_time_and_placeholders_for_each_pair_of_frames(shown: Any, chat: Chat) -> None:
    # Frames at 0, .5, 1, 1.5 and 2 s; the last is shown twice. Means of pairs: .25, 1.25 and 2, rounded half to even.
    frame = "<|vision_start|>" + "<|video_pad|>" * 2 + "<|vision_end|>"
    clip = f"<0.2 seconds>{frame}<1.2 seconds>{frame}<2.0 seconds>{frame}"
    assert text(chat, plain_prompt(shown.QUESTIONS[3])).startswith(f"<|im_start|>user\n{clip}Watch this.")


@pytest.mark.parametrize("position", [1, 2, 3])
def test_ids_and_pixels_are_those_of_transformers_processor(shown: Any, chat: Chat, position: int) -> None:
    q = shown.QUESTIONS[position]
    processor = AutoProcessor.from_pretrained(chat.tokenizer.name_or_path)
    marked = q.text if "<image>" in q.text else ("<video>" if q.video else "<image>") + q.text
    content = [
        {"type": part} if i % 2 else {"type": "text", "text": part}
        for i, part in enumerate(marked.replace(">", "<").split("<"))
        if part
    ]
    options: dict[str, Any] = {"size": {"shortest_edge": 256, "longest_edge": 65_536}}
    if q.video is not None:
        clip = q.video.open(shown.LIMITS)
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
    for name, tensor in inputs.arguments.items():
        assert torch.equal(tensor, theirs[name])
    if q.video is None:
        assert inputs.arguments.keys() == {"pixel_values", "image_grid_thw"}
    else:
        assert inputs.arguments.keys() == {"pixel_values_videos", "video_grid_thw"}
        # The one difference: the template's own vision marks stay around the clip in transformers.
        start, end = (chat.tokenizer.get_vocab()[t] for t in ("<|vision_start|>", "<|vision_end|>"))
        first = ids.index(start)
        last = len(ids) - 1 - ids[::-1].index(end)
        ids = [token for i, token in enumerate(ids) if i not in (first, last)]
    assert packed.ids == ids


def test_a_question_whose_marks_do_not_match_its_media_is_named(shown: Any, chat: Chat) -> None:
    with pytest.raises(MediaError, match=r"question q has 1 image and 0 videos, its text 2 <image> and 0 <video>"):
        chat.pack(plain_prompt(shown.question("q", "<image> or <image>?", shown.Noise(1))))


def test_marks_in_a_question_without_media_are_text(shown: Any, chat: Chat) -> None:
    assert "What is <image> in HTML?" in text(chat, plain_prompt(shown.question("q", "What is <image> in HTML?")))


def test_special_tokens_and_marks_in_candidates_are_data(shown: Any, chat: Chat) -> None:
    q = shown.question("q", "Add.", shown.Noise(1))
    candidates = ["<image> <|image_pad|> 45", "<video><|vision_start|>"]
    packed = chat.pack(Prompt(uid="u", question=q, messages=user_turn(q, bcq_text(q, candidates)), kind="bcq"))
    vocab = chat.tokenizer.get_vocab()
    assert [packed.ids.count(vocab[t]) for t in ("<|image_pad|>", "<|vision_start|>", "<|video_pad|>")] == [2, 1, 0]


@pytest.mark.clause("C043")
@pytest.mark.parametrize("position", [1, 2, 3, 4])
def test_candidate_and_hint_prompts_keep_the_media(shown: Any, chat: Chat, position: int) -> None:
    q = shown.QUESTIONS[position]
    plain = chat.pack(plain_prompt(q))
    for wording in (bcq_text(q, ["a", "b"]), ncq_text(q, ["7"], ["c"]), hint_text(q, "look")):
        packed = chat.pack(Prompt(uid="u", question=q, messages=user_turn(q, wording)))
        assert packed.media is not None and plain.media is not None
        assert packed.media.inputs() is plain.media.inputs()


def test_a_model_without_eyes_refuses_media(shown: Any, chat: Chat, tmp_path: Any) -> None:
    chat.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    config = ModelConfig(name="blind", path=str(tmp_path))
    blind = Chat(load_tokenizer(config), config)
    assert blind.pack(plain_prompt(shown.QUESTIONS[0])).media is None
    with pytest.raises(UserError, match="reads text only"):
        blind.pack(plain_prompt(shown.QUESTIONS[1]))


def test_the_cache_is_bounded_and_what_left_it_is_made_again(shown: Any, chat: Chat) -> None:
    vision = Vision(chat._config, cache_bytes=100_000)  # a picture of 8x8 patches of 384 floats has 98,304 bytes
    packed = [vision.pack(shown.question(f"q{i}", "Add.", shown.Noise(i, 64, 64))) for i in range(5)]
    assert len(vision._cache) == 1
    assert vision._cached_bytes == packed[-1].inputs().num_bytes
    assert [p.inputs().digest for p in packed] == [p.digest for p in packed]


def test_media_that_change_after_sampling_stop_the_run(shown: Any, chat: Chat) -> None:
    seed = [1]

    class Changing(shown.Noise):
        def open(self) -> Image.Image:
            return replace(shown.Noise(0), seed=seed[0]).open()

    vision = Vision(chat._config, cache_bytes=1)
    packed = vision.pack(shown.question("changing", "Add.", Changing(0)))
    vision.pack(shown.QUESTIONS[1])  # takes its place in the cache
    seed[0] = 2
    with pytest.raises(UserError, match="changing have changed since it was sampled"):
        packed.inputs()
