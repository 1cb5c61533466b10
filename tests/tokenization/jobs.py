"""Small jobs for the tests: a tiny tokenizer, settings, and what a job leaves."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import Forked

from megavrc.data.dataset import TokenDataset
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenization.job import plan, run
from megavrc.tokenization.result import finalize
from megavrc.tokenizers import OmniTokenizer

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"size": 32, "clips_per_shard": 4, "clip_batch": 3, "image_batch": 4, "images_per_video": 3}
LENGTHS = [17, 20, 40, 25, 18, 33, 17, 21, 30, 9]  # frames of the videos; the last is too short


def make_tokenizer(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = OmniTokenizerConfig(
        width=32, heads=2, dim_head=16, enc_block="w", dec_block="t", temporal_depth=1, window=2, codes=256
    )
    OmniTokenizer(OmniTokenizerNet(config)).save(folder)
    return folder


def tokenize(manifest: Path, tokenizer: Path, out: Path, tasks: int = 1, **settings: Any) -> Path:
    plan(manifest, out, tokenizer, **{**SMALL, **settings})
    for task in reversed(range(tasks)):
        run(out, task=task, of=tasks)
    finalize(out)
    return out


TOOL = ROOT / "tools" / "tokenize_videos.py"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*words: Any, **options: Any) -> subprocess.Popen[str]:
    """The command line tool in a process of its own."""
    command = [sys.executable, str(TOOL), *map(str, words)]
    return subprocess.Popen(command, env=environment(), text=True, **options)


def start_forked(*words: Any) -> Forked:
    """The same without the seconds that the tool's imports take."""
    return Forked(TOOL, *words, env=environment())


def files(out: Path) -> dict[str, bytes]:
    """What a job leaves, but for the done files, which tell when and where, and the times of its videos."""
    paths = [path for path in out.rglob("*") if path.is_file() and not path.name.endswith("done.json")]
    paths = [path for path in paths if path.parent != out / "sources"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def samples(out: Path, kind: str) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    dataset = TokenDataset(out / kind)
    return {dataset.key(index): dataset.read(index) for index in range(len(dataset))}


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")
