"""The condition part of the sequence: text tokens, frozen text features, or a class label.

Text is left-padded with a learned pad embedding that stays visible, and its last slot is always the learned
begin-video token, so that every sequence of a model has the same layout and mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .config import ConditionConfig
from .quick_start import embedding

PAD, UNKNOWN, BEGIN = 0, 1, 2  # ids of the pad, unknown and begin-video tokens in the text vocabulary


@dataclass(frozen=True, eq=False)
class Condition:
    """What B samples are generated from.

    Attributes:
        values: long [B, C] text tokens, long [B] class labels, or float [B, C - 1, Df] text features.
        real: bool [B, C - 1], where text features are real and not padding; None for tokens and labels.
    """

    values: Tensor
    real: Tensor | None = None

    @classmethod
    def of(cls, given: Any) -> "Condition":
        """A condition from plain tensors too: `values`, or a pair of `values` and `real`; ValueError for others."""
        if isinstance(given, Tensor):
            parts: tuple[Any, ...] = (given,)
        elif isinstance(given, tuple):
            parts = given
        else:  # perhaps a Condition of the class in another copy of this file
            parts = getattr(given, "values", None), getattr(given, "real", None)
        values, real = (*parts, None, None)[:2]
        if len(parts) > 2 or not isinstance(values, Tensor) or not isinstance(real, Tensor | None):
            raise ValueError(f"condition: a {type(given).__name__} is neither a Condition nor its tensors")
        if not values.dim() or not len(values):
            raise ValueError(
                f"condition: shape {list(values.shape)}, expected one row for each of 1 or more samples"
            )
        if real is not None and real.shape != values.shape[:2]:
            raise ValueError(
                f"condition: real has shape {list(real.shape)}, the text features {list(values.shape)}; it says of "
                "each whether it is real"
            )
        return cls(values, None if real is None else real.bool())

    def __len__(self) -> int:
        return len(self.values)

    __iter__ = None  # unpacking would give samples, not the tensors

    def __getitem__(self, samples: slice) -> "Condition":
        return Condition(self.values[samples], None if self.real is None else self.real[samples])

    def where(self, chosen: Tensor, other: "Condition") -> "Condition":
        """This condition, with the samples that are chosen (bool [B]) taken from another one."""
        if self.real is None or other.real is None:
            real = None
        else:
            real = torch.where(chosen[:, None], other.real, self.real)
        rows = chosen.view(-1, *[1] * (self.values.dim() - 1))
        return Condition(torch.where(rows, other.values, self.values), real)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Condition":
        """The condition, there."""
        real = None if self.real is None else self.real.to(device, non_blocking=non_blocking)
        return Condition(self.values.to(device, non_blocking=non_blocking), real)


ConditionLike = Condition | Tensor | tuple[Tensor, Tensor]  # what `Condition.of` takes


class ConditionEmbedding(nn.Module):
    """A kind of condition: what it is made of, its rows in the sequence, and its null; `KINDS` has their names.

    Attributes:
        reads: what `make` takes of a sample, or of what a user asks for: "label", "caption", or the caption's "tokens"
            or "features".
        masked: whether its conditions say what is `real`.
        slots: added to the rows [C, D].
    """

    reads: ClassVar[str]
    masked: ClassVar[bool] = False

    def __init__(self, config: ConditionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.slots = nn.Parameter(torch.zeros(config.slots, width))

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        """N(0, std) for what is not a Linear or an Embedding."""
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=std)

    @classmethod
    def make(cls, config: ConditionConfig, given: Sequence[Any]) -> Condition:
        """The condition of B samples, on the CPU, from what it `reads` of each; ValueError for what cannot be.

        A sample without a label or a caption has None (no tokens, no features) and gets the null condition.
        """
        raise NotImplementedError

    def null(self, batch: int) -> Condition:
        """The null condition."""
        raise NotImplementedError

    def rows(self, condition: Condition) -> Tensor:
        """[B, C, D], without the slots' own."""
        raise NotImplementedError

    def forward(self, condition: Condition, drop: Tensor | None = None) -> Tensor:
        """Rows [B, C, D], slots included; `drop` (bool [B]) selects the null condition.

        Raises:
            ValueError: a condition that does not have the model's slots, or is of another kind.
        """
        if (condition.real is not None) != self.masked:
            wanted = "text features and where they are real" if self.masked else "ids alone"
            raise ValueError(f"the condition of this model is {wanted}")
        null = self.null(len(condition))
        if condition.values.shape != null.values.shape:
            has, takes = (" x ".join(map(str, each.values.shape[1:])) or "no" for each in (condition, null))
            raise ValueError(f"the condition has {has} slots, the model takes {takes}")
        if drop is not None:
            condition = condition.where(drop, null)
        return self.rows(condition) + self.slots


