"""Clips of scenes with one planted fault each: drawn like real ones, with another path, size, strength or cut."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from megavrc.video.scenes import (
    CANVAS,
    COLOURS,
    DIRECTIONS,
    OCCLUDER_WIDTH,
    RADII,
    SHAPES,
    SPEEDS,
    Object,
    Scene,
    coverage,
    occluder_coverage,
    positions,
    render_scene,
    scene,
)

ONSET = 5  # the first frame that is wrong: the second latent frame after the first
LENGTH, SIZE = 17, 64

Layer = np.ndarray  # [T, H, W], how much of each pixel an object covers
Fault = Callable[[Scene], np.ndarray]


def draw(shown: Scene, layers: list[Layer], lighter: np.ndarray | float = 0.0) -> np.ndarray:
    """Put layers of the scene's objects on top of each other, behind its bar; `lighter`: grey levels, everywhere."""
    bar = occluder_coverage(shown, SIZE)
    empty = render_scene(dataclasses.replace(shown, objects=()))
    image = np.broadcast_to(empty, (LENGTH, SIZE, SIZE, 3)) + np.float32(lighter)
    for item, layer in zip(shown.objects, layers, strict=True):
        image = image + (layer * (1 - bar))[..., None] * (np.array(COLOURS[item.colour], np.float32) - image)
    return (image + 0.5).astype(np.uint8)


def moving(
    shown: Scene, change: Callable[[Object, np.ndarray], np.ndarray] = lambda item, path: path
) -> np.ndarray:
    """The scene with changed paths, [T, 2] each."""
    paths = [change(item, path) for item, path in zip(shown.objects, positions(shown), strict=True)]
    pairs = zip(shown.objects, paths, strict=True)
    return draw(shown, [coverage(item.shape, item.radius, path) for item, path in pairs])


def layered(shown: Scene, change: Callable[[Object, np.ndarray, Layer], Layer]) -> np.ndarray:
    """The scene with each object's layer changed from ONSET on."""
    layers = []
    for item, path in zip(shown.objects, positions(shown), strict=True):
        layer = coverage(item.shape, item.radius, path)
        layers.append(np.concatenate([layer[:ONSET], change(item, path, layer)[ONSET:]]))
    return draw(shown, layers)


def torn(shown: Scene) -> np.ndarray:
    """Cut along the motion; the halves are 8 pixels apart."""

    def change(item: Object, path: np.ndarray, layer: Layer) -> Layer:
        axis = 1 if DIRECTIONS[item.direction][0] else 0  # of (x, y): across the motion
        pixels = np.arange(SIZE) + 0.5
        halves = []
        for sign in (-1, 1):
            moved = path.copy()
            moved[:, axis] += 4 * sign
            side = (pixels - moved[:, axis, None]) * sign > 0
            cut = side[:, :, None] if axis else side[:, None, :]
            halves.append(coverage(item.shape, item.radius, moved) * cut)
        return np.maximum(*halves)

    return layered(shown, change)


def doubled(shown: Scene) -> np.ndarray:
    """A second one, half a picture further across the motion."""

    def change(item: Object, path: np.ndarray, layer: Layer) -> Layer:
        axis = 1 if DIRECTIONS[item.direction][0] else 0
        other = path.copy()
        other[:, axis] += np.where(path[0, axis] < CANVAS / 2, 24, -24)
        return np.maximum(layer, coverage(item.shape, item.radius, other))

    return layered(shown, change)


def frozen(shown: Scene) -> np.ndarray:
    return np.repeat(moving(shown)[:1], LENGTH, axis=0)


def fading(shown: Scene) -> np.ndarray:
    """Towards the background: down to 65% of its colour."""
    strength = np.linspace(1, 0.65, LENGTH, dtype=np.float32)[:, None, None]
    layers = [
        coverage(o.shape, o.radius, p) * strength
        for o, p in zip(shown.objects, positions(shown), strict=True)
    ]
    return draw(shown, layers)


def shrinking(shown: Scene) -> np.ndarray:
    """Down to 90% of its area."""
    radii = np.linspace(1, 0.9**0.5, LENGTH)
    layers = [
        np.concatenate([coverage(o.shape, o.radius * r, p[t : t + 1]) for t, r in enumerate(radii)])
        for o, p in zip(shown.objects, positions(shown), strict=True)
    ]
    return draw(shown, layers)


def vanishing(shown: Scene) -> np.ndarray:
    return layered(shown, lambda item, path, layer: 0 * layer)


def through_a_wall(shown: Scene) -> np.ndarray:
    def change(item: Object, path: np.ndarray) -> np.ndarray:
        return path[0] + np.arange(LENGTH)[:, None] * np.array(DIRECTIONS[item.direction]) * item.speed

    return moving(shown, change)


