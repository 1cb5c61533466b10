"""Objects in a clip of `megavrc.video.scenes`: a detector without learned parts that sees pixels only.

All lengths are in units of the 64-pixel canvas: everything scales with the size of the clip.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megavrc.evaluation.scene_fit import (
    HALF,
    MOMENTS,
    SPECK,
    View,
    around,
    centres,
    centroids,
    likeness,
    pieces,
    place_object,
    shape_of,
)
from megavrc.evaluation.scene_motion import folded
from megavrc.video.scenes import CANVAS, OCCLUDER_GREY, OCCLUDER_WIDTH
from megavrc.video.shapes import COLOURS

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB
Mask = NDArray[np.bool_]
Array = NDArray[np.float64]

FAINT = 0.15  # coverage below which a pixel belongs to nothing
MIN_COSINE = 0.8  # with the nearest colour; neighbours of the palette are at 0.5
MIN_LOOSE_COSINE = 0.6  # once it is known which colours are there: an object's colour may be uneven
MIN_AREA = 40.0  # canvas units squared in a frame that shows an object; the smallest true one has 115
MIN_SHARE = 0.2  # of the frames that must show an object
MIN_VISIBLE = 0.35  # part of an object that must be in sight for its place to be known
BAR_LEVELS = 30.0  # how far the grey of the bar may be off; the lightest background is 68 away


@dataclass(frozen=True)
class Track:
    """One object over time; arrays of length T.

    Attributes:
        colour, shape: of the set's.
        iou: mean intersection over union with the template over the frames that tell the shape.
        radius: of the set's, nearest to what the first frames show.
        centre: [T, 2] (x, y), nan where too little is in sight.
        clear: in one piece and touched by nothing, so that `centre` is good to a tenth of a pixel.
        visible: part of the template that nothing hides, 0 to 1, where it is or, unseen, would be.
        left: not in sight, and nothing explains it but that it went through a wall.
        pieces: connected components; what hides parts of the template connects them.
        excess: area seen minus area expected, in areas of the whole template.
        ink: the colour summed over the picture, in whole templates; nan where something touches or hides it.
        overlap: intersection over union with the template of `shape` and `radius`.
        likeness: [T, SHAPES] intersection over union with each shape; nan where it is not clear.
    """

    colour: str
    shape: str
    iou: float
    radius: int
    centre: Array
    clear: Mask
    visible: Array
    left: Mask
    pieces: NDArray[np.int64]
    excess: Array
    ink: Array
    overlap: Array
    likeness: Array

    @property
    def seen(self) -> Mask:
        """Frames in which its place is known, [T]."""
        return ~np.isnan(self.centre[:, 0])


class ObjectDetection(NamedTuple):
    """Contents of a clip: the left edge of the bar (None: no bar), its objects, and the pixels [T, H, W] of neither."""

    occluder: float | None
    tracks: tuple[Track, ...]
    background: Mask


def detect_scene(frames_THWC: Frames) -> ObjectDetection:
    """Find the bar and the objects in a clip, uint8 [T, H, W, 3] with H = W.

    An object is where pixels have the hue of one of the six colours. What is behind the bar, another object or the
    edge of the picture is unknown, not missing.
    """
    occluder = _occluder(frames_THWC)
    bar_THW = np.zeros(frames_THWC.shape[:3], bool)
    scale = frames_THWC.shape[1] / CANVAS
    if occluder is not None:
        bar_THW[:, :, round(occluder * scale) : round((occluder + OCCLUDER_WIDTH) * scale)] = True
    covers = _covers(frames_THWC)
    tracks = []
    for colour, cover in covers.items():
        others = [other >= HALF for name, other in covers.items() if name != colour]
        tracks.append(_track(colour, View.of(cover, np.any([bar_THW, *others], axis=0))))
    things = np.any([bar_THW, *(cover > 0 for cover in covers.values())], axis=0)
    # What is never in sight is a mixture of two colours where one object covers another.
    objects = tuple(track for track in tracks if track.seen.mean() >= MIN_SHARE)
    return ObjectDetection(occluder, objects, ~around(things, 2 * scale))


def _covers(frames_THWC: Frames) -> dict[str, NDArray[np.float32]]:
    """By colour that enough frames show: how much of every pixel it covers, [T, H, W] in 0..1, without specks."""
    scale = frames_THWC.shape[1] / CANVAS
    red, green, blue = np.moveaxis(frames_THWC.astype(np.float32), -1, 0)
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    palette = np.array(list(COLOURS.values()), np.float32)
    hues = palette - palette.mean(axis=1, keepdims=True)
    coloured = chroma >= FAINT * np.ptp(palette, axis=1).min()
    away = frames_THWC[coloured].astype(np.float32)
    away -= away.mean(axis=1, keepdims=True)
    cosines = away @ (hues / np.linalg.norm(hues, axis=1, keepdims=True)).T
    cosines /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1)

    def covers(among: list[int], least: float) -> Iterator[tuple[int, NDArray[np.float32]]]:
        nearest = np.full(chroma.shape, -1)
        close = cosines[:, among].max(axis=1) >= least
        nearest[coloured] = np.where(close, np.array(among)[cosines[:, among].argmax(axis=1)], -1)
        for number in among:
            yield number, np.minimum(chroma / np.ptp(palette[number]), 1) * (nearest == number)

    def shown(cover: NDArray[np.float32]) -> bool:
        area = (cover >= HALF).sum(axis=(1, 2)) / scale**2
        return float((area >= MIN_AREA).mean()) >= MIN_SHARE

    present = [number for number, cover in covers(list(range(len(COLOURS))), MIN_COSINE) if shown(cover)]
    found = {}
    for number, cover in covers(present, MIN_LOOSE_COSINE) if present else ():
        inside, _ = pieces(cover >= HALF, scale)
        near = around(inside, 2 * scale) & (inside | (cover < HALF))
        found[list(COLOURS)[number]] = cover * (cover >= FAINT) * near
    return found


def _occluder(frames_THWC: Frames) -> float | None:
    """The left edge of the bar: so many columns of its grey side by side as it is wide, in all frames."""
    scale = frames_THWC.shape[1] / CANVAS
    low, high = round(OCCLUDER_GREY - BAR_LEVELS), round(OCCLUDER_GREY + BAR_LEVELS)
    grey = np.logical_and.reduce(
        [(low <= level) & (level <= high) for level in np.moveaxis(frames_THWC, -1, 0)]
    )
    width = round(OCCLUDER_WIDTH * scale)
    shares = np.convolve(grey.mean(axis=(0, 1)), np.ones(width) / width, "valid")
    return float(shares.argmax() / scale) if shares.max() >= 0.8 else None


def _track(colour: str, view: View) -> Track:
    apart, inside, known, areas = view.apart(), view.inside, view.known, view.areas()
    clear = apart & (pieces(inside, view.scale)[1] == 1) & (areas >= MIN_AREA)
    like = likeness(view, clear)
    shape, radius, iou = shape_of(view, like)
    found = _centres(view, shape, radius, apart, areas >= SPECK)
    seen = _share(view.templates(shape, radius, found), known) >= MIN_VISIBLE
    centre = np.where(seen[:, None], found, np.nan)
    full = MOMENTS[shape][0] * radius**2 * view.scale**2
    at = found.copy()
    templates = view.templates(shape, radius, at)
    excess = np.where(np.isnan(at[:, 0]), np.inf, _surplus(view, templates) / full)
    straight = _straight(centre)
    for guess in (straight, folded(straight, radius)):  # of a hidden one: what explains best what is seen
        there = view.templates(shape, radius, guess)
        other = _surplus(view, there) / full
        better = ~seen & (np.abs(other) < np.abs(excess))
        at[better], templates[better], excess[better] = guess[better], there[better], other[better]
    visible = _share(templates, known)
    inside_walls = _share(view.templates(shape, radius, folded(at, radius)), known)
    expected = templates >= HALF
    union = ((inside | expected) & known).sum(axis=(1, 2))
    return Track(
        colour,
        shape,
        iou,
        radius,
        centre,
        clear,
        visible,
        left=~seen & (inside_walls >= MIN_VISIBLE) & (visible < MIN_VISIBLE),
        pieces=pieces(inside, view.scale, ~known & (expected | ~seen[:, None, None]))[1],
        excess=excess,
        ink=np.where(apart & (visible >= MIN_VISIBLE), view.ink / full, np.nan),
        overlap=(inside & expected & known).sum(axis=(1, 2)) / np.maximum(1, union),
        likeness=like,
    )


def _centres(view: View, shape: str, radius: float, apart_T: Mask, there_T: Mask) -> Array:
    """Where the object is, [T, 2]; nan where the colour is not there."""
    found = np.full((len(there_T), 2), np.nan)
    times = np.flatnonzero(there_T & apart_T)
    found[times] = centres(shape, radius, centroids(view, times))
    for time in np.flatnonzero(there_T & ~apart_T):
        found[time] = place_object(view, int(time), shape, radius)
    return found


def _surplus(view: View, templates_THW: NDArray[np.float32]) -> Array:
    """Area seen minus area that a template would show, in pixels, [T]."""
    return np.asarray(((view.solid - templates_THW) * view.known).sum(axis=(1, 2)), float)


def _share(templates_THW: NDArray[np.float32], known_THW: Mask) -> Array:
    """The known part of each template, [T]; 0 of an empty one."""
    totals = np.maximum(templates_THW.sum(axis=(1, 2)), 1e-6)
    return np.asarray((templates_THW * known_THW).sum(axis=(1, 2)) / totals, float)


def _straight(centre_T2: Array) -> Array:
    """Where it is in frames that do not show it: between its known places, or on as it last went; through walls."""
    times, known = np.arange(len(centre_T2)), np.flatnonzero(~np.isnan(centre_T2[:, 0]))
    if len(known) < 2:
        return centre_T2[np.repeat(known, len(times))] if len(known) else centre_T2
    path = np.stack([np.interp(times, known, centre_T2[known, axis]) for axis in range(2)], axis=1)
    for (a, b), beyond in ((known[:2], times < known[0]), (known[-2:], times > known[-1])):
        way = (centre_T2[b] - centre_T2[a]) / (b - a)
        path[beyond] = centre_T2[b] + way * (times[beyond, None] - b)
    return path
