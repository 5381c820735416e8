"""Which model answered: a hash of the weights as they are in memory and of how text reaches them."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from typing import TYPE_CHECKING

from methods.prompts import wording

if TYPE_CHECKING:
    from torch import nn

    from harness.models.chat import Chat


PARSERS = ("math-verify", "latex2sympy2-extended", "sympy")
"""What decides whether a gold answer can be read."""


def model_identity(module: nn.Module, chat: Chat) -> str:
    """16 hex digits that change with any weight, its dtype, the vocabulary or the chat template.

    The same for a student in training and for its saved copy. Seconds for gigabytes of weights.
    """
    import torch

    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    digest.update(_vocabulary(chat))
    return digest.hexdigest()


def tokenizer_identity(chat: Chat) -> str:
    """16 hex digits that change with the vocabulary or the chat template."""
    return hashlib.blake2b(_vocabulary(chat), digest_size=8).hexdigest()


def prompt_identity(chat: Chat, grader: str) -> str:
    """16 hex digits of all but the options of `data` that prompt lengths and verdicts on gold answers depend on.

    The vocabulary, the tokenizer's rules and the template; how media become tokens; wording, grader and versions.
    """
    tokenizer = getattr(chat.tokenizer, "backend_tokenizer", None)
    versions = {name: metadata.version(name) for name in (*PARSERS, "zppo-bench", "transformers")}
    parts = [
        hashlib.blake2b(_vocabulary(chat)).hexdigest(),
        "" if tokenizer is None else hashlib.blake2b(tokenizer.to_str().encode()).hexdigest(),
        chat.processing(), wording(), grader, versions,
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _vocabulary(chat: Chat) -> bytes:
    vocabulary = sorted(chat.tokenizer.get_vocab().items())
    return json.dumps([vocabulary, chat.tokenizer.chat_template]).encode()
