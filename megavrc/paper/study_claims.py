"""The hypotheses of the study as data, and their verdicts by its rules (docs/study.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from megavrc.evaluation.statistics import resamples
from megavrc.paper.study_runs import Array, Cell, StudyRun, paired

DRAWS = 10_000
SEEDS = 3  # fewer decide nothing
LEVEL = 0.05
TESTED = 7  # hypotheses that Holm's correction is over: all but that of speed


@dataclass(frozen=True)
class Claim:
    """A hypothesis: `better` is above `worse`. It is refuted if no seed's difference is above `least`.

    `waits` names what its test proper still needs; then the difference is shown and no verdict given.
    """

    number: int
    says: str
    better: Cell
    worse: Cell
    least: float = 0.0
    waits: str = ""


TUNED = "each model's best temperatures"
CLAIMS = (
    Claim(
        1,
        "sound clips from the text, equal steps: VRC above the token model",
        Cell("scenes-vrc", 4000, "free", "all"),
        Cell("scenes-token", 4000, "free", "all"),
        waits=TUNED,
    ),
    Claim(
        1,
        "the same at equal FLOPs",
        Cell("scenes-vrc", 4000, "free", "all"),
        Cell("scenes-token", 2250, "free", "all"),
        waits=TUNED,
    ),
    Claim(
        2,
        "sound clips from the true first frame: with stage 1 above without, equal FLOPs",
        Cell("scenes-vrc", 4000, "given", "all"),
        Cell("scenes-without-stage1", 5000, "given", "all"),
        waits=TUNED,
    ),
    Claim(
        4,
        "sound clips from the true first frame: rate 4 above rate 1",
        Cell("scenes-rate4", 4000, "given", "all"),
        Cell("scenes-rate1", 4000, "given", "all"),
        waits=TUNED,
    ),
    Claim(
        8,
        "whole clips from the true first frame: refinement above one pass",
        Cell("scenes-refine", 4000, "given refined", "whole"),
        Cell("scenes-vrc", 4000, "given", "whole"),
        least=0.1,
    ),
)


class Spread(NamedTuple):
    """A mean over seeds and clips, its 95% interval, and twice the smaller share of draws on one side of 0."""

    value: float
    low: float
    high: float
    p: float


def crossed(by_seed: Sequence[Array], draws: int = DRAWS) -> Spread:
    """Bootstrap over seeds and over clips.

    Args:
        by_seed: for every seed the values of the same clips, [clips]; nan: the clip says nothing.
        draws: of the bootstrap. A draw takes as many seeds as there are, and the same clips in all of them.
    """
    table_SN = np.stack(by_seed)
    said, table_SN = ~np.isnan(table_SN), np.nan_to_num(table_SN)
    of_seeds, of_clips = (_resamples(n, draws, axis) for axis, n in enumerate(table_SN.shape))
    sums = (of_seeds * (of_clips @ table_SN.T)).sum(axis=1)
    counts = (of_seeds * (of_clips @ said.T.astype(float))).sum(axis=1)
    means = sums / np.maximum(counts, 1)
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    # one draw more on either side: a bootstrap cannot show that something never happens
    sides = (np.sum(means <= 0) + 1, np.sum(means >= 0) + 1)
    p = min(1.0, 2 * min(sides) / (draws + 1))
    return Spread(float(table_SN.sum() / max(said.sum(), 1)), float(low), float(high), float(p))


@lru_cache(maxsize=4)  # of 40 MB; most tables have the same shape
def _resamples(n: int, draws: int, seed: int) -> Array:
    return resamples(n, draws, np.random.default_rng(seed))


def holm(ps: Sequence[float], tests: int = TESTED, level: float = LEVEL) -> list[bool]:
    """Which of some p-values are significant when `tests` are made in all (Holm 1979); those not made count as 1."""
    passed, alive = [False] * len(ps), True
    for rank, place in enumerate(np.argsort(ps)):
        alive = alive and ps[place] <= level / (tests - rank)
        passed[place] = alive
    return passed


class Verdict(NamedTuple):
    """Of a claim: difference by seed, its spread over seeds and clips (None before the first seed), and the word."""

    claim: Claim
    by_seed: dict[int, float]
    spread: Spread | None
    word: str


def judge(runs: dict[str, list[StudyRun]], claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """The verdicts: `holds`, `refuted`, `not shown`, or what is waited for."""
    differences = [paired(runs, claim.better, claim.worse) for claim in claims]
    spreads = [crossed(list(found.values())) if found else None for found in differences]
    ready = [
        len(found) >= SEEDS and not claim.waits for claim, found in zip(claims, differences, strict=True)
    ]
    ps = [spread.p if spread and decides else 1.0 for spread, decides in zip(spreads, ready, strict=True)]
    return [
        Verdict(claim, means, spread, _word(claim, list(means.values()), significant))
        for claim, means, spread, significant in zip(
            claims, map(_means, differences), spreads, holm(ps), strict=True
        )
    ]


def _means(by_seed: dict[int, Array]) -> dict[int, float]:
    return {seed: float(np.nanmean(clips)) for seed, clips in by_seed.items()}


def _word(claim: Claim, means: list[float], significant: bool) -> str:
    if len(means) < SEEDS:
        return f"waits: {len(means)} of {SEEDS} seeds"
    if claim.waits:
        return f"waits: {claim.waits}"
    if all(mean <= claim.least for mean in means):
        return "refuted"
    return "holds" if significant and min(means) > 0 else "not shown"
