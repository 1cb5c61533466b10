"""A token step in five kernels a layer (Triton), for the few rows that one clip has.

Each kernel is a product of a matrix with at most MAX_ROWS rows, together with what surrounds it: at this size a step
costs as many launches as it has, and memory traffic beyond the weights' is noise. Rows are samples, R of them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .cache import KVCache
from .config import ModelConfig
from .transformer import RMSNorm
from .vrc import VRC

try:
    from .decode_kernels import (
        attention_kernel,
        down_kernel,
        gate_kernel,
        norm_project_kernel,
        out_kernel,
        qkv_kernel,
    )

    HAVE_TRITON = True
except ImportError:
    HAVE_TRITON = False


MAX_ROWS = 8
SPLIT = 128  # keys of one attention program
TILE = 8192  # matrix elements that one program holds in registers


def why_not_fused(model: VRC, rows: int) -> str:
    """Why a step of so many rows of this model cannot run in these kernels; an empty string when it can."""
    head_dim, dtype = model.config.head_dim, model.tokens.weight.dtype
    if not HAVE_TRITON:
        return "triton is not installed"
    if rows > MAX_ROWS:
        return f"{rows} rows, at most {MAX_ROWS}"
    if head_dim & (head_dim - 1):
        return f"head_dim {head_dim} is not a power of two"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{dtype} weights"
    if model.trunk.cache_rounding is not None:
        return "keys and values are rounded"
    parts: list[Any] = [model.trunk.norm, model.head]
    layers: Any = model.trunk.layers
    for layer in layers:
        parts += [layer.attention_norm, layer.attention.qkv, layer.attention.out]
        parts += [layer.feed_forward_norm, layer.feed_forward.gate_up, layer.feed_forward.down]
    # The kernels read weights only: what else a module does, such as an adapter, they would leave out.
    for part in parts:
        if type(part) not in (nn.Linear, RMSNorm):
            return f"a layer is {type(part).__module__}.{type(part).__name__}, perhaps an adapter's"
        if part._forward_pre_hooks or part._forward_hooks:
            return "a layer has hooks, perhaps a simulation's"
        if type(part.weight.data) is not Tensor or part.weight.dtype != dtype:
            return f"weights of other kinds than {dtype}"
        if not part.weight.is_contiguous():
            return "matrices are transposed in memory, as for a CPU; load the model onto the GPU"
    return ""


class FusedStep:
    """The trunk and the head for one row a sample at a position on the device, 5 kernels a layer and one more.

    Attributes:
        tried: its results were compared with those of the layers.
    """

    tried = False

    def __init__(self, config: ModelConfig, cache: KVCache) -> None:
        self.config, self.cache = config, cache
        _, self.rows, self.heads, self.capacity, self.head_dim = cache.layers[0].shape
        self.splits = -(-self.capacity // SPLIT)
        like = cache.layers[0]
        self.q, self.x = like.new_empty(self.rows, config.width), like.new_empty(self.rows, config.width)
        self.hidden = like.new_empty(self.rows, config.hidden)
        self.logits = like.new_empty(self.rows, config.vocab)
        places = (self.rows * self.heads, self.splits)
        self.mixed = torch.empty(*places, self.head_dim, device=like.device)
        self.stats = torch.empty(*places, 2, device=like.device)

    def __call__(self, model: VRC, rows_RD: Tensor, table_S31P: Tensor, position: Tensor) -> Tensor:
        """Embedded rows [R, D] at `position` (long [1]) to logits [R, V]; writes their keys and values."""
        with torch.cuda.device_of(rows_RD):  # Triton launches on the current device
            return self._run(model, rows_RD, torch.view_as_real(table_S31P), position)

    def _run(self, model: VRC, rows_RD: Tensor, turns: Tensor, position: Tensor) -> Tensor:
        self.x.copy_(rows_RD)
        for layer, buffer in zip(model.trunk.layers, self.cache.layers, strict=True):
            self._attention(layer, buffer, turns, position)
            self._feed_forward(layer)
        norm, head = model.trunk.norm, model.head
        wide = _wide(self.config.width)
        block = _block(self.config.vocab, wide[1])
        norm_project_kernel[(self.config.vocab // block,)](
            self.x,
            norm.weight,
            head.weight,
            self.logits,
            self.config.vocab,
            self.rows,
            block,
            *wide,
            norm.eps,
        )
        return self.logits

    def _attention(self, layer: Any, buffer: Tensor, turns: Tensor, position: Tensor) -> None:
        width, wide = self.config.width, _wide(self.config.width)
        norm, attention = layer.attention_norm, layer.attention
        pairs = _block(width, 2 * wide[1])
        sizes = self.capacity, self.head_dim
        qkv_kernel[(3 * width // (2 * pairs),)](
            self.x, norm.weight, attention.qkv.weight, turns, position, self.q, buffer, *sizes, self.rows, pairs,
            *wide, norm.eps,
        )  # fmt: skip
        places = self.rows * self.heads
        attention_kernel[(places, self.splits)](
            self.q,
            buffer,
            position,
            self.mixed,
            self.stats,
            self.head_dim**-0.5,
            *sizes,
            places,
            self.splits,
            SPLIT,
            num_warps=8,
        )
        block = _block(width, wide[1])
        out_kernel[(width // block,)](
            self.mixed, self.stats, position, attention.out.weight, self.x, self.head_dim, self.splits, SPLIT,
            self.rows, block, *wide,
        )  # fmt: skip

    def _feed_forward(self, layer: Any) -> None:
        width, hidden = self.config.width, self.config.hidden
        norm, forward = layer.feed_forward_norm, layer.feed_forward
        wide = _wide(width)
        block = _block(hidden, 2 * wide[1])
        gate_kernel[(hidden // block,)](
            self.x,
            norm.weight,
            forward.gate_up.weight,
            self.hidden,
            hidden,
            self.rows,
            block,
            *wide,
            norm.eps,
        )
        wide = _wide(hidden)
        block = _block(width, wide[1])
        down_kernel[(width // block,)](
            self.hidden, forward.down.weight, self.x, width, self.rows, block, *wide
        )


def _wide(width: int) -> tuple[int, int]:
    """A width and the power of two from it on."""
    return width, 1 << (width - 1).bit_length()


def _block(rows: int, row_elements: int) -> int:
    """How many matrix rows a program takes: a power of two that divides them, at most 8 and at most TILE elements."""
    block = max(1, min(8, TILE // row_elements))
    while rows % block:
        block //= 2
    return block
