"""The motion of one object, fitted: where it starts and how fast it goes between walls that reflect it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megavrc.video.scenes import CANVAS
from megavrc.video.shapes import DIRECTIONS

Array = NDArray[np.float64]

FASTEST = 4.0  # canvas units a frame; the set's fastest go 2
STILL = 0.5  # canvas units a frame; what is slower has no direction
ROUNDS = 3  # of unfolding and fitting a line
CLEARLY = 2.0  # the speed along one axis over that along the other, so that there is a direction


class FittedMotion(NamedTuple):
    """Constant speed between walls: `start` (x, y) at time 0 and `way` (x, y) a frame, in canvas units."""

    start: Array
    way: Array

    def at(self, times_T: NDArray[np.int64], radius: float) -> Array:
        """Centres [T, 2] of an object of this radius."""
        return folded(self.start + self.way * times_T[:, None], radius)

    def walls(self, times_T: NDArray[np.int64], radius: float) -> NDArray[np.int64]:
        """Number of walls that it has met, [T]; only differences mean something."""
        unhindered = self.start + self.way * times_T[:, None]
        return np.abs(np.floor((unhindered - radius) / (CANVAS - 2 * radius))).sum(axis=1).astype(np.int64)

    @property
    def direction(self) -> str | None:
        """One of DIRECTIONS; None for what stands still or goes slantwise."""
        along = int(np.abs(self.way).argmax())
        if abs(self.way[along]) < max(STILL, CLEARLY * abs(self.way[1 - along])):
            return None
        step = tuple(int(np.sign(self.way[axis])) if axis == along else 0 for axis in range(2))
        return next(name for name, value in DIRECTIONS.items() if value == step)

    @property
    def speed(self) -> int:
        """The nearest speed of the set."""
        return 1 if np.abs(self.way).max() < 1.5 else 2


def folded(centres_T2: Array, radius: float) -> Array:
    """Unhindered places as the walls reflect them: the generator's rule for whole objects, for any place."""
    room = CANVAS - 2 * radius
    return radius + room - np.abs(room - (centres_T2 - radius) % (2 * room))


def fit_motion(
    centres_T2: Array, times_T: NDArray[np.int64], weights_T: Array, radius: float
) -> FittedMotion:
    """Weighted least squares over start and way, each axis by itself.

    A grid first, because reflection makes many local minima; then lines through what its best point unfolds.
    """
    axes = [_fit_axis(centres_T2[:, axis], times_T, weights_T, radius) for axis in range(2)]
    start, way = np.array(axes).T
    return FittedMotion(start, way)


def _fit_axis(
    places_T: Array, times_T: NDArray[np.int64], weights_T: Array, radius: float
) -> tuple[float, float]:
    starts, ways = np.arange(radius, CANVAS - radius + 0.5), np.arange(-FASTEST, FASTEST + 0.1, 0.2)
    paths = starts[:, None, None] + ways[None, :, None] * times_T
    costs = ((weights_T * (folded(paths, radius) - places_T)) ** 2).sum(axis=-1)
    i, j = np.unravel_index(costs.argmin(), costs.shape)
    start, way = float(starts[i]), float(ways[j])
    for _ in range(ROUNDS):
        rooms = np.floor((start + way * times_T - radius) / (CANVAS - 2 * radius))
        unfolded = np.where(rooms % 2, CANVAS - places_T, places_T) + rooms * (CANVAS - 2 * radius)
        way, start = np.polyfit(times_T, unfolded, 1, w=weights_T)
    return float(start), float(way)
