"""Attention under the segment mask: row i of the queries sees the keys j < ends[i].

Ends never decrease, so the whole mask of a VRC sequence is one integer per row: i + 1 in the condition and the first
frame, the end of its segment for compressed rows (Eq. 6 of the paper). A mask is built once per layout, on the host,
never in a forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Consecutive query rows [start, stop) that one attention call can serve with the keys [0, keys).

    `kind` is `full` (all rows see all these keys) or `causal` (row start + i sees keys - (stop - start) + i + 1).
    """

    start: int
    stop: int
    keys: int
    kind: str


@dataclass(frozen=True, eq=False)
class SegmentMask:
    """A staircase mask: non-decreasing visible ends, one per query row.

    Attributes:
        ends: the visible end of each row, 1 <= ends[i] <= kv_len.
        kv_len: number of keys.
        blocks: the same mask as few unmasked or causal rectangles.
    """

    ends: tuple[int, ...]
    kv_len: int
    blocks: tuple[Block, ...]
    _dense: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def from_ends(cls, ends: Tensor, kv_len: int | None = None) -> "SegmentMask":
        """Build from a long tensor [Sq] of visible ends.

        Args:
            ends: row i sees the keys j < ends[i]; non-decreasing, at least 1.
            kv_len: number of keys (default: the last end).

        Raises:
            ValueError: ends that decrease, are below 1 or reach beyond kv_len.
        """
        rows = tuple(int(end) for end in ends.tolist())
        length = rows[-1] if kv_len is None else kv_len
        if not rows or rows[0] < 1 or rows[-1] > length:
            raise ValueError(f"mask ends must lie in 1..{length}, got {rows[:1]}..{rows[-1:]}")
        if any(later < earlier for earlier, later in zip(rows, rows[1:], strict=False)):
            raise ValueError("mask ends must not decrease")
        return cls(rows, length, _blocks(rows))

    def dense(self, device: torch.device | str = "cpu") -> Tensor:
        """The mask as bool [Sq, kv_len], True where a key is visible; kept per device."""
        device = torch.device(device)
        if device not in self._dense:
            ends = torch.tensor(self.ends, device=device)
            self._dense[device] = torch.arange(self.kv_len, device=device) < ends[:, None]
        return self._dense[device]

    @property
    def is_full(self) -> bool:
        """Every row sees every key: no mask is needed."""
        return self.ends[0] == self.kv_len

    @property
    def area(self) -> int:
        """Number of visible (query, key) pairs, for counting FLOPs."""
        return sum(self.ends)


def _blocks(ends: tuple[int, ...]) -> tuple[Block, ...]:
    """Split rows into runs of equal ends (`full`) and runs that grow by one (`causal`)."""
    blocks: list[Block] = []
    start = 0
    while start < len(ends):
        stop = start + 1
        while stop < len(ends) and ends[stop] == ends[start]:
            stop += 1
        if stop > start + 1:
            blocks.append(Block(start, stop, ends[start], "full"))
        else:
            while (
                stop < len(ends)
                and ends[stop] == ends[stop - 1] + 1
                and ends[stop] not in ends[stop + 1 : stop + 2]
            ):
                stop += 1
            blocks.append(Block(start, stop, ends[stop - 1], "causal" if stop > start + 1 else "full"))
        start = stop
    return tuple(blocks)


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """The definition, in the dtype of its inputs (float64 included): the reference of the other backends."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask.dense(q.device), float("-inf"))
    return scores.softmax(-1) @ v


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """One fused call with the boolean mask: what the rectangles are measured against."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask.is_full else mask.dense(q.device))


def _rectangles(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """The causal prefix and one unmasked rectangle per segment: no masked key is ever multiplied."""
    parts = []
    for block in mask.blocks:
        rows, keys, values = q[:, :, block.start : block.stop], k[:, :, : block.keys], v[:, :, : block.keys]
        square = block.stop - block.start == block.keys
        bias = None
        if block.kind == "causal" and not square:
            bias = mask.dense(q.device)[block.start : block.stop, : block.keys]
        causal = block.kind == "causal" and square
        parts.append(F.scaled_dot_product_attention(rows, keys, values, attn_mask=bias, is_causal=causal))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, SegmentMask], Tensor]] = {
    "dense": _dense_attention,
    "masked": _masked_attention,
    "rects": _rectangles,
}


def segment_attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask, backend: str = "auto") -> Tensor:
    """Softmax attention in which query row i sees the keys j < mask.ends[i].

    Args:
        q: [B, H, Sq, D]; k, v: [B, H, Sk, D] with Sk = mask.kv_len.
        mask: built once for the layout.
        backend: `rects` (unmasked rectangles), `masked` (one call with a boolean mask), `dense` (the reference, any
            dtype), or `auto`.

    Returns:
        [B, H, Sq, D] in q's dtype.

    Raises:
        ValueError: an unknown backend, or tensors that do not have the mask's lengths.
    """
    if (q.shape[2], k.shape[2]) != (len(mask.ends), mask.kv_len):
        raise ValueError(
            f"attention got {q.shape[2]} queries and {k.shape[2]} keys for a mask of {len(mask.ends)} x {mask.kv_len}"
        )
    if backend == "auto":
        backend = "rects"
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is not one of auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend](q, k, v, mask)
