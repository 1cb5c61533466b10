"""Distances of a set of clips from real ones: FVD, its limit, KVD, precision and recall, each with what it is worth.

Beside every value stand N, its interval and what two sets of real clips get; two sources that answer the same prompts
are compared prompt for prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from megavrc.evaluation.clip_source import ClipSource, Part, first, pairs, source_facts, video_of, wholes
from megavrc.evaluation.features import ClipNetwork, Features, check_sizes, clip_features
from megavrc.evaluation.frechet import NEIGHBOURS, Groups, covered, frechet_at_infinity, rank_warning
from megavrc.evaluation.protocols import (
    FVDProtocol,
    Window,
    measured_windows,
    protocol_facts,
    real_windows,
    remarks,
)
from megavrc.evaluation.statistics import (
    Distance,
    MetricReport,
    as_metric,
    clustered_share,
    difference,
    distance_estimates,
    frechet_distance,
    group_places,
    needed,
    poly_distance,
    verdict,
)
from megavrc.results import Metric, case, median_of, metric

HALVES = 12  # samples of half the clips that tell how far a limit spreads
T_HALVES = 2.201  # Student's quantile for their number
LEAST_HALVED = 4  # prompts or videos of either side: half of fewer says nothing of the whole
FLOOR = "real against real"

Kind = Literal["fvd", "kvd"]
NAMES: dict[str, dict[Kind, str]] = {  # by network
    "i3d": {"fvd": "fvd", "kvd": "kvd"},
    "self": {"fvd": "fd-self", "kvd": "kd-self"},
    "random": {"fvd": "fd-random", "kvd": "kd-random"},
    "unknown": {"fvd": "frechet_unknown", "kvd": "kernel_unknown"},
}


@dataclass(frozen=True)
class Sets:
    """Features: of the real clips, of other real ones (None: no floor is wanted), of the sources by their names.

    Attributes:
        drawn, real_drawn, others_drawn: what a bootstrap draws as wholes, see `wholes`: by clip of the sources, of the
            real ones and of the others (None: each clip is one).
    """

    real: Features
    others: Features | None
    sources: Mapping[str, Features]
    drawn: Sequence[str] | None = None
    real_drawn: Sequence[str] | None = None
    others_drawn: Sequence[str] | None = None

    def columns(self, first: int, end: int) -> "Sets":
        """Some features of all."""
        others = None if self.others is None else self.others[:, first:end]
        sources = {name: x[:, first:end] for name, x in self.sources.items()}
        return replace(self, real=self.real[:, first:end], others=others, sources=sources)


def metric_names(kind: Kind, detector: str) -> str:
    """The name of a distance: only that of I3D's features is FVD or KVD."""
    return NAMES[detector][kind]


