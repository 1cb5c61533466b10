"""Samples of a training run as pictures: a contact sheet, and for clips an animation."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megavrc.evaluation.drift import MIN_FRAMES, clip_drift
from megavrc.video import clip_grid, contact_sheet, write_gif, write_png

SMALL = 128  # pixels; smaller frames are enlarged to about this

MANY = 0.5  # of the clips, from which on a warning is worth its line

log = logging.getLogger("megavrc")


def write_preview(folder: Path, step: int, rows: list[tuple[str, np.ndarray]]) -> None:
    """Write step-%08d.png and, for clips, step-%08d.gif of labelled clips (uint8 [T, H, W, 3])."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = max(1, SMALL // rows[0][1].shape[1])
    name = f"step-{step:08d}"
    frames = len(rows[0][1])
    write_png(folder / f"{name}.png", contact_sheet(rows, columns=min(6, frames), scale=scale))
    if frames > 1:
        write_gif(folder / f"{name}.gif", clip_grid(rows, columns=3, scale=scale))


def warn_of_drift(step: int, clips: Sequence[np.ndarray], what_for: str) -> None:
    """Say where half of the clips (uint8 [T, H, W, 3]) or more stand still or loop: losses do not show it.

    Args:
        what_for: the clips were made.
    """
    found = [clip_drift(frames).is_ for frames in clips if len(frames) >= MIN_FRAMES]
    for name, what in (("frozen", "stand still"), ("looping", "loop")):
        count = sum(drift[name] for drift in found)
        if found and count >= MANY * len(found):
            log.warning("step %d: %d of %d clips of the %s %s", step, count, len(found), what_for, what)
