"""From the pictures and the clip of a question to what a Qwen3.5 vision tower reads: pixels, grids, placeholder counts.

The model's own processor does the work. The pixels of one prompt are the same object for sampling, for scoring and for
the update. A cache of bounded size keeps them; they are made again when they have left it. P patches, D values of a
patch.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
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
    """Pixels and grids of one prompt; equality is identity, so that a group's prompt is encoded once.

    `image_PD` and `video_PD` are the patches of all its pictures and of its clip, fp32. `image_grid` and `video_grid`
    are int64 [n, 3] (time, height, width in patches). A field is None where the prompt has no such medium.
    """

    image_PD: torch.Tensor | None
    image_grid: torch.Tensor | None
    video_PD: torch.Tensor | None
    video_grid: torch.Tensor | None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for tensor in self.tensors():
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        object.__setattr__(self, "digest", digest.hexdigest()[:16])

    def tensors(self) -> list[torch.Tensor]:
        values = (self.image_PD, self.image_grid, self.video_PD, self.video_grid)
        return [value for value in values if value is not None]

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

    def inputs(self) -> MediaInputs:
        """The pixels, made anew if the cache has dropped them.

        Raises UserError where the files have changed since the rollout was sampled.
        """
        inputs = self.vision.inputs(self.question)
        if inputs.digest != self.digest:
            raise UserError(
                f"the images or the video of question {self.question.id} have changed since it was sampled: "
                "do not replace files that a run reads"
            )
        return inputs


class Vision:
    """The image and video processor of a model, and the cache of what it made. Used by several threads at once."""

    def __init__(self, config: ModelConfig, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Raises UserError where the model has no such processor: it reads text only."""
        processor = load_processor(config)
        self._images = processor.image_processor
        self._videos = processor.video_processor
        self.merge: int = self._images.merge_size
        self._cache: OrderedDict[Hashable, tuple[MediaInputs, tuple[float, ...]]] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def settings(self) -> dict[str, Any]:
        """What decides how a medium becomes patches, to compare two models."""
        names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        return {f"{kind}.{name}": getattr(processor, name) for kind, processor in self._both() for name in names}

    def pack(self, question: Question) -> PackedMedia:
        """Open and process the media of a question. Raises MediaError, which names what cannot be used."""
        inputs, times = self._get(question)
        image_tokens: tuple[int, ...] = ()
        if inputs.image_grid is not None:
            image_tokens = tuple(int(n) // self.merge**2 for n in inputs.image_grid.prod(-1))
        frame_tokens = 0
        if inputs.video_grid is not None:
            frame_tokens = int(inputs.video_grid[0, 1:].prod()) // self.merge**2
        return PackedMedia(question, inputs.digest, image_tokens, frame_tokens, times, self)

    def inputs(self, question: Question) -> MediaInputs:
        return self._get(question)[0]

    def _both(self) -> list[tuple[str, Any]]:
        return [("image", self._images), ("video", self._videos)]

    def _get(self, question: Question) -> tuple[MediaInputs, tuple[float, ...]]:
        video = None if question.video is None else question.video.name
        key = (tuple(image.name for image in question.images), video, question.limits)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        made = self._make(question)
        with self._lock:
            # Another thread may have been faster: its object stays, so that a prompt's pixels are one object.
            if key not in self._cache:
                self._cache[key] = made
                self._cached_bytes += made[0].num_bytes
            self._cache.move_to_end(key)
            while len(self._cache) > 1 and self._cached_bytes > self._cache_bytes:
                _, (left, _) = self._cache.popitem(last=False)
                self._cached_bytes -= left.num_bytes
            return self._cache[key]

    def _make(self, question: Question) -> tuple[MediaInputs, tuple[float, ...]]:
        image_PD = image_grid = video_PD = video_grid = None
        times: tuple[float, ...] = ()
        if question.images:
            opened = [image.open() for image in question.images]
            names = ", ".join(image.name for image in question.images)
            image_PD, image_grid = self._process_images(opened, question.limits, names)
        if question.video is not None:
            clip = question.video.open(question.limits)
            video_PD, video_grid = self._process_clip(clip, question.limits, question.video.name)
            times = self._pair_times(clip)
        return MediaInputs(image_PD, image_grid, video_PD, video_grid), times

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
