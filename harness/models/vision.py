"""From the pictures and the clip of a question to what a model reads: ids, and tensors by the names it takes them.

The model's own processor does the work, in one call for the rendered prompt. A clip of Qwen3-VL's and Qwen3.5's is
written here, since transformers 5.23 leaves marks around it that these models were trained without. The tensors of one
prompt are the same object for sampling, for scoring and for the update. A cache of bounded size keeps them; they are
made again when they have left it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from transformers.video_utils import VideoMetadata

from harness.config.schema import ModelConfig
from harness.data.images import MediaError
from harness.errors import UserError
from harness.models.loading import load_processor
from harness.types import Clip, MediaLimits, Question

CACHE_BYTES = 1 << 30
"""Pixels that are kept: those of some 60 pictures of 1280*32*32 pixels."""


@dataclass(frozen=True, eq=False)
class MediaInputs:
    """What a model's forward pass takes for the media of one prompt; equality is identity, so that a group's prompt is
    encoded once.

    `arguments` are tensors by name, in the processor's order, floats in fp32. Those of `token_arguments` have a value
    for each token of the prompt, int64 [1, T].
    """

    arguments: dict[str, torch.Tensor]
    token_arguments: dict[str, torch.Tensor] = field(default_factory=dict)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for tensor in self.tensors():
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        object.__setattr__(self, "digest", digest.hexdigest()[:16])

    def tensors(self) -> list[torch.Tensor]:
        return [*self.arguments.values(), *self.token_arguments.values()]

    def for_sequence(self, num_tokens: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The arguments of a sequence that goes on after the prompt: what follows is text, kind 0."""
        whole = {name: value.to(device) for name, value in self.arguments.items()}
        whole = {name: value.to(dtype) if value.is_floating_point() else value for name, value in whole.items()}
        tokens = {
            name: F.pad(value[:, :num_tokens], (0, max(0, num_tokens - value.shape[1]))).to(device)
            for name, value in self.token_arguments.items()
        }
        return whole | tokens

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


@dataclass(frozen=True, eq=False)
class PackedMedia:
    """The media of a prompt (`harness.types.PromptMedia`): how many tokens they take, and where the pixels are."""

    question: Question
    digest: str
    image_tokens: tuple[int, ...]
    """Placeholders of each picture."""
    frame_tokens: int
    """Placeholders of each frame pair of the clip."""
    frame_times: tuple[float, ...]
    """When each frame pair is shown, in seconds."""
    vision: Vision = field(repr=False)
    text: str = ""
    """The rendered prompt, where the processor makes ids and tensors of it together."""
    ids: tuple[int, ...] = ()
    """The processor's ids of the prompt; none where it has the placeholders above."""

    def inputs(self) -> MediaInputs:
        """The pixels, made anew if the cache has dropped them.

        Raises UserError where the files have changed since the rollout was sampled.
        """
        inputs = self.vision.inputs(self.question, self.text)
        if inputs.digest != self.digest:
            raise UserError(
                f"the images or the video of question {self.question.id} have changed since it was sampled: "
                "do not replace files that a run reads"
            )
        return inputs


@dataclass(frozen=True)
class _Made:
    """What is kept of a prompt's media."""

    inputs: MediaInputs
    times: tuple[float, ...]
    ids: tuple[int, ...] = ()


