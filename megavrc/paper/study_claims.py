"""The hypotheses of the study as data, and their verdicts by its rules (docs/study_rules.md)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from megavrc.evaluation.statistics import resamples
from megavrc.paper.study_runs import Array, Cell, StudyRun, paired, values
from megavrc.results import Metric

DRAWS = 10_000
SEEDS = 3  # fewer decide nothing
LEVEL = 0.05
TESTED = 7  # hypotheses that Holm's correction is over: all but that of speed
STRICT = LEVEL / TESTED  # of a verdict out of Holm's order
COVERAGE = 0.05  # excess total variation of modes that counts as none
FASTER = 5  # times
FLOOR = 0.05  # of all clips, at least one of two models must get this share: below it nothing can be told
FIRST_FRAMES = 4  # that must say something of the modes of both models
MAIN, AGAIN = "scenes-", "again-"  # runs of the main set, and of the same clips through another tokenizer
DRAWN = (2250, 4000)  # steps at which clips of the token model are drawn


@dataclass(frozen=True)
class Claim:
    """A hypothesis: in every pair the first cell is above the second.

    Attributes:
        number, says: of docs/study_rules.md.
        pairs: of cells. Of several the smallest difference decides: each size better than the one before.
        least: it is refuted if no seed's difference is above this, and does not hold if the mean is not.
        shares: the cells are shares of clips: where no model of the pair gets FLOOR, nothing is shown.
        kept: (own, true) of the model that the claim is for and of the other: what own frames keep of what true ones
            give must differ as the pair does, else the model that has less to lose would seem to lose less.
        alike: a pair and how far its first may be above its second: farther, and the claim is not shown.
        halved: pairs of a run at half the learning rate and the same at the usual one: what either gains must be less
            than what the claim rests on.
        beside: a verdict beside that of the hypothesis: tested at LEVEL / TESTED, out of Holm's order.
    """

    number: int
    says: str
    pairs: tuple[tuple[Cell, Cell], ...]
    least: float = 0.0
    shares: bool = False
    kept: tuple[tuple[Cell, Cell], tuple[Cell, Cell]] | None = None
    alike: tuple[Cell, Cell, float] | None = None
    halved: tuple[tuple[Cell, Cell], ...] = ()
    beside: bool = False


def hypotheses(equal_time: int = DRAWN[-1]) -> list[Claim]:
    """The hypotheses of docs/study_rules.md, but for that of speed (`judge_speed`), which is no difference of clips.

    Args:
        equal_time: the token model's step of `equal_time`.
    """
    sound, vrc = "sound clips from the true first frame", "scenes-vrc"
    given, each = "given tuned", "each tuned"
    later = [Cell(name, 4000, "bits val", "later") for name in ("scenes-vrc-64", vrc, "scenes-vrc-192")]

    def pair(kind: str, score: str, first: str, second: str, steps: tuple[int, int] = (4000, 4000)) -> Any:
        return ((Cell(first, steps[0], kind, score), Cell(second, steps[1], kind, score)),)

    refined, plain = Cell("scenes-refine", 4000, "given refined", "whole"), Cell(vrc, 4000, "given", "whole")
    modes = replace(refined, kind="modes refined", score="modes"), replace(plain, kind="modes", score="modes")
    last = replace(plain, kind=given, score="whole_by_latent_4")
    mine, other = (
        (replace(last, run=run), replace(last, run=run, kind=each)) for run in (vrc, "scenes-token")
    )
    return [
        *_better(equal_time),
        Claim(
            2,
            f"{sound}: with stage 1 above without, equal FLOPs",
            pair(given, "all", vrc, "scenes-without-stage1", (4000, 9000)),
            shares=True,
        ),
        Claim(
            3,
            "bits of the later frames fall with every size, widths 64, 128, 192",
            tuple(pairwise(later)),
        ),
        Claim(
            4,
            f"{sound}: rate 4 above rate 1",
            pair(given, "all", "scenes-rate4", "scenes-rate1"),
            shares=True,
        ),
        Claim(
            6,
            "bits of a changed cell above those of an unchanged one, step 1000: rate 1 above rate 4",
            pair("probes val", "gap", "scenes-rate1", "scenes-rate4", (1000, 1000)),
        ),
        Claim(
            7,
            "whole clips that own frames cost, a frame: token model above VRC",
            pair(each, "decline", "scenes-token", vrc),
            kept=(mine, other),
        ),
        Claim(
            8,
            "whole clips from the true first frame: refinement in its passes above VRC",
            ((refined, plain),),
            least=0.1,
            shares=True,
            alike=(*modes, COVERAGE),
        ),
    ]


def _better(equal_time: int) -> Iterator[Claim]:
    """Hypothesis 1: at equal steps, and beside it at equal FLOPs and at equal time."""
    vrc, token = (Cell(run, 4000, "free tuned", "all") for run in ("scenes-vrc", "scenes-token"))
    halved = tuple((replace(cell, run=f"{cell.run}-lr"), cell) for cell in (vrc, token))
    budgets = [
        ("sound clips from the text, equal steps: VRC above the token model", 4000),
        ("the same at equal FLOPs", 2250),
        (f"the same at equal time: the token model at step {equal_time}", equal_time),
    ]
    for says, step in budgets:
        pair = vrc, replace(token, checkpoint=step)
        yield Claim(1, says, (pair,), shares=True, halved=halved, beside=says != budgets[0][0])


def equal_time(pace: Metric | None) -> int:
    """The first step that the token model's clips are drawn at by which it has had the time of VRC's 4000 steps.

    Args:
        pace: clips a second in training, VRC's over the token model's. Its low end counts: the later step, if in doubt.
    """
    if pace is None:
        return DRAWN[-1]
    return next((step for step in DRAWN if step * pace["low"] >= DRAWN[-1]), DRAWN[-1])


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
    means = means[~np.isnan(means)]
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    # one draw more on either side: a bootstrap cannot show that something never happens
    sides = (np.sum(means <= 0) + 1, np.sum(means >= 0) + 1)
    p = min(1.0, 2 * min(sides) / (len(means) + 1))
    return Spread(float(np.nanmean(table_SN, dtype=float)), float(low), float(high), float(p))


def share_of(by_seed: Sequence[Array], whole_N: Array) -> tuple[float, float, float]:
    """A mean over seeds and clips over that of other values of the same clips, and its 95% interval; see `crossed`."""
    means, wholes = (_means(np.stack(values).astype(np.float32), DRAWS) for values in (by_seed, [whole_N]))
    told = (wholes > 0) & ~np.isnan(means)
    low, high = np.quantile(means[told] / wholes[told], (LEVEL / 2, 1 - LEVEL / 2))
    return float(np.nanmean(np.stack(by_seed)) / np.nanmean(whole_N)), float(low), float(high)


def _means(table_SN: Any, draws: int) -> Array:
    """The mean of a table with each draw's seeds and clips, [draws]; nan of a draw that says nothing."""
    said = ~np.isnan(table_SN)
    of_seeds, of_clips = (_resamples(n, draws, axis) for axis, n in enumerate(table_SN.shape))
    sums = _summed(of_seeds, of_clips, np.nan_to_num(table_SN))
    if said.all():
        return sums / said.size
    counts = _summed(of_seeds, of_clips, said)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _summed(of_seeds: Array, of_clips: Array, table_SN: Array) -> Array:
    """Sums of a table with each draw's seeds and clips, [draws]."""
    return (of_seeds * (of_clips @ table_SN.T.astype(np.float32))).sum(axis=1)


