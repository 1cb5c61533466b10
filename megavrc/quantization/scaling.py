"""Changes of basis that make a layer easier to round: x W^T = (x T^-1) (W T)^T for any T, scales or a rotation."""

import torch
from torch import Tensor

from .layers import InputStatistics
from .rounding import round_weight


def smoothing_scale(weight_OI: Tensor, inputs: InputStatistics, strength: float = 0.5) -> Tensor:
    """[I]: SmoothQuant (2211.10438): max|x|^strength / max|w|^(1 - strength), by which inputs are divided."""
    largest = weight_OI.float().abs().amax(0).clamp(min=1e-5)
    return (inputs.largest_I.clamp(min=1e-5) ** strength / largest ** (1 - strength)).clamp(min=1e-5)


def round_scaled(
    weight_OI: Tensor, scale_I: Tensor, number_format: str, group_size: int | None = None
) -> Tensor:
    """The weight times the scale, rounded, and divided again: what a layer with divided inputs computes."""
    scaled = round_weight(weight_OI.float() * scale_I, number_format, group_size)
    return (scaled / scale_I).to(weight_OI.dtype)


def awq_scale(
    weight_OI: Tensor,
    inputs: InputStatistics,
    number_format: str,
    group_size: int | None = None,
    steps: int = 20,
) -> Tensor:
    """[I]: AWQ (2306.00978): mean|x|^a with the a of {0, 1/steps, ..} that leaves the least output error; a = 0 is RTN.

    Left out: the search for clipped ranges, and scales shared by layers of one input (a simulation needs no folding).
    """
    weight = weight_OI.float()
    best, least = torch.ones_like(inputs.mean), torch.inf
    for step in range(steps):
        scale = inputs.mean.clamp(min=1e-4) ** (step / steps)
        scale = scale / (scale.amax() * scale.amin()).sqrt()
        error = inputs.error(round_scaled(weight, scale, number_format, group_size) - weight)
        if error < least:
            best, least = scale, error
    return best


def hadamard(size: int) -> Tensor:
    """[size, size]: Sylvester's Hadamard matrix over sqrt(size): symmetric, and its own inverse.

    Raises:
        ValueError: `size` is not a power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"a Hadamard matrix of {size} is not built: {size} is no power of two")
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def rotate_hadamard(x: Tensor) -> Tensor:
    """[.., I] -> [.., I] float32: every block of the largest power of two that divides I, by the Hadamard matrix.

    Rotating twice gives `x` back; rotating inputs and weights leaves a layer's output unchanged (QuaRot, 2404.00456).
    An odd I has blocks of one: nothing happens.
    """
    width = x.shape[-1]
    matrix = hadamard(width & -width).to(x.device)
    return (x.float().unflatten(-1, (-1, len(matrix))) @ matrix).flatten(-2)
