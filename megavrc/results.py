"""Measured numbers: one schema for every benchmark, evaluation and plan; one table; one comparison.

A result file is JSON:

    {format, machine, versions, revision, command, config, protocol, cases: [{name, config, metrics}], metrics}

where `metrics` are name -> {value, unit, n, low, high}: `low` and `high` bound the spread over the `n` samples behind
the value (a range or an interval: `protocol` says which) and are absent where there is none.
"""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from megavrc.errors import UserError
from megavrc.files import check_format, read_json, write_json
from megavrc.hardware import machine

FORMAT = 2  # 1: each command had a schema of its own, until November 2026
KEYS = ("format", "machine", "versions", "revision", "command", "config", "protocol", "cases", "metrics")
PACKAGES = ("torch", "numpy", "av", "deepspeed", "transformers", "webdataset", "triton", "torchao", "gradio")

Metric = dict[str, Any]
Result = dict[str, Any]


def metric(
    value: float, unit: str = "", n: int = 1, low: float | None = None, high: float | None = None
) -> Metric:
    """One number: its unit ("" for a share or a count), how many samples it rests on, and their spread."""
    bounds = {} if low is None or high is None else {"low": low, "high": high}
    return {"value": value, "unit": unit, "n": n, **bounds}


def median_of(samples: Sequence[float], unit: str, scale: float = 1.0) -> Metric:
    """The median of samples (each times `scale`) and their range."""
    scaled = [scale * sample for sample in samples]
    return metric(median(scaled), unit, len(scaled), min(scaled), max(scaled))


def case(name: str, metrics: Mapping[str, Metric], **config: Any) -> dict[str, Any]:
    """One row of a result: what it is called, what was varied, what was measured."""
    return {"name": name, "config": config, "metrics": dict(metrics)}


def result(
    command: str,
    config: Mapping[str, Any],
    cases: Iterable[dict[str, Any]] = (),
    metrics: Mapping[str, Metric] | None = None,
    protocol: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Result:
    """A result with the machine, the versions of the packages that this process has loaded, and the revision.

    Args:
        command: what a user types to get these numbers again, without options.
        config: the options that decide them.
        cases: rows, see `case`.
        metrics: numbers of the whole, such as ratios of cases.
        protocol: how it was measured: rounds, warm-up, what low and high are.
        device: that computed.
    """
    return {
        "format": FORMAT,
        "machine": machine(device),
        "versions": versions(),
        "revision": revision(),
        "command": command,
        "config": dict(config),
        "protocol": dict(protocol or {}),
        "cases": list(cases),
        "metrics": dict(metrics or {}),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that this process has loaded and that change numbers."""
    loaded = [name for name in PACKAGES if name in sys.modules]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in loaded}


def revision() -> str | None:
    """The git revision of this code, with "-dirty" after it where files differ from it; None outside a repository."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def read_result(path: str | Path) -> Result:
    """Read a result file; UserError when it is none, or made by a newer megavrc."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a result file; expected one written with --json")
    check_format(path, content.get("format"), FORMAT)
    if content.get("format", 1) != FORMAT:
        raise UserError(
            f"{path}: not a result file, or one of format 1, which had no common schema: measure again"
        )
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise UserError(f"{path}: not a whole result file: {', '.join(missing)} missing")
    return content


def write_result(path: str | Path, content: Result) -> None:
    """Write a result file atomically."""
    write_json(path, content)


# --- table -----------------------------------------------------------------------------------------------------


def table(content: Result, columns: Sequence[str] | None = None) -> str:
    """The cases as a Markdown table, one row each; without cases the metrics of the whole, one row each.

    Args:
        content: of a result file.
        columns: names of the metrics to show, in this order (default: all, in the order in which they come).
    """
    if not content["cases"]:
        rows = [[name, shown(value), str(value["n"])] for name, value in content["metrics"].items()]
        return markdown(["", "value", "n"], rows)
    names = columns or list(dict.fromkeys(name for row in content["cases"] for name in row["metrics"]))
    rows = [
        [row["name"], *(shown(row["metrics"][name]) if name in row["metrics"] else "" for name in names)]
        for row in content["cases"]
    ]
    return markdown(["", *names], rows)


def shown(value: Metric) -> str:
    """A metric as text: "1.23 s (1.20 to 1.31)"."""
    text = f"{_number(value['value'])} {value['unit']}".strip()
    return f"{text} ({_number(value['low'])} to {_number(value['high'])})" if "low" in value else text


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: a head, and rows of as many cells; numbers stand to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- comparison ------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A metric in two results: `apart` when the spreads do not touch (or, without spreads, the values differ)."""

    where: str
    first: Metric
    second: Metric
    apart: bool


def differences(first: Result, second: Result) -> list[Difference]:
    """All metrics that both results have, by case and name."""
    theirs = dict(_metrics(second))
    return [
        Difference(where, mine, theirs[where], _apart(mine, theirs[where]))
        for where, mine in _metrics(first)
        if where in theirs
    ]


def _metrics(content: Result) -> Iterator[tuple[str, Metric]]:
    yield from content["metrics"].items()
    for row in content["cases"]:
        yield from ((f"{row['name']}: {name}", value) for name, value in row["metrics"].items())


def _apart(first: Metric, second: Metric) -> bool:
    lows = [value["low"] if "low" in value else value["value"] for value in (first, second)]
    highs = [value["high"] if "high" in value else value["value"] for value in (first, second)]
    return max(lows) > min(highs) or first["unit"] != second["unit"]


def circumstances(first: Result, second: Result) -> list[tuple[str, Any, Any]]:
    """What else differs: (key, first, second) of machine, versions, revision, command, config and protocol."""
    mine, theirs = dict(_flat(first)), dict(_flat(second))
    return [
        (key, mine.get(key), theirs.get(key))
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    ]


def _flat(content: Result) -> Iterator[tuple[str, Any]]:
    for key in ("machine", "versions", "revision", "command", "config", "protocol"):
        part = content[key]
        yield from (
            ((f"{key}.{name}", value) for name, value in part.items())
            if isinstance(part, dict)
            else [(key, part)]
        )


# --- commands --------------------------------------------------------------------------------------------------


def show(file: Path, columns: list[str] | None = None) -> None:
    """Print a result file as a Markdown table.

    Args:
        file: written with --json by a benchmark, an evaluation or a plan.
        columns: names of the metrics to show (default: all).
    """
    content = read_result(file)
    print(f"{content['command']}, {content['machine']['cpu']}, {content['machine']['device']}\n")
    print(table(content, columns))


def compare(first: Path, second: Path) -> int:
    """Say which numbers of two result files differ beyond their spread, and what else differs between them.

    Exit code 0 when none differs, 1 when one does.

    Args:
        first: a result file.
        second: another one.
    """
    one, two = read_result(first), read_result(second)
    found = differences(one, two)
    if not found:
        raise UserError(f"{first} and {second} have no metric in common: {one['command']}, {two['command']}")
    rows = [
        [item.where, shown(item.first), shown(item.second), _ratio(item), "differs" if item.apart else ""]
        for item in found
    ]
    print(markdown(["", str(first), str(second), "second / first", ""], rows))
    others = circumstances(one, two)
    print(
        "\nWhat else differs:" if others else "\nNothing else differs: machine, versions, config, protocol."
    )
    for key, mine, theirs in others:
        print(f"  {key}: {mine} | {theirs}")
    return int(any(item.apart for item in found))


def _ratio(item: Difference) -> str:
    return f"{item.second['value'] / item.first['value']:.3f}" if item.first["value"] else ""
