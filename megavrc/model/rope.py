"""Rotary positions on three axes (time, row, column), interleaved pairs as in LlamaGen.

The pairs of a head are dealt 2 : 3 : 3 to the axes: 8/12/12 of the 32 pairs of a head of 64, 4/6/6 of a head of 32.
"""

import torch
from torch import Tensor


def rope_table(positions_S3: Tensor, rotated_S: Tensor, head_dim: int, base: float) -> Tensor:
    """Cosines and sines for every row of a layout.

    Args:
        positions_S3: float, (t, y, x) of each row; y and x in grid cells, so a compressed cell may sit between two.
        rotated_S: bool; rows that are False (the condition) get the identity rotation.
        head_dim: size of one head, a multiple of 16.
        base: base of the frequencies, base ** (-i / pairs of the axis).

    Returns:
        float32 [2, S, head_dim / 2].
    """
    time_pairs, space_pairs = head_dim // 8, 3 * head_dim // 16
    angles = []
    for axis, pairs in enumerate((time_pairs, space_pairs, space_pairs)):
        frequency = base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angles.append(positions_S3[:, axis, None].double().cpu() * frequency)
    angle_SP = torch.cat(angles, dim=1) * rotated_S[:, None].cpu()
    return torch.stack([angle_SP.cos(), angle_SP.sin()]).float().to(positions_S3.device)


def rotate(x_BHSD: Tensor, table_2SP: Tensor) -> Tensor:
    """Turn each pair (2i, 2i+1) of every head by its row's angle, in at least float32; returns x's dtype."""
    wide = x_BHSD if x_BHSD.dtype == torch.float64 else x_BHSD.float()
    pairs, (cos, sin) = wide.unflatten(-1, (-1, 2)), table_2SP.to(wide.dtype).unbind(0)
    if torch.compiler.is_compiling():  # which has no kernels for complex numbers
        even, odd = pairs.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:  # the same sums in one pass over memory: a tenth of a small training step
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x_BHSD.dtype)


def qkv_table(table_2SP: Tensor, dtype: torch.dtype) -> Tensor:
    """The table for fused projections: complex [S, 3, 1, P], which turns queries and keys and leaves values alone."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    turn_SP = torch.complex(*table_2SP.to(wide).unbind(0))
    return torch.stack([turn_SP, turn_SP, torch.ones_like(turn_SP)], dim=1).unsqueeze(2)


def rotate_qkv(qkv_BS3HD: Tensor, table_S31P: Tensor) -> Tensor:
    """`rotate` for queries and keys of fused projections, in one multiplication: generation has few rows a step."""
    wide = qkv_BS3HD if qkv_BS3HD.dtype == torch.float64 else qkv_BS3HD.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table_S31P).flatten(-2).to(qkv_BS3HD.dtype)
