"""Two ways of training, each with several seeds: do they differ by more than seeds do?"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, variance
from typing import Any

from scipy import stats

from megavrc.errors import UserError
from megavrc.files import sha256_json
from megavrc.model.clips import sampling_settings
from megavrc.results import Metric, Result, case, circumstances, metric, publish_tables, read_result, result

LEVEL = 0.95
NO_SPREAD = (
    "cannot be told: on both sides all seeds gave one number, and so few do not show that none would differ"
)
INTERVAL = "95%, Welch's t over training seeds; the spread of a side whose seeds gave one number is that of the other"
# Of a protocol: what a training changes, and what says how a number was drawn. All else must be alike.
FREE = {"sources", "measured", "real", "model", "tokenizer", "interval", "remarks", "seed", "note", "wrong"}


def seeds(first: list[Path], second: list[Path], json: Path | None = None) -> None:
    """Compare two ways of training over seeds: Welch's interval of the difference of means, for every common metric.

    Args:
        first: result files of one way, one a training seed, at least two.
        second: result files of the other way.
        json: file to write the comparison to.
    """
    paths = (first, second)
    if min(map(len, paths)) < 2:
        raise UserError("--first and --second: at least two result files each, one a training seed")
    if len({path.resolve() for path in [*first, *second]}) < len(first) + len(second):
        raise UserError("--first and --second: a file stands there twice")
    files = [[read_result(path) for path in side] for side in paths]
    values = [[_values(content) for content in side] for side in files]
    common = [name for name in values[0][0] if all(name in found for side in values for found in side)]
    if not common:
        raise UserError(
            "the files have no metric in common: they must be results of one command, of one row each"
        )
    check_alike([*first, *second], [*files[0], *files[1]])
    _check_apart([*first, *second], [*files[0], *files[1]])
    cases = []
    for name in common:
        one, two = ([found[name] for found in side] for side in values)
        facts = {"first": mean(one), "second": mean(two)}
        found = difference_of_means(one, two)
        known = {"differs": not found["low"] <= 0 <= found["high"]} if "low" in found else {"note": NO_SPREAD}
        cases.append(case(name, {"second - first": found}, facts | known))
    protocol = {"interval": INTERVAL, "first": len(first), "second": len(second)}
    config = {"first": [str(path) for path in first], "second": [str(path) for path in second]}
    publish_tables(result("evaluate seeds", config, cases, {}, protocol), json)


def check_alike(paths: Sequence[Path], files: Sequence[Result]) -> None:
    """Refuse numbers of several protocols or networks: their difference would not be that of the trainings.

    Raises:
        UserError: with the first two files that differ, and in what.
    """
    for path, content in zip(paths[1:], files[1:], strict=True):
        for key, one, other in circumstances(files[0], content):
            if _decides(key):
                raise UserError(f"{paths[0]} and {path} were not measured alike: {key} is {one} and {other}")
        if apart := _other_real(files[0]["protocol"], content["protocol"]):
            raise UserError(f"{paths[0]} and {path} were not measured alike: {apart}")
        counts = [_measured(files[0]), _measured(content)]
        for one, other in zip(_drawn(files[0]), _drawn(content), strict=False):
            if one and other and one != other:
                raise UserError(
                    f"{paths[0]} and {path} were not measured alike: clips drawn by {one} and {other}"
                )
        if counts[0] != counts[1]:  # a distance falls with it
            raise UserError(
                f"{paths[0]} and {path} were not measured alike: clips {counts[0]} and {counts[1]}"
            )


def _check_apart(paths: Sequence[Path], files: Sequence[Result]) -> None:
    """Refuse one measurement as two trainings: its spread would be too small."""
    known: dict[str, Path] = {}
    for path, content in zip(paths, files, strict=True):
        same = known.setdefault(sha256_json([content["cases"], content["protocol"]]), path)
        if same != path:
            raise UserError(f"{same} and {path} are one measurement: its numbers, its clips and its protocol")


def _decides(key: str) -> bool:
    """Whether a circumstance says which clips were measured, or how."""
    part, _, rest = key.partition(".")
    drawn = ("temperature", "guidance", "later_passes")  # how a model's clips were drawn
    return key in ("command", "config.split", *(f"config.{name}" for name in drawn)) or (
        part == "protocol" and rest.partition(".")[0] not in FREE
    )


def _other_real(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Why the real clips of two distances are not those of one set, maybe drawn by other seeds; "" if they are."""
    one, two = first.get("real") or {}, second.get("real") or {}
    for name in ("n", "storage"):
        if one.get(name) != two.get(name):
            return f"protocol.real.{name} is {one.get(name)} and {two.get(name)}"
    drawn_again = first.get("seed") != second.get("seed") and one.get("name") == two.get("name")
    if one.get("sha256") == two.get("sha256") or drawn_again:
        return ""
    return f"the real clips are others, of {one.get('name')} and of {two.get('name')}"


def _measured(content: Result) -> list[int]:
    """Clips of each source that was measured."""
    return [source["n"] for source in _sources(content)]


def _drawn(content: Result) -> list[Any]:
    """How a model drew the clips of each source; None of clips that came as files."""
    made = [source.get("made_with") or {} for source in _sources(content)]
    return [
        [sampling_settings(one["sampling"]), one.get("dtype")] if "sampling" in one else None for one in made
    ]


def _sources(content: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = content["protocol"].get("measured", content["protocol"].get("sources", []))
    return found


def _values(content: Result) -> dict[str, float]:
    """Metrics by row and name; the first row, which is what was measured, has no name of its own."""
    rows = [("", content["cases"][0]["metrics"])] if content["cases"] else [("", content["metrics"])]
    rows += [(f"{row['name']}: ", row["metrics"]) for row in content["cases"][1:]]
    return {
        start + name: float(found["value"])
        for start, metrics in rows
        for name, found in metrics.items()
        if found["value"] is not None and math.isfinite(found["value"])
    }


def difference_of_means(first: Sequence[float], second: Sequence[float]) -> Metric:
    """second - first with Welch's 95% interval (unequal variances); without one where no side has a spread.

    Where one side has none, which few equal seeds do not show to be so, that of the other stands for both.
    """
    gap, sides = mean(second) - mean(first), (first, second)
    spreads = [variance(side) for side in sides]
    if not any(spreads):
        return metric(gap, n=min(map(len, sides)))
    parts = [(own or max(spreads)) / len(side) for own, side in zip(spreads, sides, strict=True)]
    free = [len(side) - 1 for own, side in zip(spreads, sides, strict=True) if own]
    degrees = float(free[0])
    if all(spreads):
        degrees = sum(parts) ** 2 / sum(part**2 / each for part, each in zip(parts, free, strict=True))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * math.sqrt(sum(parts))
    return metric(gap, n=min(map(len, sides)), low=gap - reach, high=gap + reach)
