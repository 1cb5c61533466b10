"""Clips for the metrics: moving shapes as arrays, faults that can be planted in them, and a tiny video network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megavrc.evaluation.clip_files import ArrayClips
from megavrc.evaluation.clip_source import PlannedClip
from megavrc.video.shapes import COMBINATIONS, caption, clip

Frames = NDArray[np.uint8]
SIZE, LENGTH = 32, 17


def shapes(count: int, first: int = 0, name: str = "shapes") -> ArrayClips:
    """Moving shapes, 17 frames of 32x32, each with its caption."""
    made = [clip(0, first + index, COMBINATIONS, size=SIZE) for index in range(count)]
    planned = [PlannedClip(f"{index:04d}", caption(what)) for index, (what, _) in enumerate(made)]
    return ArrayClips(name, planned, [frames for _, frames in made])


def changed(source: ArrayClips, fault: Callable[[Frames], Frames], name: str = "changed") -> ArrayClips:
    return ArrayClips(name, source.clips, [fault(frames) for frames in source.arrays])


def frozen(frames: Frames) -> Frames:
    return np.repeat(frames[:1], len(frames), axis=0)


def shuffled(frames: Frames) -> Frames:
    return frames[np.random.default_rng(len(frames)).permutation(len(frames))]


def looping(frames: Frames) -> Frames:
    return frames[np.arange(len(frames)) % 4]


def fading(frames: Frames) -> Frames:
    levels = np.linspace(1, 0.3, len(frames))[:, None, None, None]
    return (frames * levels).astype(np.uint8)


def noisy(frames: Frames) -> Frames:
    noise = np.random.default_rng(int(frames.sum()) % 2**32).normal(0, 25, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


class TinyNetwork(nn.Module):
    """The signature of the published I3D: a fixed random network that sees pictures and their changes."""

    def __init__(self, dims: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, dims, (3, 5, 5), stride=(1, 4, 4))

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True
    ) -> Tensor:
        y = x.float()
        if rescale:
            y = y / 127.5 - 1
        y = self.conv(y).relu()
        return y.mean(dim=(2, 3, 4)) * 20 + y.diff(dim=2).abs().mean(dim=(2, 3, 4)) * 400


def save_network(path: Path, dims: int = 24) -> Path:
    torch.jit.script(TinyNetwork(dims)).save(str(path))
    return path
