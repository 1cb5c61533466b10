"""The condition part of the sequence: text tokens, frozen text features, or a class label.

Text is left-padded with a learned pad embedding that stays visible, and its last slot is always the learned
begin-video token, so that every sequence of a model has the same layout and mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import ConditionConfig

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
        """A condition from plain tensors too: `values`, or a pair of `values` and `real`."""
        if isinstance(given, Tensor):
            return cls(given)
        if isinstance(given, tuple):
            return cls(*given)
        return cls(given.values, given.real)  # perhaps of the class in another copy of this file

    def __len__(self) -> int:
        return len(self.values)

    __iter__ = None  # unpacking would give samples, not the tensors

    def __getitem__(self, samples: slice) -> "Condition":
        return Condition(self.values[samples], None if self.real is None else self.real[samples])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Condition":
        """The condition, there."""
        real = None if self.real is None else self.real.to(device, non_blocking=non_blocking)
        return Condition(self.values.to(device, non_blocking=non_blocking), real)


ConditionLike = Condition | Tensor | tuple[Tensor, Tensor]  # what `Condition.of` takes


def embedding(rows: int, width: int) -> nn.Embedding:
    """nn.Embedding, but its random draw, which on the meta device imports torch's compiler (2 s), is left out there."""
    weight = torch.empty(rows, width)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding.from_pretrained(weight, freeze=False)


def pad_features(features: list[Tensor], slots: int) -> Condition:
    """Text features [tokens, width] of samples as a float32 condition: cut to the slots, right of the padding."""
    padded_BLF = torch.zeros(len(features), slots, features[0].shape[1])
    real_BL = torch.zeros(len(features), slots, dtype=torch.bool)
    for row, each in enumerate(features):
        count = min(len(each), slots)
        padded_BLF[row, slots - count :] = each[:count]
        real_BL[row, slots - count :] = True
    return Condition(padded_BLF, real_BL)


class ConditionEmbedding(nn.Module):
    """Condition to rows [B, C, D], slot embedding included."""

    def __init__(self, config: ConditionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.slots = nn.Parameter(torch.zeros(config.slots, width))
        if config.is_class:
            self.table = embedding(config.classes + 1, width)
        elif config.learned_text:
            self.table = embedding(config.vocab, width)
        else:
            self.pad = nn.Parameter(torch.zeros(width))
            self.begin = nn.Parameter(torch.zeros(width))
            self.project = nn.Sequential(
                nn.Linear(config.feature_dim, width, bias=False),
                nn.GELU(approximate="tanh"),
                nn.Linear(width, width, bias=False),
            )

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        """N(0, std) for what is not a Linear or an Embedding."""
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=std)

    def forward(self, condition: Condition, drop: Tensor | None = None) -> Tensor:
        """`drop` (bool [B]) selects the null condition.

        Raises:
            ValueError: a condition that does not have the model's slots, or is of another kind.
        """
        if (condition.real is not None) != self.config.features:
            wanted = "text features and where they are real" if self.config.features else "ids alone"
            raise ValueError(f"the condition of this model is {wanted}")
        if condition.real is not None:
            return self._features(condition.values, condition.real, drop)
        ids_BC = condition.values[:, None] if self.config.is_class else condition.values
        if ids_BC.shape[1] != self.config.slots:
            raise ValueError(
                f"the condition has {ids_BC.shape[1]} slots, the model takes {self.config.slots}"
            )
        if drop is not None:
            ids_BC = torch.where(drop[:, None], self.null(len(ids_BC)).values.view_as(ids_BC), ids_BC)
        return self.table(ids_BC) + self.slots

    def _features(self, features_BLF: Tensor, real_BL: Tensor, drop: Tensor | None) -> Tensor:
        if features_BLF.shape[1] != self.config.slots - 1:
            raise ValueError(
                f"the condition has {features_BLF.shape[1]} feature slots, the model takes {self.config.slots - 1}"
            )
        if drop is not None:
            real_BL = real_BL & ~drop[:, None]
        projected = self.project(features_BLF.to(self.pad.dtype))
        rows_BLD = torch.where(real_BL[..., None], projected, self.pad)
        begin = self.begin.expand(len(rows_BLD), 1, -1)
        return torch.cat([rows_BLD, begin], dim=1) + self.slots

    def null(self, batch: int) -> Condition:
        """The null condition: all pads (and begin-video), or the class after the last one."""
        device, config = self.slots.device, self.config
        if config.is_class:
            return Condition(torch.full((batch,), config.classes, device=device))
        if config.features:
            features = torch.zeros(batch, config.slots - 1, config.feature_dim, device=device)
            return Condition(features, torch.zeros(features.shape[:2], dtype=torch.bool, device=device))
        ids = torch.full((batch, config.slots), PAD, device=device)
        ids[:, -1] = BEGIN
        return Condition(ids)
