"""The hypotheses of the study as data, and their verdicts by its rules (docs/study_rules.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from megavrc.evaluation.statistics import resamples
from megavrc.paper.study_runs import Array, Cell, StudyRun, paired
from megavrc.results import Metric

DRAWS = 10_000
SEEDS = 3  # fewer decide nothing
LEVEL = 0.05
TESTED = 7  # hypotheses that Holm's correction is over: all but that of speed
STRICT = LEVEL / TESTED  # of a verdict out of Holm's order
COVERAGE = 0.05  # excess total variation of modes that counts as none
FASTER = 5  # times


@dataclass(frozen=True)
class Claim:
    """A hypothesis: in every pair the first cell is above the second.

    Attributes:
        number, says: of docs/study_rules.md.
        pairs: of cells. Of several the smallest difference decides: each size better than the one before.
        least: it is refuted if no seed's difference is above this.
        alike: a pair and how far its first may be above its second: farther, and the claim is not shown.
        halved: pairs of a run at half the learning rate and the same at the usual one: what either gains must be less
            than what the claim rests on.
        beside: a verdict beside that of the hypothesis: tested at LEVEL / TESTED, out of Holm's order.
    """

    number: int
    says: str
    pairs: tuple[tuple[Cell, Cell], ...]
    least: float = 0.0
    alike: tuple[Cell, Cell, float] | None = None
    halved: tuple[tuple[Cell, Cell], ...] = ()
    beside: bool = False


def hypotheses(runs: dict[str, list[StudyRun]]) -> list[Claim]:
    """The hypotheses of docs/study_rules.md, but for that of speed (`judge_speed`), which is no difference of clips."""
    sound, vrc = "sound clips from the true first frame", "scenes-vrc"
    free, given, each = "free tuned", "given tuned", "each tuned"
    best = Cell(vrc, 4000, free, "all")
    halved = tuple((replace(best, run=f"{run}-lr"), replace(best, run=run)) for run in (vrc, "scenes-token"))
    later = [Cell(name, 4000, "bits val", "later") for name in ("scenes-vrc-64", vrc, "scenes-vrc-192")]

    def pair(kind: str, score: str, first: str, second: str, steps: tuple[int, int] = (4000, 4000)) -> Any:
        return ((Cell(first, steps[0], kind, score), Cell(second, steps[1], kind, score)),)

    refined, plain = Cell("scenes-refine", 4000, "given refined", "whole"), Cell(vrc, 4000, "given", "whole")
    modes = replace(refined, kind="modes refined", score="modes"), replace(plain, kind="modes", score="modes")
    budgets = {
        "sound clips from the text, equal steps: VRC above the token model": 4000,
        "the same at equal FLOPs": 2250,
        "the same at equal time": equal_time(runs),
    }
    return [
        *(
            Claim(
                1,
                says,
                ((best, Cell("scenes-token", step, free, "all")),),
                halved=halved,
                beside=place > 0,
            )
            for place, (says, step) in enumerate(budgets.items())
        ),
        Claim(
            2,
            f"{sound}: with stage 1 above without, equal FLOPs",
            pair(given, "all", vrc, "scenes-without-stage1", (4000, 9000)),
        ),
        Claim(
            3,
            "bits of the later frames fall with every size, widths 64, 128, 192",
            tuple(pairwise(later)),
        ),
        Claim(4, f"{sound}: rate 4 above rate 1", pair(given, "all", "scenes-rate4", "scenes-rate1")),
        Claim(
            6,
            "bits of a changed cell above those of an unchanged one, step 1000: rate 1 above rate 4",
            pair("probes val", "gap", "scenes-rate1", "scenes-rate4", (1000, 1000)),
        ),
        Claim(
            7,
            "whole clips that own frames cost, a frame: token model above VRC",
            pair(each, "decline", "scenes-token", vrc),
        ),
        Claim(
            8,
            "whole clips from the true first frame: refinement above one pass",
            ((refined, plain),),
            least=0.1,
            alike=(*modes, COVERAGE),
        ),
    ]


def equal_time(runs: dict[str, list[StudyRun]]) -> int:
    """The first step that the token model is drawn from at which every seed has had VRC's seconds of the CPU."""
    seconds = {
        name: {run.seed: cost["value"] for run in runs.get(name, []) if (cost := run.metric("cpu_seconds"))}
        for name in ("scenes-vrc", "scenes-token")
    }
    vrc, token = seconds.values()
    early = all(token[seed] * 2250 / 4000 >= vrc[seed] for seed in vrc.keys() & token.keys())
    return 2250 if early else 4000


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
        draws: draws of the bootstrap. A draw takes as many seeds as there are, and the same clips in all of them.
    """
    table_SN = np.stack(by_seed).astype(np.float32)
    means = _means(table_SN, draws)
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    # one draw more on either side: a bootstrap cannot show that something never happens
    sides = (np.sum(means <= 0) + 1, np.sum(means >= 0) + 1)
    p = min(1.0, 2 * min(sides) / (draws + 1))
    return Spread(float(np.nanmean(table_SN, dtype=float)), float(low), float(high), float(p))


def share_of(by_seed: Sequence[Array], whole_N: Array, draws: int = DRAWS) -> tuple[float, float, float]:
    """A mean over seeds and clips over that of other values of the same clips, and its 95% interval; see `crossed`."""
    means, wholes = (_means(np.stack(values).astype(np.float32), draws) for values in (by_seed, [whole_N]))
    low, high = np.quantile(means[wholes > 0] / wholes[wholes > 0], (LEVEL / 2, 1 - LEVEL / 2))
    return float(np.nanmean(np.stack(by_seed)) / np.nanmean(whole_N)), float(low), float(high)


def _means(table_SN: Any, draws: int) -> Array:
    """The mean of a table with each draw's seeds and clips, [draws]."""
    said = ~np.isnan(table_SN)
    of_seeds, of_clips = (_resamples(n, draws, axis) for axis, n in enumerate(table_SN.shape))
    sums = _summed(of_seeds, of_clips, np.nan_to_num(table_SN))
    counts = float(said.size) if said.all() else np.maximum(_summed(of_seeds, of_clips, said), 1)
    return sums / counts


