"""Text features of a token dataset: sidecar shards with the same names, keys and order as its token shards.

    <dataset>/text_features/dataset.json, manifest.json, shards/    as in shards.py, with a format of their own

A sample is `{key}.json` (caption, and whether it was cut) and `{key}.npy` (float16 [tokens, width], no padding; no rows
where there is no caption).
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megavrc.data.dataset import ShardReader, TokenDataset
from megavrc.data.shards import DataError, MemberWriter, npy_header
from megavrc.errors import UserError
from megavrc.files import check_fields
from megavrc.progress import progress

FORMAT = "megavrc-text-features 1"
DTYPE = "<f2"


def features_folder(dataset: Path) -> Path:
    """The folder of the text features of a dataset folder."""
    return dataset / "text_features"


class FeatureWriter(MemberWriter):
    """A shard of text features."""

    def add(self, key: str, features_LF: np.ndarray, fields: dict[str, Any]) -> None:
        """Append a sample: float16 features [tokens, width], and its JSON fields.

        Raises:
            DataError: a value that is not finite (in float16).
        """
        if not np.isfinite(features_LF).all():
            raise DataError(f"{self.tar}: sample {key} has features that are not finite in float16")
        self.append(key, fields, npy_header(features_LF.shape, DTYPE) + features_LF.astype(DTYPE).tobytes())


class TextFeatures(ShardReader):
    """The features of a token dataset's samples, by the same index or by key. Picklable.

    Args:
        tokens: the dataset that the features belong to.

    Attributes:
        info: the content of dataset.json (encoder, max_tokens, width, tokens {manifest_id}, ...).
        width: columns of every sample's features.

    Raises:
        UserError: no finished features there, or those of other tokens.
        DataError: a shard is missing or has another size than the manifest says, and `tokens` are read strictly.
    """

    def __init__(self, tokens: TokenDataset) -> None:
        folder = features_folder(tokens.folder)
        mirror = tokens.mirror.child(folder.name) if tokens.mirror else None
        super().__init__(mirror or folder, tokens.split, FORMAT, "text-features", tokens.strict)
        where = f"{self.address}/dataset.json"
        check_fields(where, self.info, {"width": int, "tokens": dict})
        check_fields(f"{where}: tokens", self.info["tokens"], {"manifest_id": str})
        self.width: int = self.info["width"]
        if self.info["tokens"]["manifest_id"] != tokens.manifest_id:
            raise UserError(
                f"{self.folder}: features of other tokens (manifest {self.info['tokens']['manifest_id'][:12]}, the "
                f"dataset is {tokens.manifest_id[:12]}); remove the folder and run text-features again"
            )
        self._order: tuple[np.ndarray, np.ndarray] | None = None

    def __getitem__(self, index: int) -> Tensor:
        """Features of sample `index` of the token dataset, float16 [tokens, width].

        Raises:
            DataError: the bytes on disk are not those that were written; names shard and key.
        """
        return torch.from_numpy(self.read(index)[0])

    def by_key(self, key: str) -> Tensor:
        """The same as `self[index]`, for the sample of this name; KeyError if there is none."""
        if self._order is None:
            keys = np.concatenate([self._index(number).keys for number in range(len(self.shards))])
            order = np.argsort(keys)
            self._order = keys[order], order
        keys, order = self._order
        place = int(np.searchsorted(keys, key.encode()))
        if place == len(keys) or keys[place] != key.encode():
            raise KeyError(key)
        return self[int(order[place])]

    def read(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Features and all JSON fields of a sample. Raises as `__getitem__`."""
        text, array = self.members(index)
        features_LF = np.load(io.BytesIO(array), allow_pickle=False)
        if features_LF.dtype != DTYPE or features_LF.shape[1:] != (self.width,):
            raise DataError(f"{self.folder}: sample {self.key(index)} is not float16 [tokens, {self.width}]")
        return features_LF, json.loads(text)

    def problems(self, tokens: TokenDataset) -> Iterator[str]:
        """Read every byte again; one line for whatever is not as it was written or does not fit the tokens."""
        yield from self.changed_shards()
        if len(self) != len(tokens):
            yield f"{self.folder}: {len(self)} samples, the tokens have {len(tokens)}"
        for index in progress(range(min(len(self), len(tokens))), f"verify {self.folder}"):
            try:
                fields = self.read(index)[1]
                if (self.key(index), fields["caption"]) != (
                    tokens.key(index),
                    tokens.read(index)[1]["caption"],
                ):
                    yield f"{self.folder}: sample {self.key(index)} is not that of the tokens"
            except DataError as error:
                yield str(error)
