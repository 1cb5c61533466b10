"""Pixel measures between two clips."""

import math

import numpy as np
from numpy.typing import NDArray

MAX_PSNR = 100.0  # dB; what equal clips get, so that means stay finite


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape, at most 100 (for equal arrays)."""
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(
            f"psnr of {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}: uint8, equal shapes"
        )
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return MAX_PSNR if error == 0 else min(MAX_PSNR, 10 * math.log10(255**2 / error))


def mean_psnr(clips_a: NDArray[np.uint8], clips_b: NDArray[np.uint8]) -> float:
    """Mean over clips of the PSNR of each clip, [B, ..] against [B, ..]."""
    return float(np.mean([psnr(a, b) for a, b in zip(clips_a, clips_b, strict=True)]))
