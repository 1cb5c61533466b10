"""The three findings of the LLMC+ abstract, judged from result files of the benchmark: numbers, and what they say.

A finding holds, does not hold, or is open; open is also what intervals leave open.
"""

from collections.abc import Iterable, Iterator
from math import inf
from statistics import fmean
from typing import Any, Literal, NamedTuple

from megavrc.reduction import METHODS
from megavrc.results import Metric, Result
from megavrc.vlm.accuracy import WHOLE

LITTLE = 0.05
"""The loss of accuracy that is called little."""

Case = dict[str, Any]
Verdict = Literal["holds", "does not hold", "open"]


class BenchFinding(NamedTuple):
    """A claim of the abstract, what this benchmark says of it, and the numbers in sentences."""

    claim: str
    verdict: Verdict
    why: list[str]


def findings(accuracy: Result, joint: Result) -> list[BenchFinding]:
    """All three, in their order."""
    return [of_redundancy(accuracy), of_turns_and_detail(accuracy), of_compression(joint)]


def cases_of(result: Result, kind: str) -> list[Case]:
    """All cases of pictures or of clips."""
    return [case for case in result["cases"] if case["config"]["kind"] == kind]


def measured_cases(result: Result, kind: str = "", selection: str = "fresh") -> list[Case]:
    """Cases of methods that were not refused."""
    return [
        case
        for case in result["cases"]
        if case["config"]["method"] in METHODS
        and "lost_all" in case["metrics"]
        and case["config"]["kind"] in (kind, kind or case["config"]["kind"])
        and case["config"].get("selection", "fresh") == selection
    ]


def of_redundancy(accuracy: Result) -> BenchFinding:
    """Do methods of temporal redundancy lose less of clips than those of spatial redundancy?

    Asked of all methods that their papers call spatial, and of those among them that see one frame at a time: the
    others choose among the tokens of a whole clip, so they remove what repeats from frame to frame too.
    """
    claim, why, verdicts = "Spatial and temporal redundancy need different methods", [], set()
    for spatial_ones, alone in (("spatial methods", False), ("spatial methods that see one frame", True)):
        votes = []
        for keep in budgets(measured_cases(accuracy, "video")):
            cases = [case for case in measured_cases(accuracy, "video") if budget_of(case) == keep]
            spatial = least(case for case in of_kind(cases, "spatial") if not alone or by_frame(case))
            temporal = least(of_kind(cases, "temporal"))
            if spatial is None or temporal is None:
                continue
            first, second = spatial["metrics"]["lost_all"], temporal["metrics"]["lost_all"]
            apart = ""
            if ends(second)[1] < ends(first)[0]:
                apart = "temporal"
            elif ends(first)[1] < ends(second)[0]:
                apart = "spatial"
            votes.append(apart)
            better = f"{apart} ones lose less" if apart else "their intervals touch"
            why.append(
                f"Clips at keep {keep:g}: of {spatial_ones} {named(spatial)} loses least, {points(first)}, of "
                f"temporal ones {named(temporal)}, {points(second)}: {better}."
            )
        if votes:
            verdicts.add(of_votes(votes))
    both = common(measured_cases(accuracy, "image"), measured_cases(accuracy, "video"))
    if len(both) > 2:
        value = rank_correlation(both)
        why.append(
            f"The order of {len(both)} methods and budgets on pictures and on clips agrees by {value:.2f} (Spearman)."
        )
    if not verdicts:
        why = why or ["No clips were measured, or no type of question can be judged."]
    return BenchFinding(claim, verdicts.pop() if len(verdicts) == 1 else "open", why)


def of_votes(votes: list[str]) -> Verdict:
    """From the kind that loses less at each budget, empty where intervals touch."""
    if votes.count("temporal") > len(votes) / 2:
        return "holds"
    return "open" if "" in votes else "does not hold"


def of_turns_and_detail(accuracy: Result) -> BenchFinding:
    """Is more lost of detail than of gist, and in later turns than in the first?"""
    why: list[str] = []
    detailed: list[Gap] = []
    later: list[Gap] = []
    pictures = measured_cases(accuracy, "image")
    for keep in budgets(pictures):
        cases = with_both((case for case in pictures if budget_of(case) == keep), "detail", "gist")
        if cases:
            detailed.append(gap(cases, "detail", "gist"))
            more = sum(lost(case, "detail") > lost(case, "gist") for case in cases)
            why.append(
                f"Pictures at keep {keep:g}: detail loses {detailed[-1]}, mean of {len(cases)} methods; {more} of them "
                "lose more of detail."
            )
    for selection in ("fresh", "frozen"):
        cases = with_both(
            filter(guided_by_prompt, measured_cases(accuracy, selection=selection)), "turn_3", "turn_1"
        )
        if cases:
            found = gap(cases, "turn_3", "turn_1")
            later += [found] * (selection == "frozen")
            why.append(
                f"Methods that the prompt guides, selection {selection}: the third turn loses {found}, mean of "
                f"{len(cases)} methods and budgets."
            )
    claim = "Reduction hurts later turns of a conversation, and detail"
    for part, votes in (("Detail", detailed), ("Later turns", later)):
        if not votes:
            why.append(
                f"{part} cannot be judged: not measured, or no such type of question is above the goal."
            )
    if not detailed or not later:
        return BenchFinding(claim, "open", why)
    both = [found.more for found in (*detailed, *later)]
    verdict: Verdict = (
        "holds" if all(both) else "does not hold" if not any(both) and None not in both else "open"
    )
    return BenchFinding(claim, verdict, why)


