"""One colour of a clip as a picture to fit: which shape is it, how large, and where in every frame."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from megavrc.video.scenes import CANVAS, RADII, SHAPES, object_distance

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float32]
Array = NDArray[np.float64]

HALF = 0.5  # coverage from which a pixel is inside
FULL = 0.9  # quantile of a colour's pixels that has its full strength; most of the others are at the edge
STEEP = 2.0  # slope of `solid` over `cover`
SPECK = 8.0  # canvas units squared; smaller pieces are the codec's, not the scene's
REACH = 1.5  # canvas units around a covering thing where 4:2:0 mixes colours
SOFT = 3.0  # pixels; the edge of a template that is being placed: sharper ones fit 4:2:0 only by steps
STEPS = (0.5, 0.2, 0.1)  # pixels; of the search around the best whole pixel
EARLY = 5  # clear frames that tell the size: those of the first two latent frames
FULLEST = 3  # frames that tell shape and size of an object that is never clear
IN_ONE_FRAME = np.zeros((3, 3, 3), bool)  # neighbours, diagonal ones too, but none in other frames
IN_ONE_FRAME[1] = True


@dataclass(frozen=True)
class View:
    """One colour of a clip, with a margin of the largest radius around it.

    Attributes:
        cover: how much of each pixel the colour covers, [T, H, W] in 0..1; of a faded object too.
        solid: the same, for areas: uneven colour inside an object is no hole.
        ink: the colour summed over each frame, in pixels of full colour, [T].
        inside: where `cover` is at least half.
        known: pixels of the clip that nothing else may cover.
        scale: pixels a canvas unit.
        margin: pixels.
    """

    cover: Pixels
    solid: Pixels
    ink: Array
    inside: Mask
    known: Mask
    scale: float
    margin: int

    @classmethod
    def of(cls, ink_THW: Pixels, hidden_THW: Mask) -> "View":
        """From how much there is of the colour (0..1) and where the bar and other colours are."""
        scale = ink_THW.shape[1] / CANVAS
        strength = np.array([np.quantile(ink[ink > 0], FULL) if ink.any() else 1.0 for ink in ink_THW])
        cover_THW = np.minimum(ink_THW / strength[:, None, None].astype(np.float32), 1)
        margin = round(max(RADII) * scale) + 2
        sides = ((0, 0), (margin, margin), (margin, margin))
        cover = np.pad(cover_THW, sides)
        known = np.pad(~around(hidden_THW, REACH * scale), sides)
        solid = np.clip(HALF + STEEP * (cover - HALF), 0, 1).astype(np.float32)
        ink = ink_THW.sum(axis=(1, 2)).astype(np.float64)
        return cls(cover, solid, ink, cover >= HALF, known, scale, margin)

    @property
    def pixels(self) -> Pixels:
        """Middles of the pixels of a row or a column, in canvas units."""
        return ((np.arange(self.cover.shape[1]) + 0.5 - self.margin) / self.scale).astype(np.float32)

    def areas(self) -> Array:
        """Covered area in canvas units squared, [T]."""
        return np.asarray(self.solid.sum(axis=(1, 2)) / self.scale**2, float)

    def apart(self) -> Mask:
        """Frames in which the colour touches nothing that could cover it, [T]."""
        return ~np.any(around(self.inside, self.scale) & ~self.known, axis=(1, 2))

    def templates(self, shape: str, radii: float | Array, centres_N2: Array) -> Pixels:
        """Share of each pixel that a shape covers, [N, H, W], for centres in canvas units; zeros for nan."""
        x = self.pixels[None, None, :] - centres_N2[:, 0, None, None].astype(np.float32)
        y = self.pixels[None, :, None] - centres_N2[:, 1, None, None].astype(np.float32)
        radius = np.broadcast_to(radii, len(centres_N2)).astype(np.float32)[:, None, None]
        return np.nan_to_num(cover_of(shape, x / radius, y / radius, self.scale * radius))


def cover_of(shape: str, x: Pixels, y: Pixels, radius: float | Pixels, edge: float = 1.0) -> Pixels:
    """Share of a pixel that a shape covers.

    Args:
        x, y: of its middle from the centre, in radii.
        radius: pixels.
        edge: pixels over which the cover falls from 1 to 0.
    """
    cover: Pixels = np.clip(np.float32(0.5) - radius / edge * object_distance(shape, x, y, 1.0), 0, 1)
    return cover


def around(mask_THW: Mask, reach: float) -> Mask:
    """Pixels within `reach` pixels of a mask, along rows, columns and diagonals."""
    grown: Mask = ndimage.binary_dilation(mask_THW, IN_ONE_FRAME, iterations=max(1, round(reach)))
    return grown


def pieces(mask_THW: Mask, scale: float, bridges_THW: Mask | None = None) -> tuple[Mask, NDArray[np.int64]]:
    """The mask without specks, and how many pieces that leaves in every frame, [T].

    A piece is a connected component; what `bridges` connects is one.
    """
    labels, _ = ndimage.label(mask_THW if bridges_THW is None else mask_THW | bridges_THW, IN_ONE_FRAME)
    places = ndimage.find_objects(labels)
    large = np.bincount(labels[mask_THW], minlength=len(places) + 1) >= SPECK * scale**2
    large[0] = False
    frames = np.array([place[0].start for place in places], np.int64)
    return large[labels] & mask_THW, np.bincount(frames[large[1:]], minlength=len(mask_THW))


def _moments() -> dict[str, tuple[float, float]]:
    """Area and height of the centroid (downwards from the centre) of each shape of radius 1."""
    grid = ((np.arange(400) + 0.5) / 200 - 1).astype(np.float32)
    found = {}
    for shape in SHAPES:
        inside = object_distance(shape, grid[None], grid[:, None], 1.0) < 0
        found[shape] = (float(inside.mean() * 4), float((inside * grid[:, None]).sum() / inside.sum()))
    return found


MOMENTS = _moments()


def centroids(view: View, times_N: NDArray[np.int64]) -> Array:
    """Centres of mass of all pixels of the colour, [N, 2] (x, y) in canvas units."""
    cover = view.cover[times_N].astype(np.float64)
    pixels = view.pixels.astype(np.float64)
    x, y = cover.sum(axis=1) @ pixels, cover.sum(axis=2) @ pixels
    return np.stack([x, y], axis=1) / cover.sum(axis=(1, 2))[:, None]


def centres(shape: str, radii: float | Array, centroids_N2: Array) -> Array:
    """Centres of shapes with these centres of mass, [N, 2]."""
    return centroids_N2 - np.stack(np.broadcast_arrays(0.0, MOMENTS[shape][1] * np.asarray(radii)), axis=-1)


def place_object(view: View, time: int, shape: str, radius: float) -> Array:
    """The centre, (x, y) in canvas units, by least squares over the known pixels; the template has any strength."""
    cover, known = view.cover[time], view.known[time].astype(np.float32)
    reach, size = view.margin - 1, radius * view.scale
    grid = (np.arange(-reach, reach + 1) / size).astype(np.float32)
    kernel = cover_of(shape, grid[None], grid[:, None], size, SOFT)[::-1, ::-1]
    cost = signal.fftconvolve(known, kernel**2, "same") - 2 * signal.fftconvolve(
        known * cover, kernel, "same"
    )
    row, column = np.unravel_index(cost.argmin(), cost.shape)
    rows, columns = (slice(max(0, int(at) - reach), int(at) + reach + 1) for at in (row, column))
    cover, known = cover[rows, columns], known[rows, columns]
    centre = view.pixels[[column, row]].astype(np.float64)
    offsets = np.array([(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3)])
    for step in STEPS:
        tried = centre + offsets * step / view.scale
        x = view.pixels[None, None, columns] - tried[:, 0, None, None].astype(np.float32)
        y = view.pixels[None, rows, None] - tried[:, 1, None, None].astype(np.float32)
        templates = cover_of(shape, x / np.float32(radius), y / np.float32(radius), size, SOFT)
        norms, matches = ((known * templates * of).sum(axis=(1, 2)) for of in (templates, cover))
        centre = tried[(matches**2 / np.maximum(norms, 1)).argmax()]
    return centre


def likeness(view: View, clear_T: Mask) -> Array:
    """Intersection over union with each shape of the same area and centroid, [T, SHAPES]; nan where not clear."""
    ious = np.full((len(clear_T), len(SHAPES)), np.nan)
    times = np.flatnonzero(clear_T)
    inside, areas, middles = view.inside[times], view.areas()[times], centroids(view, times)
    for number, shape in enumerate(SHAPES):
        radii = np.sqrt(areas / MOMENTS[shape][0])
        templates = view.templates(shape, radii, centres(shape, radii, middles)) >= HALF
        ious[times, number] = (inside & templates).sum(axis=(1, 2)) / (inside | templates).sum(axis=(1, 2))
    return ious


def shape_of(view: View, likeness_TS: Array) -> tuple[str, int, float]:
    """(shape, radius, mean intersection over union): from clear frames where there are any."""
    times = np.flatnonzero(~np.isnan(likeness_TS[:, 0]))
    if not len(times):
        return _covered_shape(view)
    ious = likeness_TS[times].mean(axis=0)
    shape = SHAPES[int(ious.argmax())]
    radius = float(np.sqrt(np.median(view.areas()[times[:EARLY]]) / MOMENTS[shape][0]))
    return shape, min(RADII, key=lambda legal: abs(legal - radius)), float(ious.max())


def _covered_shape(view: View) -> tuple[str, int, float]:
    """Of an object that is never clear: what fits its fullest frames best."""
    times = [int(time) for time in np.argsort(view.areas(), kind="stable")[-FULLEST:]]
    errors = {}
    for shape, radius in itertools.product(SHAPES, RADII):
        found = np.stack([place_object(view, time, shape, radius) for time in times])
        misfit = (view.cover[times] - view.templates(shape, radius, found)) * view.known[times]
        errors[shape, radius] = float((misfit**2).sum())
    shape, radius = min(errors, key=errors.__getitem__)
    found = np.stack([place_object(view, time, shape, radius) for time in times])
    templates = view.templates(shape, radius, found) >= HALF
    inside, known = view.inside[times], view.known[times]
    union = ((inside | templates) & known).sum(axis=(1, 2))
    ious = (inside & templates & known).sum(axis=(1, 2)) / np.maximum(1, union)
    return shape, radius, float(ious.mean())
