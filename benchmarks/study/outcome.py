"""The result file of a run: benchmarks/results/study/RUN-SEED.json, for failed runs too."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from matrix import Job

from megavrc.files import read_json, write_json

FORMAT = 1
LINES = 20  # of its output, of a failed run


def write_result(results: Path, job: Job, record: dict[str, Any], work: Path, code: Path) -> Path:
    """Write the result of a run that is done or has failed; returns the file. It names no folder of this machine.

    Args:
        results: folder of the files.
        job: the run. record: of it in state.json. work, code: see `Runner`.
    """
    run, measured = job.product.parent, work / "measured" / f"{job.name}.json"
    done = record["status"] == "done"
    started = read_json(run / "run.json") if (run / "run.json").exists() else {"facts": {}, "starts": []}
    found = read_json(measured) if done else {"cases": []}
    log = work / "logs" / f"{job.name}.log"
    content = {
        "format": FORMAT,
        "kind": "study run",
        "name": job.run,
        "seed": job.seed,
        "status": record["status"],
        "machine": _machine(),
        "versions": started["starts"][-1]["versions"] if started["starts"] else {},
        "revision": sorted({str(start["git"]) for start in started["starts"]}),
        "command": ["python", *job.words],
        "config": yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").exists() else {},
        "protocol": {
            "bits": "eval mode, running statistics, averaged weights, condition never dropped, clip by clip",
            "interval": "95%, bootstrap over clips, 10000 draws",
            "seconds": "of the training command, validation and restarts included; cpu_seconds of all its processes",
            "facts": started["facts"],
        },
        "attempts": record["attempts"],
        "metrics": _metrics(found, _costs(record)) if done else {},
        "cases": found["cases"],
    }
    if not done:
        content["output"] = log.read_text(errors="replace").splitlines()[-LINES:] if log.exists() else []
    path = results / f"{job.name}.json"
    write_json(path, _without_places(content, {str(work): "WORK", str(code): "CODE", sys.prefix: "VENV"}))
    return path


def _costs(record: dict[str, Any]) -> dict[str, float | None]:
    """Sums over the training attempts; None if a runner that was killed has left one without its end."""
    attempts = [attempt for attempt in record["attempts"] if "pretrain_vrc" in attempt["command"][0]]
    known = all("seconds" in attempt for attempt in attempts)
    return {
        name: sum(attempt[name] for attempt in attempts) if known else None
        for name in ("seconds", "paused", "cpu_seconds")
    }


def _metrics(found: dict[str, Any], costs: dict[str, float | None]) -> dict[str, dict[str, Any]]:
    """Name -> value, unit, n and interval: what the run cost, and its bits at the last checkpoint."""
    clips = found["steps"] * found["batch"]
    plain: dict[str, tuple[float | None, str]] = {
        "steps": (found["steps"], "steps"),
        "parameters": (found["parameters"]["total"], "parameters"),
        "train_flops": (clips * found["flops_per_clip"], "FLOP"),
        **{name: (value, "s") for name, value in costs.items()},
    }
    metrics = {
        name: {"value": value, "unit": unit, "n": 1, "low": None, "high": None}
        for name, (value, unit) in plain.items()
    }
    last = max(case["checkpoint"] for case in found["cases"])
    for case in found["cases"]:
        if case["checkpoint"] == last:
            parts = {"total": case["total"], **{f"frame_{k}": part for k, part in enumerate(case["frames"])}}
            metrics |= {
                f"bits/{case['set']}/{part}": {"unit": "bits a clip", "n": case["n"], **values}
                for part, values in parts.items()
            }
    return metrics


def _machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "niceness": os.nice(0),
        "python": platform.python_version(),
    }


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
