"""Is a token dataset right? Counts, one sample, and samples decoded beside the videos that they were made from."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.data.dataset import TokenDataset
from megavrc.errors import UserError
from megavrc.evaluation.quality import psnr
from megavrc.tokenization.cut import cut
from megavrc.tokenization.encode import Sample, samples
from megavrc.tokenization.plan import Plan, encode, load_plan
from megavrc.tokenizers import OmniTokenizer
from megavrc.video import VideoError, contact_sheet, write_png
from megavrc.video.manifest import Entry

Frames = NDArray[np.uint8]  # [T, H, W, 3]
COLUMNS = 6  # of the picture


def inspect(
    folder: Path,
    split: str = "train",
    sample: int = 0,
    tokenizer: Path | None = None,
    sheet: Path | None = None,
    count: int = 16,
) -> None:
    """Print what a dataset holds; with `tokenizer` and `sheet`, decode samples from all over it to a picture.

    Where the job's plan and the videos are still there, the samples are cut from the videos again: the picture shows
    their frames above the decoded ones, and how many of the ids they give again is printed.

    Args:
        folder: a dataset (OUT/video or OUT/image of megavrc tokenize_videos).
        split: which split.
        sample: index of the sample to print.
        tokenizer: folder or .ckpt file of the tokenizer that made the dataset.
        sheet: PNG file to write, one or two rows a sample.
        count: samples in the picture, evenly spread over the dataset.
    """
    dataset = TokenDataset(folder, split=split)
    if not 0 <= sample < len(dataset):
        raise UserError(f"{folder}: sample {sample} of {len(dataset)} does not exist")
    print(f"{folder}: {len(dataset)} samples of split {split} in {len(dataset.shards)} shards")
    for name, value in {**dataset.info, "manifest_id": dataset.manifest_id}.items():
        print(f"  {name}: {textwrap.shorten(json.dumps(value, ensure_ascii=False), 300)}")
    ids, fields = dataset.read(sample)
    print(f"sample {sample}: {dataset.key(sample)}")
    print(f"  {json.dumps(fields, ensure_ascii=False)}")
    print(f"  ids {ids.shape}: {ids.min()}..{ids.max()}, {len(np.unique(ids))} different")
    if (tokenizer is None) != (sheet is None):
        raise UserError("a contact sheet needs both --tokenizer and --sheet")
    if tokenizer and sheet:
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
        compared = _compare(dataset, chosen, _made_by(dataset, tokenizer))
        _report(compared, sheet)


@dataclass(frozen=True)
class Compared:
    """A sample's decoded frames, and those of its video, if it can still be read.

    Attributes:
        same: share of the ids that encoding the video's frames gives again.
    """

    label: str
    decoded: Frames
    original: Frames | None = None
    same: float = 0.0


def _made_by(dataset: TokenDataset, tokenizer: Path) -> OmniTokenizer:
    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    made_by = dataset.info["tokenizer"]["sha256"]
    if loaded.sha256 != made_by:
        raise UserError(f"{tokenizer}: tokenizer {loaded.sha256}, the shards were made by {made_by}")
    return loaded


def _compare(dataset: TokenDataset, chosen: list[int], tokenizer: OmniTokenizer) -> list[Compared]:
    plan = _plan(dataset)
    sources = {str(dataset.read(index)[1]["source"]) for index in chosen}
    entries = _entries(plan, sources) if plan else {}
    compared = []
    for index in chosen:
        ids, fields = dataset.read(index)
        decoded = tokenizer.decode(torch.from_numpy(ids[None].astype(np.int64)))[0].cpu().numpy()
        label, key = fields.get("caption") or dataset.key(index), dataset.key(index)
        entry = entries.get(fields["source"])
        again = _cut_again(plan, entry, key) if plan and entry else None
        if again is None:
            compared.append(Compared(label, decoded))
            continue
        same = encode(tokenizer, again.frames_THWC[None])[0, : len(ids)] == ids
        compared.append(Compared(label, decoded, again.frames_THWC[: len(decoded)], float(same.mean())))
    return compared


def _plan(dataset: TokenDataset) -> Plan | None:
    """The plan of the job that made the dataset, if it lies where the job put it."""
    if not (dataset.folder.parent / "plan.json").is_file():
        return None
    plan = load_plan(dataset.folder.parent)
    return plan if plan.sha256 == dataset.info["plan_sha256"] else None


def _entries(plan: Plan, sources: set[str]) -> dict[str, Entry]:
    entries = (entry for shard in plan.sources(plan.units).values() for entry in shard)
    return {entry["id"]: entry for entry in entries if entry["id"] in sources}


def _cut_again(plan: Plan, entry: Entry, key: str) -> Sample | None:
    """The sample, from its video; None if it cannot be read, or gives another sample now."""
    try:
        cuts = cut(plan.settings, plan.root / entry["path"], entry)
    except VideoError:
        return None
    found = [sample for kind in samples(plan.settings, entry, cuts) for sample in kind if sample.key == key]
    return found[0] if found else None


def _report(compared: list[Compared], sheet: Path) -> None:
    rows: list[tuple[str, Frames]] = []
    for item in compared:
        if item.original is None:
            rows.append((item.label, item.decoded))
        else:
            likeness = psnr(item.original, item.decoded)
            rows.append((f"video: {item.label}", item.original))
            rows.append((f"tokens: {likeness:.1f} dB, {item.same:.1%} of the ids found again", item.decoded))
    write_png(sheet, contact_sheet(rows, columns=min(COLUMNS, len(compared[0].decoded))))
    print(f"{sheet}: {len(compared)} decoded samples")
    again = [item for item in compared if item.original is not None]
    if again:
        mean, worst = np.mean([item.same for item in again]), min(item.same for item in again)
        print(
            f"{len(again)} of them cut from their videos again: "
            f"{mean:.2%} of the ids are the same (worst sample {worst:.2%})"
        )
    if len(again) < len(compared):
        print(f"{len(compared) - len(again)} of them have no video here to compare with")
