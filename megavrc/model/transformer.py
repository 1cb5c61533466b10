"""The trunk: a Llama-style transformer as in LlamaGen. Single-device maths; parallelism is applied from outside."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import SegmentMask, prepare, segment_attention
from .cache import DeviceStep, KVCache, Rounding
from .config import ModelConfig
from .rope import rotate, rotate_qkv

Cache = KVCache | DeviceStep


class RMSNorm(nn.Module):
    """Root-mean-square norm, eps 1e-5, computed in at least float32."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, wide.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Multi-head self-attention with fused projections, rotary positions and the segment mask."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BSD: Tensor,
        table: Tensor,
        mask: SegmentMask | None,
        backend: str,
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        qkv_BS3HD = self.qkv(x_BSD).unflatten(-1, (3, self.heads, -1))
        if cache is not None:
            mixed = cache.attend(layer, rotate_qkv(qkv_BS3HD, table), mask)
        else:
            assert mask is not None
            q, k, v = qkv_BS3HD.permute(2, 0, 3, 1, 4)
            mixed = segment_attention(rotate(q, table), rotate(k, table), v, mask, backend)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.dropout(self.down(F.silu(gate) * up))


class Layer(nn.Module):
    """Pre-norm residual layer: attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BSD: Tensor,
        table: Tensor,
        mask: SegmentMask | None,
        backend: str,
        cache: Cache | None,
        index: int,
    ) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), table, mask, backend, cache, index)
        return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))


class Trunk(nn.Module):
    """All layers and the final norm."""

    gradient_checkpointing = False  # set by transformers, with the function
    _gradient_checkpointing_func: Any = None
    cache_rounding: Rounding | None = None  # of the caches that generation makes; set by a simulation

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.head_dim = config.head_dim

    def forward(
        self,
        x_BSD: Tensor,
        table: Tensor,
        mask: SegmentMask | None,
        cache: Cache | None = None,
        backend: str = "auto",
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Embedded rows to normed states; or the part of the way that some of the layers are.

        Args:
            x_BSD: [B, S, D] embedded rows.
            table: rotary table of these rows: float32 [2, S, head_dim / 2], or `qkv_table`'s with a cache.
            mask: S query rows over all keys (cached ones included); None, with a cache, hides nothing.
            cache: keys and values of earlier rows, where those of these rows are written too.
            backend: of `segment_attention` without a cache.
            start, stop: run the layers [start, stop) on what comes out of layer start - 1 (default: all, and the norm).
        """
        if cache is None:
            assert mask is not None
            gradients = torch.is_grad_enabled() and (
                x_BSD.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
            )
            backend = prepare(backend, mask, x_BSD, self.head_dim, gradients)
        for index, layer in enumerate(self.layers[start:stop], start):
            if self.gradient_checkpointing and self.training and cache is None:
                x_BSD = self._gradient_checkpointing_func(layer, x_BSD, table, mask, backend, None, index)
            else:
                x_BSD = layer(x_BSD, table, mask, backend, cache, index)
        return self.norm(x_BSD) if stop is None else x_BSD
