"""The commands of a demo: each one that a user would type, run in turn, skipped where its result is there."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megavrc.errors import UserError
from megavrc.files import check_fields, read_json, write_json

ROOT = Path(__file__).parents[2]  # the demo runs the commands of a checkout, two_stage.sh among them
# glibc then reuses large blocks instead of returning them to the kernel: page faults are a tenth of a small step.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}


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
        """The shell line that runs it in the repository, with its variables."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.words)])


def run_steps(run: Path, steps: list[Step]) -> None:
    """Run what is not done yet, and note the seconds of each step in RUN/timing.json."""
    timing = read_timing(run / "timing.json") if (run / "timing.json").exists() else []
    for number, step in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {step.name}\n$ {step.command}", flush=True)
        if step.product.exists():
            print(f"{step.product}: already there")
            continue
        start = time.monotonic()
        _run(step)
        seconds = time.monotonic() - start
        timing = [entry for entry in timing if entry["step"] != step.name]
        timing.append({"step": step.name, "command": step.command, "seconds": seconds})
        write_json(run / "timing.json", timing)
        print(f"[{number}/{len(steps)}] {step.name}: {seconds:.0f} s", flush=True)


def read_timing(path: Path) -> list[dict[str, Any]]:
    """The steps that ran, in their order, as the demo writes them; UserError for a file of anything else."""
    steps = read_json(path)
    if not isinstance(steps, list):
        raise UserError(f"{path}: expected a list of steps, got {steps!r:.40}")
    return [check_fields(path, step, {"step": str, "command": str, "seconds": float}) for step in steps]


def model_steps(
    run: Path,
    model: str,
    configs: dict[str, Path],
    part: float,
    seed: int,
    processes: int,
    more: Mapping[str, str] | None = None,
) -> list[Step]:
    """From the clips of RUN/data to a converted model: video tokenizer, tokens, two stages.

    Args:
        model: what is trained, for the reader.
        configs: files of the runs `tokenizer`, `stage1` and `stage2`.
        part, seed, processes: see `training_options`.
        more: further variables of two_stage.sh.
    """
    python = sys.executable
    launch = [python, "-m", "megavrc.distributed.torchrun", "--standalone", f"--nproc-per-node={processes}"]
    manifest, tokenizer, tokens = run / "data" / "manifest.jsonl", run / "tokenizer", run / "tokens"
    options = {name: training_options(file, part, seed, processes) for name, file in configs.items()}
    stages = {
        **{"RUN": str(run), "PYTHON": python, "NPROC": str(processes), "CAPTIONS": str(manifest)},
        **(more or {}),
        "IMAGE_OPTIONS": shlex.join(options["stage1"]),
        "VIDEO_OPTIONS": shlex.join(options["stage2"]),
    }
    return [
        Step(
            "train the video tokenizer",
            [*launch, "pretrain/pretrain_tokenizer.py", f"--config={configs['tokenizer']}"]
            + [f"--run_dir={tokenizer}", f"--data.path={manifest}", *options["tokenizer"]],
            tokenizer / "complete.json",
        ),
        Step(
            "tokenize the clips",
            [python, "tools/tokenize_videos.py", "all", f"--manifest={manifest}", f"--out={tokens}"]
            + [f"--tokenizer={tokenizer / 'model'}", "--size=64", "--clips_per_shard=512"]
            + [f"--workers={processes}"],
            tokens / "image" / "manifest.json",  # written after that of the video tokens
        ),
        Step(
            f"train {model} in two stages, convert",
            ["bash", "pretrain/two_stage.sh"],
            run / "hf" / "config.json",
            stages,
        ),
    ]


def training_options(config_file: Path, part: float, seed: int, processes: int) -> list[str]:
    """Options by which a part of the demo changes a training run; its forward passes stay as they are."""
    config = yaml.safe_load(config_file.read_text())
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


def _run(step: Step) -> None:
    environment = {**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": "1", **step.environment}
    code = subprocess.run(step.words, cwd=ROOT, env=environment).returncode
    if code:
        raise UserError(f"step {step.name!r} ended with exit code {code}; its messages are above")