def _summed(of_seeds: Array, of_clips: Array, table_SN: Array) -> Array:
    """Sums of a table with each draw's seeds and clips, [draws]."""
    return (of_seeds * (of_clips @ table_SN.T.astype(np.float32))).sum(axis=1)


@lru_cache(maxsize=8)  # of 20 MB in single precision; most tables have the same shape
def _resamples(n: int, draws: int, seed: int) -> Array:
    return resamples(n, draws, np.random.default_rng(seed)).astype(np.float32)


def holm(ps: Sequence[float], tests: int = TESTED, level: float = LEVEL) -> list[bool]:
    """Which of some p-values are significant when `tests` are made in all (Holm 1979); those not made count as 1."""
    passed, alive = [False] * len(ps), True
    for rank, place in enumerate(np.argsort(ps)):
        alive = alive and ps[place] <= level / (tests - rank)
        passed[place] = alive
    return passed


class Verdict(NamedTuple):
    """The verdict on a claim: difference by seed, its spread over seeds and clips (None before the first seed), and
    the word.
    """

    claim: Claim
    by_seed: dict[int, float]
    spread: Spread | None
    word: str


def judge(runs: dict[str, list[StudyRun]], claims: Sequence[Claim] | None = None) -> list[Verdict]:
    """The verdicts: `holds`, `refuted`, `not shown`, or what is waited for."""
    claims = hypotheses(runs) if claims is None else claims
    found = [_difference(runs, claim) for claim in claims]
    ps = [spread.p if spread and len(by_seed) >= SEEDS else 1.0 for by_seed, spread in found]
    own = [place for place, claim in enumerate(claims) if not claim.beside]
    passed = dict(zip(own, holm([ps[place] for place in own]), strict=True))
    return [
        Verdict(
            claim, *found[place], _word(runs, claim, found[place][0], passed.get(place, ps[place] <= STRICT))
        )
        for place, claim in enumerate(claims)
    ]


def _difference(runs: dict[str, list[StudyRun]], claim: Claim) -> tuple[dict[int, float], Spread | None]:
    """By seed, and over the seeds that all pairs have measured: of several pairs that with the smallest difference.

    All pairs must differ for the claim to hold, so the largest of their p-values is that of the claim.
    """
    differences = [paired(runs, *cells) for cells in claim.pairs]
    seeds = sorted(set.intersection(*(set(found) for found in differences)))
    if not seeds:
        return {}, None
    by_seed = {seed: min(float(np.nanmean(found[seed])) for found in differences) for seed in seeds}
    spreads = [crossed([found[seed] for seed in seeds]) for found in differences]
    least = min(spreads, key=lambda spread: spread.value)
    return by_seed, least._replace(p=max(spread.p for spread in spreads))


def _word(runs: dict[str, list[StudyRun]], claim: Claim, by_seed: dict[int, float], significant: bool) -> str:
    if len(by_seed) < SEEDS:
        return f"waits: {len(by_seed)} of {SEEDS} seeds"
    if all(mean <= claim.least for mean in by_seed.values()):
        return "refuted"
    if claim.alike:
        first, second, most = claim.alike
        apart = paired(runs, first, second)
        if len(apart) < SEEDS:
            return f"waits: {first.score} of {len(apart)} of {SEEDS} seeds"
        if (above := float(np.mean([np.nanmean(clips) for clips in apart.values()]))) > most:
            return f"not shown: {first.score} {above:+.2f}"
    if not significant or min(by_seed.values()) <= 0:
        return "not shown"
    for slow, usual in claim.halved:
        gains = paired(runs, slow, usual).values()
        if not gains:
            return f"waits: {slow.run}"
        if (gain := float(np.mean([np.nanmean(clips) for clips in gains]))) >= np.mean([*by_seed.values()]):
            return f"not shown: {slow.run} {gain:+.2f}"
    return "holds"


def judge_speed(ratios: dict[str, Metric | None]) -> str:
    """The verdict of hypothesis 5, from the token model's seconds over VRC's, by preset; None: not measured.

    Low and high are of the ranges of both times, so a verdict does not rest on the noise of a clock.
    """
    if missing := [preset for preset, ratio in ratios.items() if ratio is None]:
        return f"waits: preset {', '.join(missing)}"
    bounds = [(ratio["low"], ratio["high"]) for ratio in ratios.values() if ratio]
    if all(low >= FASTER for low, _ in bounds):
        return "holds"
    return "refuted" if all(high < FASTER for _, high in bounds) else "not shown"
