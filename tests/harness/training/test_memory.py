"""The memory model: hand sums, what autograd really keeps, and what sharding changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.config.compose import compose
from harness.config.deployment import Deployment, deployed
from harness.config.schema import ModelConfig, RolloutConfig, UpdateConfig, from_hydra
from harness.errors import UserError
from harness.models.loading import load_model
from harness.models.shapes import ModelShape, shape_of
from harness.training.memory import (
    ASLEEP_BYTES,
    FULL,
    LINEAR,
    RUNTIME_BYTES,
    TeacherLoad,
    engine_needs,
    layer_activations,
    phases,
    predict,
    tile_tokens,
)

TINY = shape_of(ModelConfig(name="s", path="tiny:s"))
HYBRID = shape_of(ModelConfig(name="hybrid", path="tiny:hybrid"))
SMALL = shape_of(ModelConfig(name="student", path="Qwen/Qwen3.5-0.8B"))


def test_a_layer_by_hand():
    """fp32, tiny:s: 24 * 64 + 16 * 192 + 32 * (2 * 32) + 16 * 32 + 8 * 2 + 4 + 8 = 7,196 bytes a token."""
    assert layer_activations(TINY, FULL, is_16bit=False) == 7_196


@pytest.mark.parametrize("shape", [TINY, HYBRID], ids=["s", "hybrid"])
@pytest.mark.parametrize("is_16bit", [False, True])
def test_layers_keep_what_autograd_saves(shape, is_16bit):
    """Every storage that the decoder's forward pass saves, its weights and their 16-bit copies aside."""
    model = load_model(ModelConfig(name="m", path=shape.source.removeprefix("config.json of "), dtype="float32"), "cpu")
    decoder, tokens = model.base_model.language_model, 192
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in weights and tuple(tensor.shape) not in sizes:
            kept.setdefault(storage, tensor)
        return tensor

    ids = torch.randint(0, shape.vocab, (2, tokens))
    positions = torch.arange(tokens).expand(2, -1)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_16bit),
    ):
        decoder(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (2 * tokens)
    ends = 8 * shape.hidden + 2 * 4 * shape.head_dim  # the final norm, and positions
    predicted = sum(layer_activations(shape, kind, is_16bit=is_16bit) for kind in shape.layer_types)
    assert saved - ends == pytest.approx(predicted, rel=0.01)


def test_the_parts_of_one_process_by_hand():
    """173,376 fp32 weights, gradients and two moments; 100 tokens of two layers and of the stream's ends (8 * 64
    bytes); backward 100 * (3 * 192 + 2 * 64) * 4; one tile of 100 tokens * 16 * 292."""
    parts = predict(TINY, update=UpdateConfig(micro_batch_tokens=100), dtype="float32")
    assert parts == {
        "weights": 693_504, "gradients": 693_504, "optimizer": 1_387_008, "activations": 100 * (2 * 7_196 + 8 * 64),
        "backward": 281_600, "logits": 467_200, "16-bit copies": 0.0,
    }  # fmt: skip


def test_sharded_over_ranks_by_hand():
    """Over 4 ranks: a quarter of weights, gradients and moments; the outer group (47,744 + 18,688 + 64) whole with its
    gradient, and two layers of 53,440 under way."""
    parts = predict(TINY, update=UpdateConfig(micro_batch_tokens=100), dtype="float32", world_size=4)
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (173_376, 173_376, 346_752)
    assert parts["gathered weights"] == 4 * 66_496 + 2 * 53_440 * 4
    assert parts["gathered gradients"] == 4 * 66_496


@pytest.mark.parametrize(("optimizer", "bytes_a_weight"), [("adamw", 8), ("adamw_bf16", 4), ("adamw_8bit", 2.1)])
def test_states_of_every_optimizer(optimizer, bytes_a_weight):
    parts = predict(SMALL, update=UpdateConfig(optimizer=optimizer))
    assert parts["optimizer"] == pytest.approx(bytes_a_weight * 852_985_920)


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([FULL, LINEAR]))
def test_more_ranks_never_take_more_shards_and_more_tokens_never_less(world, more, kind):
    def peak(world_size: int, tokens: int) -> dict[str, float]:
        return predict(
            HYBRID if kind == LINEAR else TINY, update=UpdateConfig(micro_batch_tokens=tokens), world_size=world_size
        )

    for part in ("weights", "gradients", "optimizer"):
        assert peak(world + more, 64)[part] < peak(world, 64)[part]
    assert sum(peak(2, 64 + more).values()) > sum(peak(2, 64).values())


def test_checkpointing_keeps_the_stream_alone():
    """24 layers of 16,384 tokens * 1024 * 4 bytes, and the stream's ends, 6 bytes of 1024."""
    with_it = predict(SMALL, update=UpdateConfig(gradient_checkpointing=True))
    without = predict(SMALL, update=UpdateConfig())
    assert with_it["activations"] == 16_384 * 1024 * (24 * 4 + 6)
    assert with_it["activations"] + with_it["backward"] < 0.3 * (without["activations"] + without["backward"])


