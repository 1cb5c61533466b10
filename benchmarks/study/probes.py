"""What a finished run has learned, without sampling: probes of its predictions, and its bits as a judge of clips."""

import json as json_format
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sampling import BATCH, OpenRun, kept_checkpoints, line

from megavrc.config import load_config
from megavrc.files import sha256_json, write_json
from megavrc.progress import progress
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.video.scenes import from_attributes, render_scene

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
Bits = Callable[[Ids], Array]  # of each cell of the later frames, [N, F, C]

NOISE = (0.02, 0.05, 0.1, 0.2)  # shares of the context tokens that are replaced
SPLIT = "val"


def probes(run: Path, checkpoints: list[int], json: Path, clips: int = 512, disturbed: int = 128) -> None:
    """Measure bits a cell of the later frames, teacher-forced, by cells and with disturbed histories.

    Of each checkpoint: `changed`, `unchanged` and their difference `gap`, by the pixels of the scene. Of the last one
    also: `noise`, the slope over the share of context tokens that are random ones, for each frame (`noise_K`) and their
    mean; `frozen_history` and `other_history`, how many bits more a cell costs when frames 1 to k-1 are those of
    frame 0, or of another clip, mean over k >= 2.

    Args:
        run: folder of the run.
        checkpoints: steps; those that the run has kept are measured, and its last one.
        json: gets them.
        clips: of the validation split, at most.
        disturbed: the first of them, whose histories are disturbed.
    """
    config = load_config(RunConfig, [f"--config={run / 'config.yaml'}"])
    kept = kept_checkpoints(run, config, checkpoints)
    cases = []
    for step in kept:
        opened = OpenRun(run, step, SPLIT)
        rows = list(range(len(opened.data)))[:clips]
        true = true_ids(opened, rows)
        plain = bits_by_cell(opened, rows, true)[:, 1:]
        changed = np.stack([changed_cells(opened.attributes(row), plain.shape[2]) for row in rows])
        found = cell_scores(plain, changed)
        if step == max(kept):
            some, vocab = slice(disturbed), opened.model.config.vocab

            def later(ids: Ids, opened: OpenRun = opened, rows: list[int] = rows[some]) -> Array:
                return bits_by_cell(opened, rows, ids)[:, 1:]

            for name, values in disturbed_scores(later, true[some], plain[some], vocab).items():
                found[name] = np.append(values, np.full(len(rows) - len(values), np.nan))
        keys = [opened.data.key(row) for row in rows]
        how = {"checkpoint": step, "set": SPLIT, "clips": sha256_json(keys)}
        cases.append(how | {"by_clip": {name: line(values) for name, values in found.items()}})
    write_json(json, {"cases": cases})


def changed_cells(attributes: dict[str, Any], cells: int) -> NDArray[np.bool_]:
    """[F, N] of the later latent frames: a pixel of the cell changes in this latent frame or the one before."""
    scene = from_attributes(attributes)
    frames = render_scene(scene).astype(np.int16)
    side, size = round(cells**0.5), frames.shape[1]
    steps = np.abs(np.diff(frames, axis=0)).max(axis=3)
    steps = steps.reshape(-1, side, size // side, side, size // side).max(axis=(2, 4)) > 0
    ends = range(4, len(frames), 4)  # of latent frame k, frames 4k-3 to 4k: 4k
    return np.stack([steps[max(0, end - 7) : end].any(axis=0).reshape(-1) for end in ends])


def cell_scores(bits_NFC: Array, changed_NFC: NDArray[np.bool_]) -> dict[str, Array]:
    """By clip the mean bits of cells that change, of those that do not, and the difference; nan where none are."""

    def mean(chosen_NFC: NDArray[np.bool_]) -> Array:
        counts = chosen_NFC.sum(axis=(1, 2))
        sums = (bits_NFC * chosen_NFC).sum(axis=(1, 2))
        return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)

    changed, unchanged = mean(changed_NFC), mean(~changed_NFC)
    return {"changed": changed, "unchanged": unchanged, "gap": changed - unchanged}


