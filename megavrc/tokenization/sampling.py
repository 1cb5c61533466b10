"""The clips and stage-1 frames that a video gives: a pure function of the settings, the video's id and its frames.

Imports neither torch nor a tokenizer: the decoding processes start with it.
"""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from megavrc.errors import UserError
from megavrc.video.read import Crop


@dataclass(frozen=True)
class ClipSettings:
    """The settings that decide the samples.

    Args:
        frames: frames of a clip.
        stride: step between two frames of a clip, in frames of the video (with `fps`: of the resampled one).
        fps: frames a second to resample the video to, by the times at which its frames are shown (a slower
            video repeats frames). Default: the video's own frames, in decoded order.
        size: side of the square frames, in pixels. Default: that which the tokenizer was trained on, 256 where it does
            not say.
        crop: resize the short side and cut the centre, or squash the frame into a square.
        short: treatment of a video with too few frames: `skip` it and record it, or `clamp`: repeat its last
            frame.
        clips_per_video: clips cut from a video, each at a random place in its own equal part of the video.
        images_per_video: frames for stage 1 drawn from a video, without replacement; all of them if it has
            fewer.
        image_source: encode a stage-1 frame as an image, or take the first latent frame of the clip that starts there.
        splits: splits of the manifest to tokenize.
        clips_per_shard: samples of a full video shard.
        clip_batch: clips in an encoder batch.
        image_batch: images in an encoder batch.
        precision: arithmetic of the encoder; bf16 changes some ids (docs/model.md), distances to the codebook stay
            float32.
        seed: seed of the order of the videos in the shards, of clip starts and of image frames.
    """

    frames: int = 17
    stride: int = 1
    fps: float | None = None
    size: int | None = None
    crop: Crop = "center"
    short: Literal["skip", "clamp"] = "skip"
    clips_per_video: int = 1
    images_per_video: int = 10
    image_source: Literal["image", "clip"] = "image"
    splits: list[str] = field(default_factory=lambda: ["train"])
    clips_per_shard: int = 2048
    clip_batch: int = 8
    image_batch: int = 32
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (
            self.frames,
            self.stride,
            1 if self.size is None else self.size,
            self.clips_per_video,
            self.clip_batch,
            self.image_batch,
        )
        if min(counts) < 1 or self.images_per_video < 0 or not self.splits:
            raise UserError(
                "frames, stride, size, clips and batches must be positive, and at least one split is needed"
            )
        if twice := [split for split in self.splits if self.splits.count(split) > 1]:
            raise UserError(
                f"splits: {twice[0]} stands there twice; each of its videos would be a sample twice"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"fps {self.fps}: must be positive")
        if self.clips_per_shard < self.clips_per_video:
            raise UserError(
                f"clips_per_shard {self.clips_per_shard} < clips_per_video {self.clips_per_video}"
            )
        if not 0 <= self.seed < 2**64:
            raise UserError(f"seed {self.seed} is not in [0, 2**64)")

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last frame of a clip."""
        return (self.frames - 1) * self.stride + 1


def source_key(source_id: str) -> str:
    """The part of a sample's key that stands for its video: no dots (they end a WebDataset key), of fixed length."""
    return hashlib.sha256(source_id.encode()).hexdigest()[:16]


def choose(settings: ClipSettings, source_id: str, count: int) -> tuple[list[int], list[int]]:
    """The places to cut a video of `count` frames: first frames of its clips, and its stage-1 frames, both ascending.

    A function of (seed, source id, count) only. No clips if the video is too short and is to be skipped.
    """
    last = count - settings.span  # the last possible start of a whole clip
    if last < 0 and settings.short == "skip":
        return [], []
    starts = max(last, 0) + 1
    parts = settings.clips_per_video
    draws = _draw(settings.seed, source_id, "clips", parts).tolist()  # integers of 64 bits
    clips = sorted({(part * 2**64 + draw) * starts // (parts * 2**64) for part, draw in enumerate(draws)})
    frames = starts if settings.image_source == "clip" and settings.short == "skip" else count
    ranks = np.argsort(_draw(settings.seed, source_id, "images", frames), kind="stable")
    return clips, sorted(ranks[: settings.images_per_video].tolist())


def _draw(seed: int, source_id: str, what: str, count: int) -> np.ndarray:
    key = hashlib.sha256(f"{seed}/{what}/{source_id}".encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key)).random_raw(count)
