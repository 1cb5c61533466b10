"""Make synthetic captioned clips: H.264 files and a manifest."""

import dataclasses
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from megavrc.config import UserError, command, progress, read_json, to_dict, write_atomic, write_json
from megavrc.data import shapes
from megavrc.video.write import write_mp4

SPLITS = ("train", "val", "heldout")
SPLIT_ROUNDS = 10**9  # a split starts so many rounds of all combinations after the one before: no clip in two


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the files of a set depend on."""

    clips: dict[str, int]  # by split
    heldout: tuple[shapes.Combination, ...]
    seed: int
    frames: int
    size: int
    fps: int
    crf: int


def main(
    out: Path,
    clips: int = 4096,
    val: int = 144,
    heldout: int = 6,
    seed: int = 0,
    frames: int = 17,
    size: int = 64,
    fps: int = 8,
    crf: int = 4,
    processes: int = 2,
) -> None:
    """Write captioned clips of one moving shape: OUT/videos/*.mp4 and OUT/manifest.jsonl.

    The same options give the same clips; a run that was stopped continues where it was. A folder that holds
    another set is refused.

    Args:
        out: folder, made if missing.
        clips: training clips; colours, shapes and directions are balanced.
        val: clips of the split val (combinations of training), and as many of the split heldout.
        heldout: how many of the 72 combinations of colour, shape and direction are left out of training, 0 to 18.
        seed: chooses everything that is random.
        frames: frames a clip.
        size: side in pixels.
        fps: frames a second.
        crf: quality of x264, 1 (best) to 51.
        processes: encoding processes.
    """
    if min(clips, processes, frames, size - 7, fps, crf) < 1 or val < 0 or crf > 51:
        raise UserError(
            "clips, processes, frames and fps: at least 1; size: at least 8; val: at least 0; crf: 1 to 51"
        )
    try:
        left_out = shapes.heldout_combinations(seed, heldout)
    except ValueError as error:
        raise UserError(str(error)) from None
    counts = dict(zip(SPLITS, (clips, val, val if heldout else 0), strict=True))
    recipe = Recipe(counts, left_out, seed, frames, size, fps, crf)
    claim(out, recipe)
    jobs = [(split, index) for split in SPLITS for index in range(counts[split])]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        rows = list(
            progress(pool.map(partial(make_clip, out, recipe), jobs, chunksize=16), "clips", len(jobs))
        )
    write_atomic(out / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    print(f"{out / 'manifest.jsonl'}: {', '.join(f'{count} {split}' for split, count in counts.items())}")


def claim(out: Path, recipe: Recipe) -> None:
    """Make the folder and write its recipe, or check that it holds this very set."""
    wanted, file = to_dict(recipe), out / "shapes.json"
    if file.exists():
        found = read_json(file)
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            raise UserError(
                f"{out}: holds a set with other {', '.join(different)}; choose another folder or delete it"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty and not a set of shapes; choose another folder")
    (out / "videos").mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


def make_clip(out: Path, recipe: Recipe, job: tuple[str, int]) -> dict[str, Any]:
    """Write one clip unless it is there, and return its line of the manifest."""
    split, number = job
    if split == "heldout":
        combinations = recipe.heldout
    else:
        combinations = shapes.training_combinations(recipe.heldout)
    index = SPLITS.index(split) * SPLIT_ROUNDS * len(combinations) + number
    combination = shapes.combination_of(recipe.seed, index, combinations)
    name = f"{split}-{number:06d}"
    path = Path("videos") / f"{name}.mp4"
    if not (out / path).exists():
        _, frames = shapes.clip(recipe.seed, index, combinations, recipe.frames, recipe.size)
        write_mp4(out / path, frames, fps=recipe.fps, crf=recipe.crf)
    return {
        "id": name,
        "path": str(path),
        "caption": shapes.caption(combination),
        "label": shapes.COMBINATIONS.index(combination),
        "split": split,
        "attributes": combination._asdict(),
    }


if __name__ == "__main__":
    command(main)
