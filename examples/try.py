"""Draw four clips of each prompt from the model in examples/scenes, and write them as one moving picture."""

from pathlib import Path

import numpy as np

from megavrc.config import command
from megavrc.generation.folder import load_folder
from megavrc.video import clip_grid, write_gif

PROMPTS = (
    "a red square",
    "a cyan ring",
    "a green circle",
    "a blue triangle. the blue triangle moves left fast",
)
FUTURES = 4


def main(out: Path = Path("runs/try/clips.gif")) -> None:
    """Draw four clips of each of four prompts, and write them as one moving picture.

    Args:
        out: GIF file to write.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_folder(Path(__file__).with_name("scenes"))
    print(f"drawing {FUTURES} clips for each of {len(PROMPTS)} prompts ..", flush=True)
    prompts = [prompt for prompt in PROMPTS for _ in range(FUTURES)]
    clips = np.asarray(loaded.generate(prompts, seed=0)[1])
    cells = [(f"seed {number}", clip) for number, clip in enumerate(clips)]
    write_gif(out, clip_grid(cells, columns=FUTURES, scale=2, headings=PROMPTS, text=18), fps=8)
    print(
        f"{out}: open it in a browser. What moves untold goes another way in each clip (docs/refinement.md)."
    )


if __name__ == "__main__":
    command(main)
