"""Conditions of samples, as the model takes them, and the share of captions and labels that it never sees."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavrc.data.blend import TokenBlend
from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import WITHOUT, DataError
from megavrc.errors import UserError
from megavrc.model import ConditionConfig
from megavrc.model.condition import Condition, kind_of
from megavrc.tokenizers import TextTokenizer

log = logging.getLogger("megavrc")

SHARDS, SAMPLES = 32, 2048  # of a dataset that are looked at, at most


def conditions_of(
    items: list[dict[str, Any]], config: ConditionConfig, text: TextTokenizer | None
) -> Condition:
    """Conditions of captions or text features, cut to the slots, or of labels; the null condition where there is none.

    Args:
        items: samples with their caption or label.
        config: of the model's condition.
        text: tokenizer of a model that learns text embeddings.
    """
    kind = kind_of(config)
    if text is not None:
        return kind.make(config, [text.ids(item["caption"] or "")[: config.slots - 1] for item in items])
    return kind.make(config, [item[kind.reads] for item in items])


def has_checkpoints(run_dir: str) -> bool:
    """Whether a run goes on there: what its samples lack was said when it began."""
    return any((Path(run_dir) / "checkpoints").glob("step-*"))


@dataclass
class Incomplete:
    """Samples that were looked at, and how many train on a cut condition or on none.

    Attributes:
        longest: tokens of the longest caption that is cut.
    """

    samples: int = 0
    cut: int = 0
    missing: int = 0
    longest: int = 0

    @property
    def share(self) -> float:
        return (self.cut + self.missing) / max(1, self.samples)

    def in_words(self, config: ConditionConfig) -> str:
        parts, what = [], "label" if config.is_class else "caption"
        if self.cut:
            parts.append(
                f"the captions of {self.cut / self.samples:.2%} are cut to {config.slots - 1} tokens, which is "
                f"model.condition.slots less one (the longest has {self.longest} or more)"
            )
        if self.missing:
            parts.append(f"{self.missing / self.samples:.2%} have no {what} and train without one")
        return f"of {self.samples} samples looked at, {' and '.join(parts)}"


def check_conditions(
    source: TokenBlend,
    config: ConditionConfig,
    text: TextTokenizer | None,
    most: float,
    option: str = "data.max_incomplete",
) -> Incomplete:
    """Look at samples of all parts of a dataset, and say which share is cut or has no condition.

    Args:
        source: samples to train on.
        config, text: as for `conditions_of`.
        most: largest share of incomplete ones. option: that says so, for the error.

    Raises:
        UserError: more are incomplete in one of the parts.
    """
    total, first = Incomplete(), 0
    for part in source.parts:
        found = Incomplete()
        for row in _rows(part):
            try:
                _look(source[first + row], config, text, found)
            except DataError:  # said where it is trained on
                continue
        first += len(part)
        if found.share > most:
            raise UserError(
                f"{part.address}: {found.in_words(config)}; correct that, or allow it with {option} "
                f"(which is {most:g})"
            )
        if found.share:
            log.warning("%s: %s", part.address, found.in_words(config))
        if not found.missing:
            _say_rare(part, config, most, option)
        total.samples += found.samples
        total.cut += found.cut
        total.missing += found.missing
        total.longest = max(total.longest, found.longest)
    return total


def _say_rare(part: TokenDataset, config: ConditionConfig, most: float, option: str) -> None:
    """Of a dataset that was counted when it was finished, the few that none of the samples looked at is of."""
    what = "label" if config.is_class else "caption"
    if bare := (part.info.get(WITHOUT) or {}).get(part.split, {}).get(what):
        words = f"{part.address}: {bare} videos of split {part.split} have no {what}"
        if not most:
            raise UserError(f"{words}; correct that, or allow it with {option} (which is 0)")
        log.warning("%s and train without one", words)


def _rows(part: TokenDataset) -> Iterator[int]:
    """Samples spread over a few shards, so that little is read; of a remote dataset the first shard's."""
    numbers = [number for number, shard in enumerate(part.shards) if shard["count"]]
    few = numbers[:1] if part.mirror else numbers[:: -(-len(numbers) // SHARDS)]
    for number in few:
        rows = part.rows(number)
        yield from rows[:: -(-len(rows) * len(few) // SAMPLES)]


def _look(
    item: dict[str, Any], config: ConditionConfig, text: TextTokenizer | None, found: Incomplete
) -> None:
    found.samples += 1
    reads = kind_of(config).reads
    if item["label"] is None if reads == "label" else not (item["caption"] or "").strip():
        found.missing += 1
    elif reads in ("tokens", "features"):
        tokens = len(item["features"]) if text is None else len(text.ids(item["caption"]))
        if tokens > config.slots - 1 or item.get("cut"):
            found.cut += 1
            found.longest = max(found.longest, tokens)
