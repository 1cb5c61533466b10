"""The `flash` backend: the kernels of the flash-attn packages, once per causal or unmasked rectangle.

Their causal mask is aligned to the bottom right, so each block of a segment mask is exactly one call.
"""

import torch
from torch import Tensor

from .segment_mask import SegmentMask

try:
    from flash_attn_interface import flash_attn_func  # FlashAttention 3 (Hopper)
except ImportError:
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise ImportError("flash-attn is not installed") from error


def attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """See `segment_attention`."""
    q_BSHD, k_BSHD, v_BSHD = (tensor.transpose(1, 2) for tensor in (q, k, v))
    split = q_BSHD.split([block.stop - block.start for block in mask.blocks], dim=1)
    parts = []
    for block, rows in zip(mask.blocks, split, strict=True):
        keys, values = k_BSHD[:, : block.keys], v_BSHD[:, : block.keys]
        out = flash_attn_func(rows, keys, values, causal=block.kind == "causal")
        # Some versions of 3 return the log-sum-exp too.
        parts.append(out[0] if isinstance(out, tuple) else out)
    return torch.cat(parts, dim=1).transpose(1, 2)
