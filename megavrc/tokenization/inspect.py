"""Is a token dataset right? Counts, one sample, and samples decoded beside the videos that they were made from."""

import json
import textwrap
from pathlib import Path

import numpy as np

from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import DataError
from megavrc.errors import UserError
from megavrc.evaluation.quality import psnr
from megavrc.files import check_picture_place, named_path
from megavrc.tokenization.plan import Plan, load_plan
from megavrc.tokenization.proof import Compared, Frames, compare_samples, problems, spread
from megavrc.tokenizers import OmniTokenizer
from megavrc.video import contact_sheet, write_png

COLUMNS = 6  # of the picture
POOR = 20.0  # dB; what is below it looks like another video


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
    their frames above the decoded ones, and how many of the ids they give again is printed. Ids that are not those of
    their videos are an error.

    Args:
        folder: a dataset (OUT/video or OUT/image of megavrc tokenize_videos).
        split: name of the split.
        sample: index of the sample to print.
        tokenizer: folder or .ckpt file of the tokenizer that made the dataset.
        sheet: PNG file to write, one or two rows a sample.
        count: samples in the picture, evenly spread over the dataset.
    """
    if count < 1:
        raise UserError(f"--count {count}: at least 1")
    if sheet:
        check_picture_place(sheet, [".png"])
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
        loaded = _made_by(dataset, tokenizer)
        compared = compare_samples(dataset, spread(len(dataset), count), loaded, _plan(dataset))
        _report(compared, sheet)
        if wrong := problems(compared, loaded):
            raise DataError(f"{folder}: {len(wrong)} problems; the first: {wrong[0]}")


def _made_by(dataset: TokenDataset, tokenizer: Path) -> OmniTokenizer:
    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    made_by = dataset.info["tokenizer"]["sha256"]
    if loaded.sha256 != made_by:
        raise UserError(f"{tokenizer}: tokenizer {loaded.sha256}, the shards were made by {made_by}")
    return loaded


def _plan(dataset: TokenDataset) -> Plan | None:
    """The plan of the job that made the dataset, if it lies where the job put it."""
    job = named_path(dataset.folder).parent
    if not (job / "plan.json").is_file():
        return None
    plan = load_plan(job)
    return plan if plan.sha256 == dataset.info["plan_sha256"] else None


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
        pairs = [(item.original, item.decoded) for item in again]
        likeness = float(
            np.mean([psnr(original, decoded) for original, decoded in pairs if original is not None])
        )
        poor = f": below {POOR:g} dB, this tokenizer shows little of the videos" if likeness < POOR else ""
        print(f"decoded against their videos: {likeness:.1f} dB{poor}")
    if len(again) < len(compared):
        print(f"{len(compared) - len(again)} of them have no video here to compare with")
