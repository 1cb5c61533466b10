"""Pictures and clips with questions whose answers are known: what the mini-VLM learns and is measured on.

A conversation is a pure function of (kind, split, seed, index). The canvas of 64 pixels has 4 x 4 places of 16 pixels,
a1 (top left) to d4. A picture holds coloured shapes, which are seen from afar, and digits of 5 x 7 pixels, which are
not. In a clip seven shapes stand, and four of them step to a place beside, one after the other; a bar at the bottom
grows from frame to frame and tells the time.
Turns of a conversation ask about different things, so that no answer follows from an earlier one. Answers are drawn
before anything else, so all are equally likely. The split `test` holds other objects (which shape has which colour, in
a picture at which place) and other digits (which stands in which quarter of which place) than `train`.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megavrc.video.shapes import COLOURS as SIX
from megavrc.video.shapes import DIRECTIONS, SHAPES, signed_distance

Kind = Literal["image", "video"]
Split = Literal["train", "test"]

SIZE, SIDE, FRAMES = 64, 4, 8
TURNS = 3  # that the benchmark and validation ask of a conversation: later ones name most of what is shown
CELL = SIZE // SIDE
COLOURS: dict[str, tuple[int, int, int]] = {**SIX, "white": (240, 240, 240), "orange": (250, 130, 20)}
NAMES = tuple(COLOURS)
PLACES = tuple(f"{'abcd'[row]}{column + 1}" for row in range(SIDE) for column in range(SIDE))
DIGITS = tuple("0123456789")
COUNTS = tuple("34567")
MOVERS, STANDING = 4, 3
TIMES = tuple("1234567")  # the frame in which it stands at its new place, counted from 0

ANSWERS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "count": COUNTS,
    "digit": DIGITS,
    "mover": tuple(COLOURS),
    "when": TIMES,
    "direction": tuple(DIRECTIONS),
}
"""The answers that a type of question has; chance is one of them."""
TYPES: dict[Kind, tuple[str, ...]] = {
    "image": ("colour", "count", "digit"),
    "video": ("colour", "mover", "when", "direction"),
}
DETAIL = ("digit",)
"""Types whose answer stands in few pixels; the others ask for the gist."""

# Rows of five pixels, top to bottom, as binary numbers.
GLYPHS: dict[str, tuple[int, ...]] = {
    "0": (14, 17, 17, 17, 17, 17, 14),
    "1": (4, 12, 20, 4, 4, 4, 31),
    "2": (30, 1, 1, 14, 16, 16, 31),
    "3": (31, 2, 4, 14, 1, 1, 30),
    "4": (18, 18, 18, 31, 2, 2, 2),
    "5": (31, 16, 30, 1, 1, 1, 30),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 2, 4, 4, 4),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
}


@dataclass(frozen=True)
class Question:
    """A question and its one right answer."""

    type: str
    text: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Questions about one picture or clip, a turn each."""

    kind: Kind
    questions: tuple[Question, ...]
    show: Callable[[], NDArray[np.uint8]]
    "reads or draws the frames, which many conversations at a time would not fit into memory"
    source: Hashable | None = None
    "the file of the picture or clip, as the subject knows it"

    @property
    def frames(self) -> NDArray[np.uint8]:
        """[T, H, W, 3]; T is 1 for a picture."""
        return self.show()


@dataclass(frozen=True)
class Thing:
    """A shape of a colour at a place, all as numbers; in a clip, where shapes move, the place is always 0."""

    colour: int
    shape: int
    place: int


def conversation(kind: Kind, split: Split, seed: int, index: int) -> Conversation:
    """Conversation `index` of the endless set named by `seed`; its first turn is of type `index` modulo the types."""
    state = (seed, kind == "video", split == "test", index)
    facts, drawing = (np.random.default_rng((*state, part)) for part in range(2))
    return (_about_picture if kind == "image" else _about_clip)(split, index, facts, drawing)


