"""Simulated rounding: tensors in, tensors of the same type and shape out, with the values that few bits can hold."""

from collections.abc import Collection
from typing import SupportsIndex

import torch
from torch import Tensor

LEVELS = {"int8": 127, "int4": 7, "int3": 3, "fp8": 448}
"""The largest magnitude of each format; fp8 is e4m3. Integers are symmetric, with no offset."""
STORED_BITS = {"int8": 8, "int4": 4, "int3": 3, "fp8": 8}
SCALE_BITS = 16


def grouped(x: Tensor, group_size: int | None) -> Tensor:
    """[.., I] -> [.., G, I / G], float32: what shares a scale is the last axis. None is one group.

    Raises:
        ValueError: `group_size` does not divide the last axis.
    """
    width = x.shape[-1]
    size = width if group_size is None else group_size
    if not isinstance(size, SupportsIndex) or size < 1 or width % size:
        raise ValueError(
            f"groups of {size!r:.60} do not divide {width} inputs: choose a divisor of {width}, or none"
        )
    return x.float().unflatten(-1, (width // size, size))


def scales(group: Tensor, number_format: str) -> Tensor:
    """[.., 1]: the scale of each row of `group` [.., n], so that its largest magnitude is the format's largest."""
    limit = torch.finfo(torch.float32)
    return (group.abs().amax(-1, keepdim=True) / LEVELS[number_format]).clamp(min=limit.tiny)


def check_known(what: str, name: object, known: Collection[str]) -> None:
    """ValueError unless a name, which may be of any type, is one of those known."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown {what} {name!r:.60}: choose from {', '.join(known)}")


def round_to(scaled: Tensor, number_format: str) -> Tensor:
    """The nearest value of the format, of numbers that are already divided by their scale."""
    level = LEVELS[number_format]
    scaled = scaled.clamp(-level, level)
    return scaled.to(torch.float8_e4m3fn).float() if number_format == "fp8" else scaled.round()


def round_weight(weight_OI: Tensor, number_format: str, group_size: int | None = None) -> Tensor:
    """Round to nearest, one scale for each output channel, or for each `group_size` inputs of it.

    Also rounds activations [.., I]: then with one scale a token.

    Raises:
        ValueError: the groups do not divide the inputs, or the format is unknown.
    """
    check_known("format", number_format, LEVELS)
    group = grouped(weight_OI, group_size)
    scale = scales(group, number_format)
    return (round_to(group / scale, number_format) * scale).flatten(-2).to(weight_OI.dtype)


def round_cache(k: Tensor, v: Tensor, bits: int, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Keys and values [.., tokens, head_dim] as a cache of `bits` (8 or 4) would give them back.

    Each token of each head has its own least value and step (of each `group_size` channels), as in FlexGen
    (2303.06865): so a token never changes when others are added.

    Raises:
        ValueError: other bits, or groups that do not divide head_dim.
    """
    if bits not in (8, 4):
        raise ValueError(f"a cache of {bits!r:.60} bits is not simulated: choose 8 or 4")
    return _between_extremes(k, bits, group_size), _between_extremes(v, bits, group_size)


def _between_extremes(x: Tensor, bits: int, group_size: int | None) -> Tensor:
    group = grouped(x, group_size)
    least, most = group.amin(-1, keepdim=True), group.amax(-1, keepdim=True)
    step = ((most - least) / (2**bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    return (((group - least) / step).round() * step + least).flatten(-2).to(x.dtype)
