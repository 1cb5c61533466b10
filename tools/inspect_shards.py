"""What is in a token dataset: counts, one sample, and with a tokenizer a contact sheet of decoded samples."""

import json
import textwrap
from pathlib import Path

import numpy as np

from megavrc.config import UserError, command
from megavrc.data.dataset import TokenDataset


def inspect(
    folder: Path,
    split: str = "train",
    sample: int = 0,
    tokenizer: Path | None = None,
    sheet: Path | None = None,
    count: int = 16,
) -> None:
    """Print what a dataset holds; with `tokenizer` and `sheet`, decode its first samples to a picture.

    Args:
        folder: a dataset (OUT/video or OUT/image of tools/tokenize_videos.py).
        split: which split.
        sample: index of the sample to print.
        tokenizer: folder or .ckpt file of the tokenizer that made the dataset.
        sheet: PNG file to write, one row a sample.
        count: samples in the picture.
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
        _draw(dataset, tokenizer, sheet, min(count, len(dataset)))
        print(f"{sheet}: {min(count, len(dataset))} decoded samples")


def _draw(dataset: TokenDataset, tokenizer: Path, sheet: Path, count: int) -> None:
    import torch

    from megavrc.tokenizers import OmniTokenizer
    from megavrc.video.sheet import contact_sheet
    from megavrc.video.write import write_png

    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    if loaded.sha256 != dataset.info["tokenizer"]["sha256"]:
        made_by = dataset.info["tokenizer"]["sha256"]
        raise UserError(f"{tokenizer}: tokenizer {loaded.sha256}, the shards were made by {made_by}")
    items = [dataset[index] for index in range(count)]
    frames_BTHWC = loaded.decode(torch.stack([item["ids"] for item in items])).numpy()
    rows = [
        (item["caption"] or item["key"], frames) for item, frames in zip(items, frames_BTHWC, strict=True)
    ]
    write_png(sheet, contact_sheet(rows, columns=min(6, frames_BTHWC.shape[1])))


if __name__ == "__main__":
    command(inspect)
