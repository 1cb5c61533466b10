"""Sets of synthetic clips: a folder with H.264 files, their manifest, and the recipe that they are made by."""

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from megavrc.config import to_dict
from megavrc.errors import UserError
from megavrc.files import check_fields, check_format, read_json, write_atomic, write_json
from megavrc.progress import progress
from megavrc.video.write import Frames, write_mp4

FORMAT = 1  # of a recipe's file
SPLIT_CLIPS = 10**9  # indices that every split has to itself: no clip is in two


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options that the files of a set depend on; a kind of set adds what its clips show.

    Attributes:
        clips: their number by split.
        seed: seed of everything that is random.
        frames: frames a clip.
        size: side in pixels.
        fps: frames a second.
        crf: quality of x264, 1 (best) to 51.
    """

    clips: dict[str, int]
    seed: int
    frames: int
    size: int
    fps: float
    crf: int

    def __post_init__(self) -> None:
        problems = list(self.problems())
        if problems:
            raise UserError("; ".join(problems))

    def problems(self) -> Iterator[str]:
        """The values that cannot be, a sentence each."""
        for split, count in self.clips.items():
            if count < 0:
                yield f"{count} clips of split {split}: at least 0"
        for name, least in {"seed": 0, "frames": 1, "size": 8, "fps": 1, "crf": 1}.items():
            if getattr(self, name) < least:
                yield f"{name} {getattr(self, name)}: at least {least}"
        if self.crf > 51:
            yield f"crf {self.crf}: at most 51"


class Clip(NamedTuple):
    """A clip's entry in the manifest, and a function that draws it."""

    caption: str
    label: int | None
    attributes: dict[str, Any]
    render: Callable[[], Frames]


Job = TypeVar("Job")
Row = TypeVar("Row")
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
    rows = _spread(partial(_write_clip, out, recipe, draw), jobs, processes)
    lines = [json.dumps(row) + "\n" for row in progress(rows, "clips", len(jobs))]
    write_atomic(out / "manifest.jsonl", "".join(lines).encode())
    counts = ", ".join(f"{count} {split}" for split, count in recipe.clips.items())
    print(f"{out / 'manifest.jsonl'}: {counts}")


def _claim(out: Path, kind: str, recipe: Recipe) -> None:
    """Make the folder and write its recipe, or check that it holds this very set."""
    wanted, file = to_dict(recipe), out / f"{kind}.json"
    if file.exists():
        found = read_json(file)
        check_format(file, check_fields(file, found, {}).get("format"), FORMAT)
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            raise UserError(
                f"{out}: holds a set with other {', '.join(different)}; choose another folder or delete it"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty and not a set of {kind}; choose another folder")
    (out / "videos").mkdir(parents=True, exist_ok=True)
    write_json(file, {"format": FORMAT, **wanted})


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


def _spread(work: Callable[[Job], Row], jobs: Sequence[Job], processes: int) -> Iterator[Row]:
    """The results of `work` in the order of the jobs; the first error of a process is raised here.

    A process ends in its own time when nobody reads its results any more: on an error, or when the command was killed.
    (Those of a pool would wait for work forever.)
    """
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        results: list[Connection] = []
        for first in range(min(processes, len(jobs))):
            receiving, sending = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_serve, args=(sending, work, jobs[first::processes]))
            process.start()
            sending.close()
            stack.callback(process.join)
            results.append(stack.enter_context(receiving))
        for number in range(len(jobs)):
            try:
                result = results[number % processes].recv()
            except EOFError:
                raise RuntimeError("a process was killed; the same command goes on where it was") from None
            if isinstance(result, Exception):
                raise result
            yield result


def _serve(results: Connection, work: Callable[[Job], Row], jobs: Sequence[Job]) -> None:
    """What a process does: its jobs, as long as somebody reads the results."""
    os.setsid()  # Ctrl-C is for the command; processes, and what they have started, end in order
    try:
        for job in jobs:
            results.send(work(job))
    except BrokenPipeError:
        return
    except Exception as error:
        results.send(error)
