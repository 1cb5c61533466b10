"""Real, reconstructed and generated clips side by side, one prompt a row."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavrc.generation.folder import load_folder
from megavrc.model import SamplingSettings
from megavrc.video import clip_grid, contact_sheet, read_clip, write_gif, write_png
from megavrc.video.manifest import read_manifest

ROWS = {"val": 6, "heldout": 2}  # prompts of each split


def write_comparison(
    model: Path, manifest: Path, out: Path, settings: SamplingSettings, seed: int = 0
) -> None:
    """Write OUT/comparison.gif (moving) and OUT/comparison.png (stills).

    Args:
        model: converted folder.
        manifest: of the clips of megavrc make_shapes; prompts are taken from its splits val and heldout.
        out: folder.
        settings: of the generated clips.
        seed: of the generated clips.
    """
    loaded = load_folder(model)
    entries = _choose(list(read_manifest(manifest)))
    prompts = [entry["caption"] for entry in entries]
    real = np.stack([read_clip(manifest.parent / entry["path"], 0, 17, size=None) for entry in entries])
    tokenizer = loaded.video_tokenizer
    rebuilt = tokenizer.decode(tokenizer.encode(torch.from_numpy(real))).numpy()
    made = np.asarray(loaded.generate(prompts, seed=seed, settings=settings)[1])
    captions = [entry["caption"] + " (held out)" * (entry["split"] == "heldout") for entry in entries]
    sets = {"real": real, "reconstructed": rebuilt, "generated": made}
    cells = [(name, clips[index]) for index in range(len(entries)) for name, clips in sets.items()]
    out.mkdir(parents=True, exist_ok=True)
    stills = [(f"{name}: {captions[place // len(sets)]}", clip) for place, (name, clip) in enumerate(cells)]
    write_png(out / "comparison.png", contact_sheet(stills, columns=9, scale=2))
    moving = clip_grid(cells, columns=len(sets), scale=3, headings=captions, text=18)
    write_gif(out / "comparison.gif", moving, fps=8)


def _choose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Clips that differ as much as possible in what they show, the same ones every time."""
    chosen = []
    for split, count in ROWS.items():
        candidates = [row for row in rows if row["split"] == split]
        used: set[str] = set()
        picked: list[dict[str, Any]] = []
        while candidates and len(picked) < count:
            best = min(candidates, key=lambda row: len(used & set(row["attributes"].values())))
            candidates.remove(best)
            picked.append(best)
            used ^= set(best["attributes"].values())
        chosen += picked
    return chosen
