"""One rank of `test_memory.py`: python memory_rank.py RANK WORLD_SIZE PORT. Rank 0 prints what its tensors take."""

import json
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

TOKENS, TRAINED, VOCAB = 512, 32, 2048
FULL, LINEAR = "full_attention", "linear_attention"
SHAPES = {"full": (FULL,) * 4, "hybrid": (LINEAR, FULL) * 2}


def text_config(kind: str) -> Qwen3_5TextConfig:
    return Qwen3_5TextConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=768, num_hidden_layers=4, layer_types=list(SHAPES[kind]),
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, linear_key_head_dim=64, linear_value_head_dim=64,
        linear_num_key_heads=2, linear_num_value_heads=4, tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25, "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    )  # fmt: skip


def local_bytes(tensors) -> int:
    parts = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


def measure(kind: str, checkpointing: bool, world_size: int) -> dict[str, float]:
    """The second of two micro-batches of an update, whose gradients and moments exist already."""
    torch.manual_seed(0)
    model = Qwen3_5ForCausalLM(text_config(kind))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def micro_batch() -> None:
        ids = torch.randint(0, VOCAB, (1, TOKENS))
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=TRAINED)
        output.logits.float().logsumexp(-1).mean().backward()

    micro_batch()
    optimizer.step()
    tracker = FSDPMemTracker(model, optimizer)
    tracker.track_inputs(())
    with tracker:
        micro_batch()
    peak = {str(kind): size for parts in tracker.get_tracker_snapshot("peak").values() for kind, size in parts.items()}
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    return {
        "weights": local_bytes(model.parameters()),
        "gradients": local_bytes(parameter.grad for parameter in model.parameters()),
        "optimizer": local_bytes(moments),
        "gathered weights": sum(peak[f"_FSDPRefType.{kind}"] for kind in ("UNSHARDED_PARAM", "ALL_GATHER")),
        "peak": peak["Total"],
    }


def main(rank: int, world_size: int, port: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    found = [
        {"kind": kind, "checkpointing": checkpointing} | measure(kind, checkpointing, world_size)
        for kind in SHAPES
        for checkpointing in (False, True)
    ]
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
