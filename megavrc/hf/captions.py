"""Captions that a run was trained on: that the converted text tokenizer is compared on, and an example for the card."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megavrc.data.dataset import TokenDataset
from megavrc.progress import progress
from megavrc.tokenizers import TextTokenizer


def training_captions(state: dict[str, Any]) -> Iterator[str]:
    """All captions that a run was trained on, of the datasets that are still in their place; the others are named."""
    data = state.get("config", {}).get("data", {})
    for path in _paths(data):
        if not (Path(path) / "manifest.json").is_file():
            print(f"{path}: not in its place, so tokenizer.json is not tried on its captions; see --captions")
            continue
        dataset = TokenDataset(path, split=data.get("split", "train"))
        for index in progress(range(len(dataset)), f"captions of {path}"):
            yield dataset[index]["caption"] or ""


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
            dataset = TokenDataset(path, split=data.get("split", "train"))
            fields = dataset.read(0)[1] if len(dataset) else {}
            if fields.get("fps"):
                return float(fields["fps"]) / int(fields.get("stride", 1))
    return None


def _paths(data: dict[str, Any]) -> list[str]:
    return [part["path"] for part in data.get("blend") or [data] if "path" in part]
