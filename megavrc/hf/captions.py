"""Captions that the converted text tokenizer is compared on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megavrc.data.dataset import TokenDataset
from megavrc.progress import progress


def training_captions(state: dict[str, Any]) -> Iterator[str]:
    """All captions that a run was trained on, of the datasets that are still in their place; the others are named."""
    data = state.get("config", {}).get("data", {})
    for path in [part["path"] for part in data.get("blend") or [data] if "path" in part]:
        if not (Path(path) / "manifest.json").is_file():
            print(f"{path}: not in its place, so tokenizer.json is not tried on its captions; see --captions")
            continue
        dataset = TokenDataset(path, split=data.get("split", "train"))
        for index in progress(range(len(dataset)), f"captions of {path}"):
            yield dataset[index]["caption"] or ""
