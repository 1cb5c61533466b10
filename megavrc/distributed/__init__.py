"""Rank and world from whatever launcher started the process, seeds, and signals agreed over ranks."""

from megavrc.distributed.env import Rank, connect, discover, seed_for
from megavrc.distributed.signals import StopSignal, any_rank, sum_over_ranks

__all__ = ["Rank", "StopSignal", "any_rank", "connect", "discover", "seed_for", "sum_over_ranks"]
