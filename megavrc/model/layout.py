"""The layout of the sequence: kinds, positions and visible ends of its rows, as pure data.

    [ c_1..c_C | x_1..x_N | z_0 (M) | z_1 (M) | .. | z_{F-1} (M) ]

With `first_frame: row` the raw part is a learned start row followed by the rows of the first frame. With
`keep_first_frame: false` the model runs two sequences, [c | x] and [c | z ..]. With `prediction: token` the raw part
holds every frame. A last raw token (or row) that nothing reads is left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import SegmentMask
from .config import ModelConfig

CONDITION, RAW, COMPRESSED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of one sequence.

    Attributes:
        kinds_S: long, CONDITION, RAW or COMPRESSED.
        positions_S3: float, (t, y, x) of each row (zeros for the condition).
        ends_S: long, the visible end of each row.
        condition, raw, segments: how many rows of each part (segments counts rows, not segments).
    """

    kinds_S: Tensor
    positions_S3: Tensor
    ends_S: Tensor
    condition: int
    raw: int
    segments: int

    @property
    def length(self) -> int:
        return len(self.kinds_S)

    def mask(self, start: int = 0, stop: int | None = None) -> SegmentMask:
        """The mask of the query rows [start, stop) over the keys up to stop."""
        stop = self.length if stop is None else stop
        return SegmentMask.from_ends(self.ends_S[start:stop].clamp(max=stop), stop)


def make_layout(config: ModelConfig, part: str = "all") -> Layout:
    """The layout of a model.

    Args:
        config: the model.
        part: `all`; or, for the two sequences of `keep_first_frame: false`, `first` ([c | x]) or `later` ([c | z ..]).
    """
    condition = _condition_rows(config)
    parts = [condition]
    raw = _raw_rows(config, keep_last=part == "all" and config.has_segments)
    segments = _segment_rows(config)
    if part in ("all", "first"):
        parts.append(raw)
    if part in ("all", "later") and config.has_segments:
        parts.append(segments)
    kinds, positions, block = (torch.cat([rows[item] for rows in parts]) for item in range(3))
    kept = [len(rows[0]) for rows in parts]
    return Layout(
        kinds_S=kinds,
        positions_S3=positions,
        ends_S=_ends(block),
        condition=kept[0],
        raw=kept[1] if part != "later" else 0,
        segments=kept[-1] if part != "first" and config.has_segments else 0,
    )


Rows = tuple[
    Tensor, Tensor, Tensor
]  # kinds [S], positions [S, 3], id of the row's bidirectional block [S] or -1


def _ends(block_S: Tensor) -> Tensor:
    """Visible ends: i + 1, or the end of the run of rows with the same block id (ids differ between neighbours)."""
    ends = torch.arange(1, len(block_S) + 1)
    for row in range(len(block_S) - 2, -1, -1):
        if block_S[row] >= 0 and block_S[row] == block_S[row + 1]:
            ends[row] = ends[row + 1]
    return ends


def _condition_rows(config: ModelConfig) -> Rows:
    slots = config.condition.slots
    block = 0 if config.condition.attention == "bidirectional" else -1
    return torch.full((slots,), CONDITION), torch.zeros(slots, 3), torch.full((slots,), block)


def _grid_positions(time: int, rows: Tensor, columns: Tensor) -> Tensor:
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.full_like(y, time), y, x], dim=-1).reshape(-1, 3)


def _raw_rows(config: ModelConfig, keep_last: bool) -> Rows:
    """Raw tokens, in reading order; a row-wise first frame starts with the learned row at y = -1."""
    side = torch.arange(config.grid, dtype=torch.float32)
    if config.first_frame == "row":
        lines = torch.arange(-1, config.grid - (not keep_last), dtype=torch.float32)
        positions = _grid_positions(0, lines, side)
        block = 1 + torch.arange(len(lines)).repeat_interleave(config.grid)
    else:
        frames = 1 + config.frames if config.prediction == "token" else 1
        positions = torch.cat([_grid_positions(time, side, side) for time in range(frames)])
        positions = positions if keep_last else positions[:-1]
        block = torch.full((len(positions),), -1)
    return torch.full((len(positions),), RAW), positions, block


def _segment_rows(config: ModelConfig) -> Rows:
    """Compressed cells of frames 0..F-1, each at the centre of the block of cells that it stands for."""
    side = config.compression.side
    centres = torch.arange(config.grid // side, dtype=torch.float32) * side + (side - 1) / 2
    positions = [_grid_positions(time, centres, centres) for time in range(config.frames)]
    block = 1 + config.grid + 1 + torch.arange(config.frames).repeat_interleave(config.segment_length)
    if config.segment_attention == "causal":
        block = torch.full_like(block, -1)
    return torch.full((len(block),), COMPRESSED), torch.cat([torch.zeros(0, 3), *positions]), block