def disturbed_scores(bits: Bits, true: Ids, plain_NFC: Array, vocab: int) -> dict[str, Array]:
    """By clip: the slope of bits a cell over the share of random context tokens, and what other histories cost.

    Args:
        bits: of a model, for ids.
        true: ids of the clips, [N, 1 + F, g, g].
        plain_NFC: their bits by cell.
        vocab: of the ids.
    """
    rng, clean = np.random.default_rng(0), plain_NFC.mean(axis=2)
    noisy = [clean]
    for share in NOISE:
        random = rng.integers(vocab, size=true.shape)
        noisy.append(_with_history(bits, true, np.where(rng.random(true.shape) < share, random, true), 0))
    shares = np.array([0.0, *NOISE]) - np.mean([0.0, *NOISE])
    slopes_NF = np.einsum("s,snf->nf", shares / (shares @ shares), np.stack(noisy))
    found = {"noise": slopes_NF.mean(axis=1)}
    found |= {f"noise_{frame}": slopes for frame, slopes in enumerate(slopes_NF.T, 1)}
    frozen, others = np.repeat(true[:, :1], true.shape[1], axis=1), np.roll(true, 1, axis=0)
    for name, context in (("frozen_history", frozen), ("other_history", others)):
        found[name] = (_with_history(bits, true, context, 1) - clean)[:, 1:].mean(axis=1)
    return found


def _with_history(bits: Bits, true: Ids, context: Ids, first: int) -> Array:
    """Mean bits a cell [N, F] of each true frame k after frames `first` .. k-1 of the context."""
    columns = []
    for frame in range(1, true.shape[1]):
        ids = true.copy()
        ids[:, first:frame] = context[:, first:frame]
        columns.append(bits(ids)[:, frame - 1].mean(axis=1))
    return np.stack(columns, axis=1)


@torch.no_grad()
def bits_by_cell(opened: OpenRun, rows: Sequence[int], ids: Ids) -> Array:
    """Bits of each cell [N, 1 + F, C] that a run gives to ids [N, 1 + F, g, g], under the conditions of some rows."""
    parts = []
    for start in progress(range(0, len(rows), BATCH), opened.label):
        items = [opened.data[row] for row in rows[start : start + BATCH]]
        part = torch.from_numpy(ids[start : start + BATCH])
        condition, backend = opened.task.condition(items), opened.task.config.train.attention
        out = opened.model(part, condition, logits=True, backend=backend)
        logits = torch.cat([out.logits_first[:, None], out.logits_later], dim=1)
        nats = F.cross_entropy(logits.float().flatten(0, 2), part.flatten(), reduction="none")
        parts.append(nats.view(logits.shape[:3]).double().numpy() / np.log(2))
    return np.concatenate(parts)


def true_ids(opened: OpenRun, rows: Sequence[int]) -> Ids:
    """[N, 1 + F, g, g]"""
    return np.stack([opened.data.read(row)[0] for row in rows]).astype(np.int64)


def judge(run: Path, checkpoint: int, samples: Path, json: Path) -> None:
    """Measure the bits that another run gives to drawn clips and, beside them, to the real ones of the same prompts.

    Args:
        run: folder of the judge: a token model of another seed than what drew the clips.
        checkpoint: step.
        samples: .npz file of `sample`.
        json: gets `drawn` and `real`, bits a clip.
    """
    content = np.load(samples)
    how = json_format.loads(str(content["how"]))
    opened = OpenRun(run, checkpoint, how["split"])
    rows = [int(row) for row in content["rows"]]
    ids = {"drawn": content["ids"].astype(np.int64), "real": true_ids(opened, rows)}
    found = {name: bits_by_cell(opened, rows, clips).sum(axis=(1, 2)) for name, clips in ids.items()}
    keys = [opened.data.key(row) for row in rows]
    write_json(
        json,
        how
        | {"judge": f"{run.name} {checkpoint}", "clips": sha256_json(keys)}
        | {"by_clip": {name: " ".join(f"{value:.1f}" for value in values) for name, values in found.items()}},
    )