def measure_distances(
    kind: Kind,
    real: ClipSource,
    clips: ClipSource,
    against: ClipSource | None,
    detector: ClipNetwork,
    protocol: FVDProtocol,
    floor: bool = True,
    draws: int = 200,
    seed: int = 0,
    store: Path | None = None,
    batch: int = 8,
) -> MetricReport:
    """Distances of one or two sources from real clips.

    Args:
        against: another source that answers the same prompts; its difference from `clips` is measured in pairs.
        floor: also measure the distance of two sets of real clips.
        draws: draws of the bootstrap.
        store, batch: see `clip_features`.

    Raises:
        UserError: clips that are missing, unreadable, too short or of several sizes; sources that do not go together.
    """
    sources = [clips] if against is None else [clips, against]
    order = [] if against is None else pairs(clips, against)
    windows = [measured_windows(source, protocol) for source in sources]
    if order:
        windows[1] = [windows[1][index] for index in order]
    n = len(windows[0])
    chosen = real_windows(real, protocol, n if floor else 0, seed)
    rest = chosen.rest if len(chosen.rest) >= n else []
    if protocol.size is None:
        parts = [(real, chosen.windows), (real, rest), *zip(sources, windows, strict=True)]
        check_sizes([part for part in parts if part[1]])

    def features(source: ClipSource, wanted: list[Window]) -> Features:
        return clip_features(source, wanted, protocol.size, detector, store, batch)

    known = features(real, chosen.windows)
    made = [features(source, part) for source, part in zip(sources, windows, strict=True)]
    drawn, keys = wholes(clips), [real.clips[window.clip].key for window in chosen.windows]
    more = [real.clips[window.clip].key for window in chosen.rest]
    if len({*map(video_of, keys)}) > 1:  # not shots of one film
        keys, more = [video_of(key) for key in keys], [video_of(key) for key in more]
    others = (features(real, rest) if rest else known[:0]) if floor else None
    sets = Sets(known, others, dict(zip(_names(sources), made, strict=True)), drawn, keys, more)
    dims = detector.dims or known.shape[1]
    report = compare_sets(kind, sets.columns(0, dims), detector.name, protocol.ddof, draws, seed)
    _add_random(report, kind, sets, dims, protocol.ddof)
    lines = remarks(protocol, real, {"the real clips": len(known), "the measured clips": n}, clips)
    if chosen.short:
        lines.append(f"{len(chosen.short)} real videos are too short for a clip ({first(chosen.short)})")
    facts = {
        "fvd_protocol": protocol_facts(protocol),
        "detector": {"name": detector.name, "sha256": detector.sha256, "dims": dims, "tf32": False},
        "real": source_facts(Part(real, [window.clip for window in chosen.windows]))
        | {"short": chosen.short},
        "measured": [source_facts(source) for source in sources],
        "interval": f"95%, bootstrap of both sides, of {len({*drawn})} prompts or videos and {len({*keys})} real "
        f"videos, {draws} draws, moved to the value; shares: of one side, of single clips Wilson's; limits: halves",
        "seed": seed,
    }
    lines += report.lines
    return MetricReport(report.cases, report.metrics, facts | {"remarks": lines}, lines)


def _add_random(report: MetricReport, kind: Kind, sets: Sets, dims: int, ddof: int) -> None:
    """Beside each value what networks with random weights say, if there are some: their median and range."""
    name, random = metric_names(kind, "random"), range(dims, sets.real.shape[1], dims)
    found = [
        compare_sets(kind, sets.columns(first, first + dims), "random", ddof, 2).cases for first in random
    ]
    for row, *others in zip(report.cases, *found, strict=True) if found else ():
        row["metrics"][name] = median_of([other["metrics"][name]["value"] for other in others])


def _names(sources: list[ClipSource]) -> list[str]:
    names = [source.name for source in sources]
    return names if len(set(names)) == len(names) else [f"{name} ({i})" for i, name in enumerate(names, 1)]


