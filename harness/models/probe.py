"""How a model is read, settled when it is loaded: by what comes out, never by the name of its architecture.

A dozen ids, and a prompt with each kind of medium that the data have, go the harness's way and through the module's own
forward pass. What differs is not used: shared prompts, caches, our head, one call of the vision tower. A model whose
numbers are right on no way is refused. Shape suffixes: T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.config.schema import ModelConfig
from harness.errors import UserError, first_line
from harness.models.forward import LanguageModel
from harness.models.loading import load_model

if TYPE_CHECKING:
    from harness.models.chat import Chat
    from harness.models.vision import MediaInputs

logger = logging.getLogger(__name__)

BOUND = 1e-4
"""Largest difference of a log-probability in fp32, in nats."""
TIMES = 3.0
"""Largest mean difference from fp32 in 16 bit, in units of the model's own."""
NUM_IDS, NUM_SHORT, NUM_STEPS = 12, 9, 2
"""Ids of the longer sequence, of the shorter one, and how many of each are read after a cache."""
NUM_LAST = 8
"""Positions that are compared after media: the logits of a clip's would take gigabytes."""

Media = Mapping[str, "tuple[list[int], MediaInputs]"]
"""By kind of medium: the ids of a prompt that shows one, and its tensors."""


def open_model(
    config: ModelConfig,
    device: str | torch.device,
    chat: Chat,
    *,
    dtype: str | None = None,
    compute_dtype: torch.dtype | None = None,
) -> LanguageModel:
    """Load a model for the tokenizer and the media of `chat`, and settle how it is read.

    Raises UserError where it cannot be loaded or read.
    """
    model = LanguageModel.for_chat(load_model(config, device, dtype=dtype), chat, compute_dtype=compute_dtype)
    settle(model, chat.shown)
    return model


@torch.no_grad()
def settle(model: LanguageModel, media: Media | None = None) -> None:
    """Choose how `model` is read: `path`, `caches` and `joins_media` of `LanguageModel`.

    Raises UserError, with the architecture and the part, where the module's own forward pass fails.
    """
    was_training = model.module.training
    model.module.eval()
    try:
        _settle_text(model)
        for kind, (ids, item) in (media or {}).items():
            _settle_media(model, kind, ids, item)
    finally:
        model.module.train(was_training)
    _say(model, media or {})


def _say(model: LanguageModel, media: Media) -> None:
    name = type(model.module).__name__
    if model.path == "own":
        logger.warning(
            "%s: only its own forward pass gives its logits, so sequences are read one at a time and all logits of one "
            "are in memory at once",
            name,
        )
    elif not model.caches:
        logger.warning("%s: its decoder cannot be cached, so every sampled token reads all before it again", name)
    elif media and not model.joins_media:
        logger.info("%s: sequences with pictures or clips are read one at a time", name)


class _Check:
    """Compares log-probabilities with those of the module's own forward pass, for given sequences."""

    def __init__(
        self, model: LanguageModel, part: str, rows: list[tuple[torch.Tensor, MediaInputs | None]], *, last: int = 0
    ) -> None:
        """`last` positions of each sequence are compared, 0 means all."""
        self._model = model
        self._last = last
        self.own = [self._logprobs(part, ids, item) for ids, item in rows]
        self._exact = self.own
        self._bound = BOUND
        if model.compute_dtype != torch.float32:
            with in_fp32(model):
                self._exact = [self._logprobs(part, ids, item) for ids, item in rows]
            self._bound = TIMES * max(self._distance(a, b) for a, b in zip(self.own, self._exact, strict=True)) + BOUND

    def _logprobs(self, part: str, ids_1T: torch.Tensor, item: MediaInputs | None) -> torch.Tensor:
        path, self._model.path = self._model.path, "own"
        try:
            logits_TV = self._model.logits(self._model.alone(ids_1T, item, last=self._last)[0])
        except Exception as error:
            raise UserError(
                f"{type(self._model.module).__name__} cannot be used: its own forward pass fails on {part} "
                f"({type(error).__name__}: {first_line(error)}); choose another model"
            ) from error
        finally:
            self._model.path = path
        logprobs_TV = logits_TV.log_softmax(-1)
        if not logprobs_TV.isfinite().all():
            raise UserError(
                f"{type(self._model.module).__name__} cannot be used: its own forward pass gives numbers that are not "
                f"finite on {part}; take another copy, or dtype=float32"
            )
        return logprobs_TV

    def _distance(self, a_TV: torch.Tensor, b_TV: torch.Tensor) -> float:
        gaps_TV = (a_TV - b_TV).abs()
        return float(gaps_TV.max() if self._model.compute_dtype == torch.float32 else gaps_TV.mean())

    def holds(self, way: Callable[[], list[tuple[int, slice, torch.Tensor]]]) -> bool:
        """Whether a way gives the same: it returns (sequence, positions, hidden states) of what it has read."""
        try:
            read = [(row, places, self._model.logits(hidden_TH).log_softmax(-1)) for row, places, hidden_TH in way()]
            return all(self._distance(ours, self._exact[row][places]) <= self._bound for row, places, ours in read)
        except Exception as error:  # an architecture may take other arguments, or have no such part
            logger.debug("probe: %s: %s", type(error).__name__, error)
            return False


