"""Measured numbers: one schema for every benchmark, evaluation and plan; one table; one comparison.

A result file is JSON:

    {format, machine, versions, revision, command, config, protocol, cases: [{name, config, metrics, facts}], metrics}

where `metrics` are name -> {value, unit, n, low, high, samples}: `low` and `high` bound the spread over the `n` samples
behind the value (a range or an interval: `protocol` says which) and are absent where there is none, as `samples` are
where they were not kept; `facts` are what was seen of a case that is no number.
"""

import json as jsonlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from megavrc.errors import UserError
from megavrc.files import check_format, read_json, read_text, write_atomic, write_json
from megavrc.hardware import machine, revision, versions

FORMAT = 2  # 1: each command had a schema of its own, until November 2026
KEYS: dict[str, Any] = {"format": int, "command": str, "revision": str | None, "cases": list}
KEYS |= dict.fromkeys(("machine", "versions", "config", "protocol", "metrics"), dict)

Metric = dict[str, Any]
Result = dict[str, Any]


def metric(
    value: float | None, unit: str = "", n: int = 1, low: float | None = None, high: float | None = None
) -> Metric:
    """One number: its unit, how many samples it rests on, and their spread.

    Units: "s", "B" and "share" (0 to 1) are shown in the size that reads best; "" is a ratio or a count.
    """
    bounds = {} if low is None or high is None else {"low": low, "high": high}
    return {"value": value, "unit": unit, "n": n, **bounds}


def median_of(samples: Sequence[float], unit: str = "") -> Metric:
    """The median of samples, their range, and the samples themselves."""
    found = metric(median(samples), unit, len(samples), min(samples), max(samples))
    return found | {"samples": list(samples)}


def ratio(first: Metric, second: Metric) -> Metric:
    """The first value over the second; its spread is not known."""
    return metric(first["value"] / second["value"], n=min(first["n"], second["n"]))


def case(
    name: str, metrics: Mapping[str, Metric], facts: Mapping[str, Any] | None = None, **config: Any
) -> dict[str, Any]:
    """One row of a result: what it is called, what was measured, what was seen that is no number, what was varied."""
    row: dict[str, Any] = {"name": name, "config": config, "metrics": dict(metrics)}
    return row | {"facts": dict(facts)} if facts else row


