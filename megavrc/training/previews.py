"""Samples of a training run as pictures: a contact sheet, and for clips an animation."""

from pathlib import Path

import numpy as np

from megavrc.video import clip_grid, contact_sheet, write_gif, write_png

SMALL = 128  # pixels; smaller frames are enlarged to about this


def write_preview(folder: Path, step: int, rows: list[tuple[str, np.ndarray]]) -> None:
    """Write step-%08d.png and, for clips, step-%08d.gif of labelled clips (uint8 [T, H, W, 3])."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = max(1, SMALL // rows[0][1].shape[1])
    name = f"step-{step:08d}"
    frames = len(rows[0][1])
    write_png(folder / f"{name}.png", contact_sheet(rows, columns=min(6, frames), scale=scale))
    if frames > 1:
        write_gif(folder / f"{name}.gif", clip_grid(rows, columns=3, scale=scale))
