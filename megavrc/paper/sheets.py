"""Figures 7 and 8 of the paper: generated clips as rows of frames, from the folders that `megavrc generate` wrote."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megavrc.evaluation.clip_files import open_clips
from megavrc.paper.measured import Exhibit, Measured
from megavrc.paper.plots import METHODS, TEXT
from megavrc.report.figures import panels
from megavrc.video.sheet import contact_sheet

Rows = list[tuple[str, NDArray[np.uint8]]]

WIDTH = 6.9  # inches, of a page's text
INTERVAL = 2  # frames, as the paper shows its clips
CLIPS = 2  # of each model and data set
SMALL = 128  # pixels: frames up to this side are enlarged


def fig7(found: Measured) -> Exhibit:
    """Clips of the baseline and of VRC, the same class and seed, on each data set."""
    rows: Rows = []
    for key, item in found.matrix.lists["dataset"].items():
        clips = {model: _clips(found, f"samples-{model}-{key}", CLIPS) for model in ("token", "vrc")}
        pairs = zip(*clips.values(), strict=False) if all(clips.values()) else []
        for pair in pairs:
            for model, (what, frames) in zip(clips, pair, strict=True):
                rows.append((f"{item['title']}, {METHODS[model].label}: {what}", frames))
    made = found.exhibit("fig7", "Figure 7. Generated clips: the baseline and VRC")
    return _drawn(made, rows, "The first clips of each, none chosen; one row a clip.")


def fig8(found: Measured) -> Exhibit:
    """Clips of VRC from text."""
    made = found.exhibit("fig8", "Figure 8. Clips that VRC generates from text")
    return _drawn(made, _clips(found, "samples-text", 2 * CLIPS), "The first clips, none chosen.")


def _clips(found: Measured, job: str, count: int) -> Rows:
    """The first clips of a folder, with what each shows."""
    folder: Path = found.matrix.jobs[job].product.parent
    if not found.there(job):
        return []
    source = open_clips(folder)
    rows = []
    for index, clip in enumerate(source.clips[:count]):
        frames = source.read(index, range(0, source.length(index), INTERVAL))
        rows.append((clip.prompt or f"class {clip.label}", frames))
    return rows


def _drawn(made: Exhibit, rows: Rows, note: str) -> Exhibit:
    if not rows:
        return made
    columns = max(len(frames) for _, frames in rows)
    scale = 2 if max(frames.shape[1] for _, frames in rows) <= SMALL else 1
    sheet = contact_sheet(rows, columns, scale)
    figure, (axis,) = panels(1, width=WIDTH, height=WIDTH * sheet.shape[0] / sheet.shape[1], text=TEXT)
    axis.imshow(sheet, interpolation="nearest")
    axis.set_axis_off()
    made.figure = figure
    made.notes.append(f"{note} Every {INTERVAL}nd frame.")
    return made
