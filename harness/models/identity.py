"""Which model answered: a hash of the weights as they are in memory and of how text reaches them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from harness.models.chat import Chat


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


def _vocabulary(chat: Chat) -> bytes:
    vocabulary = sorted(chat.tokenizer.get_vocab().items())
    return json.dumps([vocabulary, chat.tokenizer.chat_template]).encode()
