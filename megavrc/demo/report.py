"""The demo's report: one HTML file with everything inside, from the files that the commands left in the run folder."""

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megavrc import __version__
from megavrc.errors import UserError
from megavrc.files import read_json, read_lines_of_json, write_atomic
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
        scores=read_json(run / "alignment.json"),
        sets={key: (name, what.format(temperatures=temperatures)) for key, (name, what) in SETS.items()},
        attributes=ATTRIBUTES,
        moving=picture(run / "samples" / "comparison.gif", MOVING),
        stills=picture(run / "samples" / "comparison.png", STILLS),
        speed=_speed(run),
        curves=[curves(run / name, name) for name in RUNS],
        steps=read_json(run / "timing.json"),
        what_now=what_now,
        facts=facts(run, run / "alignment.json"),
        root=shlex.quote(str(Path(__file__).parents[2])),
    )
    write_atomic(run / "report.html", page.encode())
    return run / "report.html"


def _speed(run: Path) -> list[tuple[str, int, Metric]]:
    """Of VRC and the baseline: name, forward passes of a clip, seconds."""
    config = ModelConfig.from_dict(read_json(run / "hf" / "config.json")["vrc"])
    seconds = _seconds(run / "speed.json")
    frames, tokens = config.frames, config.tokens_per_frame
    return [
        ("VRC: later frames as segments", tokens + frames, seconds["segment"]),
        ("baseline: token by token", tokens * (1 + frames), seconds["token"]),
    ]


def _seconds(path: Path) -> dict[str, Metric]:
    """By model; also of files of format 1, which demos before December 2026 left in their folders."""
    content = read_json(path)
    if "seconds_per_clip" in content:
        return {name: median_of(found["seconds"], "s") for name, found in content["seconds_per_clip"].items()}
    return {row["name"]: row["metrics"]["seconds"] for row in read_result(path)["cases"]}


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
        points = [(row["step"], row[key]) for row in metrics if key in row]
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
        axes.legend()
    axes.set_title(RUNS[name])
    axes.set_xlabel("step")
    return svg(figure)


def facts(run: Path, scores: Path) -> dict[str, str]:
    """What made the numbers in the file `scores` of a run: seed and part, when, where, with which versions."""
    import torch

    made = read_json(run / "demo.json") if (run / "demo.json").is_file() else {}
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
