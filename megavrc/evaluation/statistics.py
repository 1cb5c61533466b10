"""Is one number better than another? Intervals, paired differences, and how many samples an answer takes.

Samples are drawn anew with replacement (the bootstrap), as numbers that say how often each counts: whole videos or
prompts, never frames.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megavrc.evaluation.frechet import (
    Array,
    Features,
    Groups,
    checked,
    discrepancy,
    frechet,
    frechet_of_moments,
    kernel_distance,
    moments,
)
from megavrc.results import Metric, metric

LEVEL = 0.95
SAID = 0.75  # of the draws must have a value: of two samples half are one of them alone
POWER = 0.8  # with which a difference of EFFECT is to be found
EFFECT = 0.05  # of the value
ELEMENTS = 2**24  # of an array, about
NORMAL = 1.959964  # quantile of the normal distribution for LEVEL, two-sided
NORMAL_SUM = NORMAL + 0.841621  # and that for POWER


class Estimate(NamedTuple):
    """A value, its 95% interval, and the values of all bootstrap draws."""

    value: float
    low: float
    high: float
    draws: Array

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.nanstd(self.draws, ddof=1)) if len(self.draws) > 1 else math.nan


def estimate(value: float, draws: Array, centred: bool = False) -> Estimate:
    """A value with the quantiles of its draws; its interval is not known, nan, where a quarter of them says nothing.

    Args:
        centred: move the draws to the value first. Drawn anew, a Frechet distance is larger than it was (a sample
            that is drawn twice spans no new dimension): the draws say how far it spreads, not where it is.
    """
    if np.isfinite(draws).sum() <= SAID * len(draws):
        return Estimate(value, math.nan, math.nan, draws[:0])
    draws = draws + (value - np.nanmean(draws)) if centred else draws
    low, high = np.nanquantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(value, float(low), float(high), draws)


def resamples(n: int, draws: int, rng: np.random.Generator) -> Array:
    """Number of times that each of n samples is drawn, [draws, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def group_places(groups: Sequence[str]) -> NDArray[np.int64]:
    """The number of each sample's group, [n], in the order in which groups appear."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[name] for name in groups], np.int64)


def mean_estimate(
    values_N: Sequence[float] | NDArray[np.floating],
    draws: int,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Estimate:
    """The mean of one value a clip.

    Args:
        groups: the video or prompt of each clip, which are drawn as wholes (default: each clip is one). One group says
            nothing of others: there are no draws.
    """
    values, rng = np.asarray(values_N, np.float64), np.random.default_rng(seed)
    places = np.arange(len(values)) if groups is None else group_places(groups)
    sums, counts = np.bincount(places, values), np.bincount(places)
    weights = resamples(len(sums), draws if len(sums) > 1 else 0, rng)
    return estimate(float(values.mean()), weights @ sums / (weights @ counts))


def clustered_share(
    values_N: Sequence[float] | NDArray[Any],
    groups: Sequence[str],
    draws: int,
    seed: int = 0,
    least: float = 0.0,
) -> Metric:
    """A mean of answers from `least` to 1, with the bootstrap interval over the prompts, `groups`, that they are about.

    A bootstrap sees no spread where all prompts are alike. Of as many, another may be so often as Wilson's interval of
    none says, and as far from them as can be: of answers that are all 0 or 1 that is Wilson's of the prompts; so is it
    where each answer, 0 or 1, has a prompt of its own. Answers of one prompt that differ say nothing of others: their
    interval is all that can be.
    """
    values, places = np.asarray(values_N, np.float64), group_places(groups)
    prompts = int(places.max()) + 1
    if least == 0 and 1 < prompts == len(values) and np.isin(values, (0, 1)).all():
        return share_metric(values)
    means = np.bincount(places, values) / np.bincount(places)
    if np.ptp(means) > 1e-12:
        return as_metric(mean_estimate(values, draws, seed, groups), len(values), "share")
    mean = float(values.mean())
    other = 1.0 if prompts == 1 and np.ptp(values) else NORMAL**2 / (prompts + NORMAL**2)
    return metric(mean, "share", len(values), mean - other * (mean - least), mean + other * (1 - mean))


def crossed_mean(
    values_N: Sequence[float] | NDArray[Any],
    ways: Sequence[Sequence[str]],
    least: float = 0.0,
    unit: str = "share",
) -> Metric:
    """The mean of answers from `least` to 1, with an interval that holds for other prompts and other raters too.

    The variances clustered by either way add up, and the quantile is Student's of the fewer units: Cameron, Gelbach
    and Miller 2011 without the last term, that of single answers, which both hold: never too narrow for it. Where all
    answers are equal there is no spread, and the interval is the exact one of as many as the fewer units. One unit
    says nothing of others: there is none.

    Args:
        ways: for each answer its prompt, and for each its rater.
    """
    from scipy import stats

    values = np.asarray(values_N, np.float64)
    n, mean = len(values), float(values.mean())
    sums = [np.bincount(group_places(way), values - mean) for way in ways]
    fewest = min(map(len, sums))
    if fewest < 2:
        return metric(mean, unit, n)
    if np.ptp(values):
        variance = sum(len(of) / (len(of) - 1) * float((of**2).sum()) for of in sums) / n**2
        variance = max(variance, float(values.var()) / (n - 1))  # sums may cancel out
        reach = float(stats.t.ppf((1 + LEVEL) / 2, fewest - 1)) * math.sqrt(variance)
    else:
        reach = (1 - ((1 - LEVEL) / 2) ** (1 / fewest)) * max(mean - least, 1 - mean)
    return metric(mean, unit, n, max(least, mean - reach), min(1.0, mean + reach))


def sign_test(first: int, second: int) -> float:
    """The two-sided probability of a split as uneven as `first` to `second`, or more so, among equals."""
    from scipy import stats  # a second of imports, of every rank too

    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def share_metric(hits_N: Sequence[float] | NDArray[Any]) -> Metric:
    """A share of clips, each 0 or 1, with Wilson's interval: 0 of 144 is 0 to 2.6%, which no bootstrap says."""
    hits = np.asarray(hits_N, np.float64)
    n, share = len(hits), float(hits.mean())
    z2 = NORMAL**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = NORMAL / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = centre - reach if share > 0 else 0.0  # exactly, whatever rounding makes of it
    return metric(share, "share", n, low, centre + reach if share < 1 else 1.0)


def share_difference(second: Metric, first: Metric) -> Metric:
    """second - first of shares of different clips, with Newcombe's interval, made of both Wilson intervals."""
    gap = second["value"] - first["value"]
    below = math.hypot(second["value"] - second["low"], first["high"] - first["value"])
    above = math.hypot(second["high"] - second["value"], first["value"] - first["low"])
    return metric(gap, "share", min(first["n"], second["n"]), gap - below, gap + above)


class Distance(NamedTuple):
    """A distance of two sets of features, and that of resampled sets.

    `draw`: from weights [R, N] of the first set and [R, M] of the second, how often each sample counts, to [R].
    """

    value: float
    draw: Callable[[Array, Array], Array]
    chunk: int  # draws at once, for memory
    least: float  # that there can be


def frechet_distance(x_ND: Features, y_ND: Features, ddof: int = 0) -> Distance:
    """The Frechet distance of clips x from real clips y."""
    x, y = checked(x_ND, y_ND)

    def draw(weights_x: Array, weights_y: Array) -> Array:
        return frechet_of_moments(*moments(x, weights_x, ddof), *moments(y, weights_y, ddof))

    return Distance(frechet(x, y, ddof), draw, max(1, ELEMENTS // max(x.size, y.size)), 0.0)


def poly_distance(x_ND: Features, y_ND: Features, of_x: Groups = None, of_y: Groups = None) -> Distance:
    """The unbiased kernel distance of clips x from real clips y; see `discrepancy`. One group alone counts as none."""
    x, y = checked(x_ND, y_ND)
    of_x, of_y = (groups if groups and 1 < len({*groups}) < len(groups) else None for groups in (of_x, of_y))

    def draw(weights_x: Array, weights_y: Array) -> Array:
        return discrepancy(x, y, weights_x, weights_y, of_x, of_y)

    return Distance(
        kernel_distance(x, y, of_x, of_y), draw, max(1, ELEMENTS // max(len(x), len(y))), -math.inf
    )


def distance_estimates(
    distances: Sequence[Distance],
    clips: Sequence[str] | int,
    real: Sequence[str] | int,
    draws: int,
    seed: int = 0,
) -> list[Estimate]:
    """Distances of sources that answer the same prompts from one real set, drawn together: prompt for prompt.

    Args:
        clips, real: of each source and of the real set, the video or prompt of each clip, which are drawn as wholes;
            or the number of clips, each of which is one.

    Returns:
        An estimate of each; the draws of two of them belong together, so that their differences have draws too.
    """
    rng = np.random.default_rng(seed)
    weights = []
    for side in (clips, real):
        places = np.arange(side) if isinstance(side, int) else group_places(side)
        weights.append(resamples(int(places.max()) + 1, draws, rng)[:, places])
    found = []
    for one in distances:
        parts = [slice(start, start + one.chunk) for start in range(0, draws, one.chunk)]
        drawn = np.concatenate([one.draw(*(rows[part] for rows in weights)) for part in parts])
        whole = estimate(one.value, drawn, centred=True)
        found.append(whole._replace(low=max(whole.low, one.least)))
    return found


def difference(second: Estimate, first: Estimate) -> Estimate:
    """second - first of estimates whose draws belong together."""
    return estimate(second.value - first.value, second.draws - first.draws)


def apart(found: Estimate) -> bool:
    """Whether a difference is one: its interval does not hold 0."""
    return found.low > 0 or found.high < 0


def as_metric(found: Estimate, n: int, unit: str = "") -> Metric:
    """An estimate in the schema of results; without bounds where they are not known."""
    known = math.isfinite(found.low) and math.isfinite(found.high)
    return metric(found.value, unit, n, *((found.low, found.high) if known else ()))


@dataclass(frozen=True)
class MetricReport:
    """The findings of a metric: rows and metrics of a result, its protocol, and remarks for people."""

    cases: list[dict[str, Any]]
    metrics: dict[str, Metric]
    protocol: dict[str, Any]
    lines: list[str] = field(default_factory=list)


def verdict(gap: Estimate, one: str, other: str) -> str:
    """The verdict of a paired difference, other - one."""
    if not apart(gap):
        return f"{other} and {one}: no difference is shown (0 lies in the interval of their difference)"
    lower = "lower" if gap.value < 0 else "higher"
    return f"{other} is {lower} than {one}: 0 lies outside the interval of their difference"


def needed(value: float, error: float, n: int, paired: bool) -> int | None:
    """Samples that it takes to tell a difference of 5% of the value (power 80%, level 95%); None where it has none.

    Args:
        error: standard error at n samples: of the paired difference, or of the value itself, which then stands for
            that of each of two sets that are independent.
    """
    wanted = EFFECT * abs(value)
    if not wanted or not math.isfinite(error):
        return None
    spread = error if paired else error * math.sqrt(2)
    return math.ceil(n * (NORMAL_SUM * spread / wanted) ** 2)
