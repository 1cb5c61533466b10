"""Make the moving picture of the README from a finished demo: docs/images/demo.gif.

    python docs/figures/moving.py runs/demo

The clips are generated anew from the run's converted folder, with the demo's own sampling. The last two combinations
of colour, shape and direction are held out: the model never saw them together.
"""

from pathlib import Path

import numpy as np

from megavrc.config import command
from megavrc.demo.run import TEMPERATURES
from megavrc.generation.folder import load_folder
from megavrc.model import Sampling, SamplingSettings
from megavrc.video import clip_grid, write_gif
from megavrc.video.manifest import read_captions

OUT = Path(__file__).parents[1] / "images" / "demo.gif"
TRAINED, HELDOUT, COLUMNS = 6, 2, 4


def main(run: Path) -> None:
    """Write docs/images/demo.gif from a finished demo.

    Args:
        run: its folder, such as runs/demo.
    """
    manifest = run / "data" / "manifest.jsonl"
    prompts = [
        *_spread(read_captions(manifest, "val"), TRAINED),
        *_spread(read_captions(manifest, "heldout"), HELDOUT),
    ]
    settings = SamplingSettings(*map(Sampling, TEMPERATURES))
    clips = np.asarray(load_folder(run / "hf").generate(prompts, seed=0, settings=settings)[1])
    still = clips[:, -1:].repeat(4, axis=1)  # a moment to look at the end
    cells = list(zip(prompts, np.concatenate([clips, still], axis=1), strict=True))
    write_gif(OUT, clip_grid(cells, columns=COLUMNS, scale=3), fps=8)
    print(f"docs/images/{OUT.name}: {OUT.stat().st_size / 1e6:.2f} MB")


def _spread(captions: list[str], count: int) -> list[str]:
    """Captions from all over a sorted list; a prime step, so that colours, shapes and directions change."""
    different = sorted(set(captions))
    return [different[13 * number % len(different)] for number in range(count)]


if __name__ == "__main__":
    command(main)
