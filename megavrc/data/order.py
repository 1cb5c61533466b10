"""The training order: a pure function from (number of samples, seed, position) to a sample.

Position p is the p-th sample that training ever consumes, counted over all ranks. Nothing else is state: a run that
has done s steps of B samples continues at position s * B, on any number of ranks and workers.
"""

import numpy as np


def permutation(n: int, key: int) -> np.ndarray:
    """A permutation of range(n), int64 [n], that depends on the 128-bit `key` only.

    It sorts the raw output of Philox, because numpy promises a bit generator's stream for ever, and that of
    `Generator.permutation` only until somebody improves it (NEP 19): runs must resume under a newer numpy.
    """
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


class Order:
    """Every epoch visits each of `n` samples once, in a new seeded order; the last partial batch runs into the next.

    Args:
        n: number of samples, at least 1.
        seed: 0 <= seed < 2**64.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError("an order needs at least one sample")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed} is not in [0, 2**64)")
        self.n, self.seed = n, seed
        self._epochs: dict[int, np.ndarray] = {}

    def sample(self, position: int) -> int:
        """Index in [0, n) of the sample at a position >= 0."""
        epoch, place = divmod(position, self.n)
        return int(self._epoch(epoch)[place])

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            while (
                len(self._epochs) > 1
            ):  # a batch can straddle two epochs, never three unless it is larger than one
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = permutation(self.n, key=epoch << 64 | self.seed)
        return self._epochs[epoch]