class Vision:
    """The image and video processor of a model, and the cache of what it made. Used by several threads at once."""

    def __init__(self, config: ModelConfig, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Raises UserError where the model has no such processor: it reads text only."""
        from transformers import Qwen3VLProcessor

        self._config = config
        self._processor = load_processor(config)
        self._images = self._processor.image_processor
        self._videos: Any = getattr(self._processor, "video_processor", None)
        self.writes_times = isinstance(self._processor, Qwen3VLProcessor)
        """Clips are written as Qwen3-VL's were in training: a time before the marks of each pair of frames."""
        self._cache: OrderedDict[Hashable, _Made] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def settings(self) -> dict[str, Any]:
        """What decides how a medium becomes patches, to compare two models."""
        names = ["patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std"]
        names += [] if self.writes_times else ["size", "crop_size"]
        return {f"{kind}.{name}": getattr(part, name, None) for kind, part in self._both() for name in names}

    def pack(self, question: Question, text: str = "") -> PackedMedia:
        """Open and process the media of a question, whose rendered prompt is `text`.

        Raises MediaError, which names what cannot be used, and UserError for a kind that the model does not read.
        """
        text = "" if self.writes_times else text
        made = self._get(question, text)
        if text:
            return PackedMedia(question, made.inputs.digest, (), 0, (), self, text, made.ids)
        image_tokens: tuple[int, ...] = ()
        if (grid := made.inputs.arguments.get("image_grid_thw")) is not None:
            image_tokens = tuple(int(n) // self._images.merge_size**2 for n in grid.prod(-1))
        frame_tokens = 0
        if (grid := made.inputs.arguments.get("video_grid_thw")) is not None:
            frame_tokens = int(grid[0, 1:].prod()) // self._images.merge_size**2
        return PackedMedia(question, made.inputs.digest, image_tokens, frame_tokens, made.times, self)

    def inputs(self, question: Question, text: str = "") -> MediaInputs:
        return self._get(question, text).inputs

    def _both(self) -> list[tuple[str, Any]]:
        return [("image", self._images), *([("video", self._videos)] if self._videos is not None else [])]

    def _get(self, question: Question, text: str) -> _Made:
        video = None if question.video is None else question.video.name
        key = (tuple(image.name for image in question.images), video, question.limits, text)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        made = self._make_together(question, text) if text else self._make(question)
        with self._lock:
            # Another thread may have been faster: its object stays, so that a prompt's pixels are one object.
            if key not in self._cache:
                self._cache[key] = made
                self._cached_bytes += made.inputs.num_bytes
            self._cache.move_to_end(key)
            while len(self._cache) > 1 and self._cached_bytes > self._cache_bytes:
                _, left = self._cache.popitem(last=False)
                self._cached_bytes -= left.inputs.num_bytes
            return self._cache[key]

    def _make(self, question: Question) -> _Made:
        arguments: dict[str, torch.Tensor] = {}
        times: tuple[float, ...] = ()
        if question.images:
            opened = [image.open() for image in question.images]
            names = ", ".join(image.name for image in question.images)
            arguments["pixel_values"], arguments["image_grid_thw"] = self._process_images(
                opened, question.limits, names
            )
        if question.video is not None:
            clip = question.video.open(question.limits)
            arguments["pixel_values_videos"], arguments["video_grid_thw"] = self._process_clip(
                clip, question.limits, question.video.name
            )
            times = self._pair_times(clip)
        return _Made(MediaInputs(arguments), times)

    def _make_together(self, question: Question, text: str) -> _Made:
        """By the processor's own call for text and media."""
        options: dict[str, Any] = {}
        names = [image.name for image in question.images]
        if question.images:
            options["images"] = [image.open() for image in question.images]
            options["images_kwargs"] = self._sizes(self._images, question.limits, 1)
        if question.video is not None:
            if self._videos is None:
                raise UserError(f"{self._config.path} reads pictures and no clips: choose questions without video")
            clip = question.video.open(question.limits)
            names.append(question.video.name)
            options["videos"] = [torch.from_numpy(clip.frames_FHWC).permute(0, 3, 1, 2)]
            sizes = self._sizes(self._videos, question.limits, len(clip.frames_FHWC))
            options["videos_kwargs"] = {"video_metadata": [_metadata(clip)], "do_sample_frames": False, **sizes}
        try:
            made = self._processor(text=[text], add_special_tokens=False, return_tensors="pt", **options)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError) as error:
            raise MediaError(f"{', '.join(names)}: {self._config.path}'s processor fails ({error})") from error
        ids = made.pop("input_ids")
        tensors = {name: _tensor(value) for name, value in made.items() if name != "attention_mask"}
        arguments = {name: value for name, value in tensors.items() if value is not None}
        of_tokens = {name: arguments.pop(name) for name, value in list(arguments.items()) if value.shape == ids.shape}
        return _Made(MediaInputs(arguments, of_tokens), (), tuple(ids[0].tolist()))

    def _sizes(self, processor: Any, limits: MediaLimits, num_frames: int) -> dict[str, Any]:
        """The limits in pixels, for processors that have such ones; others have a size of their own."""
        by_pixels = hasattr(processor, "merge_size") and hasattr(processor, "temporal_patch_size")
        return {"size": _size(processor.size, limits, num_frames)} if by_pixels else {}

    def _process_images(
        self, images: Sequence[Any], limits: MediaLimits, names: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = _size(self._images.size, limits, 1)
        try:
            made = self._images(images=list(images), size=size, return_tensors="pt")
        except ValueError as error:
            raise MediaError(f"image {names} cannot be processed ({error})") from error
        return made["pixel_values"].float(), made["image_grid_thw"]

    def _process_clip(self, clip: Clip, limits: MediaLimits, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The frames were chosen when the clip was decoded; the limits are those of a frame, the processor's of all."""
        frames_FCHW = torch.from_numpy(clip.frames_FHWC).permute(0, 3, 1, 2)
        num_frames = len(frames_FCHW)
        if num_frames % self._videos.temporal_patch_size:
            frames_FCHW = torch.cat([frames_FCHW, frames_FCHW[-1:]])
        metadata = VideoMetadata(total_num_frames=num_frames, fps=1.0, frames_indices=list(range(num_frames)))
        size = _size(self._videos.size, limits, len(frames_FCHW))
        try:
            made = self._videos(
                videos=[frames_FCHW],
                video_metadata=[metadata],
                do_sample_frames=False,
                cap_pixels_per_frame=False,
                size=size,
                return_tensors="pt",
            )
        except ValueError as error:
            raise MediaError(f"video {name} cannot be processed ({error})") from error
        return made["pixel_values_videos"].float(), made["video_grid_thw"]

    def _pair_times(self, clip: Clip) -> tuple[float, ...]:
        """The mean of the times of a temporal patch's first and last frame; a last odd frame is shown twice."""
        size = self._videos.temporal_patch_size
        times = [*clip.times_F, *clip.times_F[-1:] * (-len(clip.times_F) % size)]
        return tuple((times[i] + times[i + size - 1]) / 2 for i in range(0, len(times), size))


def _size(default: Any, limits: MediaLimits, num_frames: int) -> dict[str, int]:
    smallest = default["shortest_edge"] if limits.min_pixels is None else limits.min_pixels * num_frames
    largest = default["longest_edge"] if limits.max_pixels is None else limits.max_pixels * num_frames
    return {"shortest_edge": smallest, "longest_edge": largest}


def _metadata(clip: Clip) -> VideoMetadata:
    """Frames that were chosen already, at the rate at which they are shown."""
    num_frames, last = len(clip.times_F), clip.times_F[-1]
    rate = (num_frames - 1) / last if last else 1.0
    return VideoMetadata(
        total_num_frames=num_frames, fps=rate, frames_indices=list(range(num_frames)), duration=num_frames / rate
    )


def _tensor(value: Any) -> torch.Tensor | None:
    """A tensor on the CPU, floats in fp32; None for what no forward pass takes."""
    if isinstance(value, list):
        try:
            value = torch.tensor(value)
        except (ValueError, TypeError, RuntimeError):
            return None
    if not isinstance(value, torch.Tensor):
        return None
    return value.float() if value.is_floating_point() else value