class Gap(NamedTuple):
    """What is lost of one part and of another, and their difference for each seed."""

    part: float
    other: float
    by_seed: list[float]

    @property
    def more(self) -> bool | None:
        """Whether more is lost of the first, by more than a point in every seed; None where seeds disagree, or are
        fewer than two.
        """
        votes = {value > 0.01 for value in self.by_seed}
        return votes.pop() if len(votes) == 1 < len(self.by_seed) else None

    def __str__(self) -> str:
        seeds = " ".join(f"{100 * value:+.1f}" for value in self.by_seed)
        return f"{100 * self.part:.1f} points against {100 * self.other:.1f} (by seed {seeds})"


def with_both(cases: Iterable[Case], part: str, other: str) -> list[Case]:
    """Cases that know what is lost of both: a part without a question that is judged has no number."""
    return [case for case in cases if {f"lost_{part}", f"lost_{other}"} <= case["metrics"].keys()]


def gap(cases: list[Case], part: str, other: str) -> Gap:
    """Means over cases, which have the same seeds."""
    seeds = []
    for case in cases:
        first, second = (case["metrics"][f"lost_{name}"] for name in (part, other))
        pairs = zip(
            first.get("by_seed", [first["value"]]), second.get("by_seed", [second["value"]]), strict=True
        )
        seeds.append([one - two for one, two in pairs])
    means = [fmean(column) for column in zip(*seeds, strict=True)]
    return Gap(fmean(lost(case, part) for case in cases), fmean(lost(case, other) for case in cases), means)


def of_compression(joint: Result) -> BenchFinding:
    """The finding on tokens x bits: how far both go at little loss, and whether the losses add."""
    claim, why = "Fewer tokens and fewer bits together: extreme compression at little loss", []
    # of each kind: times as far as one of the two, for certain; and as intervals let it be
    reached: list[float] = []
    possible: list[float] = []
    for kind in ("image", "video"):
        cases = [case for case in cases_of(joint, kind) if "lost_all" in case["metrics"]]
        if not cases:
            continue
        fine, may = (
            [case for case in cases if ends(case["metrics"]["lost_all"])[end] <= LITTLE] for end in (1, 0)
        )
        alone = max((compression(case) for case in fine if single(case)), default=1.0)
        possible.append(max(map(compression, may), default=1.0) / alone)
        if not fine:
            why.append(f"{kind}: nothing stays within {100 * LITTLE:g} points for certain.")
            reached.append(1.0)
            continue
        best = max(fine, key=compression)
        factor, config = compression(best), best["config"]
        reached.append(factor / alone)
        why.append(
            f"{kind}: {config['method']} at keep {best['metrics']['budget']['value']:.2f} with simulated "
            f"{config['simulated']} weights loses {points(best['metrics']['lost_all'])}: tokens x bits {factor:.1f} "
            f"times fewer; one of the two alone: {alone:.1f} times, within the same {100 * LITTLE:g} points."
        )
    if not reached:
        return BenchFinding(claim, "open", ["No type of question can be judged."])
    verdict: Verdict = "holds" if min(reached) > 1.2 else "does not hold" if max(possible) <= 1 else "open"
    return BenchFinding(claim, verdict, why)


# --- reading cases ------------------------------------------------------------------------------------------------


def budget_of(case: Case) -> float:
    return float(case["config"]["keep"])


def budgets(cases: Iterable[Case]) -> list[float]:
    return sorted({budget_of(case) for case in cases}, reverse=True)


def of_kind(cases: Iterable[Case], kind: str) -> Iterator[Case]:
    """Published methods that remove one kind of redundancy."""
    for case in cases:
        method = METHODS[case["config"]["method"]]
        if method.kind == kind and method.paper != "baseline":
            yield case


def by_frame(case: Case) -> bool:
    return METHODS[case["config"]["method"]].scope == "frame"


def guided_by_prompt(case: Case) -> bool:
    return METHODS[case["config"]["method"]].guided


def least(cases: Iterable[Case]) -> Case | None:
    """The case that loses least."""
    return min(cases, key=lambda case: lost(case, "all"), default=None)


def compression(case: Case) -> float:
    return float(case["metrics"]["compression"]["value"])


def lost(case: Case, part: str) -> float:
    return float(case["metrics"][f"lost_{part}"]["value"])


def single(case: Case) -> bool:
    """Whether only one of the two was done."""
    return (case["config"]["method"] == WHOLE) != (case["config"]["simulated"] == "none")


def named(case: Case) -> str:
    return str(case["config"]["method"])


def ends(value: Metric) -> tuple[float, float]:
    """The interval; everything where it is not known, as of a single conversation."""
    low, high = value.get("low"), value.get("high")
    return (-inf, inf) if low is None or high is None else (low, high)


def points(value: Metric) -> str:
    low, high = (100 * end for end in ends(value))
    return f"{100 * value['value']:.1f} points" + (f" ({low:.1f} to {high:.1f})" if high < inf else "")


def common(first: list[Case], second: list[Case]) -> list[tuple[float, float]]:
    """The losses with the same method and budget, in both."""
    theirs = {(named(case), budget_of(case)): lost(case, "all") for case in second}
    keys = [((named(case), budget_of(case)), lost(case, "all")) for case in first]
    return [(value, theirs[key]) for key, value in keys if key in theirs]


def rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's, with mean ranks for ties; 0 where all are equal."""

    def ranks(values: list[float]) -> list[float]:
        return [
            sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
            for value in values
        ]

    first, second = (ranks(list(part)) for part in zip(*pairs, strict=True))
    centre = (len(pairs) - 1) / 2
    dot = sum((a - centre) * (b - centre) for a, b in zip(first, second, strict=True))
    norms = sum((a - centre) ** 2 for a in first) * sum((b - centre) ** 2 for b in second)
    return dot / norms**0.5 if norms else 0.0