def result(
    command: str,
    config: Mapping[str, Any],
    cases: Iterable[dict[str, Any]] = (),
    metrics: Mapping[str, Metric] | None = None,
    protocol: Mapping[str, Any] | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> Result:
    """A result with the machine, the versions of the packages that this process has loaded, and the revision.

    Args:
        command: what a user types to get these numbers again, without options.
        config: the options that decide them.
        cases: rows, see `case`.
        metrics: numbers of the whole, such as ratios of cases.
        protocol: how it was measured: rounds, warm-up, what low and high are.
        device: that computed.
        threads: CPU threads of each process (default: torch's of this one).
    """
    return {
        "format": FORMAT,
        "machine": machine(device, threads),
        "versions": versions(),
        "revision": revision(),
        "command": command,
        "config": dict(config),
        "protocol": dict(protocol or {}),
        "cases": list(cases),
        "metrics": dict(metrics or {}),
    }


def read_result(path: str | Path) -> Result:
    """Read a result file; UserError when it is none, or made by a newer megavrc."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a result file; expected one written with --json")
    check_format(path, content.get("format"), FORMAT)
    if content.get("format", 1) != FORMAT:
        raise UserError(f"{path}: not a result file, or of format 1, without a common schema: measure again")
    missing = [key for key, kind in KEYS.items() if key not in content or not isinstance(content[key], kind)]
    if missing:
        raise UserError(f"{path}: not a whole result file: {', '.join(missing)} missing or of another kind")
    wrong = [f"case {number}" for number, row in enumerate(content["cases"], 1) if not _is_case(row)]
    wrong += [f"metric {name}" for name, found in content["metrics"].items() if not _is_metric(found)]
    if wrong:
        raise UserError(f"{path}: not a whole result file: {wrong[0]} is not as docs/formats.md says")
    return content


def _is_case(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("name"), str)
        and all(isinstance(row.get(part, {}), dict) for part in ("config", "metrics", "facts"))
        and {"config", "metrics"} <= set(row)
        and all(map(_is_metric, row["metrics"].values()))
    )


def _is_metric(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and {"value", "unit"} <= set(found)
        and isinstance(found["unit"], str)
        and all(type(found.get(name)) in (float, int, type(None)) for name in ("value", "low", "high"))
    )


def check_result_place(path: str | Path | None) -> None:
    """A result file may replace another one, and no other file: UserError. Long commands ask before they measure."""
    if path and Path(path).exists():
        try:
            read_result(path)
        except UserError:
            raise UserError(
                f"{path}: is there and is no result file; choose another name, or delete it"
            ) from None


def write_result(path: str | Path, content: Result) -> None:
    """Write a result file atomically, where `check_result_place` lets it; NaN and infinities, no JSON, as null."""
    check_result_place(path)
    write_json(path, jsonlib.loads(jsonlib.dumps(content), parse_constant=lambda _: None))


# --- table -----------------------------------------------------------------------------------------------------

SCALES = {  # unit -> (from which value on, its size, its name)
    "s": ((0.1, 1.0, "s"), (0.0, 1e-3, "ms")),
    "B": ((2**30, 2**30, "GiB"), (0.0, 2**20, "MiB")),
    "share": ((0.0, 0.01, "%"),),
    "B/s": ((0.0, 1e9, "GB/s"),),
}


def table(content: Result, columns: Sequence[str] | None = None) -> str:
    """The cases as a Markdown table, one row each; without cases the metrics of the whole, one row each.

    Args:
        content: of a result file.
        columns: what to show of the cases, in this order: names of metrics, facts or config (default: all metrics and
            facts). ["metrics"]: the metrics of the whole, though there are cases.
    """
    if not content["cases"] or columns == ["metrics"]:
        rows = [
            [name, shown(value), _text(value.get("n") or "")] for name, value in content["metrics"].items()
        ]
        return markdown(["", "value", "n"], rows)
    known = _columns(content)
    names = list(columns or known["metrics"] | known["facts"])
    if unknown := [name for name in names if not any(name in found for found in known.values())]:
        raise UserError(
            f"no column {unknown[0]!r}; there are {', '.join(sorted(set().union(*known.values())))}"
        )
    return markdown(
        ["", *(name.replace("_", " ") for name in names)],
        [[row["name"], *(_cell(row, name) for name in names)] for row in content["cases"]],
    )


def _columns(content: Result) -> dict[str, dict[str, None]]:
    """Names that the cases have, in their order: of metrics, facts and config."""
    return {
        part: dict.fromkeys(name for row in content["cases"] for name in row.get(part, {}))
        for part in ("metrics", "facts", "config")
    }


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name in row["metrics"]:
        return shown(row["metrics"][name])
    return _text({**row["config"], **row.get("facts", {})}.get(name, ""))


def _text(value: Any) -> str:
    if isinstance(value, list):  # of lists: "85 -9, 0 0"
        return (", " if any(isinstance(part, list) for part in value) else " ").join(map(_text, value))
    return str(value)


def shown(value: Metric) -> str:
    """A metric as text: "1.23 s (1.20 to 1.31)"; empty where nothing was measured."""
    if value["value"] is None:
        return ""
    scales = SCALES.get(value["unit"], ((0.0, 1.0, value["unit"]),))
    size, unit = next(
        ((size, unit) for least, size, unit in scales if abs(value["value"]) >= least), scales[-1][1:]
    )
    text = f"{_number(value['value'] / size)} {unit}".strip()
    low, high = (value.get(name) for name in ("low", "high"))
    if low is None or high is None or low == high:
        return text
    return f"{text} ({_number(low / size)} to {_number(high / size)})"


def _number(value: float) -> str:
    whole = float(value).is_integer() and abs(value) < 1e15  # a count
    return f"{value:,.0f}" if abs(value) >= 999.5 and (whole or abs(value) < 1e7) else f"{value:.3g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: a head, and rows of as many cells, whatever is in them; numbers stand to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    cells = ([" ".join(cell.split()).replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def publish_tables(content: Result, json: Path | None = None, columns: Sequence[str] = ()) -> None:
    """Print a result's tables, of its cases those `columns` that there are (default: all); write it to `json`."""
    if content["cases"]:
        known = set().union(*_columns(content).values())
        print(table(content, [name for name in columns if name in known]))
    if content["metrics"]:
        print("\n" + table(content, ["metrics"]))
    if json:
        write_result(json, content)


# --- pages -----------------------------------------------------------------------------------------------------

TABLE = re.compile(r"(<!-- table: (\S+)(?: ([^\n]*?))? -->\r?\n)(?s:(?!<!-- table: ).)*?(?=<!-- end -->)")


def page_text(path: Path) -> str:
    """The text of a Markdown page with its tables made anew from their result files.

    A table stands between `<!-- table: FILE COLUMN, COLUMN -->` and `<!-- end -->`: the file relative to the page, and
    what `table` calls columns, if not all; its lines end as its mark does. UserError where one has no end.
    """
    text = read_text(path)
    if lost := text.count("<!-- table: ") - len(TABLE.findall(text)):
        raise UserError(
            f"{path}: {lost} tables without <!-- end -->, or not as <!-- table: FILE COLUMN, COLUMN -->"
        )

    def made(found: re.Match[str]) -> str:
        columns = found[3].split(", ") if found[3] else None
        made_anew = f"\n{table(read_result(path.parent / found[2]), columns)}\n\n"
        return found[1] + made_anew.replace("\n", "\r\n" if found[1].endswith("\r\n") else "\n")

    return TABLE.sub(made, text)


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
    """All that have a value; the second case of a name is "NAME (2)"."""
    names = [row["name"] for row in content["cases"]]
    nth = (names[:place].count(name) + 1 for place, name in enumerate(names))
    starts = [f"{name} ({n}): " if n > 1 else f"{name}: " for name, n in zip(names, nth, strict=True)]
    of_cases = zip(starts, (row["metrics"] for row in content["cases"]), strict=True)
    for start, metrics in [("", content["metrics"]), *of_cases]:
        known = {name: value for name, value in metrics.items() if abs(value["value"] or 0) < inf}
        yield from ((start + name, value) for name, value in known.items() if value["value"] is not None)


def _bounds(value: Metric) -> tuple[float, float]:
    """Low and high; twice the value where the spread is not known."""
    low, high = value.get("low"), value.get("high")
    return (value["value"],) * 2 if low is None or high is None else (low, high)


def _apart(first: Metric, second: Metric) -> bool:
    (low, high), (other_low, other_high) = _bounds(first), _bounds(second)
    return max(low, other_low) > min(high, other_high) or first["unit"] != second["unit"]


def circumstances(first: Result, second: Result) -> list[tuple[str, Any, Any]]:
    """Other differences: (key, first, second) of machine, versions, revision, command, config and protocol."""
    parts = ("machine", "versions", "revision", "command", "config", "protocol")
    mine, theirs = (dict(_leaves("", {part: found[part] for part in parts})) for found in (first, second))
    return [
        (key, mine.get(key), theirs.get(key))
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    ]


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is not a mapping, by dotted keys."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{key}.{name}" if key else name, inner)


