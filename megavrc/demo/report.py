"""The demo's report: one HTML file with everything inside, from the files that the commands left in the run folder."""

import base64
import html
import io
import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megavrc.errors import UserError
from megavrc.files import RESULT_FORMAT, check_format, read_json, write_atomic
from megavrc.model import ModelConfig, SamplingSettings

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

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2330; background: #fff; max-width: 64rem; margin: 2rem auto;
       padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin: 0 0 .2rem } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem }
p.lead { font-size: 1.05rem; color: #4a5568; margin: .2rem 0 1rem } .small { color: #5c6675; font-size: .9rem }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .35rem .9rem .35rem 0; text-align: left;
       border-bottom: 1px solid #e4e8ee } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums;
       white-space: nowrap }
img { max-width: 100%; border: 1px solid #e4e8ee; border-radius: 6px } code { font-size: .88em; background: #f3f5f8;
       padding: .1em .3em; border-radius: 3px } .note { border-left: 4px solid #c9a227; background: #fdf9ec;
       padding: .7rem 1rem; border-radius: 0 6px 6px 0 } .figures { display: flex; flex-wrap: wrap; gap: 1rem }
.wide { overflow-x: auto }
"""


def write_report(run: Path, settings: SamplingSettings) -> Path:
    """Write `report.html` into a demo run folder and return its path; `settings` made its generated clips.

    Raises:
        UserError: a file that the demo's commands should have left is missing or damaged.
    """
    alignment = read_json(run / "alignment.json")
    speed = read_json(run / "speed.json")
    check_format(run / "speed.json", speed.get("format"), RESULT_FORMAT)
    timing = read_json(run / "timing.json")
    body = [
        "<h1>megavrc demo</h1>",
        f'<p class="lead">{_lead(alignment)}</p>',
        _scope(),
        "<h2>What was asked for, and what came out</h2>",
        _figures(run),
        "<h2>Alignment</h2>",
        _alignment_table(alignment, settings),
        "<h2>Seconds per clip</h2>",
        _speed_table(speed, ModelConfig.from_dict(read_json(run / "hf" / "config.json")["vrc"])),
        "<h2>Training</h2>",
        '<div class="figures">' + "".join(_curves(run / name, name) for name in RUNS) + "</div>",
        "<h2>What ran</h2>",
        _timing_table(timing),
        f'<p class="small">{html.escape(_machine())}</p>',
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>megavrc demo</title><style>{STYLE}</style>"
    )
    page += (
        '<meta name=viewport content="width=device-width, initial-scale=1">' + "\n".join(body) + "</html>\n"
    )
    write_atomic(run / "report.html", page.encode())
    return run / "report.html"


def _lead(alignment: dict[str, Any]) -> str:
    generated, reconstructed = alignment["generated"], alignment["reconstructed"]
    return (
        f"A video tokenizer and a VRC model were trained on this machine from mp4 files. Of {generated['n']} generated "
        f"clips, {_percent(generated['all'])} show the colour, shape and direction they were asked for; the "
        f"tokenizer's reconstructions reach {_percent(reconstructed['all'])} at {reconstructed['psnr']:.1f} dB."
    )


def _scope() -> str:
    return (
        '<p class="note"><b>A small-scale demonstration.</b> It shows that every part works together: real H.264 '
        "files, tokenizer training, shards, two-stage training with DeepSpeed, conversion, generation, evaluation. "
        "The clips are synthetic (one shape moving on a plain background, 64x64, 17 frames), the model has 1.4 million "
        "parameters and a vocabulary of 512. Nothing here says how good the method is on natural video, and the times "
        "are of this machine's CPU, not those of the paper.</p>"
    )


def _figures(run: Path) -> str:
    """Moving grids first, then the still sheets."""
    parts = []
    for name, alt in (
        ("comparison.gif", "real, reconstructed and generated clips side by side, moving"),
        ("comparison.png", "frames of real, reconstructed and generated clips with their prompts"),
    ):
        parts.append(f'<p class="wide">{_image(run / "samples" / name, alt)}</p>')
    parts.append(
        '<p class="small">Each row has one prompt. A generated clip is a new one: it shares the prompt with the '
        "real clip, not its position or size.</p>"
    )
    return "".join(parts)


def _image(path: Path, alt: str) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such picture; run the demo's sampling step first")
    kind = {".png": "png", ".gif": "gif"}[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{data}">'


def _alignment_table(alignment: dict[str, Any], settings: SamplingSettings) -> str:
    rows = []
    temperatures = f"temperatures {settings.first.temperature:g} / {settings.later.temperature:g}"
    for key, (name, what) in SETS.items():
        if key not in alignment:
            continue
        scores = alignment[key]
        psnr = f"{scores['psnr']:.1f}" if scores.get("psnr") else ""
        values = [_with_error(scores[attribute], scores["n"]) for attribute in ATTRIBUTES]
        rows.append(
            [
                f"<b>{name}</b><br><span class=small>{what.format(temperatures=temperatures)}</span>",
                scores["n"],
                *values,
                psnr,
            ]
        )
    return _table(["clips", "n", *ATTRIBUTES, "PSNR (dB)"], rows) + (
        '<p class="small">Share of clips in which a detector without learned parts finds what was asked for, with '
        "its standard error. Guessing gets all three right in 1 of 72.</p>"
    )


def _with_error(share: float, n: int) -> str:
    return f"{_percent(share)} <span class=small>± {100 * (share * (1 - share) / n) ** 0.5:.1f}</span>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _speed_table(speed: dict[str, Any], config: ModelConfig) -> str:
    frames, tokens = config.frames, config.tokens_per_frame
    models = {
        "segment": ("VRC: later frames as segments", tokens + frames),
        "token": ("baseline: token by token", tokens * (1 + frames)),
    }
    times = speed["seconds_per_clip"]
    rows = [
        [
            name,
            passes,
            f"{times[key]['median']:.3f}",
            f"{times[key]['minimum']:.3f} to {times[key]['maximum']:.3f}",
        ]
        for key, (name, passes) in models.items()
    ]
    return _table(["model", "forward passes", "median (s)", "range (s)"], rows) + (
        f'<p class="small">One clip at a time, tokens only, the same engine and a trunk of the same size: VRC is '
        f"<b>{speed['ratio']:.1f} times</b> as fast. {len(times['segment']['seconds'])} clips each, taking turns, "
        "after a warm-up. The baseline's weights are untrained: time does not depend on them.</p>"
    )


def _timing_table(steps: Sequence[dict[str, Any]]) -> str:
    rows = [
        [html.escape(s["step"]), f"<code>{html.escape(s['command'])}</code>", f"{s['seconds']:.0f}"]
        for s in steps
    ]
    rows.append(["<b>all</b>", "", f"<b>{sum(s['seconds'] for s in steps):.0f}</b>"])
    return _table(["step", "command", "seconds"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cell(tag: str, index: int, value: Any) -> str:
        number = index > 0 and not str(value).startswith("<code>") and value not in ("command", "")
        return f"<{tag}{' class=n' if number else ''}>{value}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, v) for i, v in enumerate(header)) + "</tr>"]
    lines += ["<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows]
    return '<div class="wide"><table>' + "".join(lines) + "</table></div>"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; has the run finished?")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _curves(run: Path, name: str) -> str:
    """Training curves of one run as inline SVG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    metrics = read_metrics(run / "metrics.jsonl")
    figure, axes = plt.subplots(figsize=(4.6, 3.0))
    twin = None
    for colour, (key, label) in zip(("#2b6cb0", "#c05621"), CURVES[name].items(), strict=False):
        points = [(row["step"], row[key]) for row in metrics if key in row]
        axis = axes
        if "dB" in label:
            axis = twin = axes.twinx()
        axis.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.4)
        if "dB" in label or name == "tokenizer":
            axis.set_ylabel(label, color=colour)
    if twin is None:
        axes.set_ylabel("cross-entropy (nats)")
        axes.legend(frameon=False)
    if name == "tokenizer":
        axes.set_yscale("log")
    axes.set_title(RUNS[name], fontsize=11)
    axes.set_xlabel("step")
    for axis in (axes, twin):
        if axis is not None:
            axis.spines[["top"]].set_visible(False)
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    plt.close(figure)
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _machine() -> str:
    import torch

    cores = os.cpu_count()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.system()} {platform.machine()}, {cores} cores, {versions}"
