"""One tracked object of a clip: was it whole, on its path, itself again after the bar, steady, undimmed?"""

import numpy as np
from numpy.typing import NDArray

from megavrc.evaluation.scene_detector import Track
from megavrc.evaluation.scene_motion import FittedMotion, fit_motion
from megavrc.video.scenes import CANVAS, OCCLUDER_WIDTH, SHAPES

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEAST, MOST = -0.2, 0.25  # excess area of a whole object, in areas of its template
MIN_TRAVEL = 1.0  # canvas units; what stays closer to where it was first seen is frozen
MIN_SEEN = 3  # frames that a motion is fitted on
MIN_EARLY = 0.75  # of the early frames, for a path to be continued
COVERED = (
    0.2  # weight of a place at which something touches or covers the object: it is five times less certain
)
CERTAIN = 0.6  # part of an object that must be in sight for its error to count
LOST = 16.0  # canvas units; the error of an object that has left the picture
MISSED = 0.5  # part of an object that should be in sight, so that not to see it is to miss it
SAME_PLACE = 2.0  # canvas units
TOUCH = 0.5  # canvas units between an object and a wall that it is at
BEND = 3.0  # canvas units from a wall in which a bounce bends the path


def whole(track: Track) -> Mask:
    """Frames in which it is one piece of 0.8 to 1.25 times its template's area, [T].

    Where part of it is hidden, what is missing or too much is still measured in areas of the whole template. Out of
    sight it is whole if something hides it: bar, object or the edge of the picture.
    """
    return (track.pieces <= 1) & (track.excess >= LEAST) & (track.excess <= MOST)


def frozen(track: Track) -> bool:
    """Whether it never gets MIN_TRAVEL away from where it was first seen."""
    seen = track.centre[track.seen]
    return len(seen) == 0 or float(np.linalg.norm(seen - seen[0], axis=1).max()) < MIN_TRAVEL


def first_motion(track: Track, reflects: bool) -> FittedMotion | None:
    """Its motion from frame 0 on: of the first half of the clip, where it is whole if that is long enough.

    With `reflects` False, nothing being known of its way after a wall, until it first is at one.
    """
    times = np.arange(len(track.seen))
    early = times <= _half(track)
    if not reflects:
        low, high = track.radius + TOUCH, CANVAS - track.radius - TOUCH
        at_wall = np.any((track.centre <= low) | (track.centre >= high), axis=1)
        early &= times <= (at_wall.argmax() if at_wall.any() else _half(track))
    for frames in (early & track.seen & whole(track), early & track.seen, track.seen):
        if frames.sum() >= MIN_SEEN:
            return _fit(track, frames)
    return None


def path_errors(track: Track, reflects: bool) -> tuple[float, float, Array]:
    """Distance from where its own motion leads, in canvas units.

    The motion is fitted on frames 1 to h, h half of the last frame, where it must be whole, and continued with
    reflections over frames h + 1 to the last. Frames in which it is not whole or mostly covered do not count, nor
    does anything after it was out of sight (that is permanence). Frames after it left through a wall count LOST, the
    largest error.

    Returns:
        mean over those frames if its motion meets no wall there (else nan); mean over the frames from the first
        wall on (nan if there is none, or with `reflects` False); the errors, [T - 1 - h].
    """
    times, half = np.arange(len(track.seen)), _half(track)
    good = whole(track)
    early, late = (times >= 1) & (times <= half), times > half
    nothing = float("nan"), float("nan"), np.full(late.sum(), np.nan)
    if not good[early].all() or track.seen[early].mean() < MIN_EARLY:
        return nothing
    motion = _fit(track, early & track.seen)
    walls = motion.walls(times, track.radius)
    if not reflects and (walls != walls[1]).any():
        return nothing
    errors = np.minimum(np.linalg.norm(track.centre - motion.at(times, track.radius), axis=1), LOST)
    errors[track.left] = LOST
    hidden = (times > half) & ~track.seen & ~track.left
    unsure = track.seen & (track.visible < CERTAIN)
    errors[~good | unsure | (np.cumsum(hidden) > 0)] = np.nan
    after = late & (walls != walls[half])
    return (float("nan") if after.any() else mean(errors[late])), mean(errors[after]), errors[late]


def permanence(track: Track, bar: float | None) -> float:
    """1 if it comes back from behind the bar as itself and where its motion leads, 0 if not, nan if that is not asked.

    It is asked where the motion, fitted on the frames before, hides it whole and then brings at least half of it
    out. From then on it must be within SAME_PLACE of its path in every frame that shows it, with the shape that it
    had. Where bar and edge of the picture cut it on both sides, what shows fits many places: it must only be seen.
    """
    times = np.arange(len(track.seen))
    behind = np.flatnonzero(~track.seen)
    if bar is None or not len(behind):
        return float("nan")
    before = track.seen & whole(track) & (times < behind[0])
    if before.sum() < MIN_SEEN:
        return float("nan")
    path = _fit(track, before).at(times, track.radius)
    low, high = path[:, 0] - track.radius, path[:, 0] + track.radius
    hidden = (times >= behind[0]) & (low >= bar - 0.5) & (high <= bar + OCCLUDER_WIDTH + 0.5)
    out = (path[:, 0] <= bar) | (path[:, 0] >= bar + OCCLUDER_WIDTH)
    back = out & (times > hidden.argmax()) & hidden.any()
    asked = back & (track.seen | (track.visible >= MISSED))  # not where another object hides it
    if not asked.any():
        return float("nan")
    between = (low <= SAME_PLACE) & (high > bar)
    between |= (high >= CANVAS - SAME_PLACE) & (low < bar + OCCLUDER_WIDTH)
    near = np.linalg.norm(track.centre - path, axis=1) <= SAME_PLACE  # false for nan
    there = near | (between & track.seen)
    like = track.likeness[back & track.clear]
    same = not len(like) or SHAPES[int(like.mean(axis=0).argmax())] == track.shape
    return float(there[asked].all() and same)


def jitter(track: Track) -> float:
    """Root mean square error of its speed, in canvas units a frame; nan if it is never clear three frames in a row.

    Between walls the second difference of the centre is 0. What it is measures the error of each speed three times.
    """
    low, high = track.radius + BEND, CANVAS - track.radius - BEND
    free = (track.clear & whole(track))[:, None] & (track.centre > low) & (track.centre < high)
    second = np.diff(track.centre, n=2, axis=0)[free[2:] & free[1:-1] & free[:-2]]
    return float(np.sqrt((second**2).mean() / 3)) if len(second) else float("nan")


def kept_area(track: Track) -> float:
    """Its ink in the last frames over its ink in the first ones; nan if it is not in one piece throughout or not there
    at first.

    First and last: the quarter of the frames at each end, as far as nothing touches the object there.
    """
    quarter = max(1, len(track.ink) // 4)
    first = mean(track.ink[:quarter])
    if (track.pieces > 1).any() or not first > 0:
        return float("nan")
    return mean(track.ink[-quarter:]) / first


def mean(values: Array) -> float:
    """Mean of what is not nan; nan if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _half(track: Track) -> int:
    return (len(track.seen) - 1) // 2


def _fit(track: Track, frames: Mask) -> FittedMotion:
    weights = np.where(track.clear, 1.0, COVERED * track.visible**2)[frames]
    return fit_motion(track.centre[frames], np.flatnonzero(frames), weights, track.radius)
