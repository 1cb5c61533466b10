"""The set of clips of one moving shape: which clips, of which splits; files and manifest by `synthetic`."""

import dataclasses
from functools import partial
from pathlib import Path

from megavrc.errors import UserError
from megavrc.video import shapes, synthetic

SPLITS = ("train", "val", "heldout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesRecipe(synthetic.Recipe):
    """The options that the files of a set depend on."""

    heldout: tuple[shapes.Combination, ...]


def make_shapes(
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
        out: folder to write to, made if missing.
        clips: training clips; colours, shapes and directions are balanced.
        val: clips of the split val (combinations of training), and as many of the split heldout.
        heldout: number of the 72 combinations of colour, shape and direction that are left out of training, 0 to 18.
        seed: seed of everything that is random.
        frames: frames a clip.
        size: side in pixels.
        fps: frames a second.
        crf: quality of x264, 1 (best) to 51.
        processes: encoding processes.
    """
    try:
        left_out = shapes.heldout_combinations(seed, heldout)
    except ValueError as error:
        raise UserError(str(error)) from None
    counts = dict(zip(SPLITS, (clips, val, val if heldout else 0), strict=True))
    recipe = ShapesRecipe(
        clips=counts, heldout=left_out, seed=seed, frames=frames, size=size, fps=fps, crf=crf
    )
    synthetic.write_set(out, "shapes", recipe, partial(draw_shapes, recipe), processes)


def draw_shapes(recipe: ShapesRecipe, split: str, number: int) -> synthetic.Clip:
    """Clip `number` of a split."""
    if split == "heldout":
        combinations = recipe.heldout
    else:
        combinations = shapes.training_combinations(recipe.heldout)
    index = SPLITS.index(split) * synthetic.SPLIT_CLIPS * len(combinations) + number
    combination = shapes.combination_of(recipe.seed, index, combinations)
    return synthetic.Clip(
        caption=shapes.caption(combination),
        label=shapes.COMBINATIONS.index(combination),
        attributes=combination._asdict(),
        render=lambda: shapes.clip(recipe.seed, index, combinations, recipe.frames, recipe.size)[1],
    )
