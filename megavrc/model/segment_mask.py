"""The segment mask: row i of the queries sees the keys j < ends[i].

Ends never decrease, so the whole mask of a VRC sequence is one integer per row: i + 1 in the condition and the first
frame, the end of its segment for compressed rows (Eq. 6 of the paper). A mask is built once per layout, on the host;
what a backend derives from it is built at its first use and kept with it.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

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

    @property
    def is_full(self) -> bool:
        """Every row sees every key: no mask is needed."""
        return self.ends[0] == self.kv_len

    @property
    def area(self) -> int:
        """Number of visible (query, key) pairs, for counting FLOPs."""
        return sum(self.ends)

    def keep(self, key: Hashable, build: Callable[[], T]) -> T:
        """The result of `build` for this mask, made once per key and kept as long as the mask."""
        if key not in self._kept:
            with torch.inference_mode(False):  # a mask first used in generation may be used in training later
                self._kept[key] = build()
        kept: T = self._kept[key]
        return kept

    def dense(self, device: torch.device | str = "cpu") -> Tensor:
        """The mask as bool [Sq, kv_len], True where a key is visible."""
        device = torch.device(device)
        return self.keep(("dense", device), lambda: self._dense(device))

    def _dense(self, device: torch.device) -> Tensor:
        ends = torch.tensor(self.ends, device=device)
        return torch.arange(self.kv_len, device=device) < ends[:, None]

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The mask by rows and by keys: (ends int32 [Sq], starts int32 [kv_len]).

        Key j is seen by the rows i >= starts[j], and by no row where starts[j] = Sq. Both never decrease, so the least
        and greatest values in a tile of rows or keys are its first and last.
        """
        return self.keep(("tables", device), lambda: self._tables(device))

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        ends = torch.tensor(self.ends, dtype=torch.int32, device="cpu")
        keys = torch.arange(self.kv_len, dtype=torch.int32, device="cpu")
        starts = torch.searchsorted(ends, keys, right=True, out_int32=True)
        return ends.to(device), starts.to(device)


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
