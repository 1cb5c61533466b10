"""Rank and world from whatever launcher started the process, seeds, and signals agreed over ranks."""

from megavrc.distributed.agree import main_rank_decides, same_error_on_all_ranks
from megavrc.distributed.env import AbsentRank, Rank, connect, discover, seed_for, strip_launcher_args
from megavrc.distributed.roll_call import is_communication
from megavrc.distributed.signals import StopSignal, any_rank, total_over_ranks

__all__ = [
    "AbsentRank",
    "Rank",
    "StopSignal",
    "any_rank",
    "connect",
    "discover",
    "is_communication",
    "main_rank_decides",
    "same_error_on_all_ranks",
    "seed_for",
    "strip_launcher_args",
    "total_over_ranks",
]
