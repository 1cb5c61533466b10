"""The `flex` backend: torch's FlexAttention with a block mask built from the row ends.

No backward pass on CPU. A compiled kernel serves one shape, so every new pair of lengths compiles once more.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .segment_mask import SegmentMask

TILE = 128


def block_mask(mask: SegmentMask, device: torch.device) -> BlockMask:
    """The tiles of `create_block_mask` for this mask, without looking at all Sq x Sk pairs."""
    ends, _ = mask.tables(device)

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return key < ends[row]

    last = torch.tensor([*mask.ends[TILE - 1 :: TILE], mask.ends[-1]][: -(-len(mask.ends) // TILE)])
    first = torch.tensor(mask.ends[::TILE])
    if len(mask.ends) % TILE:
        first[-1] = 0  # rows that do not exist see nothing: no tile of an incomplete row of tiles is full
    seen, full = -(-last // TILE), first // TILE
    tiles = torch.arange(-(-mask.kv_len // TILE)).expand(len(first), -1)
    partial = (tiles + full[:, None]).clamp(max=tiles.shape[1] - 1)

    def on_device(table: Tensor) -> Tensor:
        return table[None, None].to(device, torch.int32).contiguous()

    return BlockMask.from_kv_blocks(
        on_device(seen - full),
        on_device(partial),
        on_device(full),
        on_device(tiles),
        BLOCK_SIZE=TILE,
        mask_mod=visible,
        seq_lengths=(len(mask.ends), mask.kv_len),
    )


def kept_blocks(mask: SegmentMask, device: torch.device) -> BlockMask:
    """`block_mask`, made once."""
    return mask.keep(("flex", device), lambda: block_mask(mask, device))


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    # fullgraph: past the limit of recompilations an error, not the slow eager version without a word
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """See `segment_attention`."""
    blocks = kept_blocks(mask, q.device)
    if not torch.is_grad_enabled():  # on CPU it refuses inputs that require gradients even then
        q, k, v = q.detach(), k.detach(), v.detach()
    elif q.device.type == "cpu" and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise NotImplementedError("FlexAttention has no backward pass on CPU")
    # Not is_compiling(): that is true in plain Python too while something is traced.
    run: Any = flex_attention if torch.compiler.is_dynamo_compiling() else _compiled()
    return run(q, k, v, block_mask=blocks)