def turned(shown: Scene) -> np.ndarray:
    """Goes across its direction, in the middle of the clip, without a wall."""

    def change(item: Object, path: np.ndarray) -> np.ndarray:
        way = np.array(DIRECTIONS[item.direction][::-1]) * np.where(path[8] < CANVAS / 2, 1, -1) * 2
        return np.concatenate(
            [path[:10], path[9] + np.arange(1, LENGTH - 9)[:, None] * np.abs(way) * np.sign(way)]
        )

    return moving(shown, change)


def trembling(shown: Scene) -> np.ndarray:
    """A quarter of a pixel to and fro, along and across."""
    return moving(shown, lambda item, path: path + 0.25 * (-1.0) ** np.arange(LENGTH)[:, None])


def teleported(shown: Scene) -> np.ndarray:
    """Comes back from behind the bar 8 pixels higher or lower."""

    def change(item: Object, path: np.ndarray) -> np.ndarray:
        low, high = path[:, 0] - item.radius, path[:, 0] + item.radius
        behind = (low >= shown.occluder) & (high <= shown.occluder + OCCLUDER_WIDTH)
        if behind.any():
            path = path.copy()
            path[int(behind.argmax()) :, 1] += 8 if path[0, 1] < CANVAS / 2 else -8
        return path

    return moving(shown, change)


def shuffled(shown: Scene) -> np.ndarray:
    """Neighbouring frames change places in the second half."""
    order = [*range(9), *(time for pair in range(9, 17, 2) for time in (pair + 1, pair))]
    return moving(shown)[order]


def flickering(shown: Scene) -> np.ndarray:
    """The background brightens by 4 grey levels in every latent frame."""
    steps = 4.0 * ((np.arange(LENGTH) + 3) // 4)
    layers = [coverage(o.shape, o.radius, p) for o, p in zip(shown.objects, positions(shown), strict=True)]
    return draw(shown, layers, steps[:, None, None, None].astype(np.float32))


def _other(shown: Scene, **change: Callable[[Object], object]) -> np.ndarray:
    objects = tuple(
        dataclasses.replace(item, **{key: value(item) for key, value in change.items()})
        for item in shown.objects
    )
    return moving(dataclasses.replace(shown, objects=objects))


def _next(values: object, value: object, step: int = 1) -> object:
    names = list(values)  # type: ignore[call-overload]
    return names[(names.index(value) + step) % len(names)]


def recoloured(shown: Scene) -> np.ndarray:
    return _other(shown, colour=lambda item: _next(COLOURS, item.colour))


def reshaped(shown: Scene) -> np.ndarray:
    return _other(shown, shape=lambda item: _next(SHAPES, item.shape))


def misdirected(shown: Scene) -> np.ndarray:
    return _other(shown, direction=lambda item: _next(DIRECTIONS, item.direction))


def wrong_speed(shown: Scene) -> np.ndarray:
    return _other(shown, speed=lambda item: _next(SPEEDS, item.speed))


def extra(shown: Scene) -> np.ndarray:
    """One more object, in an empty corner of its own."""
    taken = {item.colour for item in shown.objects}
    more = Object(next(c for c in COLOURS if c not in taken), "square", RADII[0], 10, 10, "down", 1, False)
    return moving(dataclasses.replace(shown, objects=(*shown.objects, more)))


def _straight(item: Object, time: int) -> bool:
    """Whether it has met no wall until then."""
    way = np.array(DIRECTIONS[item.direction]) * item.speed * time
    place = np.array([item.x, item.y]) + way
    return bool((place >= item.radius).all() and (place <= CANVAS - item.radius).all())


def alone(shown: Scene) -> bool:
    """Whether nothing can hide its only object, whose motion is told."""
    return (
        shown.occluder is None
        and shown.background.pan is None
        and len(shown.objects) == 1
        and shown.objects[0].told
    )


def meets_no_wall(shown: Scene) -> bool:
    return alone(shown) and _straight(shown.objects[0], LENGTH - 1)


def bounces_late(shown: Scene) -> bool:
    """In the second half, which the path is foretold for."""
    return alone(shown) and _straight(shown.objects[0], 8) and not _straight(shown.objects[0], LENGTH - 4)


def passes_the_bar(shown: Scene) -> bool:
    """Vanishes behind the bar whole and comes out half at least."""
    if shown.occluder is None or len(shown.objects) > 1:
        return False
    path, radius = positions(shown)[0][:, 0], shown.objects[0].radius
    low, high = shown.occluder, shown.occluder + OCCLUDER_WIDTH
    behind = (path - radius >= low) & (path + radius <= high)
    return bool(behind.any() and ((path <= low - 2) | (path >= high + 2))[behind.argmax() :].any())


def scenes_that(fit: Callable[[Scene], bool], count: int, seed: int = 11) -> list[Scene]:
    """The first scenes of a set that fit."""
    return list(itertools.islice(filter(fit, (scene(seed, index) for index in itertools.count())), count))