def compare_sets(
    kind: Kind, sets: Sets, detector: str, ddof: int = 0, draws: int = 200, seed: int = 0
) -> MetricReport:
    """Distances from features.

    The floor is the distance of other real clips, as many as are measured, from the real ones; where there are fewer
    others, that of the real ones' two halves, and its N is theirs.
    """
    name = metric_names(kind, detector)
    real, dims = sets.real, sets.real.shape[1]
    known = Drawn(real, sets.real_drawn)
    n = len(next(iter(sets.sources.values())))
    lines = []

    def distance(x: Features, y: Features, of_x: Groups, of_y: Groups) -> Distance:
        return frechet_distance(x, y, ddof) if kind == "fvd" else poly_distance(x, y, of_x, of_y)

    found = distance_estimates(
        [distance(x, real, sets.drawn, sets.real_drawn) for x in sets.sources.values()],
        sets.drawn or n,
        sets.real_drawn or len(real),
        draws,
        seed,
    )
    cases = []
    for (source, x), one in zip(sets.sources.items(), found, strict=True):
        metrics = {name: as_metric(one, len(x))}
        if kind == "fvd":
            metrics |= _beside(name, Drawn(x, sets.drawn), known, ddof, draws, seed)
        metrics["n_for_5_percent"] = metric(needed(one.value, one.error, len(x), False), n=len(x))
        distinct = len(np.unique(x, axis=0))
        cases.append(case(source, metrics, {"n": len(x), "n_real": len(real), "distinct": distinct}))
        if distinct < len(x):
            lines.append(
                f"{source}: {len(x) - distinct} of {len(x)} clips are copies of others: N is too high"
            )
        if kind == "fvd" and (warning := rank_warning([len(x), len(real)], dims)):
            lines.append(warning)
    if sets.others is not None and known.size >= LEAST_HALVED:
        half, other = known, Drawn(sets.others[:n], sets.others_drawn and sets.others_drawn[:n])
        enough = len(other.features) == n and other.size > 1
        if not enough:
            half, other = known.halves()
        pair = distance(other.features, half.features, other.wholes, half.wholes)
        (least,) = distance_estimates([pair], other.wholes, half.wholes, draws, seed)
        cases.append(
            case(
                FLOOR,
                {name: as_metric(least, len(other.features))},
                {"n": len(other.features), "n_real": len(half.features)},
            )
        )
        if not enough:
            lines.append(
                f"too few real clips for a floor at the same N: it is of two halves, N {len(other.features)}"
            )
    metrics = {}
    if len(found) == 2:
        gap = difference(found[1], found[0])
        metrics[f"{name}: second - first"] = as_metric(gap, n)
        metrics["n_for_5_percent, paired"] = metric(needed(found[0].value, gap.error, n, True), n=n)
        names = list(sets.sources)
        lines.append(verdict(gap, names[0], names[1]))
    return MetricReport(cases, metrics, {}, list(dict.fromkeys(lines)))


class Drawn(NamedTuple):
    """Features and what a bootstrap draws of them as wholes, see `Sets`."""

    features: Features
    groups: Sequence[str] | None

    @property
    def wholes(self) -> Sequence[str]:
        return self.groups or [str(index) for index in range(len(self.features))]

    @property
    def size(self) -> int:
        return len({*self.wholes})

    def halves(self) -> "tuple[Drawn, Drawn]":
        """Every second of the wholes, and the others."""
        names, odd = np.array(self.wholes), group_places(self.wholes) % 2 == 1
        first, second = (Drawn(self.features[part], names[part].tolist()) for part in (~odd, odd))
        return first, second

    def half(self, rng: np.random.Generator) -> Features:
        """Of half of the wholes."""
        chosen = rng.permutation(self.size)[: self.size // 2]
        return self.features[np.isin(group_places(self.wholes), chosen)]


def _beside(name: str, x: Drawn, real: Drawn, ddof: int, draws: int, seed: int) -> dict[str, Metric]:
    """The limit for N to infinity, precision and recall."""
    limit = frechet_at_infinity(x.features, real.features, ddof, seed)
    rng = np.random.default_rng(seed)
    bounds: tuple[float, ...] = ()
    if (count := min(x.size, real.size)) >= LEAST_HALVED:
        halves = [frechet_at_infinity(x.half(rng), real.half(rng), ddof, seed) for _ in range(HALVES)]
        # Of halves without replacement: as of the whole, but for an odd number.
        odd = math.sqrt((count // 2) / (count - count // 2))
        spread = T_HALVES * odd * float(np.std(halves, ddof=1))
        bounds = (limit - spread, limit + spread)
    inside, found = (covered(a.features, b.features) for a, b in ((x, real), (real, x)))
    return {
        f"{name}_inf": metric(limit, "", len(x.features), *bounds),
        f"precision_k{NEIGHBOURS}": clustered_share(inside, x.wholes, draws, seed),
        f"recall_k{NEIGHBOURS}": clustered_share(found, real.wholes, draws, seed),
    }
