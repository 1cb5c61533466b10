"""Weights set to zero: the smallest, or those that matter least for the inputs at hand."""

from typing import SupportsFloat

import torch
from torch import Tensor

from .layers import InputStatistics


def zero_smallest(weight_OI: Tensor, share: float) -> Tensor:
    """The `share` of a layer's weights of the least magnitude becomes zero, exactly round(share O I) of them."""
    return _zero_least(weight_OI.flatten()[None], weight_OI.float().abs().flatten()[None], share).view_as(
        weight_OI
    )


def zero_wanda(weight_OI: Tensor, inputs: InputStatistics, share: float) -> Tensor:
    """Wanda (2306.11695): in every row, the round(share I) weights of the least |w| ||x|| become zero."""
    return _zero_least(weight_OI, weight_OI.float().abs() * inputs.norm, share)


def check_share(share: float) -> None:
    """ValueError for what is no share of the weights that can be zero."""
    if not isinstance(share, SupportsFloat) or not 0 <= share < 1:
        raise ValueError(f"a share of {share!r:.60} of the weights cannot be zero: choose from 0 to below 1")


def _zero_least(weight: Tensor, score: Tensor, share: float) -> Tensor:
    check_share(share)
    least = score.argsort(dim=-1, stable=True)[:, : round(share * weight.shape[-1])]
    return weight.scatter(-1, least, torch.zeros_like(weight))
