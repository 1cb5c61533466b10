"""The demo: every step from mp4 files to a report, each one the command that a user would type.

    megavrc demo [--part 0.25] [--seed N] [--out DIR]

A step whose result is there is skipped, so a stopped demo goes on where it was.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from megavrc.config import CONFIGS as SHIPPED
from megavrc.config import command
from megavrc.demo.comparison import write_comparison
from megavrc.demo.report import write_report
from megavrc.errors import UserError
from megavrc.files import check_format, read_json, write_json
from megavrc.model import Sampling, SamplingSettings

ROOT = Path(__file__).parents[2]  # the demo runs the commands of a checkout, two_stage.sh among them
FORMAT = 1  # of demo.json, timing.json and alignment.json
CLIPS, HELDOUT = 4096, 6
CONFIGS = {
    name: SHIPPED / f"demo_{file}.yaml"
    for name, file in {"tokenizer": "tokenizer", "stage1": "image", "stage2": "video"}.items()
}
# glibc then reuses large blocks instead of returning them to the kernel: page faults are a tenth of a small step.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}
PROMPTS = 144  # and validation clips
TEMPERATURES = (0.7, 0.5)  # of the first frame and the later ones
EXAMPLES = ("a red square moves left", "a green triangle moves right", "a blue circle moves up")


@dataclass
class Step:
    """One command of the demo.

    Attributes:
        name: for the reader.
        words: the command line.
        product: a file or folder that exists when the step is done.
        environment: variables that the command reads.
    """

    name: str
    words: list[str]
    product: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """What to type in the repository to run it: its variables too."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.words)])


def main(out: Path = Path("runs/demo"), part: float = 1.0, seed: int = 0, processes: int = 2) -> None:
    """Run the whole path on a CPU: clips, tokenizer, shards, two stages, conversion, samples, scores, report.

    Args:
        out: run folder.
        part: fraction of the clips and of the training steps.
        seed: seed of weights, data order and sampling.
        processes: training processes, one thread each: 1, 2 or 4.
    """
    if not 0 < part <= 1:
        raise UserError(f"--part: {part} is not in (0, 1]")
    if not (ROOT / "pretrain" / "two_stage.sh").is_file():
        raise UserError(f"{ROOT}: is no checkout of megavrc, whose pretrain/two_stage.sh the demo runs")
    out, started = out.resolve(), time.monotonic()
    _refuse_another(out / "demo.json", {"part": part, "seed": seed, "processes": processes})
    timing = read_json(out / "timing.json") if (out / "timing.json").exists() else []
    steps = demo_steps(out, part, seed, processes)
    for number, step in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {step.name}\n$ {step.command}", flush=True)
        if step.product.exists():
            print(f"{step.product}: already there")
            continue
        seconds = _timed(lambda step=step: _run(step))  # type: ignore[misc]
        timing = [entry for entry in timing if entry["step"] != step.name]
        timing.append({"step": step.name, "command": step.command, "seconds": seconds})
        write_json(out / "timing.json", timing)
        print(f"[{number}/{len(steps)}] {step.name}: {seconds:.0f} s", flush=True)
    settings = SamplingSettings(Sampling(TEMPERATURES[0]), Sampling(TEMPERATURES[1]))
    write_comparison(out / "hf", out / "data" / "manifest.jsonl", out / "samples", settings, seed)
    next_steps = what_now(out)
    report = write_report(out, settings, next_steps)
    _print_scores(read_json(out / "alignment.json"))
    print(f"\n{time.monotonic() - started:.0f} s in all. Open {report} in a browser. What now:")
    for what, line in next_steps:
        print(f"\n# {what}\n$ {line}")


def what_now(run: Path) -> list[tuple[str, str]]:
    """What to do with the trained model, as commands."""
    megavrc, model = [sys.executable, "-m", "megavrc"], f"--model={run / 'hf'}"
    more = ["--prompt", "a green circle moves down", "--clips_per_prompt=4", f"--out={run / 'samples'}"]
    videos = ["prepare_dataset", "videofolder", "VIDEOS", "manifest.jsonl"]
    return [
        ("four clips of a prompt of yours", shlex.join([*megavrc, "generate", model, *more])),
        ("a web page that generates clips", shlex.join([*megavrc, "serve", model])),
        (
            "the list of your own videos, from a folder; docs/training.md goes on",
            shlex.join([*megavrc, *videos]),
        ),
    ]


