"""Do two runs agree? Their metrics at the same steps, their configurations, and a plot of both.

A reference is a run reduced to one small file: a line {"reference": ...} with its configuration, then lines of
metrics. It can stand wherever a run folder can.
"""

import json as jsonlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavrc.checkpoint import read_record
from megavrc.config import read_yaml
from megavrc.errors import UserError
from megavrc.files import check_fields, check_format, check_picture_place, read_lines_of_json, write_atomic
from megavrc.results import case, metric, result, write_result

Line = dict[str, Any]
REFERENCE_FORMAT = 1

# What depends on the machine and its load, not on what is trained.
MACHINE = {"time", "clips/s", "tokens/s", "TFLOP/s/rank", "mfu_%", "data_wait_%", "memory_GiB"}
MACHINE |= {"checkpoint_stall_s", "checkpoint_failures", "start"}
# Where files lie, not what a run is.
WHERE = ("run_dir", "init_from", "data.path", "data.text_tokenizer", "data.video_tokenizer")
NOT_FINITE = {"note": "one of the runs is not finite at some step: there is no largest or mean difference"}


@dataclass(frozen=True)
class Curves:
    """A run as its files tell: metrics by step, and the flat configuration (empty if it is not known)."""

    path: Path
    lines: dict[int, Line]
    config: dict[str, Any]
    about: dict[str, Any]

    @property
    def keys(self) -> list[str]:
        """Metrics of what was trained, in their order."""
        names = dict.fromkeys(name for line in self.lines.values() for name in line)
        return [name for name in names if name not in MACHINE | {"step"} and self._is_number(name)]

    def _is_number(self, name: str) -> bool:
        return all(isinstance(line.get(name, 0.0), int | float) for line in self.lines.values())

    def values(self, key: str) -> dict[int, float]:
        """Values by step, where the metric was written as a number."""
        return {
            step: line[key] for step, line in self.lines.items() if isinstance(line.get(key), int | float)
        }


def read_curves(path: Path) -> Curves:
    """A run folder, or a reference file.

    Raises:
        UserError: it is neither, or it has no whole line of metrics.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a run folder with metrics.jsonl, or a reference file")
    rows = read_lines_of_json(file)
    about = rows[0].get("reference", {}) if rows else {}
    check_format(file, check_fields(f"{file} line 1", about, {}).get("format"), REFERENCE_FORMAT)
    check_fields(f"{file} line 1", about, {"config": dict | None})
    config = about.get("config") or {}
    if (path / "config.yaml").is_file():
        config = dict(_flat(read_yaml(path / "config.yaml"), ""))
    if record := read_record(path):
        start = record["starts"][-1] if record["starts"] else {}
        about = {"versions": start.get("versions", {}), "world_size": start.get("world_size")}
    lines = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
    if not lines:
        raise UserError(f"{file}: has no lines of metrics, which are JSON objects with a step")
    return Curves(path, lines, config, about)


def _flat(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested dictionaries."""
    if isinstance(content, dict) and content:
        for name, value in content.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, content


# --- what is compared ---------------------------------------------------------------------------------------------


