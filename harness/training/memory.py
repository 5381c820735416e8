"""What a run says about the memory of its updates before the first one; `harness.plan.memory` has the numbers."""

from __future__ import annotations

from harness.config.schema import UpdateConfig
from harness.errors import UserError
from harness.models.forward import LanguageModel
from harness.plan.memory import MIB, predict, tile_tokens
from harness.plan.shapes import ModelShape


def memory_text(student: LanguageModel, config: UpdateConfig, num_ranks: int = 1) -> str:
    """The expected peak of an update with one full micro-batch of text, on one rank, in MiB; of an architecture whose
    layers are not known the logits alone."""
    text = (
        f"update: logits of at most {tile_tokens(student.num_tokens, config.logit_memory_mb)} trained tokens at a time "
        f"({student.num_tokens} ids), none of them computed twice"
    )
    try:
        shape = ModelShape.read(student.module.config.to_dict())
    except UserError:
        return text
    parts = predict(
        shape,
        update=config,
        world_size=num_ranks,
        dtype=str(student.compute_dtype).removeprefix("torch."),
        num_ids=student.num_tokens,
        num_weights=sum(p.numel() for p in student.module.parameters()),
    )
    sizes = ", ".join(f"{name} {size / MIB:.0f}" for name, size in parts.items() if size)
    return f"{text}; estimated peak {sum(parts.values()) / MIB:.0f} MiB ({sizes})"
