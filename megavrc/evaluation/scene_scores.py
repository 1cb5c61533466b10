"""Do clips show what their scenes say, in whole objects that keep moving as they should?

Every score is a column with one value, or one curve, a clip; nan where a clip has nothing to say on it.
`docs/scene_scores.md` defines them.
"""

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.evaluation.scene_detector import Frames, ObjectDetection, Track, detect_scene
from megavrc.evaluation.scene_tracks import (
    first_motion,
    frozen,
    jitter,
    kept_area,
    mean,
    path_errors,
    permanence,
    whole,
)
from megavrc.evaluation.statistics import NORMAL, resamples
from megavrc.video.scenes import Object, Scene

Array = NDArray[np.float64]

# Scores that are 0 or 1, or shares of the objects of a clip.
SHARES = {"count", "colour", "shape", "direction", "speed", "whole", "whole_by_latent", "permanence"}
SHARES |= {"frozen", "all", "modes_whole", "modes_other"}
FEWEST = 3  # frames of a clip: a path is fitted on those from 1 to half of the last
LATENT = 4  # frames of a latent frame, but the first, which is one


@dataclass(frozen=True)
class SceneScore:
    """One score of a set of clips.

    Attributes:
        values: [clips] or, for a curve, [clips, points]; nan where a clip says nothing.
        share: each value is a share: where all are equal the interval is as wide as Wilson's of all or none, since a
            bootstrap sees no spread.
    """

    values: Array
    share: bool = False

    @property
    def n(self) -> int:
        """Clips that say something."""
        return len(self._said())

    @property
    def mean(self) -> Array:
        """Over the clips that say something: a number, or one a point of the curve; nan where none does."""
        return _mean(self.values)

    def interval(self, draws: int = 1000, seed: int = 0) -> tuple[Array, Array]:
        """95% interval of the mean, by bootstrap over the clips that say something: (low, high); nan where, at a
        point, one alone does, of what is no share."""
        said, rng = self._said(), np.random.default_rng(seed)
        if not len(said):
            return self.mean, self.mean
        with warnings.catch_warnings():  # of a point of a curve on which no clip says anything
            warnings.simplefilter("ignore", RuntimeWarning)
            means = _weighted(resamples(len(said), draws, rng), said)
            low, high = np.nanquantile(means, (0.025, 0.975), axis=0)
            alike = np.nanmax(said, axis=0) == np.nanmin(said, axis=0)
        count, mean = np.sum(~np.isnan(said), axis=0), self.mean
        if self.share:
            edge = NORMAL**2 / (count + NORMAL**2)
            low, high = (
                np.where(alike, mean * (1 - edge), low),
                np.where(alike, mean + edge * (1 - mean), high),
            )
        elif np.any(count < 2):
            low, high = np.where(count < 2, np.nan, low), np.where(count < 2, np.nan, high)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Value, low and high (None for nan), and n, for JSON."""
        low, high = self.interval()
        return {"value": _plain(self.mean), "low": _plain(low), "high": _plain(high), "n": self.n}

    def _said(self) -> Array:
        known = ~np.isnan(self.values.reshape(len(self.values), -1))
        return self.values[known.any(axis=1)]


def score_scenes(
    clips: Iterable[Frames], scenes: Sequence[Scene], names: Sequence[str] = ()
) -> dict[str, SceneScore]:
    """Score clips, each uint8 [T, H, W, 3] with H = W, all of one length, against the scenes that they should show.

    A clip is held to what the caption of its scene tells, and else to itself: its first frame may be its own.

    Args:
        names: of the clips, for errors (default: clip 0, clip 1, ..).

    Raises:
        UserError: a clip is not square, of another length than the first, or too short.
    """
    columns: list[dict[str, float | Array]] = []
    length, names = 0, names or [f"clip {index}" for index in range(len(scenes))]
    for name, frames, scene in zip(names, clips, scenes, strict=True):
        length = length or len(frames)
        _check_clip(name, frames, length)
        columns.append(clip_scores(frames, scene))
    if not columns:
        raise ValueError("no clips to score")
    return {
        name: SceneScore(np.array([column[name] for column in columns], float), name in SHARES)
        for name in columns[0]
    }


def _check_clip(name: str, frames_THWC: Frames, length: int) -> None:
    count, height, width = frames_THWC.shape[:3]
    if height != width:
        raise UserError(f"{name}: {width} x {height} pixels; clips of scenes are square: crop them")
    if count < FEWEST:
        raise UserError(f"{name}: {count} frames; a path needs at least {FEWEST}")
    if count != length:
        raise UserError(f"{name}: {count} frames, the first clip has {length}: cut all to one length")


def clip_scores(frames_THWC: Frames, scene: Scene) -> dict[str, float | Array]:
    """The scores of one clip by name: means over its objects, curves [latent frames] or [frames]."""
    found = detect_scene(frames_THWC)
    column = _caption_scores(scene, found) | _object_scores(scene, found)
    length = len(frames_THWC)
    flicker = np.full(length, np.nan) if scene.background.pan else _flicker(frames_THWC, found)
    column["flicker"] = mean(flicker[1:])
    column["motion"] = float(np.abs(np.diff(frames_THWC.astype(np.float32), axis=0)).mean())
    wholes = [whole(track) for track in found.tracks]
    column["whole"] = float(bool(wholes) and bool(np.all(wholes)))
    curves = {
        "whole": np.all(wholes, axis=0).astype(float) if wholes else np.zeros(length),
        "area": _mean_curve([track.ink for track in found.tracks], length),
        "overlap": _mean_curve([np.where(t.seen, t.overlap, np.nan) for t in found.tracks], length),
        "flicker": flicker,
    }
    for name, curve in curves.items():
        column[f"{name}_by_latent"] = by_latent(curve, np.min if name == "whole" else mean)
    told = [column[name] for name in ("count", "colour", "shape", "direction", "speed", "whole")]
    column["all"] = float(column["frozen"] == 0 and all(value == 1 or np.isnan(value) for value in told))
    return column


def _caption_scores(scene: Scene, found: ObjectDetection) -> dict[str, float | Array]:
    pairs = match(scene, found.tracks)
    told = [
        (item, first_motion(track, reflects(scene)))
        for item, track in pairs
        if item.told and not frozen(track)
    ]
    moves = [(item, motion) for item, motion in told if motion]
    return {
        "count": float(len(found.tracks) == len(scene.objects)),
        "colour": _over([item.colour == track.colour for item, track in pairs]),
        "shape": _over([item.shape == track.shape for item, track in pairs]),
        "direction": _over([item.direction == motion.direction for item, motion in moves]),
        "speed": _over([item.speed == motion.speed for item, motion in moves]),
    }


def _object_scores(scene: Scene, found: ObjectDetection) -> dict[str, float | Array]:
    paths = [path_errors(track, reflects(scene)) for track in found.tracks]
    length = len(found.background)
    return {
        "flight": _over([flight for flight, _, _ in paths]),
        "bounce": _over([bounce for _, bounce, _ in paths]),
        "permanence": _over(
            [permanence(track, found.occluder) for track in found.tracks] if reflects(scene) else []
        ),
        "jitter": _over([jitter(track) for track in found.tracks]),
        "area": _over([kept_area(track) for track in found.tracks]),
        "frozen": _over([frozen(track) for track in found.tracks]),
        "path_by_frame": _mean_curve([curve for _, _, curve in paths], length - 1 - (length - 1) // 2),
    }


def reflects(scene: Scene) -> bool:
    """Whether walls reflect, so that a path has no choice at them."""
    return all(item.turns is None for item in scene.objects)


def match(scene: Scene, tracks: Sequence[Track]) -> list[tuple[Object, Track]]:
    """The object of the scene that each track is: the one of its colour; of the rest, so that most shapes agree."""
    by_colour = {track.colour: track for track in tracks}
    pairs = [(item, by_colour[item.colour]) for item in scene.objects if item.colour in by_colour]
    items = [item for item in scene.objects if item.colour not in by_colour]
    rest = [track for track in tracks if track.colour not in {item.colour for item in scene.objects}]
    count = min(len(items), len(rest))
    ways = [
        list(zip(some, way, strict=True))
        for some in itertools.combinations(items, count)
        for way in itertools.permutations(rest, count)
    ]
    return pairs + max(ways, key=lambda way: sum(item.shape == track.shape for item, track in way))


def _flicker(frames_THWC: Frames, found: ObjectDetection) -> Array:
    """Mean absolute difference from frame 0 in grey levels, where neither frame shows bar or object, [T]."""
    pixels = frames_THWC.astype(np.float32)
    both = found.background & found.background[0]
    differences = np.abs(pixels - pixels[0]).mean(axis=-1)
    return (differences * both).sum(axis=(1, 2)) / np.where(
        both.any(axis=(1, 2)), both.sum(axis=(1, 2)), np.nan
    )


def by_latent(values_T: Array, reduce: Any) -> Array:
    """A curve over frames as one over latent frames: 0, 1 to 4, 5 to 8, .."""
    parts = np.split(values_T, range(1, len(values_T), LATENT))
    return np.array([reduce(part) for part in parts], float)


def _over(values: Sequence[float]) -> float:
    return mean(np.array(values, float))


def _mean_curve(curves: Sequence[Array], length: int) -> Array:
    return _mean(np.array(curves, float).reshape(-1, length))


def _mean(values: Array) -> Array:
    """Over the first axis, of what is not nan; nan where nothing is."""
    return _weighted(np.ones((1, len(values))), values)[0]


def _weighted(weights_DN: Array, values: Array) -> Array:
    """Means over the first axis of values [N, ..] with each row of weights, of what is not nan: [D, ..]."""
    known = ~np.isnan(values)
    totals = np.tensordot(weights_DN, known.astype(float), 1)
    sums = np.tensordot(weights_DN, np.where(known, values, 0), 1)
    return np.divide(sums, totals, out=np.full_like(totals, np.nan), where=totals > 0)


def _plain(value: Array) -> Any:
    if np.ndim(value):
        return [_plain(item) for item in value]
    return None if np.isnan(value) else float(value)
