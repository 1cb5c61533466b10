"""Keys and values of the rows already processed, one pair of buffers per layer."""

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values, [B, H, capacity, D] a layer.

    Separate tensors per layer: one stacked tensor indexed by layer is several times slower under torch.compile.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, capacity: int, head_dim: int, like: Tensor, length: int = 0
    ) -> None:
        shape = (batch, heads, capacity, head_dim)
        self.keys = [torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(layers)]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.length = length

    def append(self, layer: int, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Write new rows behind the current length and return views of all rows up to and including them."""
        stop = self.length + k_BHSD.shape[2]
        self.keys[layer][:, :, self.length : stop] = k_BHSD
        self.values[layer][:, :, self.length : stop] = v_BHSD
        return self.keys[layer][:, :, :stop], self.values[layer][:, :, :stop]

    def truncate(self, length: int) -> None:
        """Forget all rows from `length` on."""
        self.length = length
