"""The training order: a pure function from (manifest, seed, position) to a sample.

Position p is the p-th sample that training ever consumes, counted over all ranks. Nothing else is state: a run that
has done s steps of B samples continues at position s * B, on any number of ranks and workers.

All randomness is raw output of Philox (Salmon et al., 2011), because numpy promises a bit generator's stream for ever,
and that of `Generator.permutation` only until somebody improves it (NEP 19): runs must resume under a newer numpy.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

SUBSTITUTES = 1 << 63  # the last word of Philox's counter, for substitutes; windows count up from 1


class SampleOrder(Protocol):
    """Which sample stands at a position.

    Attributes:
        n: number of samples.
    """

    n: int

    def sample(self, position: int) -> int:
        """Index in [0, n) of the sample at a position >= 0."""

    def substitute(self, position: int, attempt: int) -> int:
        """Index of a sample that takes the place of the one at `position` if that is damaged; attempt = 0, 1, ..."""


def permutation(n: int, key: int, stream: int = 0) -> np.ndarray:
    """A permutation of range(n), int64 [n], that depends on the 128-bit `key` and the 64-bit `stream` only."""
    return np.argsort(_philox(key, stream).random_raw(n), kind="stable")


def _philox(key: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=key, counter=stream << 192)


class InOrder:
    """The samples as they lie in the dataset, again and again; for evaluation."""

    def __init__(self, n: int, seed: int = 0) -> None:
        if n < 1:
            raise ValueError("an order needs at least one sample")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed} is not in [0, 2**64)")
        self.n, self.seed = n, seed

    def sample(self, position: int) -> int:
        return position % self.n

    def substitute(self, position: int, attempt: int) -> int:
        [draw] = _philox(position << 64 | self.seed, SUBSTITUTES + attempt).random_raw(1)
        return int(draw) % self.n


class Order(InOrder):
    """Every epoch visits each of `n` samples once, in a new seeded order; the last partial batch runs into the next.

    Args:
        n: number of samples, at least 1.
        seed: 0 <= seed < 2**64.
    """

    def __init__(self, n: int, seed: int) -> None:
        super().__init__(n, seed)
        self._epochs: dict[int, np.ndarray] = {}

    def sample(self, position: int) -> int:
        epoch, place = divmod(position, self.n)
        if epoch not in self._epochs:
            _forget_all_but_one(self._epochs)
            self._epochs[epoch] = permutation(self.n, key=epoch << 64 | self.seed)
        return int(self._epochs[epoch][place])


class WindowOrder(InOrder):
    """`Order`, but shard by shard: an epoch goes through the shards in a new order, `window` of them at a time,
    and shuffles the samples of these together. So few shards are in use at once, which a cache of remote ones needs.

    Args:
        counts: samples of each shard, in the dataset's order; empty shards are allowed.
        seed: 0 <= seed < 2**64.
        window: shards shuffled together, at least 1.
    """

    def __init__(self, counts: Sequence[int], seed: int, window: int) -> None:
        super().__init__(sum(counts), seed)
        if window < 1:
            raise ValueError(f"a window of {window} shards")
        self._counts = np.array(counts, dtype=np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        self._window = window
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def sample(self, position: int) -> int:
        epoch, place = divmod(position, self.n)
        shards, ends = self._epoch(epoch)
        number = int(np.searchsorted(ends, place, side="right"))
        start = int(ends[number - 1]) if number else 0
        if (epoch, number) not in self._windows:
            _forget_all_but_one(self._windows)
            chosen = shards[number * self._window : (number + 1) * self._window]
            samples = np.concatenate(
                [
                    np.arange(self._firsts[shard], self._firsts[shard] + self._counts[shard])
                    for shard in chosen
                ]
            )
            shuffled = permutation(len(samples), key=epoch << 64 | self.seed, stream=1 + number)
            self._windows[epoch, number] = samples[shuffled]
        return int(self._windows[epoch, number][place - start])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards, and how many samples have passed at the end of each window."""
        if epoch not in self._epochs:
            _forget_all_but_one(self._epochs)
            shards = permutation(len(self._counts), key=epoch << 64 | self.seed)
            starts = np.arange(0, len(shards), self._window)
            self._epochs[epoch] = shards, np.cumsum(np.add.reduceat(self._counts[shards], starts))
        return self._epochs[epoch]


def _forget_all_but_one(kept: dict) -> None:  # type: ignore[type-arg]
    """A batch can straddle two epochs, never three unless it is larger than one."""
    while len(kept) > 1:
        kept.pop(next(iter(kept)))
