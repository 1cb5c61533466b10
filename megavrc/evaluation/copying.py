"""Does a model copy the frame before, and does its history decide? (The paper's causal claim about redundancy.)

Asked of teacher-forced probabilities, cell by cell, not of samples: how many bits the true tokens cost where the pixels
of a cell change and where they do not (a model that copies is good in the latter only), and what a false history, in
which nothing has moved since the first frame, does to both. Equality of ids says nothing of it: a video tokenizer gives
the ids of the first frame and of later ones different places in its codebook.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megavrc.evaluation.clip_source import Frames
from megavrc.evaluation.frechet import Array
from megavrc.evaluation.statistics import MetricReport, as_metric, difference, mean_estimate
from megavrc.progress import progress
from megavrc.results import case

CHANGED = 12  # grey levels that some pixel of a changed cell has moved by; compression stays below

Ids = NDArray[np.int64]  # [t, h, w]
Bits = Callable[[int, Ids, Ids], Array]
"""(clip, history ids, target ids) -> bits of each target token of the later frames [t - 1, h, w], the model having seen
the frames before in `history`."""


class CopyingScores(NamedTuple):
    """Means over cells of one clip, in bits a token; nan where it has no such cells.

    Attributes:
        changed, unchanged: of the true tokens, given their own history.
        still_history: of the true tokens of changed cells, given the history of a clip that stands still.
        still_copied: of that still clip's tokens in the same cells, given its history; low where a model copies.
    """

    changed: float
    unchanged: float
    still_history: float
    still_copied: float


def changed_cells(frames_THWC: Frames, grid: tuple[int, int], temporal_patch: int) -> NDArray[np.bool_]:
    """Cells of later latent frames in which some pixel differs from the frame before these, [t - 1, h, w]."""
    rows, columns = grid
    _, height, width, _ = frames_THWC.shape
    cells = frames_THWC.astype(np.int16).reshape(
        len(frames_THWC), rows, height // rows, columns, width // columns, 3
    )
    later = cells[1:].reshape(-1, temporal_patch, *cells.shape[1:])
    before = cells[:-1:temporal_patch, None]
    changed: NDArray[np.bool_] = np.abs(later - before).max(axis=(1, 3, 5, 6)) > CHANGED
    return changed


def clip_copying(
    index: int, frames_THWC: Frames, encode: Callable[[Frames], Ids], bits: Bits
) -> CopyingScores:
    """Scores of one clip of 1 + 4k frames."""
    true, still = encode(frames_THWC), encode(np.repeat(frames_THWC[:1], len(frames_THWC), axis=0))
    changed = changed_cells(frames_THWC, true.shape[1:], (len(frames_THWC) - 1) // (len(true) - 1))
    later = changed.copy()
    later[:1] = False  # the first later frame has the true first frame as its history in both

    def mean(values: Array, cells: NDArray[np.bool_]) -> float:
        return float(values[cells].mean()) if cells.any() else float("nan")

    own = bits(index, true, true)
    return CopyingScores(
        changed=mean(own, changed),
        unchanged=mean(own, ~changed),
        still_history=mean(bits(index, still, true), later) - mean(own, later),
        still_copied=mean(bits(index, still, still), later),
    )


def measure_copying(
    clips: list[Frames],
    encode: Callable[[Frames], Ids],
    bits: Bits,
    name: str,
    draws: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> MetricReport:
    """Scores of a model on real clips, with intervals over the clips that have cells of both kinds.

    Args:
        groups: the video or prompt of each clip, which are drawn as wholes (default: each clip is one).

    Returns:
        `bits_changed`, `bits_unchanged` and their difference `excess_on_changed`; `still_history`, by how many bits a
        history in which nothing moves makes the truth dearer in cells that change; `still_copied`, what the
        continuation of that history costs there.
    """
    rows = [clip_copying(index, frames, encode, bits) for index, frames in enumerate(progress(clips, "bits"))]
    table = np.array(rows, np.float64)
    known = [bool(np.isfinite(row).all()) for row in rows]
    said = table[known]
    drawn = None if groups is None else [name for name, counts in zip(groups, known, strict=True) if counts]
    facts: dict[str, Any] = {"clips": len(said), "without_both_kinds": len(table) - len(said)}
    metrics = {}
    if len(said):
        changed, unchanged, history, copied = (mean_estimate(column, draws, seed, drawn) for column in said.T)
        found = {"bits_changed": changed, "bits_unchanged": unchanged}
        found |= {"excess_on_changed": difference(changed, unchanged)}
        found |= {"still_history": history, "still_copied": copied}
        metrics = {key: as_metric(one, len(said), "bits") for key, one in found.items()}
    protocol = {
        "cells": f"changed: some pixel by more than {CHANGED} grey levels since the frame before the latent frame",
        "bits": "a token, teacher-forced, eval mode, no guidance, without the first frame",
        "interval": f"95%, bootstrap of prompts or videos, {draws} draws",
        "seed": seed,
    }
    lines = [f"{facts['without_both_kinds']} clips change nowhere, or everywhere, and do not count"]
    return MetricReport(
        [case(name, metrics, facts)], {}, protocol, lines if facts["without_both_kinds"] else []
    )
