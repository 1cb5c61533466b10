"""Stop on SIGTERM or SIGUSR1, at the same step on every rank."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """Remembers that this process was asked to stop. The handler only sets a flag: the loop acts at a step's end."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


def any_rank(*flags: bool) -> list[bool]:
    """Each flag OR-ed over all ranks: one small CPU all-reduce for all of them."""
    votes = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def sum_over_ranks(count: int) -> int:
    """The sum of a count over all ranks: one small CPU all-reduce."""
    total = torch.tensor(count)
    dist.all_reduce(total)
    return int(total)