class ClassEmbedding(ConditionEmbedding):
    """A class of each sample, long [B]; the null is the class after the last one."""

    reads = "label"

    def __init__(self, config: ConditionConfig, width: int) -> None:
        super().__init__(config, width)
        self.table = embedding(config.classes + 1, width)

    @classmethod
    def make(cls, config: ConditionConfig, given: Sequence[int | None]) -> Condition:
        labels = [config.classes if label is None else label for label in given]
        if wrong := [label for label in labels if not 0 <= label <= config.classes]:
            raise ValueError(f"label {wrong[0]} is not one of the model's classes 0..{config.classes - 1}")
        return Condition(torch.tensor(labels))

    def null(self, batch: int) -> Condition:
        return Condition(torch.full((batch,), self.config.classes, device=self.slots.device))

    def rows(self, condition: Condition) -> Tensor:
        return self.table(condition.values[:, None])


class TextEmbedding(ConditionEmbedding):
    """Text tokens, long [B, C], left-padded, begin-video in the last slot; the null is all pads."""

    reads = "tokens"

    def __init__(self, config: ConditionConfig, width: int) -> None:
        super().__init__(config, width)
        self.table = embedding(config.vocab, width)

    @classmethod
    def make(cls, config: ConditionConfig, given: Sequence[Sequence[int]]) -> Condition:
        longest, most = max(map(len, given)), config.slots - 1
        if longest > most:
            raise ValueError(
                f"the prompt has {longest} text tokens, the model takes at most {most}: shorten it"
            )
        return Condition(torch.tensor([[PAD] * (most - len(ids)) + [*ids, BEGIN] for ids in given]))

    def null(self, batch: int) -> Condition:
        ids = torch.full((batch, self.config.slots), PAD, device=self.slots.device)
        ids[:, -1] = BEGIN
        return Condition(ids)

    def rows(self, condition: Condition) -> Tensor:
        return self.table(condition.values)


class FeatureEmbedding(ConditionEmbedding):
    """Features of a frozen text encoder, float [B, C - 1, Df], begin-video behind them; the null is all padding."""

    reads = "features"
    masked = True

    def __init__(self, config: ConditionConfig, width: int) -> None:
        super().__init__(config, width)
        self.pad = nn.Parameter(torch.zeros(width))
        self.begin = nn.Parameter(torch.zeros(width))
        self.project = nn.Sequential(
            nn.Linear(config.feature_dim, width, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width, bias=False),
        )

    @classmethod
    def make(cls, config: ConditionConfig, given: Sequence[Tensor]) -> Condition:
        """The condition of features [tokens, width]: float32, cut to the slots, right of the padding."""
        padded_BLF = torch.zeros(len(given), config.slots - 1, given[0].shape[1])
        real_BL = torch.zeros(padded_BLF.shape[:2], dtype=torch.bool)
        for row, each in enumerate(given):
            count = min(len(each), config.slots - 1)
            padded_BLF[row, config.slots - 1 - count :] = each[:count]
            real_BL[row, config.slots - 1 - count :] = True
        return Condition(padded_BLF, real_BL)

    def null(self, batch: int) -> Condition:
        shape = (batch, self.config.slots - 1, self.config.feature_dim)
        nothing = torch.zeros((), device=self.slots.device)
        return Condition(nothing.expand(shape), nothing.bool().expand(shape[:2]))

    def rows(self, condition: Condition) -> Tensor:
        assert condition.real is not None
        projected = self.project(condition.values.to(self.pad.dtype))
        rows_BLD = torch.where(condition.real[..., None], projected, self.pad)
        return torch.cat([rows_BLD, self.begin.expand(len(rows_BLD), 1, -1)], dim=1)


KINDS: dict[str, type[ConditionEmbedding]] = {
    "class": ClassEmbedding,
    "learned": TextEmbedding,
    "features": FeatureEmbedding,
}


def kind_of(config: ConditionConfig) -> type[ConditionEmbedding]:
    """The class of a model's condition."""
    return KINDS[config.name]
