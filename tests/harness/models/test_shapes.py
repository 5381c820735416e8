"""Parameters from config.json alone, against hand sums and against the models themselves."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3Config,
)

from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.models.shapes import FULL, LINEAR, ModelShape, _known_models, shape_of
from harness.models.tiny import SIZES, tiny_path


def num_weights(auto, config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in auto.from_config(config).parameters())


def test_the_parts_of_a_tiny_model_by_hand():
    """tiny:s: hidden 64, 2 layers of 2 heads of 32 with 1 of keys, MLP 192, 292 ids; tower of one block of width 32.

    A layer: queries and their gate 64*128, keys and values 2*64*32, output 64*64, MLP 3*64*192, norms 2*64 and 2*32:
    53,440. Tower: patches 3*2*8*8*32 + 32, positions 64*32, block 128 + 3,168 + 1,056 + 4,192, merger 64 + 16,512 +
    8,256: 47,744.
    """
    shape = shape_of(ModelConfig(name="s", path="tiny:s"))
    assert shape.parameters == {
        "vision": 47_744, "embeddings": 292 * 64, "head": 0, "linear attention layers": 0,
        "full attention layers": 2 * 53_440, "final norm": 64,
    }  # fmt: skip
    assert shape.num_parameters == 173_376


def test_a_linear_layer_by_hand():
    """Qwen3.5-0.8B: queries and keys 16*128 = 2048 each, values 2048, so a width of 6144. Projections 1024*6144, gate
    1024*2048, two of 16 heads, convolution 6144*4, output 2048*1024, two vectors of 16 heads, norm 128; MLP and norms
    3*1024*3584 + 2*1024."""
    shape = ModelShape.read(_known_models()["Qwen/Qwen3.5-0.8B"])
    mixer = 6_291_456 + 2_097_152 + 32_768 + 24_576 + 2_097_152 + 32 + 128
    assert shape.layer_parameters[LINEAR] == mixer + 11_010_048 + 2_048
    assert (shape.num_layers(LINEAR), shape.num_layers(FULL)) == (18, 6)


@pytest.mark.clause("C046", "C096", "C105")
def test_the_published_models_read_pictures_and_have_a_window_of_262144_tokens():
    known = {name: ModelShape.read(described) for name, described in _known_models().items()}
    assert known.keys() >= {f"Qwen/Qwen3.5-{size}" for size in ("0.8B", "2B", "4B", "9B", "27B-FP8")}
    assert {shape.context_window for shape in known.values()} == {262_144}
    assert all(shape.parameters["vision"] > 0 for shape in known.values())


@pytest.mark.parametrize("size", SIZES)
def test_every_tiny_model_is_counted_exactly(size):
    shape = shape_of(ModelConfig(name=size, path=f"tiny:{size}"))
    assert shape.num_parameters == num_weights(AutoModelForImageTextToText, AutoConfig.from_pretrained(tiny_path(size)))


@pytest.mark.parametrize("name", list(_known_models()))
def test_every_known_model_is_counted_exactly(name):
    described = _known_models()[name]
    config = Qwen3_5Config(**{key: value for key, value in described.items() if key != "quantization_config"})
    assert ModelShape.read(described).num_parameters == num_weights(AutoModelForImageTextToText, config)


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_other_families(kind):
    config = kind(
        hidden_size=64, intermediate_size=100, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=99,
    )  # fmt: skip
    assert ModelShape.read(config.to_dict()).num_parameters == num_weights(AutoModelForCausalLM, config)


def test_bytes_of_an_fp8_teacher():
    """Layers take a byte a weight, 24.35e9; embeddings, head, tower and norm, 3.0e9, take two."""
    shape = shape_of(ModelConfig(name="t", path="Qwen/Qwen3.5-27B-FP8"))
    rest = 2 * 1_271_398_400 + 460_730_096 + 5_120
    assert shape.weight_bytes == 2 * rest + 18_397_112_832 + 5_956_083_712
    assert shape_of(ModelConfig(name="t", path="Qwen/Qwen3.5-27B")).weight_bytes == 2 * shape.num_parameters


def test_the_cache_of_a_sequence():
    """0.8B: 6 layers * 2 tensors * 2 bytes * 2 heads * 256 a token, and 18 states of 16 * 128 * 128 fp32 and 4 * 6144
    16-bit."""
    shape = shape_of(ModelConfig(name="s", path="Qwen/Qwen3.5-0.8B"))
    assert shape.cache_bytes(1000) - shape.cache_bytes(0) == 1000 * 6 * 2 * 2 * 512
    assert shape.cache_bytes(0) == 18 * (4 * 16 * 128 * 128 + 2 * 4 * 6144)


def test_a_local_config_counts_before_what_is_known(tmp_path):
    described = json.loads((tiny_path("s") / "config.json").read_text())
    described["text_config"]["num_hidden_layers"] = 1
    described["text_config"]["layer_types"] = ["full_attention"]
    folder = tmp_path / "Qwen" / "Qwen3.5-0.8B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(described))
    shape = shape_of(ModelConfig(name="s", path=str(folder)))
    assert shape.num_parameters == 173_376 - 53_440
    assert shape.source == f"config.json of {folder}"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Qwen/Qwen3.5-3B", "are not known here: download its config.json"),
        ("Qwen/Qwen3.5-3B", "Did you mean 'Qwen/Qwen3.5-"),
    ],
)
def test_what_is_not_known_says_so(path, message):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        shape_of(ModelConfig(name="student", path=path))
    assert message in str(error.value)


def test_a_config_without_dimensions(tmp_path):
    Path(tmp_path / "config.json").write_text('{"n_embd": 768}')
    with pytest.raises(UserError, match="does not say hidden_size"):
        shape_of(ModelConfig(name="gpt2", path=str(tmp_path)))
