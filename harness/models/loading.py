"""From a `ModelConfig` to a tokenizer and a model, and back to a folder that `from_pretrained` loads."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from harness.config.schema import ModelConfig
from harness.errors import UserError, first_line
from harness.models.cpu import slowdown
from harness.models.devices import device_of
from harness.process.modes import follow_umask

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


SLOW = 4.0
SLOW_DTYPE = (
    "%s computes in %s, which takes %.0f times as long as float32 on this CPU: set student.dtype=float32 "
    "(teacher.dtype=float32)"
)
TEMPLATE_FILES = ("chat_template.json", "processor_config.json")


def resolve_path(config: ModelConfig) -> str:
    """The folder or hub id that `config.path` means: a folder, a hub id or `tiny:<size>`.

    Raises UserError for a folder that does not exist. A hub id is not looked up.
    """
    scheme, colon, rest = config.path.partition(":")
    if colon and scheme == "tiny":
        from harness.models.tiny import tiny_path

        return str(tiny_path(rest))
    if Path(config.path).expanduser().is_dir():
        return str(Path(config.path).expanduser())
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", config.path):
        return config.path
    raise UserError(f"no model folder {config.path}: give an existing folder, a hub id or tiny:<size>")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a chat template (its own, or the file `config.chat_template`).

    Raises UserError where there is no tokenizer or no chat template.
    """
    path = resolve_path(config)
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{path} has no tokenizer: save the model's tokenizer.json there")
    with _readable(config, path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **_source(config))
    if config.chat_template is not None:
        file = Path(config.chat_template).expanduser()
        if not file.is_file():
            raise UserError(f"no chat template file {config.chat_template}")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        tokenizer.chat_template = _template_of_processor(config)
    if not tokenizer.chat_template:
        raise UserError(
            f"{config.path} has no chat template: use its instruct model, or give a Jinja file with "
            "student.chat_template=FILE (teacher.chat_template=FILE)"
        )
    return tokenizer


def _template_of_processor(config: ModelConfig) -> Any:
    """The chat template in a file of the processor, where older versions of transformers wrote it; None without one."""
    for name in TEMPLATE_FILES:
        with _readable(config, config.path, name):
            if template := _entry(source_file(config, name), "chat_template"):
                return template
    return None


def load_processor(config: ModelConfig) -> Any:
    """The image and video processor of a vision-language model.

    Raises UserError for a model that has none: it reads text only.
    """
    path = resolve_path(config)
    processor: Any = None
    if any(source_file(config, name) is not None for name in PROCESSOR_FILES):
        with _readable(config, path, "processor"):
            processor = AutoProcessor.from_pretrained(path, **_source(config))
    if getattr(processor, "image_processor", None) is None:
        raise UserError(
            f"{config.path} reads text only, it has no image processor: "
            "choose a vision-language model or questions without images and video"
        )
    return processor


