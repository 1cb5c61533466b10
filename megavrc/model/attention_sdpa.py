"""Backends in plain torch, for every device: the reference, rectangles, and one call with a boolean mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .segment_mask import SegmentMask


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """The definition, in the dtype of its inputs (float64 included): the reference of the other backends."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask.dense(q.device), float("-inf"))
    return scores.softmax(-1) @ v


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """One fused call with the boolean mask: what the others are measured against."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask.is_full else mask.dense(q.device))


def rects_attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """The causal prefix and one unmasked rectangle per segment: no masked key is ever multiplied."""
    parts = []
    # The gradient of a split is one concatenation.
    split = q.split([block.stop - block.start for block in mask.blocks], dim=2)
    for block, rows in zip(mask.blocks, split, strict=True):
        keys, values = k[:, :, : block.keys], v[:, :, : block.keys]
        causal = block.kind == "causal"
        square = rows.shape[2] == block.keys
        bias = None
        if causal and not square:  # torch aligns is_causal to the top left
            bias = mask.dense(q.device)[block.start : block.stop, : block.keys]
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=bias, is_causal=causal and square)
        parts.append(out)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
