"""Measurements of the runs of the study, clip by clip: the result files of benchmarks/study/run.py."""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.files import check_fields
from megavrc.results import Metric, Result, read_result

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One number of one model: the mean over clips of `score` in a case of its result file.

    Attributes:
        run: name of the run in benchmarks/study/matrix.yaml.
        checkpoint: step.
        kind: of its clips: `given`, `free`, `modes` or `each` (each frame from true ones), with `refined` (in several
            passes) and `tuned` (at the run's best temperatures); `reconstructed`: what its tokenizer leaves of the real
            ones; `bits SET`: what the clips of a validation set cost; `probes SET`.
        score: name; of bits `total`, `first` (frame) or `later` (frames); of `each` also `decline`: by how much the
            share of whole clips falls a frame, beyond what it does when each frame follows from true ones.
    """

    run: str
    checkpoint: int
    kind: str
    score: str


@dataclass(frozen=True)
class StudyRun:
    """A run with one seed: `status` is done, trained or failed."""

    name: str
    seed: int
    status: str
    content: Result

    def metric(self, name: str) -> Metric | None:
        """A number of the whole run, such as `parameters`, if it was measured."""
        found: Metric | None = self.content["metrics"].get(name)
        return found

    def clips(self, cell: Cell) -> tuple[Array, str] | None:
        """([clips] values, nan where a clip says nothing; what the clips are), if they were measured.

        The second is equal for clips that can be compared: of the same keys, through the same tokenizers.
        """
        if cell.score == "decline":
            return self._decline(cell)
        case = f"{cell.kind} {cell.checkpoint}"
        for row in self.content["cases"]:
            if row["name"] == case and (isinstance(row["by_clip"], list) or cell.score in row["by_clip"]):
                tokenizers = (self.content["protocol"].get(f"{kind}_tokenizer") for kind in ("video", "text"))
                return _values(row, cell), " ".join(map(str, (row["config"]["clips"], *tokenizers)))
        return None

    def _decline(self, cell: Cell) -> tuple[Array, str] | None:
        """Minus the slope over the later frames of: whole from own frames - whole from true ones."""
        free = replace(cell, kind=cell.kind.replace("each", "given"))
        parts: list[Array] = []
        while True:
            score = f"whole_by_latent_{1 + len(parts)}"
            own, true = (self.clips(replace(kind, score=score)) for kind in (free, cell))
            if own is None or true is None:
                break
            if own[1] != true[1]:
                raise UserError(
                    f"{self.name}, seed {self.seed}: {free.kind} and {cell.kind} are of different clips; "
                    "measure one of them again"
                )
            parts.append(own[0] - true[0])
            keys = own[1]
        if len(parts) < 2:
            return None
        place = np.arange(len(parts)) - (len(parts) - 1) / 2
        return -(place @ np.stack(parts)) / (place @ place), keys


def _values(row: dict[str, object], cell: Cell) -> Array:
    by_clip = row["by_clip"]
    if isinstance(by_clip, list):
        bits = np.array([[float(word) for word in line.split()] for line in by_clip])
        parts = {
            "total": bits.sum(axis=1),
            "first": bits[:, 0],
            "later": bits[:, 1:].sum(axis=1),
            "first_later": bits[:, 1:2].sum(axis=1),
            "others": bits[:, 2:].sum(axis=1),
        }
        return parts[cell.score]
    assert isinstance(by_clip, dict)
    return np.array([np.nan if word == "-" else float(word) for word in by_clip[cell.score].split()])


def read_study(folder: Path) -> dict[str, list[StudyRun]]:
    """All runs by name, each with its seeds in order. Raises UserError for a file that is none of the study's."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; go to the checkout of megavrc, or name another with --results"
        )
    runs: dict[str, list[StudyRun]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        content = read_result(path)
        missing = [key for key in ("run", "seed", "status") if key not in content]
        if missing:
            raise UserError(f"{path}: no result of benchmarks/study/run.py: {', '.join(missing)} missing")
        check_fields(path, content, {"run": str, "seed": int, "status": str})
        for row in content["cases"]:
            _check_row(f"{path}: case {row['name']}", row)
        name, seed = content["run"], content["seed"]
        if path.name != f"{name}-{seed}.json":  # a copy would count as another seed
            raise UserError(
                f"{path}: is {name} with seed {seed}: name it {name}-{seed}.json, or take it away"
            )
        runs[name].append(StudyRun(name, seed, content["status"], content))
    if not runs:
        raise UserError(
            f"{folder}: no results of the study; python benchmarks/study/run.py run --work DIR makes them"
        )
    return dict(runs)


def _check_row(where: str, row: dict[str, Any]) -> None:
    """UserError unless a case says which clips it measured, and a number or `-` of each."""
    check_fields(where, row["config"], {"checkpoint": int, "clips": str})
    check_fields(where, row, {"by_clip": list[str] | dict[str, str]})
    by_clip = row["by_clip"]
    lines, nothing = (by_clip, "-") if isinstance(by_clip, list) else (by_clip.values(), "nan")
    try:
        numbers = [[float(nothing if word == "-" else word) for word in line.split()] for line in lines]
    except ValueError as error:
        raise UserError(f"{where}: by_clip: {error}; measure it again") from None
    if not numbers or len({len(line) for line in numbers}) > 1 or not numbers[0]:
        raise UserError(f"{where}: by_clip: lines of different length, or none; measure it again")


def values(runs: dict[str, list[StudyRun]], cell: Cell) -> dict[int, tuple[Array, str]]:
    """`StudyRun.clips` by seed; seeds that have not measured it are left out."""
    found = {run.seed: run.clips(cell) for run in runs.get(cell.run, [])}
    return {seed: clips for seed, clips in found.items() if clips is not None}


def told(runs: dict[str, list[StudyRun]], reconstructed: Cell) -> tuple[NDArray[np.bool_], str] | None:
    """Of which prompts a motion is told, and what they were: where the reconstructed clips have a told direction."""
    found = values(runs, replace(reconstructed, score="direction"))
    return next(((~np.isnan(clips), keys) for clips, keys in found.values()), None)


def with_objects(runs: dict[str, list[StudyRun]], cell: Cell, count: int) -> dict[int, tuple[Array, str]]:
    """`values` of the clips whose scene has so many objects; nan for the others, seeds without any left out."""
    objects = values(runs, replace(cell, score="objects"))
    found = {
        seed: (np.where(objects[seed][0] == count, clips, np.nan), keys)
        for seed, (clips, keys) in values(runs, cell).items()
        if seed in objects
    }
    return {seed: (clips, keys) for seed, (clips, keys) in found.items() if not np.isnan(clips).all()}


def paired(runs: dict[str, list[StudyRun]], first: Cell, second: Cell) -> dict[int, Array]:
    """First minus second by seed, clip by clip: [clips]. Raises UserError if the two are of different clips."""
    one, two = values(runs, first), values(runs, second)
    for seed in one.keys() & two.keys():
        if one[seed][1] != two[seed][1]:
            raise UserError(
                f"{first.run} and {second.run}, seed {seed}, {first.kind}: measured on different clips, or of models "
                "with other tokenizers; measure one of them again"
            )
    found = {seed: one[seed][0] - two[seed][0] for seed in sorted(one.keys() & two.keys())}
    return {seed: clips for seed, clips in found.items() if not np.isnan(clips).all()}