@lru_cache(maxsize=8)  # of 20 MB in single precision; most tables have the same shape
def _resamples(n: int, draws: int, seed: int) -> Array:
    return resamples(n, draws, np.random.default_rng(seed)).astype(np.float32)


def holm(ps: Sequence[float]) -> list[bool]:
    """Which of some p-values are significant when TESTED are made in all (Holm 1979); those not made count as 1."""
    passed, alive = [False] * len(ps), True
    for rank, place in enumerate(np.argsort(ps)):
        alive = alive and ps[place] <= LEVEL / (TESTED - rank)
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


def judge(runs: dict[str, list[StudyRun]], claims: Sequence[Claim]) -> list[Verdict]:
    """The verdicts: `holds`, `refuted`, `not shown`, or what is waited for."""
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
    differences = [_paired(runs, *cells) for cells in claim.pairs]
    seeds = sorted(set.intersection(*(set(found) for found in differences)))
    if not seeds:
        return {}, None
    by_seed = {seed: min(float(np.nanmean(found[seed])) for found in differences) for seed in seeds}
    spreads = [crossed([found[seed] for seed in seeds]) for found in differences]
    least = min(spreads, key=lambda spread: spread.value)
    return by_seed, least._replace(p=max(spread.p for spread in spreads))


def _paired(runs: dict[str, list[StudyRun]], first: Cell, second: Cell) -> dict[int, Array]:
    """`paired`; of a seed that the main set lacks, of the set with a tokenizer of its own, AGAIN."""
    return paired(runs, again(first), again(second)) | paired(runs, first, second)


