"""Scores of drawn clips by what kind of prompt they are of.

By the number of objects they are shares of what reconstructed clips get, the ceiling of every model on the same tokens;
by whether a motion is told, shares of the clips.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.paper.study_claims import MAIN, share_of
from megavrc.paper.study_runs import Array, Cell, told, values, with_objects
from megavrc.paper.study_tables import (
    CHEAP,
    LONG,
    REFINED,
    TOKEN,
    VRC,
    Found,
    Row,
    Runs,
    apart_by_seed,
    says,
    seeds_of,
    spread_metric,
)
from megavrc.results import Metric, case, metric

Ceiling = dict[tuple[str, int], tuple[Array, str]]  # score, objects -> of the reconstructed clips

OBJECTS = {1: "one", 2: "two"}
SCORES = {  # column -> kind, score
    "whole_given_1_1": ("given{}", "whole"),
    "whole_given": ("given{} tuned", "whole"),
    "sound_given": ("given{} tuned", "all"),
    "sound_from_text": ("free{} tuned", "all"),
}
TOLD = {  # the same, by whether a motion is told
    "sound_given_1_1": ("given{}", "all"),
    **{name: SCORES[name] for name in ("sound_given", "whole_given_1_1", "whole_given", "sound_from_text")},
}
SETS = {"scenes": 0, "corner": 3}  # -> priority of its runs; corner has one object


def ceiling_shares(runs: Runs) -> Iterator[dict[str, Any]]:
    """For each set the scores of reconstructed clips, and each model's as shares of them, by objects of the scene.

    Raises:
        UserError: clips were drawn for other prompts than those that were reconstructed.
    """
    for name, priority in SETS.items():
        real = Row(f"{name}: reconstructed clips", f"{name}-vrc", VRC.step, priority)
        ceiling: Ceiling = {}
        for (_, score), count in product(SCORES.values(), OBJECTS):
            found = with_objects(runs, Cell(real.run, real.step, "reconstructed", score), count)
            if found:
                ceiling[score, count] = next(iter(found.values()))
        yield _row(runs, real, ceiling, itself=True)
        for row in (TOKEN, VRC, REFINED, *(LONG if name == "scenes" else ())):
            of_set = {"run": row.run.replace("scenes", name), "priority": max(row.priority, priority)}
            yield _row(runs, row._replace(label=f"{name}: {row.label}", **of_set), ceiling)


def _row(runs: Runs, row: Row, ceiling: Ceiling, itself: bool = False) -> dict[str, Any]:
    """A row of shares or, of the reconstructed clips `itself`, of their scores."""
    metrics: dict[str, Metric] = {}
    facts: dict[str, Any] = {}
    seeds = []
    for (column, (kind, score)), (count, label) in product(SCORES.items(), OBJECTS.items()):
        name, whole = f"{column}_{label}", ceiling.get((score, count))
        cell = Cell(row.run, row.step, kind.format(row.passes), score)
        found = with_objects(runs, cell, count)
        seeds.append(len(found))
        if not ceiling:
            facts[name] = row.missing(" --tune" if "tuned" in kind and not itself else " --samples")
        elif whole and itself:
            metrics[name] = spread_metric({0: whole})
        elif whole and not np.nansum(whole[0]):
            continue  # of nothing there is no share
        elif whole and found:
            metrics[name] = _share(cell, found, whole)
        elif whole:
            facts[name] = row.missing(" --tune" if "tuned" in kind else " --samples")
    facts |= {"seeds": "" if itself else seeds_of(seeds)}  # the same clips in all seeds
    return case(row.label, metrics, facts)


def _share(cell: Cell, found: dict[int, tuple[Array, str]], whole: tuple[Array, str]) -> Metric:
    _check_prompts(cell, found, whole[1])
    by_seed = [clips for clips, _ in found.values()]
    value, low, high = share_of(by_seed, whole[0])
    return metric(value, "", sum(len(clips) for clips in by_seed), low, high)


def told_apart(runs: Runs) -> Iterator[dict[str, Any]]:
    """Scores of prompts that tell a motion and of those that tell none, and differences, prompt by prompt.

    Raises:
        UserError: clips were drawn for other prompts than those that were reconstructed.
    """
    prompts = told(runs, Cell(VRC.run, VRC.step, "reconstructed", "direction"))
    rows: list[tuple[str, Row, Row | None]] = [
        *((row.label, row, None) for row in (TOKEN, CHEAP, VRC, REFINED, *LONG)),
        ("VRC minus the token model", VRC, TOKEN),
        ("the same, the token model with VRC's FLOPs", VRC, CHEAP),
        ("VRC minus the token model, tokenizer made anew", VRC.anew(), TOKEN.anew()),
        ("refinement in its passes minus VRC", REFINED, VRC),
        ("the same, four times the steps", LONG[1], LONG[0]),
    ]
    for label, row, less in rows:
        cells = _told_cells(row)
        found = {column: values(runs, cell) for column, cell in cells.items()}
        if prompts:
            for column, cell in cells.items():
                _check_prompts(cell, found[column], prompts[1], tokenizers=row.run.startswith(MAIN))
        if less:
            found = {
                column: apart_by_seed(runs, cells[column], cell) for column, cell in _told_cells(less).items()
            }
        yield _told_row(label, row, found, prompts)


def _told_cells(row: Row) -> dict[str, Cell]:
    return {
        column: Cell(row.run, row.step, kind.format(row.passes), score)
        for column, (kind, score) in TOLD.items()
    }


def _told_row(
    label: str, row: Row, found: dict[str, Found], prompts: tuple[NDArray[np.bool_], str] | None
) -> dict[str, Any]:
    metrics: dict[str, Metric] = {}
    facts: dict[str, Any] = {"seeds": seeds_of([len(clips) for clips in found.values()])}
    for (column, by_seed), (name, wanted) in product(found.items(), {"told": True, "untold": False}.items()):
        of_kind = {
            seed: (np.where(prompts[0] == wanted, clips, np.nan), keys)
            for seed, (clips, keys) in by_seed.items()
            if prompts
        }
        if says(of_kind):
            metrics[f"{column}_{name}"] = spread_metric(of_kind)
        else:
            facts[f"{column}_{name}"] = row.missing(" --tune" if "tuned" in TOLD[column][0] else " --samples")
    return case(label, metrics, facts)


def _check_prompts(cell: Cell, found: Found, prompts: str, tokenizers: bool = True) -> None:
    """UserError for clips of other prompts, or through other tokenizers."""
    parts = None if tokenizers else 1  # the clips come first
    if {tuple(keys.split()[:parts]) for _, keys in found.values()} - {tuple(prompts.split()[:parts])}:
        raise UserError(
            f"{cell.run}, {cell.kind}: drawn for other prompts than those that were reconstructed; measure one again"
        )
