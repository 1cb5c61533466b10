"""A simulated cache of few bits, for VRC's generator."""

import torch
from torch import Tensor

from megavrc.model import VRC

from .rounding import SCALE_BITS, grouped, round_cache


def simulate_cache(model: VRC, bits: int, group_size: int | None = None) -> float:
    """Round the keys and values that every later generation with the model keeps, see `round_cache`.

    Args:
        model: changed in place; training and the weights are not.
        bits: 8 or 4.
        group_size: channels of a head that share a range; None is the whole head.

    Returns:
        bits that a key or value would take, the two numbers of its range (16 bits each) included. None is saved.

    Raises:
        ValueError: other bits, or groups that do not divide a head.
    """
    head = torch.zeros(1, model.config.head_dim)
    round_cache(head, head, bits, group_size)
    size = grouped(head, group_size).shape[-1]

    def rounding(kv_2BHSD: Tensor) -> Tensor:
        return torch.stack(round_cache(kv_2BHSD[0], kv_2BHSD[1], bits, group_size))

    model.trunk.cache_rounding = rounding
    return bits + 2 * SCALE_BITS / size
