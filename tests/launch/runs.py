"""Small real trainings: a token dataset, a configuration, and what a run has done."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from token_sets import write_tokens

from megavrc.checkpoint import read

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = "pretrain/pretrain_vrc.py"


def make_tokens(folder: Path, count: int = 37, frames: int = 2, grid: int = 4, vocab: int = 32) -> Path:
    """A finished dataset of random clips with two classes."""
    rng, shape = np.random.default_rng(0), (frames, grid, grid)
    samples = [
        (f"{i:016x}-0000000", rng.integers(0, vocab, shape), {"caption": None, "label": i % 2, "source": "s"})
        for i in range(count)
    ]
    return write_tokens(folder, {"train": [samples]}, shape, vocab, classes=["a", "b"])


def write_config(folder: Path, tokens: Path, run: str, steps: int, **train: Any) -> Path:
    """A run of a tiny model with dropout and BatchNorm; a line of metrics every step."""
    config = {
        "run_dir": str(folder / run),
        "stage": "video",
        "model": {"layers": 1, "heads": 2, "width": 32, "vocab": 32, "grid": 4, "frames": 1}
        | {"condition": {"kind": "class", "classes": 2}},
        "data": {"path": str(tokens)},
        "train": {"steps": steps, "global_batch": 8, "micro_batch": 2, "log_every": 1, "save_every": 20}
        | {"preview_every": 0, **train},
        "optimizer": {"lr": 1e-3, "warmup": 2, "schedule": "constant"},
        "preview": {"count": 0},
    }
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def environment(**more: str) -> dict[str, str]:
    """One thread a rank, this repository first, no launcher's variables."""
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in foreign}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def launch(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher, or python for the first word "python"."""
    first, *rest = map(str, words)
    command = [sys.executable if first == "python" else first, *rest]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment(**more), cwd=ROOT
    )


def metrics(run: Path) -> list[dict[str, float]]:
    """Its lines, as far as they are whole."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def weights(run: Path, step: int) -> dict[str, Any]:
    """Parameters, moments and buffers of a checkpoint."""
    checkpoint = read(run / "checkpoints" / f"step-{step:08d}")
    names = ("model", "exp_avg", "exp_avg_sq", "buffers")
    return {
        f"{group}/{name}": tensor for group in names for name, tensor in checkpoint.tensors(group).items()
    }