# --- commands --------------------------------------------------------------------------------------------------


def show(file: Path, columns: list[str] | None = None) -> None:
    """Print a result file as a Markdown table.

    Args:
        file: result file, written with --json by a benchmark, an evaluation or a plan.
        columns: metrics to show, by name (default: all).
    """
    content = read_result(file)
    for part in ("machine", "versions", "config"):
        print(f"{part}: {', '.join(f'{name} {value}' for name, value in content[part].items())}")
    print(f"command: {content['command']}, revision {content['revision']}\n")
    print(table(content, columns))
    if content["cases"] and content["metrics"] and not columns:
        print("\n" + table(content, ["metrics"]))


def compare(first: Path, second: Path) -> int:
    """Say which numbers of two result files differ beyond their spread, and what else differs between them.

    Exit code 0 when none differs, 1 when one does.

    Args:
        first: a result file.
        second: another one.
    """
    one, two = read_result(first), read_result(second)
    names = [[row["name"] for row in content["cases"]] for content in (one, two)]
    if one["command"] == two["command"] and all(names) and names[0][1:] == names[1][1:]:
        for content in (one, two):  # the first case is named after what was measured
            content["cases"][0]["name"] = " / ".join(dict.fromkeys(each[0] for each in names))
    found = differences(one, two)
    if not found:
        raise UserError(f"{first} and {second} have no metric in common: {one['command']}, {two['command']}")
    rows = [
        [item.where, shown(item.first), shown(item.second), *_distance(item), "differs" if item.apart else ""]
        for item in found
    ]
    print(markdown(["", str(first), str(second), "second / first", "difference / spread", ""], rows))
    common = {item.where for item in found}
    for path, content in ((first, one), (second, two)):
        if alone := [where for where, _ in _metrics(content) if where not in common]:
            print(f"\nOnly in {path}: {', '.join(alone)}")
    others = circumstances(one, two)
    print("\nWhat else differs:" if others else "\nNothing else differs.")
    for key, mine, theirs in others:
        print(f"  {key}: {mine} | {theirs}")
    return int(any(item.apart for item in found))


def _distance(item: Difference) -> tuple[str, str]:
    """The ratio of the values, and their difference over the larger spread, where they are known."""
    one, two = item.first["value"], item.second["value"]
    spread = max(high - low for low, high in (_bounds(item.first), _bounds(item.second)))
    return f"{two / one:.3f}" if one else "", f"{abs(two - one) / spread:.2f}" if spread else ""


def page(file: Path) -> None:
    """Make the tables of a Markdown page anew from the result files that it names.

    Args:
        file: Markdown page with `<!-- table: RESULT COLUMN, COLUMN -->` .. `<!-- end -->`, RESULT relative to it.
    """
    text = page_text(file)
    print(f"{file}: {'as it was' if text == read_text(file) else 'tables made anew'}")
    write_atomic(file, text.encode())
