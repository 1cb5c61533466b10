"""Stage `merge`: what a kept token becomes. Sums are fp32."""

import torch
from torch import Tensor


def total(x_N: Tensor, assign_N: Tensor, count: int) -> Tensor:
    """[count, ..] fp32: sums of the tokens that go into each; -1 goes nowhere."""
    there = assign_N >= 0
    sums = x_N.new_zeros(count, *x_N.shape[1:], dtype=torch.float32)
    return sums.index_add_(0, assign_N[there], x_N[there].float())


def average(x_ND: Tensor, assign_N: Tensor, count: int, weight_N: Tensor | None = None) -> Tensor:
    """[count, D] fp32: weighted means of the tokens that go into each; 0 for one that gets none."""
    weight = x_ND.new_ones(len(x_ND), dtype=torch.float32) if weight_N is None else weight_N.float()
    share = total(weight, assign_N, count)
    return total(x_ND.float() * weight[:, None], assign_N, count) / share.clamp(min=1e-12)[:, None]


def others(x_ND: Tensor, index_K: Tensor, assign_N: Tensor) -> tuple[Tensor, Tensor]:
    """([K, D], [K]): mean of the tokens that go into each besides itself, and how many they are."""
    rest = assign_N.clone()
    rest[index_K] = -1
    return average(x_ND, rest, len(index_K)), total(x_ND.new_ones(len(x_ND)), rest, len(index_K))


def with_others(x_ND: Tensor, index_K: Tensor, assign_N: Tensor) -> Tensor:
    """[K, D] fp32: itself plus the mean of the others, if there are any (VisionZip)."""
    return x_ND[index_K].float() + others(x_ND, index_K, assign_N)[0]


def blend(x_ND: Tensor, index_K: Tensor, assign_N: Tensor, least: float) -> Tensor:
    """[K, D] fp32: w itself + (1 - w) mean of the others, w = max(1 / (others + 1), least) (FastVID, HoliTom)."""
    rest, count = others(x_ND, index_K, assign_N)
    weight = (1 / (count + 1)).clamp(min=least)[:, None]
    return weight * x_ND[index_K].float() + (1 - weight) * rest