def _about_picture(
    split: Split, index: int, rng: np.random.Generator, drawing: np.random.Generator
) -> Conversation:
    count = int(rng.integers(len(COUNTS)))
    colours = rng.integers(len(COLOURS), size=int(COUNTS[count])).tolist()
    digits = rng.integers(len(DIGITS), size=4).tolist()
    places = rng.permutation(SIDE * SIDE).tolist()
    asks = {
        "colour": iter(
            [_question("colour", PLACES[p], NAMES[c]) for c, p in zip(colours, places, strict=False)]
        ),
        "digit": iter(
            [_question("digit", PLACES[p], DIGITS[d]) for d, p in zip(digits, places[-4:], strict=True)]
        ),
        "count": iter([_question("count", "shapes", COUNTS[count])]),
    }
    order = [TYPES["image"][(index + turn) % 3] for turn in range(3)]
    again = [*[kind for kind in order if kind != "count"] * 2, "digit"]

    def show() -> NDArray[np.uint8]:
        picture = _background(drawing)
        for colour, place in zip(colours, places, strict=False):
            _paste(picture, place, _sprite(_thing(colour, place, split, drawing), drawing))
        for digit, place in zip(digits, places[-4:], strict=True):
            _draw_digit(picture, digit, place, split, drawing)
        return _noisy(picture[None], drawing)

    return Conversation("image", tuple(next(asks[kind]) for kind in order + again), cache(show))


def _about_clip(
    split: Split, index: int, rng: np.random.Generator, drawing: np.random.Generator
) -> Conversation:
    """Four step, A to D; A and B answer `mover`, C and D `when`, so that one answer never gives another away."""
    colours = rng.permutation(len(COLOURS)).tolist()
    times = rng.permutation(len(TIMES))[:MOVERS].tolist()
    ways = rng.integers(len(DIRECTIONS), size=MOVERS).tolist()
    starts, ends = _paths(ways, rng)
    names = [NAMES[colour] for colour in colours]
    asks: dict[str, Iterator[Question]] = {
        "colour": iter([_question("colour", PLACES[starts[i]], names[i]) for i in (4, 5, 6)]),
        "mover": iter([_question("mover", TIMES[times[i]], names[i]) for i in (0, 1)]),
        "when": iter([_question("when", names[i], TIMES[times[i]]) for i in (2, 3)]),
        "direction": iter(
            [_question("direction", names[i], list(DIRECTIONS)[ways[i]]) for i in (3, 0, 2, 1)]
        ),
    }
    order = [TYPES["video"][(index + turn) % 4] for turn in range(4)]
    again = [*order, "colour", "direction", "direction"]

    def show() -> NDArray[np.uint8]:
        frames = np.stack([_background(drawing)] * FRAMES)
        for i, start in enumerate(starts):
            sprite = _sprite(_thing(colours[i], 0, split, drawing), drawing)
            for time, frame in enumerate(frames):
                moved = i < MOVERS and time >= int(TIMES[times[i]])
                _paste(frame, ends[i] if moved else start, sprite)
        _tell_time(frames)
        return _noisy(frames, drawing)

    return Conversation("video", tuple(next(asks[kind]) for kind in order + again), cache(show))


SEEN = (None, *NAMES, *DIGITS)
"""What a token may show; None is the background."""


