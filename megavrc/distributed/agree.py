"""A mistake that only some ranks meet ends all of them, with the same words."""

import contextlib
import platform
from collections.abc import Iterator

import torch.distributed as dist

from megavrc.distributed.env import Rank
from megavrc.errors import UserError
from megavrc.files import user_error


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