def load_model(config: ModelConfig, device: str | torch.device, *, dtype: str | None = None) -> PreTrainedModel:
    """The model on `device` in eval mode, in `config.dtype` or `dtype`.

    Vision-language checkpoints load in full, text-only ones as causal language models. No code from a checkpoint runs
    unless `config.trust_remote_code`, and weights are read from safetensors alone.
    Raises UserError where the folder has no config or no such weights, where weights are missing, left over, of another
    shape or no numbers, or the hub cannot be reached.
    """
    path = resolve_path(config)
    check_weights(config)
    auto = auto_model(config)

    def load(attention: str) -> tuple[PreTrainedModel, dict[str, Any]]:
        with _readable(config, path, "model"):
            return auto.from_pretrained(
                path,
                dtype=getattr(torch, dtype or config.dtype),
                attn_implementation=attention,
                device_map={"": torch.device(device_of(device))},  # threads copy the weights
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused here, with their names
                **_source(config),
            )

    with _quiet():
        try:
            model, found = load(config.attn_implementation)
        except UserError as error:
            if config.attn_implementation != "sdpa" or "scaled_dot_product_attention" not in str(error):
                raise
            logger.warning("%s: its architecture has no sdpa attention, so eager attention is used", config.path)
            model, found = load("eager")
    _refuse_incomplete(config, model, found)
    if model.device.type == "cpu" and (times := slowdown(getattr(torch, config.dtype))) > SLOW:
        logger.warning(SLOW_DTYPE, config.path, config.dtype, times)
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's table of keys would come before the one line that refuses them.

    A filter, since a level of its own would make the library verify plans of tensor parallelism, and say so.
    """
    report = logging.getLogger("transformers.modeling_utils")
    report.addFilter(_is_error)
    try:
        yield
    finally:
        report.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _refuse_incomplete(config: ModelConfig, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Raises UserError unless the weights are those of the model, all of them, and numbers.

    A weight that is missing or has another shape would start at random, and one that is left over belongs to another
    architecture than config.json describes.
    """
    shapes = {name: f"{tuple(theirs)} and not {tuple(ours)}" for name, theirs, ours in found["mismatched_keys"]}
    wrong: tuple[tuple[str, Collection[str]], ...] = (
        ("lacks", found["missing_keys"]),
        ("has another shape than its config.json says for", [f"{name} ({shapes[name]})" for name in sorted(shapes)]),
        ("has weights that its architecture does not know, among them", found["unexpected_keys"]),
        ("cannot be read", found["error_msgs"]),
        ("has weights that are no numbers (NaN or infinite) in", _not_finite(model)),
    )
    for problem, names in wrong:
        if names:
            first, more = sorted(map(str, names))[0], len(names) - 1
            others = f" and {more} more" if more else ""
            raise UserError(
                f"{config.path} {problem} {first}{others}: its weights and its config.json do not belong together, or "
                "a file is damaged; save the model anew, or take another copy"
            )


def _not_finite(model: PreTrainedModel) -> list[str]:
    """Names of weights with a value that is no number. Least and largest have it, and take no memory."""
    floats = (
        (name, weight.detach())
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and weight.element_size() > 1 and weight.numel() and not weight.is_meta
    )
    return [name for name, weight in floats if not torch.stack(weight.aminmax()).isfinite().all()]


def check_weights(config: ModelConfig) -> None:
    """Raises UserError unless all weights of the model are in safetensors: anything else is a pickle, which may
    run code when it is read. So may what a configuration or an index next to safetensors points to.
    """
    path = resolve_path(config)
    if source_file(config, "adapter_config.json") is not None:
        raise UserError(f"{path} has an adapter, not a complete model: merge (merge_and_unload of peft) and save it")
    single, index = (source_file(config, name) for name in WEIGHT_FILES)
    if single is None and index is None:
        if any(source_file(config, name) is not None for name in PICKLE_FILES):
            sees = _entry(source_file(config, "config.json"), "vision_config") is not None
            auto = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
            raise UserError(
                f"{path} has its weights as a pickle, which may run code when it is read: if you trust it, convert it "
                f'with python -c "from transformers import {auto} as M; '
                f"M.from_pretrained('{path}').save_pretrained('NEW_FOLDER')\", with its tokenizer files"
            )
        if (Path(path) / "config.json").is_file():
            raise UserError(f"{path} has no weights: put the model's {WEIGHT_FILES[0]} there")
        return  # no model at all, or the hub has no weights, which the library says
    with _readable(config, path, "index of the weights"):
        parts = {} if index is None or single is not None else _entry(index, "weight_map")
    with _readable(config, path, "configuration"):
        chosen = _entry(source_file(config, "config.json"), "transformers_weights")
    for name in {*(parts.values() if isinstance(parts, dict) else ()), *([chosen] if chosen else ())}:
        if not str(name).endswith((".safetensors", ".safetensors.index.json")):
            raise UserError(f"{path} has weights in {name}, which is no safetensors file: save the model anew")


