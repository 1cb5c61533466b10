"""Sets of synthetic clips: a folder with H.264 files, their manifest, and the recipe that they are made by."""

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from megavrc.config import UserError, progress, read_json, to_dict, write_atomic, write_json
from megavrc.video.write import Frames, write_mp4

FORMAT = 1  # of a recipe's file; a file without a number is of the first
SPLIT_CLIPS = 10**9  # indices that every split has to itself: no clip is in two


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the files of a set depend on; a kind of set adds what its clips show.

    Attributes:
        clips: their number by split.
        seed: chooses everything that is random.
        frames: frames a clip.
        size: side in pixels.
        fps: frames a second.
        crf: quality of x264, 1 (best) to 51.
    """

    clips: dict[str, int]
    seed: int
    frames: int
    size: int
    fps: int
    crf: int

    def __post_init__(self) -> None:
        problems = list(self.problems())
        if problems:
            raise UserError("; ".join(problems))

    def problems(self) -> Iterator[str]:
        """What cannot be, one sentence each."""
        for split, count in self.clips.items():
            if count < 0:
                yield f"{count} clips of split {split}: at least 0"
        for name, least in {"seed": 0, "frames": 1, "size": 8, "fps": 1, "crf": 1}.items():
            if getattr(self, name) < least:
                yield f"{name} {getattr(self, name)}: at least {least}"
        if self.crf > 51:
            yield f"crf {self.crf}: at most 51"


class Clip(NamedTuple):
    """What the manifest says about a clip, and a function that draws it."""

    caption: str
    label: int | None
    attributes: dict[str, Any]
    render: Callable[[], Frames]


Draw = Callable[[str, int], Clip]
"""(split, number of the clip in it) -> the clip; a module's function, for it is sent to other processes."""


def write_set(out: Path, kind: str, recipe: Recipe, draw: Draw, processes: int) -> None:
    """Write OUT/videos/*.mp4, OUT/manifest.jsonl and the recipe, OUT/KIND.json.

    What an earlier call wrote is kept, so a call that was stopped goes on where it was.

    Raises:
        UserError: the folder holds something else.
    """
    if processes < 1:
        raise UserError(f"processes {processes}: at least 1")
    _claim(out, kind, recipe)
    jobs = [(split, number) for split, count in recipe.clips.items() for number in range(count)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        rows = pool.map(partial(_write_clip, out, recipe, draw), jobs, chunksize=16)
        lines = [json.dumps(row) + "\n" for row in progress(rows, "clips", len(jobs))]
    write_atomic(out / "manifest.jsonl", "".join(lines).encode())
    counts = ", ".join(f"{count} {split}" for split, count in recipe.clips.items())
    print(f"{out / 'manifest.jsonl'}: {counts}")


def _claim(out: Path, kind: str, recipe: Recipe) -> None:
    """Make the folder and write its recipe, or check that it holds this very set."""
    wanted, file = {"format": FORMAT, **to_dict(recipe)}, out / f"{kind}.json"
    if file.exists():
        found = {"format": FORMAT, **read_json(file)}
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            raise UserError(
                f"{out}: holds a set with other {', '.join(different)}; choose another folder or delete it"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty and not a set of {kind}; choose another folder")
    (out / "videos").mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


def _write_clip(out: Path, recipe: Recipe, draw: Draw, job: tuple[str, int]) -> dict[str, Any]:
    """Write one clip unless it is there, and return its line of the manifest."""
    split, number = job
    clip = draw(split, number)
    name = f"{split}-{number:06d}"
    path = Path("videos") / f"{name}.mp4"
    if not (out / path).exists():
        write_mp4(out / path, clip.render(), fps=recipe.fps, crf=recipe.crf)
    return {
        "id": name,
        "path": str(path),
        "caption": clip.caption,
        "label": clip.label,
        "split": split,
        "attributes": clip.attributes,
    }