def _settle_text(model: LanguageModel) -> None:
    model.path, model.caches = "fast", True
    long, short = (_ids(model, count) for count in (NUM_IDS, NUM_SHORT))
    check = _Check(model, "text", [(long, None), (short, None)])
    ids_2T, mask_2T = _padded(long, short, left=False)

    def decoder() -> list[tuple[int, slice, torch.Tensor]]:
        hidden = model.hidden(ids_2T, mask_2T)
        return [(0, slice(None), hidden[0]), (1, slice(None), hidden[1, :NUM_SHORT])]

    def cached() -> list[tuple[int, slice, torch.Tensor]]:
        return _decode(model, long, short)

    def samples() -> bool:
        return check.holds(cached) or _samples_as_the_library(model, [long, short])

    def shared() -> list[tuple[int, slice, torch.Tensor]]:
        given = NUM_SHORT - NUM_STEPS
        prompts, mask_PT = _padded(long[:, : given + 1], short[:, :given], left=True)
        rest, rest_mask = _padded(long[:, given + 1 :], short[:, given:], left=False)
        rows = torch.arange(2, device=model.device)
        hidden = model.hidden_after_prompt(prompts, mask_PT, rows, rest, rest_mask)
        return [(0, slice(given + 1, None), hidden[0]), (1, slice(given, None), hidden[1, :NUM_STEPS])]

    if not check.holds(decoder):
        model.path, model.caches = "own", False
    elif not samples():
        model.path = "plain"
        model.caches = samples()
    elif model.can_share_prompts and not check.holds(shared):
        model.path = "plain"


def _samples_as_the_library(model: LanguageModel, sequences: list[torch.Tensor]) -> bool:
    """Whether cached decoding gives what the library's `generate` does, where that is not what one pass gives: states
    that are carried on are rounded otherwise."""
    from transformers import GenerationConfig

    count = NUM_STEPS + 1
    options = GenerationConfig(
        max_new_tokens=count, min_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True,
        pad_token_id=0, eos_token_id=model.num_tokens - 1,
    )  # fmt: skip
    try:
        with model.computing():
            made = [model.module.generate(ids[:, :-NUM_STEPS], options) for ids in sequences]  # type: ignore[operator]
        exact = [model.forbid(torch.cat(part.logits)[:, : model.num_tokens]).log_softmax(-1) for part in made]
        read = _decode(model, *(part.sequences[:, :-1] for part in made))
        ours = [model.logits(hidden).log_softmax(-1) for _, _, hidden in read]
        return all(_largest(a, b) <= BOUND for a, b in zip(ours, exact, strict=True))
    except Exception as error:
        logger.debug("probe: %s: %s", type(error).__name__, error)
        return False


def _largest(a_TV: torch.Tensor, b_TV: torch.Tensor) -> float:
    return float((a_TV - b_TV).abs().max())


def _settle_media(model: LanguageModel, kind: str, ids: list[int], item: MediaInputs) -> None:
    following = _ids(model, NUM_STEPS)
    whole = torch.cat([torch.tensor([ids], device=model.device), following], 1)
    check = _Check(model, f"a {kind}", [(whole, item)], last=NUM_LAST)
    mask = torch.ones_like(whole)

    def joined() -> list[tuple[int, slice, torch.Tensor]]:
        return [(0, slice(None), model.hidden(whole, mask, media=[item])[0, -NUM_LAST:])]

    def cached() -> list[tuple[int, slice, torch.Tensor]]:
        return _decode_media(model, whole, len(ids), item)

    if model.path == "own":
        return
    is_right = check.holds(joined)
    if not is_right and model.joins_media:
        model.joins_media = False
        is_right = check.holds(joined)
    if not is_right:
        model.path, model.caches = "own", False
    elif model.caches and not check.holds(cached):
        model.caches = False


