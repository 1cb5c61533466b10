"""Rank and world from whatever launcher started the process, seeds, and signals agreed over ranks."""

from megavrc.distributed.env import AbsentRank, Rank, check_device, connect, discover, own_words, seed_for
from megavrc.distributed.signals import StopSignal, any_rank, sum_over_ranks
from megavrc.distributed.together import together

__all__ = [
    "AbsentRank",
    "Rank",
    "StopSignal",
    "any_rank",
    "check_device",
    "connect",
    "discover",
    "own_words",
    "seed_for",
    "sum_over_ranks",
    "together",
]
