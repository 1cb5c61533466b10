"""What one rank finds, all ranks know: mistakes that only some of them meet, and what the main one decides."""

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist

from megavrc.distributed.env import Rank
from megavrc.errors import UserError
from megavrc.files import user_error

T = TypeVar("T")


@contextlib.contextmanager
def same_error_on_all_ranks(rank: Rank) -> Iterator[None]:
    """Raise the first rank's UserError from inside on every rank, naming that rank (collective on the way out).

    So is what the system says of a file (OSError), as a UserError.

    Nothing inside may be collective, unless it fails on all ranks alike. Other errors pass at once; the other ranks
    then fail as soon as the failed one has left its process group.
    """
    mine: UserError | None = None
    try:
        try:
            yield
        except OSError as error:
            raise user_error(error) from None
    except UserError as error:
        place = f"rank {rank.rank} on {platform.node()}: "
        mine = error if rank.main else type(error)(f"{place}{error}")
    everyones: list[UserError | None] = [None] * rank.world_size
    dist.all_gather_object(everyones, mine)
    for first in filter(None, everyones):
        raise first


def main_rank_decides(decide: Callable[[], T], rank: Rank) -> T:
    """Run `decide` on the main rank and give every rank its result, or its UserError (collective)."""
    outcome: list[Any] = [None]
    with same_error_on_all_ranks(rank):
        if rank.main:
            outcome[0] = decide()
    dist.broadcast_object_list(outcome, src=0)
    return outcome[0]