def _decode(model: LanguageModel, long: torch.Tensor, short: torch.Tensor) -> list[tuple[int, slice, torch.Tensor]]:
    """The last ids of both sequences one after another, as an engine reads them."""
    ends = [sequence.shape[1] - NUM_STEPS for sequence in (long, short)]
    ids_2T, mask_2T = _padded(long[:, : ends[0]], short[:, : ends[1]], left=True)
    cache = model.new_cache()
    read = [model.hidden(ids_2T, mask_2T, cache=cache)[:, -1:]]
    cache.reorder_cache(torch.arange(2, device=model.device))  # type: ignore[arg-type]
    for step in range(NUM_STEPS):
        mask_2T = torch.cat([mask_2T, torch.ones_like(mask_2T[:, :1])], 1)
        following = torch.cat([long[:, ends[0] + step, None], short[:, ends[1] + step, None]])
        read.append(model.hidden(following, mask_2T, cache=cache))
    hidden = torch.cat(read, 1)
    return [(row, slice(end - 1, end + NUM_STEPS), hidden[row]) for row, end in enumerate(ends)]


def _decode_media(
    model: LanguageModel, whole: torch.Tensor, num_prompt: int, item: MediaInputs
) -> list[tuple[int, slice, torch.Tensor]]:
    mask, cache = torch.ones_like(whole), model.new_cache()
    prompt, prompt_mask = whole[:, :num_prompt], mask[:, :num_prompt]
    read = [model.hidden(prompt, prompt_mask, media=[item], cache=cache)[:, -1:]]
    offsets = model.position_offsets(prompt, prompt_mask, [item])
    for place in range(num_prompt, whole.shape[1]):
        ids = whole[:, place, None]
        read.append(model.hidden(ids, mask[:, : place + 1], cache=cache, offsets_B=offsets))
    return [(0, slice(NUM_LAST - NUM_STEPS - 1, None), torch.cat(read, 1)[0])]


def _ids(model: LanguageModel, count: int) -> torch.Tensor:
    """Ids [1, count] from all over the vocabulary that a reply may have."""
    allowed = sorted(set(range(model.num_tokens)) - set(model.banned_ids))
    chosen = [allowed[(i * 7919 + 13 * count) % len(allowed)] for i in range(count)]
    return torch.tensor([chosen], device=model.device)


def _padded(long: torch.Tensor, short: torch.Tensor, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sequences as a batch, and its mask."""
    missing = long.shape[1] - short.shape[1]
    pad = (missing, 0) if left else (0, missing)
    mask = nn.functional.pad(torch.ones_like(short), pad)
    return torch.cat([long, nn.functional.pad(short, pad)]), torch.cat([torch.ones_like(long), mask])


NARROW = (torch.bfloat16, torch.half)


@contextmanager
def in_fp32(model: LanguageModel) -> Iterator[None]:
    """The model computes in fp32: weights in 16 bit are cast a module at a time, while it is at work."""
    kept: dict[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def widen(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """A caller may have cast what it gives to the type that the weights have at rest."""
        narrow = [(p, p.data) for p in module.parameters(recurse=False) if p.data.dtype in NARROW]
        kept[module] = narrow
        for parameter, data in narrow:
            parameter.data = data.float()
        return tuple(x.float() if isinstance(x, torch.Tensor) and x.dtype in NARROW else x for x in arguments)

    def restore(module: nn.Module, _arguments: object, _output: object) -> None:
        for parameter, data in kept.pop(module, []):
            parameter.data = data

    compute_dtype, model.compute_in = model.compute_in, None
    own = [module for module in model.module.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_pre_hook(widen) for module in own]
    handles += [module.register_forward_hook(restore, always_call=True) for module in own]
    try:
        yield
    finally:
        model.compute_in = compute_dtype
        for handle in handles:
            handle.remove()
