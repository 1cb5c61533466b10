"""The result file of a run, benchmarks/results/study/RUN-SEED.json, in the schema of `megavrc.results`."""

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from matrix import StudyJob

from megavrc import results
from megavrc.files import read_json
from megavrc.hardware import machine

MEASURED = {"probes": "cases", "tuning": "points"}  # file -> its parts
LINES = 20  # of its output, of a command that failed
PROTOCOL = {
    "bits": "eval mode, running statistics, averaged weights, condition never dropped, clip by clip",
    "low, high": "95% interval, bootstrap over clips (modes: over first frames)",
    "seconds": "of the training command at niceness 19, validation and restarts included, pauses not; "
    "cpu_seconds of all its processes",
}


def write_result(
    folder: Path, work: Path, code: Path, job: StudyJob, jobs: dict[str, dict[str, Any]]
) -> Path:
    """Write the result of a run as far as it is known; returns the file. It names no folder of this machine.

    Beyond the schema it has `run`, `seed`, `status` (done, trained, failed), `attempts` and, of what failed, `output`;
    a case has `by_clip`, the values of its clips in the order of the split.

    Args:
        folder: of the result files.
        work, code: see `Runner`.
        job: of the run, the one that was just done or has failed.
        jobs: the records of all jobs, as in state.json.
    """
    name = f"{job.run}-{job.seed}"
    run, measured = work / "runs" / name, work / "measured" / name
    attempts = {key: jobs[key]["attempts"] for key in jobs if key == name or key.startswith(f"{name}/")}
    failed = [key for key in attempts if jobs[key]["status"] == "failed"]
    started = read_json(run / "run.json") if (run / "run.json").exists() else {"facts": {}, "starts": []}
    last: dict[str, Any] = started["starts"][-1] if started["starts"] else {}
    bits = read_json(measured / "bits.json") if (measured / "bits.json").exists() else None
    everywhere = _cases_of(measured / "passes.json", "cases")
    judged, samples = (
        {
            path.stem: read_json(path)
            for path in sorted(measured.glob("*-*.json"))
            if is_judge == _judges(path)
        }
        for is_judge in (True, False)
    )
    probes, tuning = (_cases_of(measured / f"{name}.json", key) for name, key in MEASURED.items())
    content = {
        "format": results.FORMAT,
        "run": job.run,
        "seed": job.seed,
        "status": "failed" if failed else "done" if bits else "trained",
        "machine": machine("cpu", 1),
        "versions": last.get("versions", {}),
        "revision": ", ".join(dict.fromkeys(str(start["git"]) for start in started["starts"])),
        "command": "python " + " ".join(last.get("command", job.words)),
        "config": yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").exists() else {},
        "protocol": {**PROTOCOL, **started["facts"]},
        "attempts": attempts,
        "metrics": _metrics(bits, attempts.get(name, [])) if bits else {},
        "cases": [
            *map(_bits_case, [*(bits["cases"] if bits else []), *everywhere]),
            *map(_probes_case, probes),
            *map(_tuning_case, tuning),
            *(_samples_case(*item) for item in samples.items()),
            *(_judge_case(*item) for item in judged.items()),
        ],
        "output": {key: _last_lines(work / "logs" / f"{key.replace('/', '-')}.log") for key in failed},
    }
    path = folder / f"{name}.json"
    places = {str(work): "WORK", str(code): "CODE", sys.prefix: "VENV"}
    results.write_result(path, _without_places(content, places))
    return path


def _judges(path: Path) -> bool:
    return path.stem.startswith("judge-")


def _cases_of(path: Path, key: str) -> list[dict[str, Any]]:
    """The parts of what was measured, each with all that is said of the whole; [] before it is."""
    if not path.exists():
        return []
    content: dict[str, Any] = read_json(path)
    rest = {name: value for name, value in content.items() if name != key}
    return [rest | part for part in content[key]]


