"""Rank and world from whatever launcher started the process, seeds, and signals agreed over ranks."""

from megavrc.distributed.agree import same_error_on_all_ranks
from megavrc.distributed.env import AbsentRank, Rank, connect, discover, own_words, seed_for
from megavrc.distributed.signals import StopSignal, any_rank, sum_over_ranks

__all__ = [
    "AbsentRank",
    "Rank",
    "StopSignal",
    "any_rank",
    "connect",
    "discover",
    "own_words",
    "same_error_on_all_ranks",
    "seed_for",
    "sum_over_ranks",
]