def labelled(kind: Kind, seed: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A picture or a clip of the training split, and what each token shows.

    Frames [T, 64, 64, 3]; numbers of `SEEN`, [T, 8, 8] or [T, 4, 4]. A picture has five shapes and five digits. In a
    clip all colours walk about: before each frame each steps to a free place beside, or stands.
    """
    drawing = np.random.default_rng((seed, kind == "video", 2, index))
    places = drawing.permutation(SIDE * SIDE).tolist()
    if kind == "video":
        return _walking(places, drawing)
    picture = _background(drawing)
    labels = np.zeros((2 * SIDE, 2 * SIDE), np.int64)
    for place in places[:5]:
        colour = int(drawing.integers(len(COLOURS)))
        _paste(picture, place, _sprite(_thing(colour, place, "train", drawing), drawing))
        y, x = 2 * (place // SIDE), 2 * (place % SIDE)
        labels[y : y + 2, x : x + 2] = SEEN.index(NAMES[colour])
    for place in places[5:10]:
        digit = int(drawing.integers(len(DIGITS)))
        quarter = _draw_digit(picture, digit, place, "train", drawing)
        y, x = 2 * (place // SIDE) + quarter // 2, 2 * (place % SIDE) + quarter % 2
        labels[y, x] = SEEN.index(DIGITS[digit])
    return _noisy(picture[None], drawing), labels[None]


def _walking(places: list[int], drawing: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """See `labelled`."""
    frames = np.stack([_background(drawing)] * FRAMES)
    labels = np.zeros((FRAMES, SIDE, SIDE), np.int64)
    sprites = [_sprite(_thing(colour, 0, "train", drawing), drawing) for colour in range(len(COLOURS))]
    at = places[: len(COLOURS)]
    for time, frame in enumerate(frames):
        for colour, place in enumerate(at):
            x, y = list(DIRECTIONS.values())[drawing.integers(len(DIRECTIONS))]
            inside = 0 <= place % SIDE + x < SIDE and 0 <= place // SIDE + y < SIDE
            if time and inside and (to := place + x + SIDE * y) not in at:
                at[colour] = to
        for colour, place in enumerate(at):
            _paste(frame, place, sprites[colour])
            labels[time, place // SIDE, place % SIDE] = SEEN.index(NAMES[colour])
    _tell_time(frames)
    return _noisy(frames, drawing), labels


def _tell_time(frames: NDArray[np.float32]) -> None:
    """A bar at the bottom that grows from frame to frame."""
    for time, frame in enumerate(frames):
        frame[-2:, : SIZE * (time + 1) // FRAMES] = 200


def _question(kind: str, about: str, answer: str) -> Question:
    return Question(kind, f"{kind} {about} ?", answer)


def _paths(ways: list[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Places of all shapes, and where the movers step to; nobody ever stands where another one does.

    Three moves take six places, which can not part all neighbours of a canvas of 4 x 4: the fourth fits always.
    """
    steps = list(DIRECTIONS.values())
    free, starts, ends = set(range(SIDE * SIDE)), [], []
    for way in ways:
        x, y = steps[way]
        fits = [
            place
            for place in sorted(free)
            if 0 <= place % SIDE + x < SIDE and 0 <= place // SIDE + y < SIDE and place + x + SIDE * y in free
        ]
        starts.append(fits[int(rng.integers(len(fits)))])
        ends.append(starts[-1] + x + SIDE * y)
        free -= {starts[-1], ends[-1]}
    still = rng.permutation(sorted(free))[:STANDING].tolist()
    return starts + still, ends


def held_out(thing: Thing) -> bool:
    """Whether only the test split has it: one shape of three, for each colour at each place of a picture."""
    return (thing.shape + thing.colour + thing.place) % len(SHAPES) == 0


def _thing(colour: int, place: int, split: Split, rng: np.random.Generator) -> Thing:
    """Of the shapes that the split has in this colour at this place, one."""
    choices = [Thing(colour, shape, place) for shape in range(len(SHAPES))]
    choices = [thing for thing in choices if held_out(thing) == (split == "test")]
    return choices[int(rng.integers(len(choices)))]


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    """[64, 64, 3] dark, with a texture that stays the same throughout a clip."""
    ground = rng.uniform(15, 45, size=3) + rng.normal(0, 4, size=(SIZE, SIZE, 1))
    return ground.astype(np.float32)


def _noisy(frames: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """With noise of the camera, new in each frame."""
    noise = rng.standard_normal(frames.shape[:3], dtype=np.float32)[..., None]
    return np.clip(frames + 2 * noise + 0.5, 0, 255).astype(np.uint8)


def _cell(picture: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    """The pixels of a place, as a view."""
    y, x = CELL * (place // SIDE), CELL * (place % SIDE)
    return picture[y : y + CELL, x : x + CELL]


Sprite = tuple[NDArray[np.float32], NDArray[np.float32]]


def _sprite(thing: Thing, rng: np.random.Generator) -> Sprite:
    """Coverage [16, 16, 1] and colour [3] of a shape, of a size and a little off the centre as `rng` says."""
    radius = rng.uniform(5, 7)
    centre = CELL / 2 + rng.uniform(-1, 1, size=2) * (CELL / 2 - radius)
    pixels = np.arange(CELL) + 0.5
    x, y = (pixels[None, :] - centre[0]).astype(np.float32), (pixels[:, None] - centre[1]).astype(np.float32)
    coverage = np.clip(0.5 - signed_distance(SHAPES[thing.shape], x, y, radius), 0, 1)[..., None]
    return coverage, np.array(list(COLOURS.values())[thing.colour], dtype=np.float32)


def _paste(picture: NDArray[np.float32], place: int, sprite: Sprite) -> None:
    coverage, colour = sprite
    cell = _cell(picture, place)
    cell += coverage * (colour - cell)


def _draw_digit(
    picture: NDArray[np.float32], digit: int, place: int, split: Split, rng: np.random.Generator
) -> int:
    """White, within one patch of 8 pixels, the quarter of the place that is returned: one of those of the split."""
    quarters = [q for q in range(4) if ((q + digit + place) % 4 == 0) == (split == "test")]
    quarter = quarters[int(rng.integers(len(quarters)))]
    half = CELL // 2
    y, x = int(rng.integers(2)) + half * (quarter // 2), 1 + int(rng.integers(2)) + half * (quarter % 2)
    bits = np.array([[row >> (4 - column) & 1 for column in range(5)] for row in GLYPHS[DIGITS[digit]]])
    _cell(picture, place)[y : y + 7, x : x + 5][bits == 1] = 235
    return quarter
