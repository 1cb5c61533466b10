"""Scores of drawn clips as shares of what reconstructed clips get: the ceiling of every model on the same tokens."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from megavrc.errors import UserError
from megavrc.paper.study_claims import share_of
from megavrc.paper.study_runs import Array, Cell, with_objects
from megavrc.paper.study_tables import LONG, REFINED, TOKEN, VRC, Row, Runs, seeds_of, spread_metric
from megavrc.results import Metric, case, metric

Ceiling = dict[tuple[str, int], tuple[Array, str]]  # score, objects -> of the reconstructed clips

OBJECTS = {1: "one", 2: "two"}
SCORES = {  # column -> kind, score
    "whole_given_1_1": ("given{}", "whole"),
    "whole_given": ("given{} tuned", "whole"),
    "sound_given": ("given{} tuned", "all"),
    "sound_from_text": ("free{} tuned", "all"),
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
    if {keys for _, keys in found.values()} != {whole[1]}:
        raise UserError(
            f"{cell.run}, {cell.kind}: drawn for other prompts than those that were reconstructed; measure one again"
        )
    by_seed = [clips for clips, _ in found.values()]
    value, low, high = share_of(by_seed, whole[0])
    return metric(value, "", sum(len(clips) for clips in by_seed), low, high)