def _metrics(bits: dict[str, Any], attempts: list[dict[str, Any]]) -> dict[str, results.Metric]:
    """What the run cost, without seconds if a runner that was killed has left an attempt without its end."""
    clips = bits["steps"] * bits["batch"]
    metrics = {
        "steps": results.metric(bits["steps"]),
        "parameters": results.metric(bits["parameters"]["total"]),
        "train_flops": results.metric(clips * bits["flops_per_clip"], "FLOP"),
    }
    if all("seconds" in attempt for attempt in attempts):
        for name in ("seconds", "paused", "cpu_seconds"):
            metrics[name] = results.metric(sum(attempt[name] for attempt in attempts), "s", len(attempts))
    return metrics


def _bits_case(found: dict[str, Any]) -> dict[str, Any]:
    parts = {"total": found["total"], **{f"frame_{k}": part for k, part in enumerate(found["frames"])}}
    metrics = {
        name: results.metric(part["value"], "bits", found["n"], part["low"], part["high"])
        for name, part in parts.items()
    }
    how = {name: found[name] for name in ("checkpoint", "set", "clips")}
    how["later_passes"] = found.get("later_passes", 1)  # which measurements of before did not name
    passes = "" if how["later_passes"] == 1 else " refined"
    if passes and isinstance(how["later_passes"], int):  # one number is that of every frame
        passes += " everywhere"
    row = results.case(f"bits {found['set']}{passes} {found['checkpoint']}", metrics, **how)
    return {**row, "by_clip": found["by_clip"]}


def _probes_case(found: dict[str, Any]) -> dict[str, Any]:
    """Bits a cell; the mean over the clips that say something."""
    return _by_clip_case(f"probes {found['set']} {found['checkpoint']}", found, "bits")


def _judge_case(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return _by_clip_case(name.replace("-", " "), found, "bits")


def _tuning_case(found: dict[str, Any]) -> dict[str, Any]:
    """A point of the grid."""
    best = found.pop("best")[found["entry"]]
    found["best"] = all(found[name] == value for name, value in best.items())
    (first, later), top_p = found["temperatures"], found["top_p"]
    return _samples_case(f"tuning {found['entry']} {first}/{later}/{top_p} {found['checkpoint']}", found)


def _by_clip_case(name: str, found: dict[str, Any], unit: str) -> dict[str, Any]:
    by_clip: dict[str, str] = found.pop("by_clip")
    metrics = {}
    for score, line in by_clip.items():
        said = [float(word) for word in line.split() if word != "-"]
        if said:
            metrics[score] = results.metric(sum(said) / len(said), unit, len(said))
    return {**results.case(name, metrics, **found), "by_clip": by_clip}


def _samples_case(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    scores: dict[str, dict[str, Any]] = found.pop("scores")
    by_clip = found.pop("by_clip")
    metrics = {
        name: results.metric(value, "", score["n"], low, high)
        for label, score in scores.items()
        for name, value, low, high in _points(label, score)
        if value is not None
    }
    return {**results.case(kind.replace("-", " "), metrics, **found), "by_clip": by_clip}


def _points(label: str, score: dict[str, Any]) -> list[tuple[str, Any, Any, Any]]:
    """(name, value, low, high) of a score; of a curve, of each of its points."""
    if not isinstance(score["value"], list):
        return [(label, score["value"], score["low"], score["high"])]
    points = zip(score["value"], score["low"], score["high"], strict=True)
    return [(f"{label}_{place}", *point) for place, point in enumerate(points)]


def _last_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-LINES:]


def _without_places(content: Any, names: dict[str, str]) -> Any:
    """JSON content with the folders of this machine replaced by names."""
    if isinstance(content, dict):
        return {key: _without_places(value, names) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_places(value, names) for value in content]
    if not isinstance(content, str):
        return content
    for place, name in names.items():
        content = content.replace(place, name)
    return re.sub(r"/[^\s\"':]*/(site-packages|lib/python[\d.]+)/", r"\1/", content)
