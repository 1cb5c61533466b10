"""Captions that the converted text tokenizer is compared on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megavrc.config import UserError, progress
from megavrc.data.dataset import TokenDataset


def training_captions(state: dict[str, Any]) -> Iterator[str]:
    """All captions of the datasets that a run was trained on, of those that are still in their place."""
    data = state.get("config", {}).get("data", {})
    for part in data.get("blend") or [data]:
        if (Path(part.get("path", "")) / "manifest.json").is_file():
            dataset = TokenDataset(part["path"], split=part.get("split", "train"))
            for index in progress(range(len(dataset)), f"captions of {part['path']}"):
                yield dataset[index]["caption"] or ""


def read_captions(path: Path) -> Iterator[str]:
    """Captions of a file: manifest.jsonl with a "caption" in each line, or text with one caption a line."""
    try:
        lines = path.read_text().splitlines()
        yield from [json.loads(line)["caption"] or "" for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: captions cannot be read ({error!r})") from None
