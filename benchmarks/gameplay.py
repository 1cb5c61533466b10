"""What the clips of tools/make_gameplay.py are like, and what a video tokenizer leaves of them: static share and PSNR.

python benchmarks/gameplay.py --manifest runs/gameplay/data/manifest.jsonl --tokenizer runs/gameplay/tokenizer/model
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavrc.config import command
from megavrc.errors import UserError
from megavrc.evaluation.quality import psnr
from megavrc.files import read_json, write_json
from megavrc.hardware import machine
from megavrc.progress import progress
from megavrc.tokenizers import OmniTokenizer
from megavrc.video import contact_sheet, read_clip, write_png
from megavrc.video.manifest import read_manifest

GATE = 23.0  # dB; below it, a finer grid of ids
STILL = 0.99  # static share from which on a clip counts as one in which nothing happens


def main(
    manifest: Path,
    tokenizer: Path | None = None,
    split: str = "val",
    batch: int = 16,
    threads: int = 1,
    json: Path | None = None,
    sheet: Path | None = None,
) -> None:
    """Print, by scenario, the static share of all clips and the PSNR of a split's reconstructions.

    Args:
        manifest: manifest.jsonl of the clips.
        tokenizer: folder or .ckpt file of the video tokenizer; without it there is no PSNR.
        split: clips that are reconstructed.
        batch: clips at a time.
        threads: CPU threads.
        json: write what is printed there.
        sheet: write a contact sheet (PNG) of a clip a scenario and its reconstruction there.
    """
    torch.set_num_threads(threads)
    rows = read_manifest(manifest)
    if not all("static" in row.get("attributes", {}) for row in rows):
        raise UserError(f"{manifest}: not of tools/make_gameplay.py")
    report: dict[str, Any] = {
        "machine": machine("cpu", threads, "av", "vizdoom"),
        "recipe": read_json(manifest.parent / "gameplay.json"),
        "static": static(rows),
    }
    if tokenizer:
        chosen = [row for row in rows if row["split"] == split]
        if not chosen:
            raise UserError(f"{manifest}: no clips of split {split!r}")
        net = OmniTokenizer.from_checkpoint(tokenizer)
        report["tokenizer"] = {"sha256": net.sha256, "split": split}
        report["tokenizer"] |= reconstruction(manifest.parent, chosen, net, batch, sheet)
    for name, table in (("static", report["static"]), ("psnr", report.get("tokenizer", {}).get("psnr", {}))):
        for scenario, numbers in table.items():
            print(
                f"{name:8s}{scenario:26s}{'  '.join(f'{key} {value:.4g}' for key, value in numbers.items())}"
            )
    if json:
        write_json(json, report)


def static(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean static share, the largest, and how many clips are still, by scenario."""
    shares = _by_scenario(rows, [row["attributes"]["static"] for row in rows])
    return {
        name: {"n": len(x), "mean": float(np.mean(x)), "max": max(x), "still": sum(s >= STILL for s in x)}
        for name, x in shares.items()
    }


def reconstruction(
    root: Path, rows: list[dict[str, Any]], tokenizer: OmniTokenizer, batch: int, sheet: Path | None
) -> dict[str, Any]:
    """PSNR in dB by scenario (mean and standard deviation over clips) and whether the mean of all passes the gate."""
    values: list[float] = []
    codes: Counter[int] = Counter()
    pictures: dict[str, list[tuple[str, np.ndarray]]] = {}
    for start in progress(range(0, len(rows), batch), "reconstruct"):
        part = rows[start : start + batch]
        clips = np.stack([read_clip(root / row["path"], 0, row_frames(row), size=None) for row in part])
        ids = tokenizer.encode(torch.from_numpy(clips))
        codes.update(ids.flatten().tolist())
        for row, clip, again in zip(part, clips, tokenizer.decode(ids).numpy(), strict=True):
            values.append(psnr(clip, again))
            scenario = row["attributes"]["scenario"]
            pictures.setdefault(
                scenario,
                [(f"{row['id']} {scenario}: {row['caption']}", clip), (f"{values[-1]:.1f} dB", again)],
            )
    if sheet:
        write_png(sheet, contact_sheet([row for pair in pictures.values() for row in pair], columns=9))
    shares = np.array(list(codes.values())) / codes.total()
    scores = {"all": values, **_by_scenario(rows, values)}
    return {
        "grid": list(ids.shape[1:]),
        "psnr": {
            name: {"n": len(x), "mean": float(np.mean(x)), "sd": float(np.std(x))}
            for name, x in scores.items()
        },
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
        "gate": GATE,
        "passed": bool(np.mean(values) >= GATE),
    }


def row_frames(row: dict[str, Any]) -> int:
    """Frames of a clip."""
    return len(row["attributes"]["places"])


def _by_scenario(rows: list[dict[str, Any]], values: list[float]) -> dict[str, list[float]]:
    found = defaultdict(list)
    for row, value in zip(rows, values, strict=True):
        found[row["attributes"]["scenario"]].append(value)
    return dict(found)


if __name__ == "__main__":
    command(main)
