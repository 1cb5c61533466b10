"""What the clips of tools/make_gameplay.py are like, and what a tokenizer leaves of them: static share, PSNR, SSIM.

python benchmarks/gameplay.py --manifest runs/gameplay/data/manifest.jsonl --tokenizer runs/gameplay/tokenizer/model
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from megavrc.config import command
from megavrc.errors import UserError
from megavrc.evaluation.quality import psnr
from megavrc.files import read_json
from megavrc.progress import progress
from megavrc.results import Metric, case, metric, publish_tables, result
from megavrc.tokenizers import OmniTokenizer
from megavrc.tokenizers.quality import ssim
from megavrc.video import contact_sheet, read_clip, write_png
from megavrc.video.manifest import read_manifest

GATE = {"psnr": 23.0, "ssim": 0.7}  # dB and structure: on dark pictures a blur of 24 dB shows nothing
Score = tuple[float, float]
T = TypeVar("T")
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
    """Print, by scenario, the static share of all clips, PSNR and SSIM of a split's reconstructions.

    Args:
        manifest: manifest.jsonl of the clips.
        tokenizer: folder or .ckpt file of the video tokenizer; without it nothing is reconstructed.
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
    shares = _by_scenario(rows, [row["attributes"]["static"] for row in rows])
    found = {name: static(values) for name, values in shares.items()}
    config = {"recipe": read_json(manifest.parent / "gameplay.json")}
    metrics: dict[str, Metric] = {}
    facts: dict[str, Any] = {}
    if tokenizer:
        chosen = [row for row in rows if row["split"] == split]
        if not chosen:
            raise UserError(f"{manifest}: no clips of split {split!r}")
        net = OmniTokenizer.from_checkpoint(tokenizer)
        scores, metrics, facts = reconstruction(manifest.parent, chosen, net, batch, sheet)
        for name, values in scores.items():
            psnrs, ssims = zip(*values, strict=True)
            found.setdefault(name, {}).update(psnr=mean_of(psnrs, "dB"), ssim=mean_of(ssims, ""))
        config |= {"tokenizer_sha256": net.sha256, "split": split}
    cases = [case(name, values) for name, values in found.items()]
    protocol = {
        "spread": "mean -+ standard deviation over clips; of the static share the range",
        "still": STILL,
    }
    publish_tables(
        result("benchmarks/gameplay.py", config, cases, metrics, protocol | facts, threads=threads), json
    )


def static(shares: list[float]) -> dict[str, Metric]:
    """Mean static share with its range, and how many clips are still."""
    mean = metric(float(np.mean(shares)), "share", len(shares), min(shares), max(shares))
    return {"static": mean, "still": metric(sum(share >= STILL for share in shares), "clips", len(shares))}


def mean_of(values: Sequence[float], unit: str) -> Metric:
    """Mean and standard deviation over clips."""
    mean, deviation = float(np.mean(values)), float(np.std(values))
    return metric(mean, unit, len(values), mean - deviation, mean + deviation)


def reconstruction(
    root: Path, rows: list[dict[str, Any]], tokenizer: OmniTokenizer, batch: int, sheet: Path | None
) -> tuple[dict[str, list[Score]], dict[str, Metric], dict[str, Any]]:
    """(PSNR in dB, SSIM) of all clips and by scenario, the ids' perplexity, whether the means pass the gate."""
    values: list[Score] = []
    codes: Counter[int] = Counter()
    pictures: dict[str, list[tuple[str, np.ndarray]]] = {}
    for start in progress(range(0, len(rows), batch), "reconstruct"):
        part = rows[start : start + batch]
        clips = np.stack([read_clip(root / row["path"], 0, row_frames(row), size=None) for row in part])
        ids = tokenizer.encode(torch.from_numpy(clips))
        codes.update(ids.flatten().tolist())
        for row, clip, again in zip(part, clips, tokenizer.decode(ids).numpy(), strict=True):
            values.append((psnr(clip, again), ssim(_frames(again), _frames(clip)).item()))
            scenario = row["attributes"]["scenario"]
            title = f"{row['id']} {scenario}: {row['caption']}"
            left = "{:.1f} dB, SSIM {:.2f}".format(*values[-1])
            pictures.setdefault(scenario, [(title, clip), (left, again)])
    if sheet:
        write_png(sheet, contact_sheet([row for pair in pictures.values() for row in pair], columns=9))
    shares = np.array(list(codes.values())) / codes.total()
    scores = {"all": values, **_by_scenario(rows, values)}
    metrics = {"perplexity": metric(float(np.exp(-(shares * np.log(shares)).sum())), "codes")}
    means = dict(zip(GATE, np.mean(values, axis=0), strict=True))
    passed = all(means[name] >= least for name, least in GATE.items())
    facts = {"grid": list(ids.shape[1:]), "gate": GATE, "passed": passed}
    return scores, metrics, facts


def _frames(clip_THWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(clip_THWC).permute(0, 3, 1, 2) / 255 - 0.5


def row_frames(row: dict[str, Any]) -> int:
    """Frames of a clip."""
    return len(row["attributes"]["places"])


def _by_scenario(rows: list[dict[str, Any]], values: list[T]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = defaultdict(list)
    for row, value in zip(rows, values, strict=True):
        found[row["attributes"]["scenario"]].append(value)
    return dict(found)


if __name__ == "__main__":
    command(main)
