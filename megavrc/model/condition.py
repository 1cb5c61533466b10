"""The condition part of the sequence: text tokens, frozen text features, or a class label.

Text is left-padded with a learned pad embedding that stays visible, and its last slot is always the learned
begin-video token, so that every sequence of a model has the same layout and mask.
"""

import torch
from torch import Tensor, nn

from .config import ConditionConfig

PAD, BEGIN = 0, 2  # ids of the pad and begin-video tokens in the text vocabulary

Condition = Tensor | tuple[Tensor, Tensor]


def embedding(rows: int, width: int) -> nn.Embedding:
    """nn.Embedding, but its random draw, which on the meta device imports torch's compiler (2 s), is left out there."""
    weight = torch.empty(rows, width)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding.from_pretrained(weight, freeze=False)


def pad_features(features: list[Tensor], slots: int) -> tuple[Tensor, Tensor]:
    """Text features [tokens, width] of samples as a condition: cut to the slots, and to the right of the padding.

    Returns:
        float32 [B, slots, width], and bool [B, slots] where they are real.
    """
    padded_BLF = torch.zeros(len(features), slots, features[0].shape[1])
    real_BL = torch.zeros(len(features), slots, dtype=torch.bool)
    for row, each in enumerate(features):
        count = min(len(each), slots)
        padded_BLF[row, slots - count :] = each[:count]
        real_BL[row, slots - count :] = True
    return padded_BLF, real_BL


class ConditionEmbedding(nn.Module):
    """Condition to rows [B, C, D], slot embedding included."""

    def __init__(self, config: ConditionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.slots = nn.Parameter(torch.zeros(config.slots, width))
        if config.kind == "class":
            self.table = embedding(config.classes + 1, width)
        elif config.text == "learned":
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
        """See `VRC.forward` for the forms of `condition`; `drop` (bool [B]) selects the null condition.

        Raises:
            ValueError: a condition that does not have the model's slots, or a label outside the classes.
        """
        if self.config.text == "features" and self.config.kind == "text":
            return self._features(condition, drop)
        assert isinstance(condition, Tensor)
        ids_BC = condition[:, None] if self.config.kind == "class" else condition
        if ids_BC.shape[1] != self.config.slots:
            raise ValueError(
                f"the condition has {ids_BC.shape[1]} slots, the model takes {self.config.slots}"
            )
        if drop is not None:
            null = self.null(len(ids_BC))
            assert isinstance(null, Tensor)
            ids_BC = torch.where(drop[:, None], null.view_as(ids_BC), ids_BC)
        return self.table(ids_BC) + self.slots

    def _features(self, condition: Condition, drop: Tensor | None) -> Tensor:
        features_BLF, real_BL = condition
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
        device = self.slots.device
        if self.config.kind == "class":
            return torch.full((batch,), self.config.classes, device=device)
        if self.config.text == "features":
            shape = (batch, self.config.slots - 1)
            return (
                torch.zeros(*shape, self.config.feature_dim, device=device),
                torch.zeros(shape, dtype=torch.bool, device=device),
            )
        ids = torch.full((batch, self.config.slots), PAD, device=device)
        ids[:, -1] = BEGIN
        return ids
