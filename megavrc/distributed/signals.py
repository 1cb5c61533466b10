"""Stop on SIGTERM, SIGUSR1, Ctrl-C or a time limit, at the same step on every rank."""

import signal
import time
from types import FrameType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
AGAIN_S = 3.0  # a second Ctrl-C within it is the launcher's, which passes on the first one


class StopSignal:
    """Remembers that this process was asked to stop. The handler only sets a flag: the loop acts at a step's end.

    A second Ctrl-C ends the process there and then.

    Args:
        minutes: after which it is as if a signal had come (0: never).

    Attributes:
        received: what asked to stop: a signal's name, or the time limit.
    """

    def __init__(self, minutes: float = 0.0) -> None:
        self.received: str | None = None
        self._interrupted = float("inf")
        self._deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def asked(self) -> bool:
        """Whether a signal has come or the time is over."""
        if self.received is None and time.monotonic() > self._deadline:
            self.received = "train.exit_duration"
        return self.received is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and now > self._interrupted + AGAIN_S:
            raise KeyboardInterrupt  # not at the end of the step, but now
        if number == signal.SIGINT:
            self._interrupted = min(now, self._interrupted)
        self.received = signal.Signals(number).name


def any_rank(*flags: bool) -> list[bool]:
    """Each flag OR-ed over all ranks: one small CPU all-reduce for all of them."""
    votes = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def total_over_ranks(count: int) -> int:
    """The sum of a count over all ranks: one small CPU all-reduce."""
    total = torch.tensor(count)
    dist.all_reduce(total)
    return int(total)
