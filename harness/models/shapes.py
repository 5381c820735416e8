"""The dimensions of a model, and its parameters by part, from its config.json: no weights and no torch.

A local folder or a file of the hub's cache counts; else what `known_models.json` has of a hub id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from harness.config.schema import ModelConfig
from harness.errors import UserError, did_you_mean

LINEAR, FULL = "linear_attention", "full_attention"
KNOWN = "known_models.json"


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    depth: int
    hidden: int
    intermediate: int
    out_hidden: int
    num_positions: int
    patch: int
    temporal: int = 2
    merge: int = 2
    channels: int = 3

    @property
    def num_parameters(self) -> int:
        """Patch and position embeddings, blocks of attention and MLP with biases, and the merger (Qwen3.5's tower)."""
        h, i, wide = self.hidden, self.intermediate, self.hidden * self.merge**2
        embeddings = self.channels * self.temporal * self.patch**2 * h + h + self.num_positions * h
        block = 4 * h + (3 * h * h + 3 * h) + (h * h + h) + (2 * h * i + i + h)
        merger = 2 * h + wide * wide + wide + wide * self.out_hidden + self.out_hidden
        return embeddings + self.depth * block + merger


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """Gated DeltaNet layers."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int = 4

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def repeated_keys(self) -> int:
        """Width of queries, and of keys, when each value head has its own."""
        return self.value_heads * self.key_dim


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    vocab: int
    hidden: int
    intermediate: int
    layer_types: tuple[str, ...]
    heads: int
    kv_heads: int
    head_dim: int
    context_window: int
    tied: bool
    gated: bool = False
    """The query projection also gives a gate of the output (Qwen3.5)."""
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    fp8: bool = False
    """The decoder's matrices take a byte a weight."""
    linear: LinearShape | None = None
    vision: VisionShape | None = None
    source: str = ""
    """Where the dimensions come from."""

    @classmethod
    def read(cls, config: Mapping[str, Any], source: str = "") -> ModelShape:
        """The shape in the content of a config.json. Raises UserError where a dimension is missing."""
        text: Mapping[str, Any] = config.get("text_config") or config
        kind = str(text.get("model_type", ""))
        try:
            hidden, heads, num_layers = text["hidden_size"], text["num_attention_heads"], text["num_hidden_layers"]
            interval = text.get("full_attention_interval", 4)
            is_hybrid = kind.startswith("qwen3_5")
            default_types = [LINEAR if is_hybrid and (i + 1) % interval else FULL for i in range(num_layers)]
            layer_types = tuple(text.get("layer_types") or default_types)
            intermediate = text.get("intermediate_size") or 4 * hidden
            if (LINEAR in layer_types and not is_hybrid) or not isinstance(intermediate, int):
                raise UserError(f"{source or 'a config.json'} has layers of a {kind}: its shape is not known")
            return cls(
                vocab=text["vocab_size"],
                hidden=hidden,
                intermediate=intermediate,
                layer_types=layer_types,
                heads=heads,
                kv_heads=text.get("num_key_value_heads") or heads,
                head_dim=text.get("head_dim") or hidden // heads,
                context_window=text.get("max_position_embeddings", 0),
                tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
                gated=is_hybrid,
                qk_norm=is_hybrid or kind.startswith("qwen3"),
                qkv_bias=bool(text.get("attention_bias", kind == "qwen2")),
                output_bias=bool(text.get("attention_bias", False)),
                fp8=(config.get("quantization_config") or {}).get("quant_method") == "fp8",
                linear=_linear(text) if is_hybrid else None,
                vision=_vision(config.get("vision_config")),
                source=source,
            )
        except KeyError as error:
            raise UserError(
                f"{source or 'a config.json'} does not say {error.args[0]}: its shape is not known"
            ) from error

    @property
    def layer_parameters(self) -> dict[str, int]:
        """Parameters of one layer of each kind, norms and MLP included."""
        h, width, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        shared = 3 * h * self.intermediate + 2 * h
        full = h * width * (2 if self.gated else 1) + 2 * h * kv + width * h + shared
        full += 2 * self.head_dim * self.qk_norm + (width + 2 * kv) * self.qkv_bias + h * self.output_bias
        layers = {FULL: full}
        if (linear := self.linear) is not None:
            wide = 2 * linear.keys + linear.values
            mixer = h * (wide + linear.values + 2 * linear.value_heads) + wide * linear.conv + linear.values * h
            layers[LINEAR] = mixer + 2 * linear.value_heads + linear.value_dim + shared
        return layers

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters by part. A tied head counts as embeddings."""
        of_layer = self.layer_parameters
        return {
            "vision": 0 if self.vision is None else self.vision.num_parameters,
            "embeddings": self.vocab * self.hidden,
            "head": 0 if self.tied else self.vocab * self.hidden,
            "linear attention layers": self.num_layers(LINEAR) * of_layer.get(LINEAR, 0),
            "full attention layers": self.num_layers(FULL) * of_layer[FULL],
            "final norm": self.hidden,
        }

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def num_head(self) -> int:
        """Weights of the head, tied or not."""
        return self.vocab * self.hidden

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights in an engine: 2 a weight, 1 for the layers of an FP8 checkpoint."""
        layers = sum(count for part, count in self.parameters.items() if part.endswith("layers"))
        return 2.0 * self.num_parameters - (layers if self.fp8 else 0)

    @property
    def can_share_prompts(self) -> bool:
        return LINEAR not in self.layer_types

    def num_layers(self, kind: str) -> int:
        return (
            sum(layer == LINEAR for layer in self.layer_types)
            if kind == LINEAR
            else sum(layer != LINEAR for layer in self.layer_types)
        )

    def cache_bytes(self, num_tokens: float) -> float:
        """Bytes of one decoded sequence: 16-bit keys and values of full attention, fp32 states of linear attention."""
        growing = self.num_layers(FULL) * 2 * 2 * self.kv_heads * self.head_dim * num_tokens
        if (linear := self.linear) is None:
            return growing
        state = 4 * linear.repeated_keys * linear.value_dim + 2 * linear.conv * (2 * linear.keys + linear.values)
        return growing + self.num_layers(LINEAR) * state


def shape_of(model: ModelConfig) -> ModelShape:
    """The shape of a configured model. Raises UserError for one whose config.json is not here, nor known."""
    return ModelShape.read(*_config_and_source(model))


def config_of(model: ModelConfig) -> dict[str, Any]:
    """The content of its config.json. Raises UserError as `shape_of`."""
    return _config_and_source(model)[0]


def _config_and_source(model: ModelConfig) -> tuple[dict[str, Any], str]:
    folder = _folder(model)
    if folder is not None:
        file = folder / "config.json"
        if not file.is_file():
            raise UserError(
                f"zppo plan reads dimensions from config.json, and {model.path} has none: set {model.name}'s path to a "
                "folder of safetensors"
            )
        return json.loads(file.read_text(encoding="utf-8")), f"config.json of {model.path}"
    if (cached := cached_file(model, "config.json")) is not None:
        return json.loads(cached.read_text(encoding="utf-8")), f"{model.path} in the hub's cache"
    known = _known_models()
    if model.path not in known:
        near = did_you_mean(model.path, known)
        raise UserError(
            f"the dimensions of {model.path} are not known here: download its config.json (`hf download {model.path} "
            f"config.json`) or give a folder.{near}"
        )
    return known[model.path], KNOWN


def cached_file(model: ModelConfig, name: str) -> Path | None:
    """A file of a local folder or of the hub's cache; None where it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    folder = _folder(model)
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    found = try_to_load_from_cache(model.path, name, revision=model.revision)
    return Path(found) if isinstance(found, str) else None


def _folder(model: ModelConfig) -> Path | None:
    """Where a model's files are; None for a hub id."""
    scheme, _, rest = model.path.partition(":")
    if scheme == "tiny":
        from harness.models.tiny import tiny_path

        return tiny_path(rest)
    folder = Path(model.path).expanduser()
    return folder if folder.is_dir() else None


def _known_models() -> dict[str, dict[str, Any]]:
    content = json.loads(files("harness.models").joinpath(KNOWN).read_text(encoding="utf-8"))
    common: dict[str, Any] = content["common"]
    return {
        name: common | own | {part: common[part] | own[part] for part in ("text_config", "vision_config")}
        for name, own in content["models"].items()
    }


def _linear(text: Mapping[str, Any]) -> LinearShape:
    return LinearShape(
        key_heads=text["linear_num_key_heads"],
        value_heads=text["linear_num_value_heads"],
        key_dim=text["linear_key_head_dim"],
        value_dim=text["linear_value_head_dim"],
        conv=text.get("linear_conv_kernel_dim", 4),
    )


def _vision(config: Mapping[str, Any] | None) -> VisionShape | None:
    if not config:
        return None
    return VisionShape(
        depth=config["depth"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        out_hidden=config["out_hidden_size"],
        num_positions=config["num_position_embeddings"],
        patch=config["patch_size"],
        temporal=config.get("temporal_patch_size", 2),
        merge=config.get("spatial_merge_size", 2),
        channels=config.get("in_channels", 3),
    )
