"""Synthetic clips whose future is open: what the caption does not tell of a motion is drawn, with known odds.

One or two coloured objects over a grey background, some behind a bar. A scene is a pure function of
(seed, index); its look (all that frame 0 and the caption show) and its untold motions come from two generators of
random numbers, so that one first frame has futures without end, each of known probability.

Lengths are in units of a 64-pixel canvas and scale with `size`; x points right, y down, time is in frames.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megavrc.video.shapes import COLOURS, DIRECTIONS, signed_distance

Array = NDArray[np.float32]

SHAPES = ("square", "circle", "triangle", "plus", "ring")
SPEEDS = {1: "slowly", 2: "fast"}  # canvas units a frame
BOUNCES = ("reflect", "random")

CANVAS = 64
RADII = (8, 9, 10)
GRID = 4  # in a latent frame of 4 an object moves 4 or 8, and the walls keep it on the grid
PLACES = ("grid", "any")
BACKGROUNDS = ("plain", "waves")
MARGIN = 4  # least way of an object from its start to a wall: all 8 motions look different from the first frames on
GREY, SWINGS = 40, (14, 6)  # level of the background and of its two waves, which never cancel out
OCCLUDER_WIDTH = 18  # hides the smaller objects whole, and lets them through in 17 frames
# A tokenizer that takes the mean out of every patch could not tell a plain bar from a plain background.
OCCLUDER_GREY, OCCLUDER_STRIPES, OCCLUDER_PERIOD = 128, 12, 4  # level; contrast and rows of its stripes
PLUS_ARM = 0.3  # half the width of an arm, of the radius; thick, blurred arms make a disc
RING_HOLE = 0.55  # of the radius
ONE_OBJECT, OCCLUDED, PANNING = 0.4, 0.3, 0.3  # shares of the scenes


class Motion(NamedTuple):
    """The motion of an object, in canvas units a frame, until it meets a wall."""

    direction: str
    speed: int


class HeldOut(NamedTuple):
    """A combination that training can leave out: no caption there tells such a motion of such an object."""

    colour: str
    shape: str
    direction: str


ALL_MOTIONS = tuple(Motion(direction, speed) for direction in DIRECTIONS for speed in SPEEDS)
MOTIONS = {
    "scenes": ALL_MOTIONS,
    "single": ALL_MOTIONS,
    "corner": (Motion("right", 2), Motion("down", 2)),
}  # by kind: what an untold object does, all equally likely


@dataclasses.dataclass(frozen=True)
class Object:
    """One object.

    Attributes:
        colour, shape: of COLOURS and SHAPES.
        radius: half its width and height.
        x, y: its centre in frame 0.
        direction, speed: of its motion from frame 0 on.
        told: whether the caption tells the motion.
        turns: seed of the directions after walls; None: it is reflected.
    """

    colour: str
    shape: str
    radius: int
    x: int
    y: int
    direction: str
    speed: int
    told: bool
    turns: int | None = None


@dataclasses.dataclass(frozen=True)
class Background:
    """A strong and a weak sine wave, added, that move 1 canvas unit a frame in the direction `pan`, if any.

    A wave is (kx, ky, phase), in radians a canvas unit and radians.
    """

    waves: tuple[tuple[float, float, float], ...]
    pan: str | None


@dataclasses.dataclass(frozen=True)
class Scene:
    """A clip: objects (a later one is in front), the left edge of the bar before all of them, background."""

    kind: str
    objects: tuple[Object, ...]
    occluder: int | None
    background: Background

    @property
    def caption(self) -> str:
        """Such as "a red square and a blue ring. the background moves left. the red square moves left fast"."""
        sentences = [" and ".join(f"a {item.colour} {item.shape}" for item in self.objects)]
        if self.background.pan:
            sentences.append(f"the background moves {self.background.pan}")
        for item in self.objects:
            if item.told:
                how = f"moves {item.direction} {SPEEDS[item.speed]}"
                sentences.append(f"the {item.colour} {item.shape} {how}")
        return ". ".join(sentences)

    @property
    def motions(self) -> tuple[Motion, ...]:
        """The motion of every object from frame 0 on."""
        return tuple(Motion(item.direction, item.speed) for item in self.objects)

    @property
    def futures(self) -> tuple[tuple[Motion, ...], ...]:
        """All joint motions that caption and frame 0 leave open, equally likely; `motions` is one of them."""
        open_to = [
            (motion,) if item.told else MOTIONS[self.kind]
            for item, motion in zip(self.objects, self.motions, strict=True)
        ]
        return tuple(itertools.product(*open_to))

    @property
    def bits(self) -> float:
        """Entropy of the motions from frame 0 on, given caption and frame 0. Random bounces come on top."""
        return float(np.log2(len(self.futures)))

    def moved(self, motions: tuple[Motion, ...]) -> "Scene":
        """The scene of the same first frame whose objects have these motions."""
        pairs = zip(self.objects, motions, strict=True)
        objects = tuple(
            dataclasses.replace(item, direction=motion.direction, speed=motion.speed)
            for item, motion in pairs
        )
        return dataclasses.replace(self, objects=objects)


def from_attributes(attributes: dict[str, Any]) -> Scene:
    """The scene of a manifest row: the inverse of `dataclasses.asdict`, through JSON."""
    waves = tuple(tuple(wave) for wave in attributes["background"]["waves"])
    return Scene(
        attributes["kind"],
        tuple(Object(**fields) for fields in attributes["objects"]),
        attributes["occluder"],
        Background(waves, attributes["background"]["pan"]),
    )


@dataclasses.dataclass(frozen=True)
class SceneSettings:
    """The settings of a set of scenes.

    Attributes:
        kind: `scenes`; `single`: one object, no bar, and a background that stands still; or `corner`: the same, but
            the object is near a corner and goes right or down, which nothing says.
        told: probability that the caption names an object's motion. In `corner` it never does.
        places: `grid`: radius 8, and centres at the ends of latent frames on multiples of 4, so an object crosses half
            a cell of 8 pixels or a whole one in each; `any`: every pixel, and radius 8, 9 or 10.
        background: one that stands still is `plain` grey, or has `waves`, as one that pans has always.
        bounce: at a wall, `reflect` or a `random` direction of those that do not lead into a wall.
        heldout: combinations that no caption names.
    """

    kind: str = "scenes"
    told: float = 0.5
    places: str = "grid"
    background: str = "plain"
    bounce: str = "reflect"
    heldout: tuple[HeldOut, ...] = ()

    def problems(self) -> Iterator[str]:
        """The values that cannot be, a sentence each."""
        known = {"kind": tuple(MOTIONS), "places": PLACES, "background": BACKGROUNDS, "bounce": BOUNCES}
        for name, choices in known.items():
            if (value := getattr(self, name)) not in choices:
                yield f"{name} {value!r}: choose {' or '.join(choices)}"
        if not 0 <= self.told <= 1:
            yield f"told {self.told}: a probability, 0 to 1"


def scene(
    seed: int,
    index: int,
    settings: SceneSettings = SceneSettings(),
    draw: int = 0,
    shown: HeldOut | None = None,
) -> Scene:
    """Return scene `index` of the endless set named by `seed`.

    Args:
        seed, index: at least 0.
        settings: of the set.
        draw: another number draws the untold motions (and random bounces) anew; frame 0 and the caption stay, to
            the byte.
        shown: the first object is of this combination, and told.
    """
    look = np.random.default_rng((seed, 0, index))
    future = np.random.default_rng((seed, 1, index, draw))
    corner = settings.kind == "corner"
    busy = settings.kind == "scenes"
    count = 2 if busy and look.random() >= ONE_OBJECT else 1
    occluder = None
    if busy and look.random() < OCCLUDED:
        occluder = int(look.integers(8, CANVAS - 8 - OCCLUDER_WIDTH + 1))
        if settings.places == "grid":  # a bar from 1 before it hides an object in its middle whole
            occluder = occluder // GRID * GRID - 1
    pan = str(look.choice(list(DIRECTIONS))) if busy and look.random() < PANNING else None
    waves = tuple(_wave(look) for _ in range(2)) if pan or settings.background == "waves" else ()
    background = Background(waves, pan)

    colours = [str(colour) for colour in look.permutation(list(COLOURS))]
    shapes = [str(shape) for shape in look.choice(SHAPES, size=count)]
    if shown:
        colours.remove(shown.colour)
        colours, shapes[0] = [shown.colour, *colours], shown.shape
    objects: list[Object] = []
    for number, (colour, shape) in enumerate(zip(colours, shapes, strict=False)):
        told = not corner and look.random() < settings.told
        motion = _told_motion(look, colour, shape, settings.heldout)
        if shown and number == 0:
            told, motion = True, Motion(shown.direction, motion.speed)
        untold = MOTIONS[settings.kind][int(future.integers(len(MOTIONS[settings.kind])))]
        turns = int(future.integers(2**32)) if settings.bounce == "random" else None
        radius, x, y = _place(look, settings, occluder, objects)
        objects.append(Object(colour, shape, radius, x, y, *(motion if told else untold), told, turns))
    return Scene(settings.kind, tuple(objects), occluder, background)


def _wave(rng: np.random.Generator) -> tuple[float, float, float]:
    length, angle, phase = rng.uniform(24, 64), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    k = 2 * np.pi / length
    return float(k * np.cos(angle)), float(k * np.sin(angle)), float(phase)


def _told_motion(rng: np.random.Generator, colour: str, shape: str, heldout: tuple[HeldOut, ...]) -> Motion:
    """Any motion that is not held out. Untold ones must not be chosen so: they would no longer be 3 bits."""
    allowed = [motion for motion in ALL_MOTIONS if HeldOut(colour, shape, motion.direction) not in heldout]
    return allowed[int(rng.integers(len(allowed)))]


def _place(
    rng: np.random.Generator, settings: SceneSettings, occluder: int | None, others: list[Object]
) -> tuple[int, int, int]:
    """(radius, x, y) of an object that frame 0 shows whole: clear of walls, bar and other objects."""
    step, radii = (GRID, RADII[:1]) if settings.places == "grid" else (1, RADII)
    while True:
        r = int(rng.choice(radii))
        if settings.kind == "corner":  # 17 frames to the right or down end before the wall
            low, high = r + 1, CANVAS - r - 32
        else:
            low, high = r + MARGIN, CANVAS - r - MARGIN
        x, y = (step * int(value) for value in rng.integers(-(-low // step), high // step + 1, size=2))
        beside_bar = occluder is None or x + r < occluder or x - r > occluder + OCCLUDER_WIDTH
        apart = all(max(abs(x - o.x), abs(y - o.y)) > r + o.radius for o in others)
        if beside_bar and apart:
            return r, x, y


# --- where everything is ---------------------------------------------------------------------------------------


def positions(scene: Scene, frames: int = 17) -> NDArray[np.float64]:
    """The exact simulator: centres of the objects, float64 [objects, frames, 2], (x, y) in canvas units.

    Objects move at constant speed, pass each other, and stay in the canvas whole. A reflected object that would pass
    a wall by d is d before it. With random bounces it stops at the wall and goes another way from the next frame on.
    """
    return np.array([_path(item, frames) for item in scene.objects]).reshape(-1, frames, 2)


def _path(item: Object, frames: int) -> NDArray[np.float64]:
    start, way = np.array([item.x, item.y], float), np.array(DIRECTIONS[item.direction], float) * item.speed
    if item.turns is None:
        room = CANVAS - 2 * item.radius
        unfolded = (start - item.radius + np.arange(frames)[:, None] * way) % (2 * room)
        return item.radius + room - np.abs(room - unfolded)
    rng, path = np.random.default_rng(item.turns), [start]
    low, high = item.radius, CANVAS - item.radius
    ways = np.array(list(DIRECTIONS.values()), float) * item.speed
    for _ in range(frames - 1):
        path.append(np.clip(path[-1] + way, low, high))
        if not _free(path[-1] + np.sign(way), low, high):
            free = [other for other in ways if _free(path[-1] + np.sign(other), low, high)]
            way = free[int(rng.integers(len(free)))]
    return np.stack(path)


def _free(point: NDArray[np.float64], low: int, high: int) -> bool:
    return bool((point >= low).all() and (point <= high).all())


def object_distance(shape: str, x: Array, y: Array, r: float) -> Array:
    """Distance of points (x, y), relative to the centre, from the outline of `shape`; negative inside.

    Plus: two bars 2r long and 0.6r wide. Ring: radii r and 0.55r. Others: see `signed_distance`. At outer corners it is
    a lower bound.
    """

    def box(width: float, height: float) -> Array:
        return np.maximum(np.abs(x) - np.float32(width), np.abs(y) - np.float32(height))

    if shape == "plus":
        return np.minimum(box(r, PLUS_ARM * r), box(PLUS_ARM * r, r))
    if shape == "ring":
        middle, half = (1 + RING_HOLE) / 2 * r, (1 - RING_HOLE) / 2 * r
        return np.abs(np.sqrt(x * x + y * y) - np.float32(middle)) - np.float32(half)
    return signed_distance(shape, x, y, r)


def coverage(shape: str, radius: float, centres: NDArray[np.float64], size: int = 64) -> Array:
    """Share of every pixel that a shape covers, float32 [T, size, size] in 0..1, for centres [T, 2] and a radius in
    canvas units."""
    scale = size / CANVAS
    pixels = np.arange(size) + 0.5
    x = (pixels[None, None, :] - scale * centres[:, 0, None, None]).astype(np.float32)
    y = (pixels[None, :, None] - scale * centres[:, 1, None, None]).astype(np.float32)
    return np.clip(np.float32(0.5) - object_distance(shape, x, y, radius * scale), 0, 1)


def occluder_coverage(scene: Scene, size: int = 64) -> Array:
    """Share of every pixel that the bar covers, float32 [size, size]; zeros where there is none."""
    columns = np.zeros(size, np.float32)
    if scene.occluder is not None:
        edges = np.arange(size + 1) * CANVAS / size
        inside = np.clip(edges, scene.occluder, scene.occluder + OCCLUDER_WIDTH)
        columns = (np.diff(inside) * size / CANVAS).astype(np.float32)
    return np.broadcast_to(columns, (size, size))


def visibility(scene: Scene, frames: int = 17, size: int = 64) -> Array:
    """Share of a pixel that shows each object, behind later objects and the bar: float32 [objects, T, size, size]."""
    free = np.broadcast_to(1 - occluder_coverage(scene, size), (frames, size, size))
    shown = []
    for item, path in reversed(list(zip(scene.objects, positions(scene, frames), strict=True))):
        cover = coverage(item.shape, item.radius, path, size)
        shown.append(cover * free)
        free = free * (1 - cover)
    return np.array(shown[::-1], np.float32).reshape(-1, frames, size, size)


def render_scene(scene: Scene, frames: int = 17, size: int = 64) -> NDArray[np.uint8]:
    """Draw an anti-aliased clip, uint8 [frames, size, size, 3]."""
    objects = visibility(scene, frames, size)
    bar = occluder_coverage(scene, size)
    grey = _texture(scene.background, frames, size)
    rows = 2 * np.pi / OCCLUDER_PERIOD * (np.arange(size, dtype=np.float32)[:, None] + 0.5) * CANVAS / size
    striped = OCCLUDER_GREY + OCCLUDER_STRIPES * np.sin(rows)
    image = ((1 - bar - objects.sum(axis=0)) * grey + bar * striped)[..., None].astype(np.float32)
    image = image + sum(
        layer[..., None] * np.asarray(COLOURS[item.colour], np.float32)
        for item, layer in zip(scene.objects, objects, strict=True)
    )
    return (image + np.float32(0.5)).astype(np.uint8)


def _texture(background: Background, frames: int, size: int) -> Array:
    """Grey levels, [T, size, size]; T = 1 where nothing moves."""
    dx, dy = DIRECTIONS[background.pan] if background.pan else (0, 0)
    time = np.arange(frames if background.pan else 1)[:, None, None]
    pixels = (np.arange(size) + 0.5) * CANVAS / size
    x, y = pixels[None, None, :] - dx * time, pixels[None, :, None] - dy * time
    levels = np.full((len(time), size, size), float(GREY))
    for swing, (kx, ky, phase) in zip(SWINGS, background.waves, strict=False):
        levels += swing * np.sin(kx * x + ky * y + phase)
    return levels.astype(np.float32)


def heldout_scenes(seed: int, n: int = 12) -> tuple[HeldOut, ...]:
    """Choose `n` combinations to leave out of training, 0 to 12.

    No two share a pair of values (cycles of 6, 5 and 4 meet again after 12 steps at the earliest), so every value and
    every pair of values stays frequent in training.
    """
    if seed < 0:
        raise ValueError(f"seed {seed}: at least 0")
    if not 0 <= n <= 12:
        raise ValueError(f"heldout {n}: choose 0 to 12 of the 120 combinations")
    rng = np.random.default_rng((seed, 2))
    cycles = [
        [str(value) for value in rng.permutation(list(values))] for values in (COLOURS, SHAPES, DIRECTIONS)
    ]
    return tuple(HeldOut(*(cycle[i % len(cycle)] for cycle in cycles)) for i in range(n))
