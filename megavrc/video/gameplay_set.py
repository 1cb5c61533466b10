"""The command that makes a set of gameplay."""

import atexit
import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megavrc.video import gameplay, synthetic

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GameplayRecipe(synthetic.Recipe):
    """The options that the files of a set depend on.

    Attributes:
        vizdoom: version of the engine.
    """

    vizdoom: str

    def problems(self) -> Iterator[str]:
        """The values that cannot be, a sentence each."""
        yield from super().problems()
        if self.frames == 1:
            yield "frames 1: at least 2, for something to be done in a clip"
        if self.size > gameplay.SIDE:
            yield f"size {self.size}: at most {gameplay.SIDE}, the height of the screen"


def make_gameplay(
    out: Path,
    clips: int = 4096,
    val: int = 512,
    test: int = 512,
    seed: int = 0,
    frames: int = 17,
    size: int = 64,
    crf: int = 4,
    processes: int = 2,
) -> None:
    """Write clips of six scenarios of ViZDoom: OUT/videos/*.mp4 and OUT/manifest.jsonl.

    The scenarios are the classes and take turns. Captions say what the player does; the manifest also has the buttons
    and the player's place for every frame. The same options give the same clips; a run that was stopped continues
    where it was. A folder that holds another set is refused. Needs the extra "study" (vizdoom).

    Args:
        out: folder to write to, made if missing.
        clips: training clips.
        val: clips of the split val.
        test: clips of the split test.
        seed: seed of everything that is random.
        frames: frames a clip, 17.5 a second.
        size: side in pixels, at most 240.
        crf: quality of x264, 1 (best) to 51.
        processes: playing and encoding processes.
    """
    recipe = GameplayRecipe(
        clips=dict(zip(SPLITS, (clips, val, test), strict=True)),
        seed=seed,
        frames=frames,
        size=size,
        fps=gameplay.FPS,
        crf=crf,
        vizdoom=gameplay.engine().__version__,
    )
    synthetic.write_set(out, "gameplay", recipe, functools.partial(draw_gameplay, recipe), processes)


def draw_gameplay(recipe: GameplayRecipe, split: str, number: int) -> synthetic.Clip:
    """Play clip `number` of a split."""
    label = number % len(gameplay.SCENARIOS)
    scenario = gameplay.SCENARIOS[label]
    index = SPLITS.index(split) * synthetic.SPLIT_CLIPS + number
    clip = gameplay.gameplay_clip(_game(scenario), scenario, recipe.seed, index, recipe.frames, recipe.size)
    return synthetic.Clip(
        caption=gameplay.gameplay_caption(clip.actions),
        label=label,
        attributes={
            "scenario": scenario,
            "static": round(gameplay.static_share(clip.frames), 4),
            "actions": clip.actions,
            "places": clip.places.round(3).tolist(),
        },
        render=lambda: clip.frames,
    )


@functools.cache
def _game(scenario: str) -> Any:
    """The engine of a scenario, which runs as long as this process: a start takes as long as many clips."""
    running = contextlib.ExitStack()
    game = running.enter_context(gameplay.opened(scenario))
    atexit.register(running.close)
    return game
