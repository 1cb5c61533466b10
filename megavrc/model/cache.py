"""Keys and values of the rows already processed, and attention over them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import SegmentMask, segment_attention

Rounding = Callable[[Tensor], Tensor]


class KVCache:
    """Preallocated keys and values, one buffer [2, B, H, capacity, D] a layer.

    A tensor per layer: one stacked over layers is several times slower under torch.compile. Zeros, since a masked
    key still meets a probability of 0.

    Attributes:
        length: rows that are there; `attend` writes behind them, the caller then moves it on.
        rounding: what keys and values [2, B, H, S, D] become where they are written; None: they stay.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        like: Tensor,
        rounding: Rounding | None = None,
    ) -> None:
        shape = (2, batch, heads, capacity, head_dim)
        self.layers = [like.new_zeros(shape) for _ in range(layers)]
        self.length = 0
        self.rounding = rounding

    def written(self, kv_2BHSD: Tensor) -> Tensor:
        """New keys and values as they are written."""
        return kv_2BHSD if self.rounding is None else self.rounding(kv_2BHSD)

    def attend(self, layer: int, qkv_BS3HD: Tensor, mask: SegmentMask | None) -> Tensor:
        """Write the keys and values of new rows and attend with their queries.

        Args:
            layer: whose buffer.
            qkv_BS3HD: rotated projections of S rows.
            mask: of these rows over all up to and including them; None: every row sees all of them.

        Returns:
            [B, H, S, D].
        """
        qkv_3BHSD = qkv_BS3HD.permute(2, 0, 3, 1, 4)
        stop = self.length + qkv_BS3HD.shape[1]
        rows = self.layers[layer][:, :, :, :stop]
        rows[:, :, :, self.length :] = self.written(qkv_3BHSD[1:])
        k, v = rows[0], rows[1]
        if mask is None:
            return F.scaled_dot_product_attention(qkv_3BHSD[0], k, v)
        return segment_attention(qkv_3BHSD[0], k, v, mask)

    def truncate(self, length: int) -> None:
        """Forget all rows from `length` on."""
        self.length = length


class DeviceStep:
    """One row a sample at a position that only the device knows, over the first `keys` rows of a cache.

    What it launches does not depend on the position, so that one CUDA graph serves every step up to `keys`.
    """

    def __init__(self, cache: KVCache, position: Tensor, keys: int) -> None:
        """`position` is long [1], the row to write, below `keys`."""
        self.cache, self.position, self.keys = cache, position, keys
        self.visible = torch.arange(keys, device=position.device) <= position

    def attend(self, layer: int, qkv_BS3HD: Tensor, mask: SegmentMask | None) -> Tensor:
        """As `KVCache.attend`, for one row that sees itself and all before it."""
        qkv_3BHSD = qkv_BS3HD.permute(2, 0, 3, 1, 4)
        buffer = self.cache.layers[layer]
        buffer.index_copy_(3, self.position, self.cache.written(qkv_3BHSD[1:]))
        k, v = buffer[0, :, :, : self.keys], buffer[1, :, :, : self.keys]
        return F.scaled_dot_product_attention(qkv_3BHSD[0], k, v, attn_mask=self.visible[None])
