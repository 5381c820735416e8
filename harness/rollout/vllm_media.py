"""A prompt with media as vLLM's engine takes it: our ids, our pixels, and where they belong. P patches, D values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from harness.errors import UserError
from harness.models.vision import PackedMedia


def multimodal_input(ids: Sequence[int], media: PackedMedia, image_id: int, video_id: int) -> Any:
    """vLLM's `MultiModalInput` of a prompt whose ids have one placeholder a vision feature.

    vLLM's own processor is not asked: the engine reads the pixels that the trainer reads. A picture's place is its run
    of placeholders; a clip's goes from the mark before its first one to its last one, times between frames included.
    """
    from vllm.inputs.engine import mm_input
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

    if media.ids:
        raise UserError("vLLM is given pictures and clips of Qwen3-VL and Qwen3.5 alone: use rollout=transformers")
    given = media.inputs().arguments
    fields: dict[str, torch.Tensor] = {}
    configs: dict[str, Any] = {}
    places: dict[str, list[PlaceholderRange]] = {}
    if (grid := given.get("image_grid_thw")) is not None:
        fields |= {"pixel_values": given["pixel_values"], "image_grid_thw": grid}
        configs["pixel_values"] = MultiModalFieldConfig.flat_from_sizes("image", grid.prod(-1))
        configs["image_grid_thw"] = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        places["image"] = [PlaceholderRange(offset=start, length=n) for start, n in runs(ids, image_id)]
    if (grid := given.get("video_grid_thw")) is not None:
        fields |= {"pixel_values_videos": given["pixel_values_videos"], "video_grid_thw": grid}
        fields["timestamps"] = torch.tensor([media.frame_times])
        configs["pixel_values_videos"] = MultiModalFieldConfig.flat_from_sizes("video", grid.prod(-1))
        configs["video_grid_thw"] = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
        configs["timestamps"] = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
        found = runs(ids, video_id)
        first, (last, size) = found[0][0] - 1, found[-1]  # with the mark before the first frame, which vLLM looks for
        shown = torch.tensor([token_id == video_id for token_id in ids[first : last + size]])
        places["video"] = [PlaceholderRange(offset=first, length=len(shown), is_embed=shown)]
    return mm_input(
        prompt_token_ids=list(ids),
        mm_kwargs=MultiModalKwargsItems.from_hf_inputs(fields, configs),  # type: ignore[arg-type]
        mm_hashes={kind: [f"{media.digest}/{kind}/{i}" for i in range(len(at))] for kind, at in places.items()},
        mm_placeholders=places,
    )


def runs(ids: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """(start, length) of each run of one id.

    Example: `runs([5, 9, 9, 5, 9], 9) == [(1, 2), (4, 1)]`.
    """
    found, position = [], 0
    for token_id, group in groupby(ids):
        length = len(list(group))
        if token_id == wanted:
            found.append((position, length))
        position += length
    return found
