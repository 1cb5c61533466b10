"""The input and the output of a method: the visual tokens of one image or one clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, SupportsIndex

import torch
from torch import Tensor

PER_TOKEN = ("size", "cls", "attention", "middle", "keys", "last_row", "own_row")  # [N] or [N, ..]


@dataclass(frozen=True)
class Tokens:
    """N visual tokens of one image or one clip, frame by frame and row by row, and what a host knows about them.

    A method names the fields it needs (`Method.needs`); a host fills those and leaves the others None. "Layer" is the
    layer of the LLM before which the method acts. Attention is the mean over heads, after softmax.
    """

    features: Tensor
    "[N, D]: the projector's output, or hidden states of a layer of the tower or the LLM"
    grid: tuple[int, int, int] | None = None
    "(T, H, W), T * H * W = N; T = 1 for an image. None once a part of the tokens is gone"
    size: Tensor | None = None
    "[N]: how many of the tower's tokens each stands for; None is one each"
    cls: Tensor | None = None
    "[N]: attention of the tower's CLS token to each, of the layer whose output is used"
    attention: Tensor | None = None
    "[N]: attention each receives from the tokens of its frame, mean over queries, of the same layer"
    middle: Tensor | None = None
    "[N]: as `attention`, in the tower's middle layer"
    keys: Tensor | None = None
    "[N, d]: in the tower mean over heads, of the layer used; in the LLM of the layer before, rotated, all heads"
    last_row: Tensor | None = None
    "[N]: attention of the last prompt token in the layer before"
    own_row: Tensor | None = None
    "[N]: attention of the last prompt token by this layer's own projections of its input"
    rater_rows: Tensor | None = None
    "[R, N]: attention, in the layer before, of the prompt tokens that `score.raters` picks"
    text: Tensor | None = None
    "[S, D]: the prompt's tokens in the space of `features` (before the LLM its embeddings, in it hidden states)"
    text_keys: Tensor | None = None
    "[S, d]: their keys, as `keys`"

    def __post_init__(self) -> None:
        if not isinstance(self.features, Tensor):
            raise ValueError(f"features must be a tensor [N, D], not {type(self.features).__name__}")
        if self.features.ndim != 2 or not len(self.features):
            raise ValueError(f"features must be [N, D] with N >= 1, not {list(self.features.shape)}")
        count = len(self.features)
        if self.grid is not None and not _is_grid(self.grid, count):
            raise ValueError(
                f"a grid of {self.grid!r:.60} is not (T, H, W) of the {count} tokens of features"
            )
        lengths = {name: len(value) for name in PER_TOKEN if (value := getattr(self, name)) is not None}
        if self.rater_rows is not None:
            lengths["rater_rows"] = self.rater_rows.shape[-1]
        for name, length in lengths.items():
            if length != count:
                raise ValueError(f"{name} has {length} entries for {count} tokens")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def sizes(self) -> Tensor:
        """[N] fp32: `size`, or ones."""
        return self.features.new_ones(len(self)).float() if self.size is None else self.size.float()

    def known(self, name: str) -> Tensor:
        """The field of that name, in fp32."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"{name} is needed, and the host does not give it")
        return value.float()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W), where a grid is known."""
        if self.grid is None:
            raise ValueError("these tokens have no grid: a part of them is gone, or the host knows none")
        return self.grid

    def frames(self) -> list[Tokens]:
        """Each frame alone; tokens without a grid are one frame."""
        if self.grid is None or self.grid[0] == 1:
            return [self]
        area = self.grid[1] * self.grid[2]
        return [self.part(slice(t * area, (t + 1) * area), (1, *self.grid[1:])) for t in range(self.grid[0])]

    def part(self, index: slice | Tensor, grid: tuple[int, int, int] | None = None) -> Tokens:
        """The tokens at `index`, with all that is known about them."""
        known = {name: value[index] for name in PER_TOKEN if (value := getattr(self, name)) is not None}
        if self.rater_rows is not None:
            known["rater_rows"] = self.rater_rows[:, index]
        return replace(self, features=self.features[index], grid=grid, **known)

    def not_finite(self) -> str | None:
        """The first field that holds NaN or an infinity."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                return field.name
        return None


def _is_grid(grid: Any, count: int) -> bool:
    """Whether it is three whole numbers whose product is `count`."""
    sides = list(grid) if isinstance(grid, Iterable) else []
    return len(sides) == 3 and all(isinstance(side, SupportsIndex) for side in sides) and prod(sides) == count


@dataclass(frozen=True)
class Reduction:
    """K tokens that are left of N, in the order of the places they take."""

    features: Tensor
    "[K, D], in the type of the input"
    index: Tensor
    "[K] int64, ascending: the token whose place each takes. Gather positions with it, or count anew: the host's option"
    assign: Tensor
    "[N] int64: which of the K each token went into, -1 where it was dropped"
    size: Tensor
    "[K] fp32: how many of the tower's tokens each stands for"

    def __len__(self) -> int:
        return len(self.index)
