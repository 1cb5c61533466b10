"""What goes wrong with time, without learned parts: clips that freeze, loop, fade or blur, and curves over frames.

All is measured on the pixels of a clip against its own first frames, so that it means the same for every model; real
clips have a value too, and stand beside.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import ClipSource, Frames, read_whole
from megavrc.evaluation.statistics import MetricReport, as_metric, difference, mean_estimate
from megavrc.progress import progress
from megavrc.results import Metric, case

CHANGED = 12  # grey levels beyond which a pixel has changed; compression (crf 23) stays below
STILL = 0.001  # share of changed pixels below which nothing moves
REPEATED = 0.25  # of the change between neighbours: what a loop's frames may differ by
FADED = 0.8  # of the first frames' contrast or sharpness
MIN_FRAMES = 5
SHARES = ("frozen", "looping", "fading", "blurring")  # of clips

Curve = NDArray[np.float64]  # [T]


def clip_drift(frames_THWC: Frames) -> dict[str, float | Curve]:
    """Scores of one clip of at least 5 frames: shares as 0 or 1, and curves over frames.

    `frozen`: nothing moves in its second half. `looping`: it moves, and after at most half of its length shows again
    what it showed. `fading`, `blurring`: contrast, or the share of fine detail in it, of the last quarter is below
    0.8 of the first's.
    """
    if len(frames_THWC) < MIN_FRAMES:
        raise ValueError(f"{len(frames_THWC)} frames, at least {MIN_FRAMES}")
    grey = frames_THWC.astype(np.float32).mean(axis=-1)
    moved = _changed(frames_THWC, 1)
    contrast = grey.std(axis=(1, 2))
    edges = (
        np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    ) / 2
    sharpness = edges / np.maximum(contrast, 1e-6)
    frozen = moved[len(moved) // 2 :].mean() < STILL
    curves: dict[str, Curve] = {
        "motion": np.concatenate([[np.nan], moved]),
        "from_first": np.abs(grey - grey[0]).mean(axis=(1, 2)).astype(np.float64),
        "contrast": (contrast / max(float(contrast[0]), 1e-6)).astype(np.float64),
        "sharpness": (sharpness / max(float(sharpness[0]), 1e-6)).astype(np.float64),
    }
    return {
        "frozen": float(frozen),
        "looping": float(not frozen and _loops(frames_THWC, moved)),
        "fading": float(_lost(contrast)),
        "blurring": float(_lost(sharpness) and not _lost(contrast)),
        **curves,
    }


def _changed(frames_THWC: Frames, step: int) -> Curve:
    """Share of pixels that have changed since `step` frames ago, [T - step]."""
    pixels = frames_THWC.astype(np.int16)
    apart = np.abs(pixels[step:] - pixels[:-step]).max(axis=-1) > CHANGED
    return apart.mean(axis=(1, 2))


def _loops(frames_THWC: Frames, moved: Curve) -> bool:
    """Whether some period, of at least 2 frames and at most half of the clip, brings the same frames again."""
    periods = range(2, len(frames_THWC) // 2 + 1)
    return any(_changed(frames_THWC, period).mean() < REPEATED * moved.mean() for period in periods)


def _lost(values: NDArray[np.floating]) -> bool:
    quarter = max(1, len(values) // 4)
    return bool(values[-quarter:].mean() < FADED * values[:quarter].mean())


def measure_drift(
    clips: ClipSource, real: ClipSource | None = None, draws: int = 1000, seed: int = 0
) -> MetricReport:
    """Drift of clips of one length, and of real ones beside them.

    Raises:
        UserError: a clip that cannot be read.
    """
    cases, scores = [], []
    sources = [clips, real] if real else [clips]
    for source in sources:
        rows = [_drift(source, index) for index in progress(range(len(source.clips)), source.name)]
        scores.append(rows)
        cases.append(case(source.name, _metrics(rows, draws, seed), {"clips": len(rows)}))
    metrics = {}
    if real:
        for name in SHARES:
            shares = [np.array([row[name] for row in rows], np.float64) for rows in scores]
            mine, true = (mean_estimate(share, draws, seed + i) for i, share in enumerate(shares))
            metrics[f"{name}: measured - real"] = as_metric(difference(mine, true), len(scores[0]), "share")
    protocol: dict[str, Any] = {
        "changed": f"more than {CHANGED} grey levels",
        "still": f"below {STILL:.1%} changed pixels",
        "faded": f"below {FADED} of the first quarter",
        "storage": [source.storage for source in sources],
        "interval": f"95%, bootstrap of clips, {draws} draws",
        "seed": seed,
    }
    return MetricReport(cases, metrics, protocol)


def _drift(source: ClipSource, index: int) -> dict[str, float | Curve]:
    try:
        return clip_drift(read_whole(source, index))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source.name}: clip {source.clips[index].key}: {error}") from None


def _metrics(rows: list[dict[str, float | Curve]], draws: int, seed: int) -> dict[str, Metric]:
    found = {}
    for name in rows[0]:
        values = [np.atleast_1d(row[name]) for row in rows]
        length = min(map(len, values))
        table = np.array([value[:length] for value in values], np.float64)
        unit = "share" if length == 1 or name == "motion" else "levels" if name == "from_first" else ""
        for place in range(length):
            if not np.isnan(table[:, place]).any():
                key = name if length == 1 else f"{name}/{place}"
                found[key] = as_metric(mean_estimate(table[:, place], draws, seed), len(rows), unit)
    return found
