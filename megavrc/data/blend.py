"""Several datasets as one: exact shares at every position, and epochs of each its own."""

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from megavrc.data.dataset import ShardReader, TokenDataset
from megavrc.data.order import SampleOrder
from megavrc.data.text_features import TextFeatures
from megavrc.errors import UserError
from megavrc.files import check_fields

WINDOW = 10_000  # positions in which the shares are met exactly; so a weight counts to four digits

Item = dict[str, Any]


def quotas(weights: Sequence[float], window: int = WINDOW) -> list[int]:
    """The number of `window` positions that each source gets: its share, rounded by largest remainder; cancelled down.

    Raises:
        UserError: a weight that is not positive, or too small for a place in the window.
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"data.blend: weights {list(weights)} must be positive; leave out what is not wanted")
    exact = [weight / math.fsum(weights) * window for weight in weights]
    rounded = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: rounded[i] - exact[i])
    for source in by_remainder[: window - sum(rounded)]:
        rounded[source] += 1
    if 0 in rounded:
        raise UserError(f"data.blend: weights {list(weights)}: less than 1 sample in {window} of one dataset")
    divisor = math.gcd(*rounded)
    return [quota // divisor for quota in rounded]


def pattern(quotas: Sequence[int]) -> np.ndarray:
    """The source at each of sum(quotas) positions, such that every prefix holds each source's share to within
    less than one sample.

    The j-th sample of a source may come no earlier than it is due and must come before the next is: unit jobs, of which
    always the most urgent is done. Such a schedule keeps all deadlines (Baruah et al., "Proportionate progress", 1996).

    Returns:
        int64 [sum(quotas)].
    """
    total = sum(quotas)
    done = [0] * len(quotas)
    chosen = np.empty(total, dtype=np.int64)
    for place in range(total):
        due = [source for source, quota in enumerate(quotas) if done[source] * total < (place + 1) * quota]
        chosen[place] = source = min(due, key=lambda s: -(-(done[s] + 1) * total // quotas[s]))
        done[source] += 1
    return chosen


class BlendOrder:
    """Orders of several sources taken in turns, by weight; see `SampleOrder`. Indices run on from source to source.

    Args:
        orders: of each source; each counts its own epochs.
        weights: of samples, relative to each other.

    Attributes:
        n: samples of all sources.
    """

    def __init__(self, orders: Sequence[SampleOrder], weights: Sequence[float]) -> None:
        self.orders, self.n = list(orders), sum(order.n for order in orders)
        self._firsts = [0, *itertools.accumulate(order.n for order in orders)]
        self._quotas = quotas(weights)
        self._pattern = pattern(self._quotas)
        taken = [np.cumsum(self._pattern == source) - 1 for source in range(len(orders))]
        self._taken = np.stack(taken)[self._pattern, np.arange(len(self._pattern))]

    def sample(self, position: int) -> int:
        source, own = self._locate(position)
        return self._firsts[source] + self.orders[source].sample(own)

    def substitute(self, position: int, attempt: int) -> int:
        """From the same source."""
        source, own = self._locate(position)
        return self._firsts[source] + self.orders[source].substitute(own, attempt)

    def _locate(self, position: int) -> tuple[int, int]:
        """The source at a position, and how many of its samples came before."""
        block, place = divmod(position, len(self._pattern))
        source = int(self._pattern[place])
        return source, block * self._quotas[source] + int(self._taken[place])


class TokenBlend:
    """Token datasets one after the other, as a map from index to sample. Picklable.

    Args:
        parts: datasets of the same kind, shape, codebook, tokenizer and image source.
        features: give each sample its "features", float16 [tokens, width], from the parts' text features, and "cut",
            whether they are those of a part of its caption.
        classes: the parts must have the same classes too.

    Attributes:
        info, shape, vocab: as in `TokenDataset`, of the first part.
        address: what the user calls the parts.
        identity: what a run is bound to: the manifest, tokenizer and size of each part, by number.
        text_encoder, feature_width: SHA-256 of the encoder that made the text features, and their columns; None, 0
            without features.
        text_features: the manifest of each part's text features; None without.
        readers: what shards are read through: the parts, and their text features.

    Raises:
        UserError: the parts do not fit together, or have no text features.
    """

    def __init__(self, parts: Sequence[TokenDataset], features: bool = False, classes: bool = False) -> None:
        first = parts[0]
        self.parts, self.info, self.shape, self.vocab = list(parts), first.info, first.shape, first.vocab
        for part in parts[1:]:
            check_same_kind("data.blend", first, part, "image_source", *["classes"] * classes)
        self.address = ", ".join(part.address for part in parts)
        self._firsts = [0, *itertools.accumulate(len(part) for part in parts)]
        self._features = [TextFeatures(part) for part in parts] if features else None
        self.readers: list[ShardReader] = [*self.parts, *(self._features or [])]
        self.text_encoder: str | None = None
        self.text_features: list[str] | None = None
        self.feature_width = 0
        if self._features:
            self.text_features = [part.manifest_id for part in self._features]
            self.text_encoder, self.feature_width = _encoder(self._features)

    @property
    def identity(self) -> dict[str, Any]:
        return {str(number): part.identity for number, part in enumerate(self.parts)}

    def __len__(self) -> int:
        return self._firsts[-1]

    def will_read(self, indices: Iterable[int]) -> None:
        """The same as `ShardReader.will_read`."""
        for number, own in map(self._locate, indices):
            self.parts[number].will_read([own])

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._firsts, index) - 1
        return number, index - self._firsts[number]

    def __getitem__(self, index: int) -> Item:
        """The same as `TokenDataset.__getitem__`."""
        number, own = self._locate(index)
        item = self.parts[number][own]
        if self._features is None:
            return item
        features_LF, fields = self._features[number].read(own)
        return {**item, "features": torch.from_numpy(features_LF), "cut": fields["cut"]}


def _encoder(features: Sequence[TextFeatures]) -> tuple[str, int]:
    for part in features:
        where = f"{part.address}/dataset.json"
        check_fields(where, part.info, {"encoder": dict})
        check_fields(f"{where}: encoder", part.info["encoder"], {"sha256": str})
        if part.info["encoder"]["sha256"] != features[0].info["encoder"]["sha256"]:
            raise UserError(f"{part.folder}: made by another text encoder than {features[0].folder}")
    return features[0].info["encoder"]["sha256"], features[0].width


def check_same_kind(
    key: str, first: TokenDataset | TokenBlend, second: TokenDataset | TokenBlend, *more: str
) -> None:
    """Refuse two datasets whose samples are not of one kind, or that differ in `more` of dataset.json.

    Args:
        key: of the configuration, that names them.

    Raises:
        UserError: what differs first.
    """
    for name in ("kind", "shape", "vocab", "tokenizer", *more):
        ours, theirs = (_essence(dataset.info.get(name)) for dataset in (first, second))
        if ours != theirs:
            raise UserError(
                f"{key}: {name} is {ours!r} in {first.address} and {theirs!r} in {second.address}"
            )


def other_class(first: Sequence[str] | None, second: Sequence[str] | None) -> str:
    """The first class that two lists of names number differently, "class 0 is 'blue' and 'red'"; "" if there is none.

    A number for a name says nothing, and one list may be longer than the other.
    """
    for number, names in enumerate(zip(first or (), second or (), strict=False)):
        if names[0] != names[1] and str(number) not in names:
            return f"class {number} is {names[0]!r} and {names[1]!r}"
    return ""


def _essence(value: Any) -> Any:
    """A tokenizer is known by its hash."""
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value