def relative_difference(a: float, b: float) -> float:
    """|a - b| over the larger magnitude: 0 if both are the same or NaN, infinite if one is not finite."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def curve_differences(a: Curves, b: Curves, keys: list[str], tolerance: float) -> list[dict[str, Any]]:
    """For each metric: steps compared, largest and mean relative difference, first step beyond the tolerance.

    Raises:
        UserError: a metric that the runs do not share at any step.
    """
    rows = []
    for key in keys:
        mine, theirs = a.values(key), b.values(key)
        found = {step: relative_difference(mine[step], theirs[step]) for step in sorted(mine.keys() & theirs)}
        if not found:
            shared = [name for name in a.keys if a.values(name).keys() & b.values(name)]
            raise UserError(
                f"--keys {key}: at no common step of {a.path} and {b.path}; they share {', '.join(shared) or 'none'}"
            )
        rows.append(
            {
                "key": key,
                "steps": len(found),
                "max": max(found.values()),
                "mean": sum(found.values()) / len(found),
                "first_beyond": next((step for step, value in found.items() if value > tolerance), None),
            }
        )
    return rows


def config_differences(a: Curves, b: Curves) -> dict[str, list[Any]]:
    """Values of both, of the keys that differ; where files lie does not matter."""
    if not a.config or not b.config:
        return {}
    keys = dict.fromkeys([*a.config, *b.config])
    return {
        key: [a.config.get(key), b.config.get(key)]
        for key in keys
        if key not in WHERE and a.config.get(key) != b.config.get(key)
    }


# --- the command --------------------------------------------------------------------------------------------------


def compare_runs(
    run_a: Path,
    run_b: Path | None = None,
    keys: list[str] | None = None,
    tolerance: float = 1e-5,
    plot: Path | None = None,
    save: Path | None = None,
    every: int = 1,
    json: Path | None = None,
) -> int:
    """Compare the metrics of two runs at the same steps; exit code 0 within the tolerance, 1 beyond it.

    Differences are |a - b| over the larger of both. The same configuration, machine and number of ranks give 0.

    Args:
        run_a: run folder, or a reference file made with --save.
        run_b: the run to compare it with (may be missing with --save only).
        keys: metrics to compare (default: all that both have and that do not depend on the machine's speed).
        tolerance: largest relative difference that counts as the same.
        plot: figure of both runs to write, .png or .svg.
        save: reference file to write run_a to.
        every: steps that `save` keeps: multiples of this, and the last one.
        json: file to write the differences to.
    """
    if not 0 <= tolerance < math.inf:
        raise UserError(f"--tolerance {tolerance}: a number from 0 on, such as 1e-5")
    if plot:
        check_picture_place(plot)
    a = read_curves(run_a)
    if save:
        save_reference(a, save, keys or a.keys, every)
    if run_b is None:
        if not save:
            raise UserError("give two runs to compare, or --save=FILE to make a reference of one")
        return 0
    b = read_curves(run_b)
    both = [key for key in a.keys if a.values(key).keys() & b.values(key)]
    if not both:
        raise UserError(f"{run_a} and {run_b} have no metric at a common step: nothing to compare")
    rows = curve_differences(a, b, keys or both, tolerance)
    changed = config_differences(a, b)
    for line in (curve_verdict(rows, tolerance), *_table(a, b, rows, changed, tolerance)):
        print(line)
    if plot:
        draw_curves(a, b, [row["key"] for row in rows], plot)
    if json:
        write_result(json, _result(rows, changed, tolerance))
    return int(any(row["first_beyond"] is not None for row in rows))


def _result(rows: list[dict[str, Any]], changed: dict[str, list[Any]], tolerance: float) -> dict[str, Any]:
    """For the file: a case a metric; `differences` and `tolerance` stand there too as they did in format 1."""
    cases = [
        case(
            row["key"],
            {name: metric(row[name], "", row["steps"]) for name in ("max", "mean")},
            {"first_step_beyond": row["first_beyond"]} | ({} if math.isfinite(row["max"]) else NOT_FINITE),
        )
        for row in rows
    ]
    content = result("compare_runs", changed, cases, {}, {"tolerance": tolerance})
    return content | {"differences": rows, "tolerance": tolerance}


def _table(
    a: Curves, b: Curves, rows: list[dict[str, Any]], changed: dict[str, list[Any]], tolerance: float
) -> Iterator[str]:
    for name, run in (("A", a), ("B", b)):
        yield f"{name}: {run.path}, steps {min(run.lines)} to {max(run.lines)}, {len(run.lines)} lines"
    for key, (mine, theirs) in changed.items():
        yield f"config {key}: {mine!r} in A, {theirs!r} in B"
    if not (a.config and b.config):
        yield "config: not known of both, so not compared"
    for name, run, other in (("A", a, b), ("B", b, a)):
        if alone := [key for key in run.keys if key not in other.keys]:
            yield f"only in {name}: {', '.join(alone)}"
    yield f"{'metric':24s}{'steps':>6s}{'largest':>12s}{'mean':>12s}  first step beyond {tolerance:g}"
    for row in rows:
        beyond = "none" if row["first_beyond"] is None else row["first_beyond"]
        yield f"{row['key']:24s}{row['steps']:6d}{row['max']:12.3g}{row['mean']:12.3g}  {beyond}"


def curve_verdict(rows: list[dict[str, Any]], tolerance: float) -> str:
    """A sentence that says whether the runs agree."""
    beyond = [row for row in rows if row["first_beyond"] is not None]
    steps = max(row["steps"] for row in rows)
    if not any(row["max"] for row in rows):
        return f"The runs are the same: no difference in {len(rows)} metrics at up to {steps} common steps."
    largest = max(rows, key=lambda row: row["max"])
    if not beyond:
        return (
            f"The runs agree within {tolerance:g}: the largest difference of {len(rows)} metrics at up to {steps} "
            f"common steps is {largest['max']:.3g} ({largest['key']})."
        )
    first = min(beyond, key=lambda row: row["first_beyond"])
    return (
        f"The runs differ: {len(beyond)} of {len(rows)} metrics beyond {tolerance:g}, first {first['key']} at step "
        f"{first['first_beyond']}; the largest difference is {largest['max']:.3g} ({largest['key']})."
    )


def save_reference(run: Curves, path: Path, keys: list[str], every: int) -> None:
    """Write a run as a reference file: metrics `keys` of every so many steps and the last one, the configuration
    without what says where files lie, versions and the number of ranks."""
    if every < 1:
        raise UserError(f"--every {every}: must be at least 1")
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(b'{"reference": ')):
        raise UserError(f"--save {path}: is there and is no reference; choose another name, or delete it")
    if lost := [key for key in keys if not run.values(key)]:
        raise UserError(f"--keys {lost[0]}: no metric of {run.path}; it has {', '.join(run.keys) or 'none'}")
    config = {key: value for key, value in run.config.items() if key not in WHERE}
    steps = [step for step in run.lines if step % every == 0 or step == max(run.lines)]
    kept = [
        {"step": step, **{key: run.lines[step][key] for key in keys if key in run.lines[step]}}
        for step in steps
    ]
    lines: list[Any] = [{"reference": {**run.about, "format": REFERENCE_FORMAT, "config": config}}, *kept]
    write_atomic(path, "".join(jsonlib.dumps(line) + "\n" for line in lines).encode())


def draw_curves(a: Curves, b: Curves, keys: list[str], path: Path) -> None:
    """Both runs over the steps, a panel for each metric."""
    from megavrc.report.figures import legend, panels, save

    figure, axes = panels(len(keys))
    for axis, key in zip(axes, keys, strict=True):
        for run, style in ((a, "-"), (b, "--")):
            axis.plot(*zip(*run.values(key).items(), strict=True), style)
        axis.set_title(key)
        axis.set_xlabel("step")
    legend(axes[0], axes[0].get_lines(), [str(a.path), str(b.path)], fontsize=8)
    save(figure, path)