def demo_steps(run: Path, part: float, seed: int, processes: int) -> list[Step]:
    """The commands of the demo in their order."""
    python = sys.executable
    launch = [python, "-m", "megavrc.distributed.torchrun", "--standalone", f"--nproc-per-node={processes}"]
    manifest, tokenizer, tokens = run / "data" / "manifest.jsonl", run / "tokenizer", run / "tokens"
    prompts = max(1, round(part * PROMPTS))
    options = {name: training_options(name, part, seed, processes) for name in CONFIGS}
    return [
        Step(
            "make clips",
            [python, "tools/make_shapes.py", f"--out={run / 'data'}", f"--clips={round(part * CLIPS)}"]
            + [f"--val={prompts}", f"--heldout={HELDOUT}", f"--processes={processes}"],
            manifest,
        ),
        Step(
            "train the video tokenizer",
            [*launch, "pretrain/pretrain_tokenizer.py", "--config=pretrain/configs/demo_tokenizer.yaml"]
            + [f"--run_dir={tokenizer}", f"--data.path={manifest}", *options["tokenizer"]],
            tokenizer / "complete.json",
        ),
        Step(
            "tokenize the clips",
            [
                python,
                "tools/tokenize_videos.py",
                "all",
                f"--manifest={manifest}",
                f"--tokenizer={tokenizer / 'model'}",
            ]
            + [f"--out={tokens}", "--size=64", "--clips_per_shard=512", f"--workers={processes}"],
            tokens / "image" / "manifest.json",  # written after that of the video tokens
        ),
        Step(
            "train VRC in two stages, convert",
            ["bash", "pretrain/two_stage.sh"],
            run / "hf" / "config.json",
            {
                "RUN": str(run),
                "PYTHON": python,
                "NPROC": str(processes),
                "CAPTIONS": str(manifest),
                "IMAGE_OPTIONS": shlex.join(options["stage1"]),
                "VIDEO_OPTIONS": shlex.join(options["stage2"]),
            },
        ),
        Step(
            "generate clips",
            [
                python,
                "tools/generate.py",
                f"--model={run / 'hf'}",
                f"--out={run / 'samples'}",
                f"--seed={seed}",
            ]
            + ["--prompt", *EXAMPLES],
            run / "samples" / "sheet.png",
        ),
        Step(
            "measure alignment",
            [python, "tools/evaluate.py", "alignment", f"--model={run / 'hf'}", f"--manifest={manifest}"]
            + [
                f"--prompts={prompts}",
                f"--first_temperature={TEMPERATURES[0]}",
                f"--later_temperature={TEMPERATURES[1]}",
                f"--seed={1000 * seed}",
                f"--json={run / 'alignment.json'}",
            ],
            run / "alignment.json",
        ),
        Step(
            "measure seconds per clip",
            [python, "tools/evaluate.py", "speed", "--baseline", "--repeats=5", f"--model={run / 'hf'}"]
            + [f"--json={run / 'speed.json'}"],
            run / "speed.json",
        ),
    ]


def training_options(name: str, part: float, seed: int, processes: int) -> list[str]:
    """What a part of the demo changes in the configuration of a training run; forward passes stay what they are."""
    config = yaml.safe_load(CONFIGS[name].read_text())
    steps, batch = config["train"]["steps"], config["train"]["global_batch"]
    if batch % processes:
        raise UserError(f"--processes: {processes} does not divide the batch of {batch}")
    options = [
        f"--train.steps={max(1, round(part * steps))}",
        f"--train.micro_batch={batch // processes}",
        f"--seed={seed}",
    ]
    windows = config["data"].get("frames_schedule")
    if windows:
        options.append(f"--data.frames_schedule={ {round(part * step): n for step, n in windows.items()} }")
    return options


def _refuse_another(record: Path, options: dict[str, float]) -> None:
    """Note what a new run folder is made with; UserError if this one was made with anything else."""
    folder = record.parent
    if not folder.is_dir() or not any(folder.iterdir()):
        return write_json(record, {"format": FORMAT, **options})
    made = read_json(record) if record.exists() else {}
    check_format(record, made.get("format"), FORMAT)
    different = [
        f"--{name}={made.get(name, '?')} there, {value} here"
        for name, value in options.items()
        if made.get(name) != value
    ]
    if different:
        raise UserError(
            f"{folder}: holds another demo ({'; '.join(different)}); delete it or choose another --out"
        )


def _timed(work: Callable[[], None]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _run(step: Step) -> None:
    environment = {**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": "1", **step.environment}
    code = subprocess.run(step.words, cwd=ROOT, env=environment).returncode
    if code:
        raise UserError(f"step {step.name!r} ended with exit code {code}; its messages are above")


def _print_scores(alignment: dict[str, dict[str, float]]) -> None:
    print(f"\n{'clips':14s} {'n':>4s} {'colour':>7s} {'shape':>7s} {'direction':>9s} {'all':>7s}")
    for name, s in alignment.items():
        print(
            f"{name:14s} {s['n']:4.0f} {s['colour']:7.1%} {s['shape']:7.1%} {s['direction']:9.1%} {s['all']:7.1%}"
        )


if __name__ == "__main__":
    command(main, prog="megavrc demo")
