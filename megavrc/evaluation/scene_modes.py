"""Modes of many clips that begin with one first frame: is every future drawn, and as often as it should be?"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from megavrc.evaluation.scene_detector import Frames, detect_scene
from megavrc.evaluation.scene_scores import SHARES, SceneScore, reflects
from megavrc.evaluation.scene_tracks import first_motion, frozen, mean, whole
from megavrc.video.scenes import MOTIONS, Scene
from megavrc.video.shapes import DIRECTIONS

Array = NDArray[np.float64]

NEAR = 0.75  # canvas units a frame between a motion and the mode that it is taken for; two modes are 1 apart


def score_modes(
    draws: Iterable[tuple[Scene, Sequence[Frames]]], each_once: bool = False, beside: int = 0
) -> dict[str, SceneScore]:
    """Compare the motions of generated clips with the distribution that caption and first frame leave open.

    Only whole clips have a motion. Total variation is taken for each untold object by itself.

    Args:
        draws: for every first frame its scene and the clips drawn from it, uint8 [T, H, W, 3] each, as many as
            possible: the interval of the scores is over first frames only.
        each_once: the clips are every future once, not draws: nothing is subtracted.
        beside: draws that a model makes of each first frame, which these clips, every future once, stand beside.

    Returns:
        By name, one value a first frame: `modes`, total variation in excess of what as many draws of the true
        distribution would have on average (nan if no clip counts or the caption tells all); `modes_whole`, the share
        of clips that are whole; `modes_other`, the share of those in which an untold object does none of what it could;
        with `beside` also `modes_perfect`, what `modes` of so many draws is on average where each of these clips is
        drawn as often. The fewer clips are whole, the less excess there can be: of one clip it is 0.
    """
    rows = []
    for scene, clips in draws:
        modes = [mode_numbers(frames, scene) for frames in clips]
        wholes = np.array([numbers for numbers in modes if numbers is not None], np.int64).reshape(
            -1, len(scene.objects)
        )
        untold = [number for number, item in enumerate(scene.objects) if not item.told]
        tables = [
            np.bincount(column[column >= 0], minlength=len(MOTIONS[scene.kind]))
            for column in wholes.T[untold]
        ]
        measure = variation if each_once else excess_variation
        excess = [measure(counts) for counts in tables if counts.sum()]
        other = np.any(wholes[:, untold] < 0, axis=1).astype(float)
        share = len(wholes) / len(modes)
        row = {"modes": mean(np.array(excess)), "modes_whole": share, "modes_other": mean(other)}
        if beside:
            drawn = max(1, round(beside * share))  # whole clips of so many draws
            row["modes_perfect"] = mean(
                np.array([expected_excess(counts, drawn) for counts in tables if counts.sum()])
            )
        rows.append(row)
    if not rows:
        raise ValueError("no first frames to score")
    return {
        name: SceneScore(np.array([row[name] for row in rows], float), name in SHARES) for name in rows[0]
    }


def mode_numbers(frames_THWC: Frames, scene: Scene) -> list[int] | None:
    """The motion of the kind that each object does, -1 for none of them; None if the clip is not whole."""
    tracks = {track.colour: track for track in detect_scene(frames_THWC).tracks}
    if set(tracks) != {item.colour for item in scene.objects} or not all(
        whole(t).all() for t in tracks.values()
    ):
        return None
    ways = np.array([np.array(DIRECTIONS[m.direction]) * m.speed for m in MOTIONS[scene.kind]], float)
    numbers = []
    for item in scene.objects:
        motion = None if frozen(tracks[item.colour]) else first_motion(tracks[item.colour], reflects(scene))
        distances = np.linalg.norm(ways - (motion.way if motion else np.nan), axis=1)
        numbers.append(int(distances.argmin()) if distances.min() <= NEAR else -1)
    return numbers


def variation(counts_K: Sequence[int] | NDArray[np.int64]) -> float:
    """Total variation between counts and the uniform distribution."""
    counts = np.asarray(counts_K)
    return float(np.abs(counts / counts.sum() - 1 / len(counts)).sum() / 2)


def excess_variation(counts_K: Sequence[int] | NDArray[np.int64]) -> float:
    """`variation`, minus its expectation for uniform draws."""
    return variation(counts_K) - expected_variation(int(np.sum(counts_K)), len(counts_K))


def expected_excess(counts_K: Sequence[int] | NDArray[np.int64], n: int) -> float:
    """Mean `excess_variation` of n draws of values that are as probable as these counts are large."""
    counts_K = np.asarray(counts_K)
    return _expected(n, counts_K / counts_K.sum()) - expected_variation(n, len(counts_K))


def expected_variation(n: int, k: int) -> float:
    """Mean total variation between n uniform draws of k values and the uniform distribution."""
    return _expected(n, np.full(k, 1 / k))


def _expected(n: int, shares_K: Array) -> float:
    """Mean total variation between n draws of values with these shares and the uniform distribution.

    Every count is binomial, so the mean of each absolute deviation is a finite sum; no approximation.
    """
    counts, k = np.arange(n + 1)[:, None], len(shares_K)
    return float((stats.binom.pmf(counts, n, shares_K) * np.abs(counts / n - 1 / k)).sum() / 2)
