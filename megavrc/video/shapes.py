"""Synthetic captioned clips: one coloured shape that moves over a plain dark background.

A clip is a pure function of (seed, clip index). Sizes and positions are in units of a 64-pixel canvas and scale with
`size`, so that the task is the same at any resolution.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (235, 220, 40),
    "cyan": (40, 215, 220),
    "magenta": (225, 50, 215),
}
SHAPES = ("square", "circle", "triangle")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}  # (x, y), y down

BACKGROUND = 26  # 0.10 of 255
CANVAS = 64.0
RADII = (10, 11, 12)
NEAR, FAR = 14, 50  # the centre of a shape never leaves [NEAR, FAR]
SPEED = 1.5  # canvas units a frame


class Combination(NamedTuple):
    """The attributes that a caption names."""

    colour: str
    shape: str
    direction: str


COMBINATIONS = tuple(Combination(c, s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS)


def caption(combination: Combination) -> str:
    """Return for example "a red square moves left"."""
    return f"a {combination.colour} {combination.shape} moves {combination.direction}"


def signed_distance(
    shape: str, x: NDArray[np.float32], y: NDArray[np.float32], r: float
) -> NDArray[np.float32]:
    """Distance of points (x, y), relative to the centre, from the outline of `shape`; negative inside.

    Square: half side r. Circle: radius r. Triangle: isosceles, apex up, width and height 2r.
    """
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - np.float32(r)
    if shape == "circle":
        return np.sqrt(x * x + y * y) - np.float32(r)
    if shape == "triangle":
        return np.maximum(y - np.float32(r), (2 * np.abs(x) - y - np.float32(r)) / np.float32(5**0.5))
    raise ValueError(f"shape {shape!r} is unknown; choose from {', '.join(SHAPES)}")


def render(
    colour: str, shape: str, direction: str, rng: np.random.Generator, frames: int = 17, size: int = 64
) -> NDArray[np.uint8]:
    """Draw one anti-aliased clip, uint8 [frames, size, size, 3].

    `rng` chooses the size of the shape and its integer start. Up to 25 frames move 1.5 canvas units a frame; longer
    clips move slower, so that the path stays inside the canvas.
    """
    speed = min(SPEED, (FAR - NEAR) / max(frames - 1, 1))
    path = int(np.ceil(speed * (frames - 1)))
    r = int(rng.choice(RADII))
    across = int(rng.integers(NEAR, FAR + 1))
    along = int(rng.integers(NEAR, FAR - path + 1))  # smallest coordinate that the path touches
    dx, dy = DIRECTIONS[direction]
    steps = np.arange(frames, dtype=np.float32) * np.float32(speed)
    moving = along + steps if dx + dy > 0 else (along + path) - steps
    still = np.full_like(moving, across)
    centre_x, centre_y = (moving, still) if dx else (still, moving)

    scale = size / CANVAS
    pixels = np.arange(size, dtype=np.float32) + np.float32(0.5)
    x = pixels[None, None, :] - np.float32(scale) * centre_x[:, None, None]
    y = pixels[None, :, None] - np.float32(scale) * centre_y[:, None, None]
    coverage = np.clip(0.5 - signed_distance(shape, x, y, r * scale), 0, 1)[..., None]
    ink = np.asarray(COLOURS[colour], dtype=np.float32) - BACKGROUND
    return (coverage * ink + np.float32(BACKGROUND + 0.5)).astype(np.uint8)


def combination_of(
    seed: int, index: int, combinations: tuple[Combination, ...] = COMBINATIONS
) -> Combination:
    """Return the combination of clip `index`: each run of len(combinations) clips holds every combination once."""
    block, place = divmod(index, len(combinations))
    order = np.random.default_rng((seed, 0, block)).permutation(len(combinations))
    return combinations[int(order[place])]


def clip(
    seed: int,
    index: int,
    combinations: tuple[Combination, ...] = COMBINATIONS,
    frames: int = 17,
    size: int = 64,
) -> tuple[Combination, NDArray[np.uint8]]:
    """Return clip `index` of the endless set named by `seed`: (combination, uint8 [frames, size, size, 3])."""
    combination = combination_of(seed, index, combinations)
    rng = np.random.default_rng((seed, 1, index))
    return combination, render(*combination, rng=rng, frames=frames, size=size)


def heldout_combinations(seed: int, n: int = 6) -> tuple[Combination, ...]:
    """Choose `n` combinations to leave out of training, spread evenly over all attribute values and their pairs.

    With n = 6 each colour is left out once, each shape twice and each direction once or twice, all in different
    pairs, so that every value and every pair of values stays frequent in training.
    """
    if seed < 0:
        raise ValueError(f"seed {seed}: at least 0")
    if not 0 <= n <= 18:
        raise ValueError(f"heldout {n}: choose 0 to 18 of the {len(COMBINATIONS)} combinations")
    order = np.random.default_rng((seed, 2)).permutation(len(COMBINATIONS))
    candidates = [COMBINATIONS[int(i)] for i in order]
    chosen: list[Combination] = []

    def crowding(candidate: Combination) -> tuple[int, int]:
        shared = [[a == b for a, b in zip(candidate, other, strict=True)] for other in chosen]
        pairs = sum(sum(same) >= 2 for same in shared)
        # Squares prefer even counts: a third use of one value is worse than a second use of two.
        values = sum(sum(column) ** 2 for column in zip(*shared, strict=True))
        return pairs, values

    for _ in range(n):
        best = min(candidates, key=crowding)  # the first of equals: the seeded order decides
        chosen.append(best)
        candidates.remove(best)
    return tuple(chosen)


def training_combinations(heldout: tuple[Combination, ...]) -> tuple[Combination, ...]:
    """Return all combinations but `heldout`, in the order of COMBINATIONS."""
    return tuple(c for c in COMBINATIONS if c not in heldout)
