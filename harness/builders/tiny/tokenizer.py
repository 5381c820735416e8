r"""The tiny family's shared tokenizer, chat template and processor.

A byte-level BPE without merges: every digit and symbol is a token, and any text, in any script, encodes and decodes
exactly. The fixed sentences of `methods.prompts` are added tokens, so that a plain prompt has some 15 to 20 tokens.
After a change of that wording the family has to be built anew (a test of prompt lengths says so).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

from harness.models.tiny.shapes import MERGE, PATCH, TEMPORAL
from methods import prompts

SPECIAL = (
    "<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
)  # fmt: skip
TAGS = tuple(f"<{slash}{tag}>" for tag in ("think", "candidate", "response", "summary", "hint") for slash in ("", "/"))
WORDS = (
    "\\boxed{", "\n\n", "system\n", "user\n", "assistant\n", "Compute ", " seconds>",
    "Add the bar heights in the image to ", "Add the bar heights in all images to ",
    "Add the bar heights in all frames to ",
)  # fmt: skip
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
MAX_PIXELS = 256 * 256


def sentences() -> list[str]:
    """The fixed parts of the prompts: what stands between the placeholders of each form."""
    forms = (
        prompts.CLOSING, prompts.BCQ, prompts.NCQ_ANSWERS, prompts.NCQ_TRACES, prompts.COMPRESS, prompts.HINT,
        prompts.WRITE_HINT,
    )  # fmt: skip
    parts = [part for form in forms for part in re.split(r"\{\w+\}", form) if len(part) > 1]
    return list(dict.fromkeys(parts))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer. Special tokens come first, then the 256 bytes, then tags, words and sentences."""
    vocab = {token: i for i, token in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in (*TAGS, *WORDS, *sentences())])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        extra_special_tokens={
            name: f"<|{token}|>"
            for name, token in (
                ("endoftext_token", "endoftext"),
                ("im_start_token", "im_start"),
                ("image_token", "image_pad"),
                ("video_token", "video_pad"),
                ("vision_start_token", "vision_start"),
                ("vision_end_token", "vision_end"),
            )
        },
        chat_template=CHAT_TEMPLATE.read_text(),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=32_768,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Images keep their size (rounded to 16 pixels) up to 256x256; videos come as frames that were already chosen."""
    common: dict[str, Any] = {
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL,
        "merge_size": MERGE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    smallest = (PATCH * MERGE) ** 2
    image = Qwen2VLImageProcessor(size={"shortest_edge": smallest, "longest_edge": MAX_PIXELS}, **common)
    video = Qwen3VLVideoProcessor(
        size={"shortest_edge": smallest, "longest_edge": 64 * MAX_PIXELS},
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        **common,
    )
    return Qwen3VLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=tokenizer.chat_template
    )


@cache
def chat_frame(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The text before and after the content of a single user turn, generation prompt included.

    Rendering the template once, not per example, makes a corpus of 60,000 examples in seconds.
    """
    mark = "\N{SNOWMAN}"
    turn = [{"role": "user", "content": mark}]
    before, after = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)).split(mark)
    return before, after
