"""The configuration of a run of the video tokenizer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from megavrc.model.omnitokenizer import OmniTokenizerConfig
from megavrc.tokenizers.inflation import Inflation
from megavrc.tokenizers.objective import ObjectiveConfig
from megavrc.training.config import BaseRunConfig, PreviewConfig
from megavrc.video.read import Crop


@dataclass
class ClipDataConfig:
    """Videos for the video tokenizer.

    Attributes:
        path: manifest.jsonl; a line with `start` and `end` is that part of its video.
        frames: frames decoded of every clip, from its first frame on.
        size: side of the square frames in pixels (before objective.scales).
        crop: `center` crop of the resized frame, or `squash` to a square.
        split: split of the manifest to train on.
        limit: number of clips to use, the first ones (0: all).
        frames_schedule: frames of a training window by the step from which on they hold, as in {0: 9, 1500:
            17}; windows start at a random frame. A list takes turns, a step each: {0: [17, 1]} trains on
            clips and on images, that is single frames. Empty: all frames always.
        cache: decode all videos once, before training, into a memory map in the run folder (frames x size^2 x 3 bytes a
            clip). Otherwise each is decoded whenever its turn comes; use train.workers then.
        images_per_clip: frames of each clip that a step of single frames takes, each an image of its own.
    """

    path: str
    frames: int = 17
    size: int = 64
    crop: Crop = "center"
    split: str = "train"
    limit: int = 0
    cache: bool = True
    frames_schedule: dict[int, int | list[int]] = field(default_factory=dict)
    images_per_clip: int = 1

    def turns(self, step: int) -> list[int]:
        """Frames of training windows at a step; they take turns."""
        schedule = self.frames_schedule or {0: self.frames}
        return _as_list(schedule[max(start for start in schedule if start <= step)])

    def all_turns(self) -> list[int]:
        """Frames of every training window of the run."""
        schedule = self.frames_schedule or {0: self.frames}
        return sorted({frames for turns in schedule.values() for frames in _as_list(turns)})

    def problems(self, temporal_patch: int) -> Iterator[str]:
        schedule = self.frames_schedule
        if schedule and (0 not in schedule or [] in schedule.values()):
            yield "data.frames_schedule: must say what happens from step 0 on"
        for frames in sorted({self.frames, *self.all_turns()}):
            if frames > self.frames or frames < 1 or (frames - 1) % temporal_patch:
                yield (
                    f"data.frames_schedule: {frames} frames; windows have 1 + {temporal_patch}k frames, "
                    f"at most data.frames = {self.frames}"
                )
        if self.limit < 0:
            yield f"data.limit: {self.limit} is negative; 0 takes all videos"
        if not 1 <= self.images_per_clip <= self.frames:
            yield f"data.images_per_clip: {self.images_per_clip} must be 1 to data.frames = {self.frames}"


@dataclass(kw_only=True)
class TokenizerRunConfig(BaseRunConfig):
    """Configuration of a video tokenizer run (`megavrc pretrain_tokenizer`).

    Attributes:
        model: the network.
        objective: its loss.
        init_from: finished run (or one of its checkpoints) whose network and codebook the training starts
            from. After a run on images alone, the weights that clips need in addition are made from those for
            images.
        init_inflation: way to make the weights for clips from those for images: `average` divides every
            repeated weight by temporal_patch, as the original does; `still` gives a clip without motion the
            result of its image.
    """

    model: OmniTokenizerConfig
    data: ClipDataConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    init_from: str = ""
    init_inflation: Inflation = "average"
    retired: ClassVar = {
        "train.attention": ("auto", "the video tokenizer has no segment attention"),
        "preview.first_temperature": (0.7, "previews of the video tokenizer are reconstructions"),
        "preview.later_temperature": (0.5, "previews of the video tokenizer are reconstructions"),
    }

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.objective.problems()
        yield from self.preview.problems()
        if self.train.precision != "fp32":
            yield "train.precision: the video tokenizer is trained in fp32"
        if self.train.zero == 3:
            yield "train.zero: the video tokenizer is too small for ZeRO stage 3; use 0, 1 or 2"
        if self.train.activation_checkpointing != "none" or self.train.compile:
            yield "train: activation_checkpointing and compile are for VRC, not for the video tokenizer"
        yield from self.data.problems(self.model.temporal_patch)
        for scale in sorted(scale for scale in {1.0, *self.objective.scales} if math.isfinite(scale)):
            side = self.data.size * scale
            try:
                self.model.grid(round(side), round(side))
            except ValueError as error:
                yield f"data.size: {error}" + (f" (objective.scales: {scale})" if scale != 1 else "")
        if self.init_from and self.objective.warmup_steps:
            yield "objective.warmup_steps: must be 0 with init_from, which brings a codebook"


def _as_list(frames: int | list[int]) -> list[int]:
    return frames if isinstance(frames, list) else [frames]
