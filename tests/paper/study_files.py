"""Result files of the study with made-up values."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_run(folder: Path, name: str, seed: int, whole: np.ndarray, keys: str = "k") -> None:
    """A result file with one case of drawn clips."""
    line = line_of(whole)
    rows = {score: line for score in ("all", "whole", "count", "shape", "direction", "speed", "flight")}
    rows |= {"jitter": line, "frozen": line, "objects": " ".join("12"[i % 2] for i in range(len(whole)))}
    write_cases(folder, name, seed, {"given 10": rows}, keys)


def line_of(values: np.ndarray) -> str:
    return " ".join(f"{value:g}" for value in values)


def write_cases(
    folder: Path, name: str, seed: int, cases: dict[str, Any], keys: str = "k", tokenizer: str = "t"
) -> None:
    """A result file with cases by name, which ends in the checkpoint, each with its values by clip."""
    rows = [
        {
            "name": label,
            "config": {"checkpoint": int(label.split()[-1]), "clips": keys},
            "metrics": {},
            "by_clip": by_clip,
        }
        for label, by_clip in cases.items()
    ]
    content = {"format": 2, "run": name, "seed": seed, "status": "done", "machine": {}, "versions": {}}
    content |= {"revision": "r", "command": "c", "config": {}, "metrics": {}, "cases": rows}
    content |= {"protocol": {"video_tokenizer": tokenizer}}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{seed}.json").write_text(json.dumps(content))


def write_pair(folder: Path, old: float, new: float, seeds: int = 3, clips: int = 200) -> None:
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        write_run(folder, "old", seed, rng.random(clips) < old)
        write_run(folder, "new", seed, rng.random(clips) < new)
