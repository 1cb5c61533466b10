"""Faults that come with time, without learned parts: clips that freeze, loop, fade or blur, and curves over frames.

All is measured on the pixels of a clip against its own first frames, so that it means the same for every model; real
clips have a value too, and stand beside.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import ClipSource, Frames, read_whole, source_facts, wholes
from megavrc.evaluation.statistics import (
    MetricReport,
    as_metric,
    clustered_share,
    mean_estimate,
    share_difference,
)
from megavrc.progress import progress
from megavrc.results import Metric, case

CHANGED = 12  # grey levels beyond which a pixel has changed; compression (crf 23) stays below
STILL = 0.001  # share of changed pixels below which nothing moves
REPEATED = 0.25  # of the change between neighbours: what a loop's frames may differ by
FADED = 0.8  # of the first frames' contrast or sharpness
MIN_FRAMES = 5
LEAST = 1e-6  # of what is divided by
FLAT = 1.0  # grey levels of contrast; a first frame of less is no measure of later ones (black, before a fade-in)
UNITS = {"motion": "share", "from_first": "levels", "contrast": "", "sharpness": ""}  # of curves
SHARES = ("frozen", "looping", "fading", "blurring")  # of clips

Curve = NDArray[np.float64]  # [T]


class ClipDrift(NamedTuple):
    """Which of SHARES a clip is, and its curves over frames, [T] each by name; nan where it says nothing."""

    is_: dict[str, bool]
    curves: dict[str, Curve]


def clip_drift(frames_THWC: Frames) -> ClipDrift:
    """Faults of one clip of at least 5 frames.

    `frozen`: nothing moves in its second half. `looping`: it moves, and after at most half of its length shows again
    what it showed. `fading`: the contrast of the last quarter is below 0.8 of the first's; `blurring`: not that, but
    the share of fine detail in it is.
    """
    if len(frames_THWC) < MIN_FRAMES:
        raise ValueError(f"{len(frames_THWC)} frames, at least {MIN_FRAMES}")
    grey = frames_THWC.astype(np.float64).mean(axis=-1)
    moved = _changed(frames_THWC, 1)
    contrast = grey.std(axis=(1, 2))
    edges = sum(np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    sharpness = edges / np.maximum(contrast, LEAST)
    frozen, faded = bool(moved[len(moved) // 2 :].mean() < STILL), _lost(contrast)
    found = {
        "frozen": frozen,
        "looping": not frozen and _loops(frames_THWC, moved),
        "fading": faded,
        "blurring": not faded and _lost(sharpness),
    }
    whole = 1.0 if contrast[0] >= FLAT else np.nan
    curves = {
        "motion": np.concatenate([[np.nan], moved]),
        "from_first": np.abs(grey - grey[0]).mean(axis=(1, 2)),
        "contrast": whole * contrast / max(contrast[0], LEAST),
        "sharpness": whole * sharpness / max(sharpness[0], LEAST),
    }
    return ClipDrift(found, curves)


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
    """Shares of clips, and curves up to the length of the shortest, as NAME/FRAME; those of real clips beside them.

    Raises:
        UserError: a clip that cannot be read, or of fewer than 5 frames.
    """
    sources = [clips, real] if real else [clips]
    cases, lines, spans = [], [], []
    for source in sources:
        rows = [_drift(source, index) for index in progress(range(len(source.clips)), source.name)]
        lengths = [len(row.curves["motion"]) for row in rows]
        spans.append(" to ".join(map(str, sorted({min(lengths), max(lengths)}))))
        if min(lengths) < max(lengths):
            lines.append(f"{source.name}: {spans[-1]} frames; curves end with the shortest")
        drawn = wholes(source)
        metrics = {
            name: clustered_share(np.array([row.is_[name] for row in rows]), drawn, draws, seed)
            for name in SHARES
        }
        metrics |= _curves(rows, drawn, draws, seed)
        cases.append(case(source.name, metrics, {"clips": len(rows), "prompts_or_videos": len({*drawn})}))
    gaps = {}
    if real:
        mine, true = (row["metrics"] for row in cases)
        gaps = {f"{name}: measured - real": share_difference(mine[name], true[name]) for name in SHARES}
        if spans[0] != spans[1]:  # a clip that stands still at its end is frozen or not by where it is cut
            lines.append(f"{spans[0]} frames measured, {spans[1]} real: their shares do not compare")
    protocol: dict[str, Any] = {
        "changed": f"more than {CHANGED} grey levels",
        "still": f"below {STILL:.1%} changed pixels",
        "faded": f"below {FADED} of the first quarter",
        "sources": [source_facts(source) for source in sources],
        "interval": f"95%, bootstrap of prompts or videos, {draws} draws; shares of single clips: Wilson; Newcombe",
        "seed": seed,
    }
    return MetricReport(cases, gaps, protocol, lines)


def _drift(source: ClipSource, index: int) -> ClipDrift:
    frames = read_whole(source, index)
    try:
        return clip_drift(frames)
    except ValueError as error:
        raise UserError(f"{source.name}: clip {source.clips[index].key}: {error}") from None


def _curves(rows: list[ClipDrift], drawn: list[str], draws: int, seed: int) -> dict[str, Metric]:
    length = min(len(row.curves["motion"]) for row in rows)
    found = {}
    for name, unit in UNITS.items():
        table = np.array([row.curves[name][:length] for row in rows])
        said = ~np.isnan(table[:, -1])
        groups = [group for group, known in zip(drawn, said, strict=True) if known]
        for place in range(1 if name == "motion" else 0, length) if groups else ():
            mean = mean_estimate(table[said, place], draws, seed, groups)
            found[f"{name}/{place}"] = as_metric(mean, len(groups), unit)
    return found
