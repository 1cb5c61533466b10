"""Tables 1 to 4 of the paper: published rows beside what was measured here. Pure functions of result files."""

from collections.abc import Mapping, Sequence
from typing import Any

from megavrc.paper.measured import Exhibit, Measured, published
from megavrc.results import Metric, shown

BASELINE = "Loong* (our token-by-token baseline)"
Row = dict[str, Any]  # of a table: column -> text or number; `name` stands first
VARIANTS = {"token": BASELINE, "vrc-4": "VRC", "row": "VRC, first frame in rows (not of the paper)"}


def table1(found: Measured) -> Exhibit:
    """FVD of class-to-video generation on four data sets."""
    main = found.matrix.main
    rows: list[Row] = [
        {"name": f"{name}, {main}", "kind": "LLM"} | _distances(found, model)
        for model, name in (("token", BASELINE), ("vrc", "VRC"))
    ]
    floor = {
        key: least
        for key in found.matrix.lists["dataset"]
        if (least := found.distance(f"fvd-vrc-{key}-{main}", floor=True))
    }
    rows += [{"name": "real clips against real ones"} | floor] if floor else []
    made = found.exhibit("table1", "Table 1. Class to video: distance from real clips")
    counts = ", ".join(f"{key} {least.get('n') or 'not known'}" for key, least in floor.items())
    made.notes += [f"Real against real: disjoint clips, N of each side: {counts}."] if floor else []
    return _beside_published(made, _titles(found, "dataset"), rows, found)


def table2(found: Measured) -> Exhibit:
    """Seconds of one clip, by size."""
    made = found.exhibit("table2", "Table 2. Seconds for one clip of 17 frames, batch 1")
    rows: dict[str, Row] = {variant: {"name": name} for variant, name in VARIANTS.items()}
    ratios: Row = {"name": f"{BASELINE} / VRC"}
    for size in found.matrix.lists["size"]:
        times = {name: found.seconds(size, name) for name in VARIANTS}
        for name, time in times.items():
            rows[name][size] = time
        token, vrc = times["token"], times["vrc-4"]
        ratios[size] = f"{token['value'] / vrc['value']:.2f}x" if token and vrc and vrc["value"] else None
        if content := found.read(f"speed-{size}"):
            made.notes.append(f"{size}: {_how(content)}")
    made.notes.append(f"As published: one {published()['table2']['device']}, batch and precision unstated.")
    return _beside_published(made, _titles(found, "size"), [*rows.values(), ratios], found)


def _how(content: Mapping[str, Any]) -> str:
    """What a speed was measured with."""
    machine = content["machine"]
    steps = content["protocol"].get("extrapolated_from_steps")
    clips = f"extrapolated from {steps} token steps" if steps else "whole clips"
    device = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    return f"measured on {device}, {content['config'].get('dtype')}, tokens only, {clips}."


def table3(found: Measured) -> Exhibit:
    """Zero-shot text to video on MSR-VTT."""
    made = found.exhibit("table3", "Table 3. Text to video, zero-shot on MSR-VTT")
    row = {"name": "VRC", "kind": "LLM", "clipsim": found.first("clipsim-text", "clipsim")}
    row |= {"parameters": "toy" if found.matrix.smoke else "1.2B", "fvd": found.distance("fvd-text")}
    return _beside_published(made, {}, [row], found)


def table4(found: Measured) -> Exhibit:
    """FVD with and without pretraining on images."""
    made = found.exhibit("table4", "Table 4. With and without stage 1: distance from real clips")
    main = found.matrix.main
    rows: list[Row] = [
        {"name": f"VRC, {main}, {name}"} | _distances(found, model)
        for model, name in (("vrc", "with stage 1"), ("scratch", "without"))
    ]
    return _beside_published(made, _titles(found, "dataset"), rows, found)


def _distances(found: Measured, model: str) -> Row:
    main, datasets = found.matrix.main, found.matrix.lists["dataset"]
    return {key: found.distance(f"fvd-{model}-{key}-{main}") for key in datasets}


def _titles(found: Measured, kind: str) -> dict[str, str]:
    return {key: item["title"] for key, item in found.matrix.lists[kind].items()}


def _beside_published(
    made: Exhibit, columns: Mapping[str, str], measured: Sequence[Row], found: Measured
) -> Exhibit:
    """Put the published rows of a table above the measured ones, and say where each comes from.

    Args:
        columns: that were to be measured, and their titles; those that no paper has (toy clips) stand last.
        measured: rows; None: not measured yet.
    """
    told = published()[made.name]
    theirs: list[Row] = told["rows"]
    columns = {**told["columns"], **columns}
    rows = [[row["name"], *(_text(row, key) for key in columns), "as published"] for row in theirs]
    rows += [[row["name"], *(_text(row, key) for key in columns), "measured"] for row in measured]
    made.table = [["", *columns.values(), "numbers"], *rows]
    if found.distances:
        made.notes.append(f"Measured: {found.distance_name}; beside it 95% intervals.")
    made.notes.append(f"As published: {published()['source']}.")
    made.notes += [f"{row['name']}: {row['source']}." for row in theirs if row.get("source")]
    return made


def _text(row: Row, key: str) -> str:
    """A cell: empty where there is nothing to measure, "missing" where it has not been measured."""
    value = row.get(key, "")
    if value is None:
        return "missing"
    if isinstance(value, dict):
        found: Metric = value
        return shown(found)
    return str(value)
