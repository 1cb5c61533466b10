"""GPTQ: columns are rounded one by one, and those still to come make up for the error."""

import torch
from torch import Tensor

from .layers import InputStatistics
from .rounding import grouped, round_to, scales


def round_gptq(
    weight_OI: Tensor,
    inputs: InputStatistics,
    number_format: str,
    group_size: int | None = None,
    damping: float = 0.01,
) -> Tensor:
    """GPTQ (2210.17323), in the order of the columns, scales of a group taken when it is reached.

    `damping` is a share of the mean of the Gram matrix's diagonal. Weights of inputs that are always zero become zero.
    Left out: the blocks of columns that only make it faster.

    Raises:
        ValueError: the groups do not divide the inputs.
    """
    weight = weight_OI.float().clone()
    size = grouped(weight, group_size).shape[-1]
    gram = inputs.gram_II.double().clone()
    dead = gram.diagonal() == 0
    gram.diagonal()[dead] = 1
    weight[:, dead] = 0
    gram.diagonal().add_(damping * gram.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True).float()
    for column in range(weight.shape[1]):
        if column % size == 0:
            scale = scales(weight[:, column : column + size], number_format)[:, 0]
        rounded = round_to(weight[:, column] / scale, number_format) * scale
        error = (weight[:, column] - rounded) / inverse[column, column]
        weight[:, column] = rounded
        weight[:, column + 1 :] -= error[:, None] * inverse[column, column + 1 :]
    return weight.to(weight_OI.dtype)
