"""The demo's report: one HTML file with everything inside, from the files that the commands left in the run folder."""

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megavrc import __version__
from megavrc.demo.steps import read_timing
from megavrc.errors import UserError
from megavrc.files import check_fields, read_json, read_lines_of_json, read_object, write_atomic
from megavrc.hardware import cpu_name, revision
from megavrc.model import ModelConfig, SamplingSettings
from megavrc.report.figures import COLOURS, panels, svg
from megavrc.report.page import picture, render
from megavrc.results import Metric, median_of, read_result

RUNS = {"tokenizer": "Video tokenizer", "stage1": "Stage 1: first frames", "stage2": "Stage 2: video"}
CURVES = {  # metric -> label, for each run
    "tokenizer": {"loss": "objective", "psnr": "PSNR (dB)"},
    "stage1": {"first": "first frame"},
    "stage2": {"first": "first frame", "later": "later frames"},
}
SETS = {  # set of clips -> (name, what it is)
    "real": ("real", "validation clips as rendered"),
    "reconstructed": ("reconstructed", "the same clips through the video tokenizer"),
    "generated": ("generated", "training combinations, {temperatures}"),
    "generated_t1": ("generated, T = 1", "training combinations, temperatures 1 / 1"),
    "heldout": ("held out", "combinations never seen in training, {temperatures}"),
}
ATTRIBUTES = ("colour", "shape", "direction", "all")
MODELS = ("segment", "token")  # whose seconds are compared
MOVING = "real, reconstructed and generated clips side by side, moving, under their prompts"
STILLS = "frames of real, reconstructed and generated clips with their prompts"


def write_report(run: Path, settings: SamplingSettings, what_now: Sequence[tuple[str, str]] = ()) -> Path:
    """Write `report.html` into a demo run folder and return its path.

    Args:
        run: the folder.
        settings: made its generated clips.
        what_now: what to do next, as (what, command).

    Raises:
        UserError: a file that the demo's commands should have left is missing or damaged.
    """
    temperatures = f"temperatures {settings.first.temperature:g} / {settings.later.temperature:g}"
    page = render(
        Path(__file__).with_name("report.html"),
        scores=read_scores(run / "alignment.json"),
        sets={key: (name, what.format(temperatures=temperatures)) for key, (name, what) in SETS.items()},
        attributes=ATTRIBUTES,
        moving=picture(run / "samples" / "comparison.gif", MOVING),
        stills=picture(run / "samples" / "comparison.png", STILLS),
        speed=_speed(run),
        curves=[curves(run / name, name) for name in RUNS],
        steps=read_timing(run / "timing.json"),
        what_now=what_now,
        facts=facts(run, run / "alignment.json"),
        root=shlex.quote(str(Path(__file__).parents[2])),
    )
    write_atomic(run / "report.html", page.encode())
    return run / "report.html"


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Scores by set of clips, as `evaluate alignment` writes them; UserError for a file of anything else."""
    scores = read_object(path, dict.fromkeys(("generated", "reconstructed"), dict[str, float]))
    for name, found in check_fields(path, scores, dict.fromkeys(scores, dict[str, float])).items():
        check_fields(f"{path}: {name}", found, dict.fromkeys((*ATTRIBUTES, "n"), float))
        if not all(0 <= found[attribute] <= 1 for attribute in ATTRIBUTES) or not found["n"] >= 1:
            raise UserError(f"{path}: {name}: shares are from 0 to 1, of n clips: measure again")
    check_fields(f"{path}: reconstructed", scores["reconstructed"], {"psnr": float})
    return scores


def _speed(run: Path) -> list[tuple[str, int, Metric]]:
    """Of VRC and the baseline: name, forward passes of a clip, seconds."""
    path = run / "hf" / "config.json"
    try:
        config = ModelConfig.from_dict(read_object(path, {"vrc": dict})["vrc"])
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    seconds = _seconds(run / "speed.json")
    frames, tokens = config.frames, config.tokens_per_frame
    return [
        ("VRC: later frames as segments", tokens + frames, seconds["segment"]),
        ("baseline: token by token", tokens * (1 + frames), seconds["token"]),
    ]


def _seconds(path: Path) -> dict[str, Metric]:
    """By model; also of files of format 1, which demos before December 2026 left in their folders."""
    content = read_json(path)
    if isinstance(content, dict) and "seconds_per_clip" in content:
        cases = check_fields(path, content["seconds_per_clip"], dict.fromkeys(MODELS, dict))
        lists = {
            name: check_fields(path, cases[name], {"seconds": list[float]})["seconds"] for name in MODELS
        }
        found = {name: median_of(seconds, "s") for name, seconds in lists.items() if seconds}
    else:
        found = {row["name"]: row["metrics"].get("seconds", {}) for row in read_result(path)["cases"]}
    for name in MODELS:
        one = check_fields(
            f"{path}: {name}", found.get(name), {"value": float, "low": float, "high": float, "n": int}
        )
        if not one["value"] > 0:
            raise UserError(f"{path}: {name}: {one['value']} seconds: measure again")
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; has the run finished?")
    return read_lines_of_json(path)


def curves(run: Path, name: str) -> str:
    """Training curves of one run as inline SVG."""
    metrics = read_metrics(run / "metrics.jsonl")
    figure, (axes,) = panels(1, width=3.9)
    for colour, (key, label) in zip(COLOURS, CURVES[name].items(), strict=False):
        points = [
            (row["step"], row[key])
            for row in metrics
            if all(isinstance(row.get(k), int | float) for k in ("step", key))
        ]
        axis = axes
        if "dB" in label:
            axis = axes.twinx()
            axis.spines["right"].set_visible(True)
        axis.plot(*zip(*points, strict=True), color=colour, label=label)
        if name == "tokenizer":
            axis.set_ylabel(label, color=colour)
    if name == "tokenizer":
        axes.set_yscale("log")
    else:
        axes.set_ylabel("cross-entropy (nats)")
        if axes.has_data():
            axes.legend()
    axes.set_title(RUNS[name])
    axes.set_xlabel("step")
    return svg(figure)


def facts(run: Path, scores: Path) -> dict[str, str]:
    """Circumstances of the numbers in the file `scores` of a run: seed and part, time, machine and versions."""
    import torch

    made = read_object(run / "demo.json", {}) if (run / "demo.json").is_file() else {}
    scored = datetime.fromtimestamp(scores.stat().st_mtime, UTC)
    return {
        "seed": str(made.get("seed", "not known")),
        "part of the clips and steps": str(made.get("part", "not known")),
        "training processes": str(made.get("processes", "not known")),
        "scores of": f"{scored:%Y-%m-%d %H:%M} UTC",
        "megavrc": f"{__version__}, revision {revision() or 'not known'}",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "machine": f"{platform.system()}, {cpu_name()}, {os.cpu_count()} cores",
    }