def auto_model(config: ModelConfig, described: PretrainedConfig | None = None) -> Any:
    """The class of transformers that loads a model: of those that see, or a causal language model. `described` is what
    `read_config` gives, where it has been read.

    Raises UserError where there is none for its architecture, and for attention that is a stranger's code.
    """
    if "/" in config.attn_implementation and not config.trust_remote_code:
        raise UserError(
            f"attn_implementation={config.attn_implementation} is code of a hub repository: use sdpa, or allow it with "
            "student.trust_remote_code=true (teacher.trust_remote_code=true)"
        )
    described = described or read_config(config)
    sees = getattr(described, "vision_config", None) is not None
    auto, known = (
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
        if sees
        else (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)
    )
    if type(described) not in known and not (config.trust_remote_code and getattr(described, "auto_map", None)):
        raise UserError(
            f"{config.path} is a {described.model_type}, which transformers has no model of that writes text "
            f"({auto.__name__}): choose a causal language model"
        )
    return auto


def read_config(config: ModelConfig) -> PretrainedConfig:
    """What the model's config.json says. Raises UserError where it cannot be read."""
    path = resolve_path(config)
    with _readable(config, path, "configuration"):
        return AutoConfig.from_pretrained(path, **_source(config))


def text_config(config: ModelConfig) -> Any:
    """The configuration of the model's language part: vocabulary, context window, layers."""
    return read_config(config).get_text_config()


def num_parameters(config: ModelConfig) -> int:
    """Parameters of a model that is not loaded: its configuration is built without memory. 0 where none can be read."""
    try:
        auto = auto_model(config, described := read_config(config))
    except UserError:
        return 0  # an endpoint's model, of which nothing else is here
    with torch.device("meta"):
        model = auto.from_config(described, trust_remote_code=config.trust_remote_code)
    return sum(parameter.numel() for parameter in model.parameters())


def save_model(model: PreTrainedModel, source: ModelConfig, out_dir: str | Path) -> None:
    """Write `model` to `out_dir` with the tokenizer, chat template and image and video processor files of `source`.

    The folder loads with `from_pretrained` and needs nothing of `source`.
    """
    model.save_pretrained(out_dir)
    follow_umask(*Path(out_dir).glob("*.safetensors"))
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


def _entry(file: str | None, key: str) -> Any:
    """What a JSON object in a file has under a key, if anything."""
    content = json.loads(Path(file).read_text(encoding="utf-8")) if file is not None else None
    return content.get(key) if isinstance(content, dict) else None


def _named(piece: str | None) -> str:
    return "no token" if piece is None else repr(piece)


def _source(config: ModelConfig) -> dict[str, Any]:
    """The options of every `from_pretrained`; without one about remote code it would ask on the terminal."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        options["revision"] = config.revision
    return options


@contextmanager
def _readable(config: ModelConfig, path: str, what: str) -> Iterator[None]:
    """Turn a library's error about missing files into one line; keep its first line, which names the file."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        if not config.trust_remote_code and "trust_remote_code" in str(error):
            raise UserError(
                f"{path} has code of its own: read it, then allow it with student.trust_remote_code=true "
                "(teacher.trust_remote_code=true), or choose a model that transformers knows"
            ) from error
        if Path(path).is_dir():
            if not (Path(path) / "config.json").is_file():
                raise UserError(f"{path} has no config.json: it is not the folder of a model") from error
            raise UserError(f"cannot load the {what} of {path}: {first_line(error)}") from error
        raise UserError(
            f"cannot load the {what} of {path}: there is no such folder, and the hub does not give it "
            f"(offline, misspelt or private?): {first_line(error)}"
        ) from error
    except ImportError as error:
        raise UserError(f"the {what} of {path} needs a package that is not there: {first_line(error)}") from error
    except RuntimeError:  # too little memory: no matter of a file
        raise
    except Exception as error:  # libraries read JSON without looking: a file that is no such thing may raise anything
        raise UserError(f"cannot load the {what} of {path}: {type(error).__name__}: {first_line(error)}") from error
