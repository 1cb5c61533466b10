"""The command that makes a set of scenes."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from megavrc.errors import UserError
from megavrc.video import synthetic
from megavrc.video.scenes import HeldOut, SceneSettings, heldout_scenes, render_scene, scene

SPLITS = ("train", "val", "test", "heldout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneRecipe(synthetic.Recipe, SceneSettings):
    """The options that the files of a set depend on."""

    def problems(self) -> Iterator[str]:
        """The values that cannot be, a sentence each."""
        yield from synthetic.Recipe.problems(self)
        yield from SceneSettings.problems(self)


def make_scenes(
    out: Path,
    kind: str = "scenes",
    told: float | None = None,
    places: str = "grid",
    background: str = "plain",
    bounce: str = "reflect",
    clips: int = 8192,
    val: int = 512,
    test: int = 512,
    heldout: int = 12,
    seed: int = 0,
    frames: int = 17,
    size: int = 64,
    fps: int = 8,
    crf: int = 4,
    processes: int = 2,
) -> None:
    """Write captioned clips whose future is open: OUT/videos/*.mp4 and OUT/manifest.jsonl.

    The same options give the same clips; a run that was stopped continues where it was. A folder that holds
    another set is refused.

    Args:
        out: folder to write to, made if missing.
        kind: `scenes`: one or two objects of five shapes and six colours, some behind a bar; `single`: one
            object, no bar, and a background that stands still; or `corner`: the same, but the object goes right or
            down, equally likely, and nothing says which.
        told: probability that the caption names an object's motion, 0 to 1; 0.5 unless given. In `corner` it never
            does.
        places: places of the objects: `grid`, centres on multiples of 4 pixels and radius 8, so that an object moves
            half a cell or a whole one in a latent frame; or `any` pixel and radius 8 to 10, which takes far longer to
            learn.
        background: background that stands still: `plain` grey, or `waves` as a panning one has, which take
            far longer to learn too.
        bounce: motion of an object at a wall: `reflect`, or go on in a `random` direction.
        clips: training clips.
        val: clips of the split val.
        test: clips of the split test, and as many of the split heldout.
        heldout: number of combinations of colour, shape and direction that only captions of the split heldout name, 0
            to 12 of 120. None where captions name no motion.
        seed: seed of everything that is random.
        frames: frames a clip.
        size: side in pixels.
        fps: frames a second.
        crf: quality of x264, 1 (best) to 51.
        processes: encoding processes.
    """
    if kind == "corner":
        if told or bounce != "reflect":
            raise UserError("kind corner: nothing is told and no wall is met; leave out --told and --bounce")
        told = 0.0
    told = 0.5 if told is None else told
    try:
        left_out = heldout_scenes(seed, heldout if told else 0)
    except ValueError as error:
        raise UserError(str(error)) from None
    recipe = SceneRecipe(
        clips=dict(zip(SPLITS, (clips, val, test, test if left_out else 0), strict=True)),
        kind=kind,
        told=told,
        places=places,
        background=background,
        bounce=bounce,
        heldout=left_out,
        seed=seed,
        frames=frames,
        size=size,
        fps=fps,
        crf=crf,
    )
    synthetic.write_set(out, "scenes", recipe, partial(draw_scenes, recipe), processes)


def draw_scenes(recipe: SceneRecipe, split: str, number: int) -> synthetic.Clip:
    """Clip `number` of a split. In heldout the first object is of a combination that is left out of the others."""
    index = SPLITS.index(split) * synthetic.SPLIT_CLIPS + number
    shown: HeldOut | None = None
    if split == "heldout":
        shown = recipe.heldout[number % len(recipe.heldout)]
    drawn = scene(recipe.seed, index, recipe, shown=shown)
    return synthetic.Clip(
        caption=drawn.caption,
        label=None,
        attributes={**dataclasses.asdict(drawn), "bits": drawn.bits},
        render=lambda: render_scene(drawn, recipe.frames, recipe.size),
    )
