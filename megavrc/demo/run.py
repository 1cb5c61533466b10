"""The demo: every step from mp4 files to a report, each one the command that a user would type.

    megavrc demo [--data scenes] [--part 0.25] [--seed N] [--out DIR]

A step whose result is there is skipped, so a stopped demo goes on where it was.
"""

import shlex
import sys
import time
from pathlib import Path
from typing import Any, Literal

from megavrc.config import CONFIGS as SHIPPED
from megavrc.config import command
from megavrc.demo.comparison import write_comparison
from megavrc.demo.report import read_scores, write_report
from megavrc.demo.scenes import finish_scenes, scene_steps
from megavrc.demo.steps import ROOT, Step, model_steps, run_steps
from megavrc.errors import UserError, check_least
from megavrc.files import check_format, read_object, write_json
from megavrc.model import Sampling, SamplingSettings

FORMAT = 1  # of demo.json, timing.json and alignment.json
CLIPS, HELDOUT = 4096, 6
CONFIGS = {
    name: SHIPPED / f"demo_{file}.yaml"
    for name, file in {"tokenizer": "tokenizer", "stage1": "image", "stage2": "video"}.items()
}
PROMPTS = 144  # and validation clips
TEMPERATURES = (0.7, 0.5)  # of the first frame and the later ones
EXAMPLES = ("a red square moves left", "a green triangle moves right", "a blue circle moves up")


def main(
    out: Path | None = None,
    data: Literal["shapes", "scenes"] = "shapes",
    part: float = 1.0,
    seed: int = 0,
    processes: int = 2,
) -> None:
    """Run the whole path on a CPU: clips, tokenizer, shards, two stages, conversion, samples, scores, report.

    Args:
        out: run folder; runs/demo or runs/demo-scenes if not given.
        data: `shapes`: one moving shape, whose caption and first frame decide what happens. `scenes`: one
            object whose motion the caption may not tell, and a model with refinement, in one pass and in several.
        part: fraction of the clips and of the training steps.
        seed: seed of weights, data order and sampling.
        processes: training processes, one thread each: 1, 2 or 4.
    """
    if not 0 < part <= 1:
        raise UserError(f"--part: {part} is not in (0, 1]")
    check_least(processes=(processes, 1))
    if not (ROOT / "pretrain" / "two_stage.sh").is_file():
        raise UserError(f"{ROOT}: is no checkout of megavrc, whose pretrain/two_stage.sh the demo runs")
    started = time.monotonic()
    run = (out or Path("runs/demo" if data == "shapes" else "runs/demo-scenes")).resolve()
    options = {"part": part, "seed": seed, "processes": processes}
    steps = (demo_steps if data == "shapes" else scene_steps)(run, part, seed, processes)
    _refuse_another(run / "demo.json", options if data == "shapes" else options | {"data": data})
    run_steps(run, steps)
    if data == "shapes":
        next_steps = what_now(run)
        report = _finish_shapes(run, seed, next_steps)
    else:
        report, next_steps = finish_scenes(run, seed)
    print(f"\n{time.monotonic() - started:.0f} s in all. Open {report} in a browser. What now:")
    for what, line in next_steps:
        print(f"\n# {what}\n$ {line}")


def _finish_shapes(run: Path, seed: int, next_steps: list[tuple[str, str]]) -> Path:
    settings = SamplingSettings(Sampling(TEMPERATURES[0]), Sampling(TEMPERATURES[1]))
    write_comparison(run / "hf", run / "data" / "manifest.jsonl", run / "samples", settings, seed)
    report = write_report(run, settings, next_steps)
    _print_scores(read_scores(run / "alignment.json"))
    return report


def what_now(run: Path) -> list[tuple[str, str]]:
    """Commands to go on with, for the trained model."""
    megavrc, model = [sys.executable, "-m", "megavrc"], f"--model={run / 'hf'}"
    more = ["--prompt", "a green circle moves down", "--clips_per_prompt=4", f"--out={run / 'samples'}"]
    videos = ["prepare_dataset", "videofolder", "VIDEOS", "manifest.jsonl"]
    return [
        ("four clips of a prompt of yours", shlex.join([*megavrc, "generate", model, *more])),
        ("a web page that generates clips", shlex.join([*megavrc, "serve", model])),
        (
            "the other demo, on clips whose future is open: the paper's sampler, and refinement",
            shlex.join([*megavrc, "demo", "--data=scenes"]),
        ),
        (
            "the list of your own videos, from a folder; docs/training.md goes on",
            shlex.join([*megavrc, *videos]),
        ),
    ]


def demo_steps(run: Path, part: float, seed: int, processes: int) -> list[Step]:
    """The commands of the demo in their order."""
    python = sys.executable
    manifest, prompts = run / "data" / "manifest.jsonl", max(1, round(part * PROMPTS))
    return [
        Step(
            "make clips",
            [python, "tools/make_shapes.py", f"--out={run / 'data'}", f"--clips={round(part * CLIPS)}"]
            + [f"--val={prompts}", f"--heldout={HELDOUT}", f"--processes={processes}"],
            manifest,
        ),
        *model_steps(run, "VRC", CONFIGS, part, seed, processes),
        Step(
            "generate clips",
            [python, "tools/generate.py", f"--model={run / 'hf'}", f"--out={run / 'samples'}"]
            + [f"--seed={seed}", "--prompt", *EXAMPLES],
            run / "samples" / "sheet.png",
        ),
        Step(
            "measure alignment",
            [python, "tools/evaluate.py", "alignment", f"--model={run / 'hf'}", f"--manifest={manifest}"]
            + [f"--prompts={prompts}", f"--seed={1000 * seed}", f"--json={run / 'alignment.json'}"]
            + [f"--first_temperature={TEMPERATURES[0]}", f"--later_temperature={TEMPERATURES[1]}"],
            run / "alignment.json",
        ),
        Step(
            "measure seconds per clip",
            [python, "tools/evaluate.py", "speed", "--baseline", "--repeats=5", f"--model={run / 'hf'}"]
            + [f"--json={run / 'speed.json'}"],
            run / "speed.json",
        ),
    ]


def _refuse_another(record: Path, options: dict[str, Any]) -> None:
    """Note what a new run folder is made with; UserError if this one was made with anything else."""
    folder = record.parent
    if not folder.is_dir() or not any(folder.iterdir()):
        return write_json(record, {"format": FORMAT, **options})
    made = read_object(record, {}) if record.exists() else {}
    check_format(record, made.pop("format", None), FORMAT)
    different = [
        f"--{name}={made.get(name, '?')} there, {options.get(name, '?')} here"
        for name in {**options, **made}
        if made.get(name) != options.get(name)
    ]
    if different:
        raise UserError(
            f"{folder}: holds another demo ({'; '.join(different)}); delete it or choose another --out"
        )


def _print_scores(alignment: dict[str, dict[str, float]]) -> None:
    print(f"\n{'clips':14s} {'n':>4s} {'colour':>7s} {'shape':>7s} {'direction':>9s} {'all':>7s}")
    for name, s in alignment.items():
        print(
            f"{name:14s} {s['n']:4.0f} {s['colour']:7.1%} {s['shape']:7.1%} {s['direction']:9.1%} {s['all']:7.1%}"
        )


if __name__ == "__main__":
    command(main, prog="megavrc demo")