def test_a_sequence_longer_than_a_micro_batch_has_one_for_itself():
    long = predict(TINY, update=UpdateConfig(micro_batch_tokens=100), longest=300, dtype="float32")
    assert long == predict(TINY, update=UpdateConfig(micro_batch_tokens=300), dtype="float32")


def test_kernels_of_linear_attention_keep_less():
    both = [layer_activations(SMALL, LINEAR, is_16bit=True, kernels=kernels) for kernels in ("fla", "torch")]
    assert both[0] < 0.6 * both[1]


def placed(*overrides: str) -> tuple[Deployment, RolloutConfig]:
    config = from_hydra(compose(["student=tiny_xs", "data.batch_size=8", *overrides]))
    return deployed(config), config.rollout


def of_one_gpu(*overrides: str) -> dict[str, dict[str, float]]:
    deployment, rollout = placed(*overrides)
    parts = predict(SMALL, update=UpdateConfig())
    options = {"gpu_bytes": 80e9, "num_sequences": 64, "longest": 16_384}
    load = TeacherLoad(shape=SMALL, samples=True, vllm_share=0.3) if deployment.teacher else None
    return phases(parts, SMALL, deployment=deployment, rollout=rollout, teacher=load, **options)


def test_phases_of_one_gpu():
    """vLLM has its share while it samples, and what is left of it asleep; a teacher in an engine of its own has it
    always."""
    parts = predict(SMALL, update=UpdateConfig())
    found = of_one_gpu("method=zppo", "rollout=vllm")
    assert found["sampling"] == {
        "weights": parts["weights"], "optimizer": parts["optimizer"], "runtime": RUNTIME_BYTES, "engine": 24e9,
        "teacher's engine": 24e9,
    }  # fmt: skip
    assert found["update"]["engine"] == ASLEEP_BYTES and found["update"]["teacher's engine"] == 24e9


def teachers(phase: dict[str, float]) -> dict[str, float]:
    """What a student's GPU holds of the teacher."""
    return {name: size for name, size in phase.items() if name.startswith("teacher") or name == "scoring"}


def test_a_teacher_that_samples_and_scores_on_one_gpu():
    """A copy that this process samples with, and another one for the process that scores; or one for both."""
    weights, cache = SMALL.weight_bytes, 64 * SMALL.cache_bytes(16_384)
    scoring = 16_384 * 2 * (3 * SMALL.intermediate + 4 * SMALL.hidden)
    for option, copies in (("teacher_process=false", 1), ("teacher_process=true", 2)):
        found = of_one_gpu("method=off_policy_kd", option)
        assert teachers(found["update"]) == {"teacher": copies * weights, "scoring": scoring}
        assert teachers(found["sampling"]) == {"teacher": copies * weights, "teacher's cache": cache}


def test_a_teacher_elsewhere_leaves_its_head_where_a_process_scores():
    for option in ("teacher_device=cuda:1", "cluster.teacher_gpus=1", "teacher_device=cpu"):
        assert teachers(of_one_gpu("method=on_policy_kd", option)["update"]) == {}
        found = of_one_gpu("method=on_policy_kd", option, "teacher_process=true")["update"]
        assert teachers(found) == {"teacher's head": 2 * SMALL.vocab * SMALL.hidden}


def test_the_transformers_engine_has_a_copy_of_its_own_beside_a_sharded_student():
    parts = predict(SMALL, update=UpdateConfig(), world_size=8)
    deployment, rollout = placed("method=grpo", "cluster.student_gpus=8")
    found = phases(parts, SMALL, deployment=deployment, rollout=rollout, gpu_bytes=80e9, num_sequences=10, longest=1000)
    assert found["update"]["engine"] == found["sampling"]["engine"] == 2 * 852_985_920
    assert found["sampling"]["cache"] == 10 * SMALL.cache_bytes(1000)


def test_what_an_engine_needs():
    assert engine_needs(SMALL, longest=0, tensor_parallel=2) == (1.05 * 2 * 852_985_920 + SMALL.cache_bytes(0)) / 2


def test_a_tile():
    assert tile_tokens(248_320, 512) == 135
    with pytest.raises(UserError, match=r"does not hold one token's logits over 248320 ids: set 3.79 or more"):
        tile_tokens(248_320, 1)


def test_an_untied_head_is_gathered_with_the_embeddings():
    large: ModelShape = shape_of(ModelConfig(name="student", path="Qwen/Qwen3.5-9B"))
    parts = predict(large, update=UpdateConfig(), world_size=48)
    outer = 4 * (2 * 248_320 * 4096 + 456_010_480 + 4096)
    assert parts["gathered gradients"] == outer
