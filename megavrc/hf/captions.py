"""Captions that a run was trained on: that the converted text tokenizer is compared on, and an example for the card."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import DataError
from megavrc.progress import progress
from megavrc.tokenizers import TextTokenizer


def training_captions(state: dict[str, Any]) -> Iterator[str]:
    """All captions that a run was trained on, of the datasets that are still in their place; the others are named."""
    data = state.get("config", {}).get("data", {})
    for path in _paths(data):
        if not (Path(path) / "manifest.json").is_file():
            print(f"{path}: not in its place, so tokenizer.json is not tried on its captions; see --captions")
            continue
        dataset, lost = _opened(path, data), 0
        for index in progress(range(len(dataset)), f"captions of {path}"):
            try:
                caption = dataset[index]["caption"]
            except DataError:
                lost += 1
            else:
                yield caption or ""
        if lost:
            print(f"{path}: {lost} samples cannot be read, so tokenizer.json is not tried on their captions")


def example_prompt(captions: Iterable[str], text: TextTokenizer, slots: int) -> str:
    """The first caption that the model takes; without one, words that are short enough."""
    for prompt in (*captions, "a video", "a"):
        if prompt.strip() and len(text.ids(prompt)) < slots:
            return prompt
    return ""


def example_prompts(captions: Iterable[str], text: TextTokenizer, slots: int) -> list[str]:
    """The first six different captions that the model takes."""
    usable = (prompt for prompt in captions if prompt.strip() and len(text.ids(prompt)) < slots)
    return list(dict.fromkeys(usable))[:6]


def frame_rate(state: dict[str, Any]) -> float | None:
    """Frames a second of the clips that a run was trained on, None where they kept the rates of their videos."""
    data = state.get("config", {}).get("data", {})
    for path in _paths(data):
        if (Path(path) / "manifest.json").is_file():
            fields = _fields(_opened(path, data))
            if fields.get("fps"):
                return float(fields["fps"]) / int(fields.get("stride", 1))
    return None


def _opened(path: str, data: dict[str, Any]) -> TokenDataset:
    """As a run opens it that goes on without damaged samples (`data.on_damage: replace`)."""
    return TokenDataset(path, split=data.get("split", "train"), strict=False)


def _fields(dataset: TokenDataset) -> dict[str, Any]:
    """Of the first sample that can be read; {} if there is none."""
    for index in range(len(dataset)):
        with contextlib.suppress(DataError):
            return dataset.read(index)[1]
    return {}


def _paths(data: dict[str, Any]) -> list[str]:
    return [part["path"] for part in data.get("blend") or [data] if "path" in part]