def again(cell: Cell) -> Cell:
    """The same number of the run on the tokenizer that was made anew."""
    return replace(cell, run=cell.run.replace(MAIN, AGAIN))


def _word(runs: dict[str, list[StudyRun]], claim: Claim, by_seed: dict[int, float], significant: bool) -> str:
    if len(by_seed) < SEEDS:
        return f"waits: {len(by_seed)} of {SEEDS} seeds"
    mean = float(np.mean([*by_seed.values()]))
    if claim.shares and (best := max(_shares(runs, *claim.pairs[0]))) < FLOOR:
        return f"not shown: no model gets more than {best:.1%}"
    if claim.kept and mean * _kept_more(runs, *claim.kept) < 0:
        return "not shown: in shares of what true frames give, the other way round"
    if all(found <= claim.least for found in by_seed.values()):
        return "refuted"
    if claim.alike and (lost := _coverage(runs, *claim.alike)):
        return lost
    if not significant or min(by_seed.values()) <= 0 or mean <= claim.least:
        return "not shown"
    for slow, usual in claim.halved:
        gains = paired(runs, slow, usual).values()
        if not gains:
            return f"waits: {slow.run}"
        if (gain := _mean(gains)) >= mean:
            return f"not shown: {slow.run} {gain:+.2f}"
    return "holds"


def _share(runs: dict[str, list[StudyRun]], cell: Cell) -> float:
    return _mean(clips for clips, _ in values(runs, cell).values())


def _shares(runs: dict[str, list[StudyRun]], first: Cell, second: Cell) -> list[float]:
    """Of both cells of a pair, in the seeds and of the set that `_paired` takes."""
    main, seeds = paired(runs, first, second), _paired(runs, first, second)
    return [
        _mean(values(runs, cell if seed in main else again(cell))[seed][0] for seed in seeds)
        for cell in (first, second)
    ]


def _mean(by_seed: Iterable[Array]) -> float:
    """Of the seeds' means."""
    return float(np.mean([np.nanmean(clips) for clips in by_seed]))


def _kept_more(runs: dict[str, list[StudyRun]], first: tuple[Cell, Cell], second: tuple[Cell, Cell]) -> float:
    """The share of (own, true) that the first keeps, less that of the second; 0 where there is nothing to keep."""
    (own, true), (others, of_others) = ([_share(runs, cell) for cell in cells] for cells in (first, second))
    return own / true - others / of_others if true and of_others else 0.0


def _coverage(runs: dict[str, list[StudyRun]], first: Cell, second: Cell, most: float) -> str:
    """Why two models' modes are not as even, or not known to be; "" if they are."""
    apart = paired(runs, first, second)
    if len(apart) < SEEDS:
        return f"waits: {first.score} of {len(apart)} of {SEEDS} seeds"
    if (least := min(np.sum(~np.isnan(clips)) for clips in apart.values())) < FIRST_FRAMES:
        return f"not shown: {first.score} of {least} first frames alone"
    above = _mean(apart.values())
    return f"not shown: {first.score} {above:+.2f}" if above > most else ""


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
