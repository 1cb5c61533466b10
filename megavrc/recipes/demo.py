"""The demo: every step from mp4 files to a report, each one the command that a user would type.

    python -m megavrc.recipes.demo [--part 0.25] [--seed N] [--out DIR]

A step whose result is there is skipped, so a stopped demo goes on where it was.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from megavrc.config import UserError, command, read_json, write_json
from megavrc.recipes.comparison import write_comparison
from megavrc.recipes.report import write_report

ROOT = Path(__file__).parents[2]
CLIPS, VALIDATION, HELDOUT = 4096, 144, 6
STEPS = {"tokenizer": 2000, "stage1": 1800, "stage2": 2800}
BATCH = {"tokenizer": 4, "stage1": 8, "stage2": 8}  # global; BatchNorm sees all of it, however many processes
SHORT_WINDOWS = 0.5  # of the tokenizer's steps are on windows of 9 frames, the rest on whole clips
PROMPTS = 144
GUIDANCE = 2.0  # of the generated clips; their scores without it are reported too
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


def main(out: Path = Path("runs/demo"), part: float = 1.0, seed: int = 0, processes: int = 2) -> None:
    """Run the whole path on a CPU: clips, tokenizer, shards, two stages, conversion, samples, scores, report.

    Args:
        out: run folder.
        part: fraction of the clips and of the training steps.
        seed: of weights, data order and sampling.
        processes: training processes, one thread each: 1, 2 or 4.
    """
    if not 0 < part <= 1:
        raise UserError(f"--part: {part} is not in (0, 1]")
    started = time.monotonic()
    timing = read_json(out / "timing.json") if (out / "timing.json").exists() else []
    steps = demo_steps(out, part, seed, processes)
    for number, step in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {step.name}\n$ {shlex.join(step.words)}", flush=True)
        if step.product.exists():
            print(f"{step.product}: already there")
            continue
        seconds = _timed(lambda step=step: _run(step))  # type: ignore[misc]
        timing = [entry for entry in timing if entry["step"] != step.name]
        timing.append({"step": step.name, "command": shlex.join(step.words), "seconds": seconds})
        write_json(out / "timing.json", timing)
        print(f"[{number}/{len(steps)}] {step.name}: {seconds:.0f} s", flush=True)
    write_comparison(out / "hf", out / "data" / "manifest.jsonl", out / "samples", GUIDANCE, seed)
    report = write_report(out)
    _print_scores(read_json(out / "alignment.json"))
    print(f"\n{time.monotonic() - started:.0f} s in all. Open {report} in a browser.")


def demo_steps(run: Path, part: float, seed: int, processes: int) -> list[Step]:
    """The commands of the demo in their order."""
    python = sys.executable
    launch = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    manifest, tokenizer, tokens = run / "data" / "manifest.jsonl", run / "tokenizer", run / "tokens"
    count = {name: max(1, round(part * steps)) for name, steps in STEPS.items()}
    if any(batch % processes for batch in BATCH.values()):
        raise UserError(
            f"--processes: {processes} does not divide the batches ({', '.join(map(str, BATCH.values()))})"
        )
    steps = {
        name: [f"--train.steps={number}", f"--train.micro_batch={BATCH[name] // processes}", f"--seed={seed}"]
        for name, number in count.items()
    }
    windows = {0: 9, round(SHORT_WINDOWS * count["tokenizer"]): 17}
    return [
        Step(
            "make clips",
            [python, "tools/make_shapes.py", f"--out={run / 'data'}", f"--clips={round(part * CLIPS)}"]
            + [f"--val={VALIDATION}", f"--heldout={HELDOUT}", f"--processes={processes}"],
            manifest,
        ),
        Step(
            "train the video tokenizer",
            [*launch, "pretrain/pretrain_tokenizer.py", "--config=pretrain/configs/demo_tokenizer.yaml"]
            + [f"--run_dir={tokenizer}", f"--data.path={manifest}", f"--data.frames_schedule={windows}"]
            + steps["tokenizer"],
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
            tokens / "video" / "manifest.json",
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
                "IMAGE_OPTIONS": shlex.join(steps["stage1"]),
                "VIDEO_OPTIONS": shlex.join(steps["stage2"]),
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
            + [f"--guidance={GUIDANCE}", f"--prompt={json.dumps(EXAMPLES)}"],
            run / "samples" / "sheet.png",
        ),
        Step(
            "measure alignment",
            [python, "tools/evaluate.py", "alignment", f"--model={run / 'hf'}", f"--manifest={manifest}"]
            + [
                f"--prompts={round(part * PROMPTS)}",
                f"--guidance={GUIDANCE}",
                f"--seed={1000 * seed}",
                f"--json={run / 'alignment.json'}",
            ],
            run / "alignment.json",
        ),
        Step(
            "measure seconds per clip",
            [python, "tools/evaluate.py", "speed", "--baseline", f"--model={run / 'hf'}"]
            + [f"--json={run / 'speed.json'}"],
            run / "speed.json",
        ),
    ]


def _timed(work: Callable[[], None]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _run(step: Step) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **step.environment}
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
    command(main, prog="python -m megavrc.recipes.demo")
