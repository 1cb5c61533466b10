"""Is every rank there, from the first moment until training begins? Heartbeats in the store where the ranks meet.

A rank that is killed or stopped before there is a process group, or while data and checkpoints are opened, would keep
the others waiting for their timeout. Here the first rank misses it after a minute, and all others hear so from the
first rank, or miss that one. When training begins the watchdog takes over, with heartbeats in files.
"""

import contextlib
import os
import sys
import threading
import time

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]  # public, in torch's documentation

from megavrc.errors import EXIT_HANG, UserError

BEAT = 2.0  # seconds between heartbeats
SILENT = 60.0  # seconds without one after which a rank is lost
GONE = "rank 0 is gone or does not answer"
LEFT = "left"  # instead of a heartbeat: this rank ends, or trains


class RollCall:
    """Sends this rank's heartbeats, and ends the process with exit code 85 when another rank's stop coming.

    Args:
        store: that all ranks reach; for this object alone, since a store serves one thread at a time.
        rank, world_size: of this process.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._ended = store, rank, threading.Event()
        # The first rank looks at all others, these at the first one alone: the store answers n questions, not n * n.
        self._watched = [other for other in range(world_size if rank == 0 else 1) if other != rank]
        self._known: dict[int, tuple[str, float]] = {}  # the last heartbeat of a rank, and when it came
        self._lost = ""  # who is, in words; the first rank's heartbeats say it to the others
        # Seconds that this process was not suspended: until now, and until the store's last answer.
        self._awake = self._answered = 0.0
        self._beat(0)
        self._talker = threading.Thread(target=self._talk, name="roll call", daemon=True)
        self._talker.start()
        threading.Thread(target=self._judge, name="roll call's judge", daemon=True).start()

    def end(self) -> None:
        """This rank ends, or all have come as far as training."""
        self._ended.set()
        self._talker.join(BEAT)
        if not self._talker.is_alive():  # otherwise the store does not answer
            with contextlib.suppress(dist.DistError):
                self._store.set(self._key(self._rank), LEFT)

    def wait_for_verdict(self) -> None:
        """After an error of communication, which names nobody: until the lost rank is named, and the process ends.

        Returns if no rank is lost: then another one has ended by an error of its own.
        """
        deadline = time.monotonic() + SILENT + 20 * BEAT
        while time.monotonic() < deadline and not self._ended.wait(BEAT / 5):
            if LEFT in (heartbeat for heartbeat, _ in list(self._known.values())):
                return

    def _talk(self) -> None:
        """With the store: where its process is stopped, what asks it waits for ever."""
        count = 0
        while not self._ended.wait(BEAT):
            count += 1
            try:
                self._beat(count)
                self._lost = self._lost or self._missed()
            except dist.DistError:
                self._lost = GONE
                return
            self._answered = self._awake

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(BEAT):
            now = time.monotonic()
            self._awake += min(now - last, 2.5 * BEAT)
            last = now
            lost = self._lost or (GONE if self._awake - self._answered > SILENT else "")
            # Wait until the others have heard it, or this rank ends by itself.
            if lost and not self._ended.wait(3 * BEAT):
                with contextlib.suppress(OSError):
                    print(f"error: {lost}; this is rank {self._rank}", file=sys.stderr, flush=True)
                os._exit(EXIT_HANG)

    def _beat(self, count: int) -> None:
        self._store.set(self._key(self._rank), f"{count} {self._lost}")

    def _missed(self) -> str:
        """Ranks that no longer send heartbeats, in words."""
        silent = []
        for rank in self._watched:
            if rank not in self._known and not self._store.check([self._key(rank)]):
                continue  # not here yet
            heartbeat = self._store.get(self._key(rank)).decode()
            before, since = self._known.get(rank, ("", 0.0))
            self._known[rank] = heartbeat, since if heartbeat == before else self._awake
            if rank == 0 and (lost := heartbeat.partition(" ")[2]):
                return lost
            if heartbeat != LEFT and self._awake - self._known[rank][1] > SILENT:
                silent.append(str(rank))
        if not silent:
            return ""
        return f"rank{'s' * (len(silent) > 1)} {', '.join(silent)} gave no sign of life for {SILENT:g} s"

    @staticmethod
    def _key(rank: int) -> str:
        return f"alive/{rank}"


def is_communication(error: BaseException) -> bool:
    """Whether an error may come from another rank's end."""
    if isinstance(error, UserError):  # its text may say anything
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection"))
