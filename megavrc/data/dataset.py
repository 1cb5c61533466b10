"""Random access to a finished token dataset; every byte that is read is checked."""

import bisect
import json
import os
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavrc.config import UserError, read_json, sha256_file
from megavrc.data.shards import FORMAT, DataError, ShardIndex, manifest_id, npy_header

MAX_OPEN = 256  # shards held open at once


class ShardReader:
    """A folder of shards as a map from index to the members of a sample. Picklable.

    Args:
        folder: holds dataset.json, manifest.json and shards/.
        split: which shards to use; None for all.
        format: what the samples must be.
        finish: the command that finishes such a folder.

    Attributes:
        info: the content of dataset.json.
        manifest_id: identity of all the bytes; training refuses to resume on another.

    Raises:
        UserError: no finished dataset there, another format, no such split.
        DataError: a shard is missing or has another size than the manifest says.
    """

    def __init__(
        self, folder: str | Path, split: str | None, format: str = FORMAT, finish: str = "finalize"
    ) -> None:
        self.folder, self.split = Path(folder), split
        if not (self.folder / "manifest.json").is_file():
            raise UserError(
                f"{self.folder}: no manifest.json; finish it with tools/tokenize_videos.py {finish}"
            )
        self.info: dict[str, Any] = read_json(self.folder / "dataset.json")
        manifest = read_json(self.folder / "manifest.json")
        if self.info.get("format") != format:
            raise UserError(
                f"{self.folder}/dataset.json: format {self.info.get('format')!r}, expected {format!r}"
            )
        self.manifest_id: str = manifest["manifest_id"]
        if manifest_id(self.info, manifest["shards"]) != self.manifest_id:
            raise DataError(
                f"{self.folder}: dataset.json or manifest.json was changed: the manifest_id does not fit"
            )
        self.shards = [shard for shard in manifest["shards"] if split in (None, shard["split"])]
        if not any(shard["count"] for shard in self.shards):
            known = sorted({shard["split"] for shard in manifest["shards"]})
            raise UserError(f"{self.folder}: no samples of split {split!r} (there is: {', '.join(known)})")
        self._ends = list(accumulate(shard["count"] for shard in self.shards))
        self._indexes: dict[int, ShardIndex] = {}
        self._open: dict[int, int] = {}
        self._check_sizes()

    def changed_shards(self) -> Iterator[str]:
        """A line for each shard whose bytes are not those of the manifest; reads them all."""
        for number, shard in enumerate(self.shards):
            if (found := sha256_file(self._path(number))) != shard["sha256"]:
                yield f"{self._path(number)}: sha256 {found[:12]}, the manifest says {shard['sha256'][:12]}"

    def _check_sizes(self) -> None:
        for number, shard in enumerate(self.shards):
            path = self._path(number)
            if not path.is_file():
                raise DataError(f"{path}: shard is missing")
            if (size := path.stat().st_size) != shard["bytes"]:
                raise DataError(f"{path}: shard has {size} bytes, the manifest says {shard['bytes']}")

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, index: int) -> str:
        """The name of a sample, unique in the dataset."""
        number, row = self._locate(index)
        return self._index(number).keys[row].decode()

    def rows(self, shard: int) -> range:
        """The indices of the samples of one of `shards`."""
        end = self._ends[shard]
        return range(end - self.shards[shard]["count"], end)

    def members(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of a sample's JSON and of its .npy member, checked.

        Raises:
            DataError: the bytes on disk are not those that were written; names shard and key.
        """
        number, row = self._locate(index)
        at = self._index(number)
        start, end = int(at.offsets[row, 0]), int(at.offsets[row, 1] + at.sizes[row, 1])
        content = os.pread(
            self._descriptor(number), end - start, start
        )  # the members are adjacent: one read for both
        text = content[: at.sizes[row, 0]]
        array = content[int(at.offsets[row, 1]) - start :]
        if [zlib.crc32(text), zlib.crc32(array)] != at.crc32[row].tolist():
            raise DataError(f"{self._path(number)}: sample {self.key(index)} is damaged (crc32 does not fit)")
        return text, array

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.shards[number]["count"]

    def _path(self, number: int) -> Path:
        return self.folder / "shards" / self.shards[number]["name"]

    def _index(self, number: int) -> ShardIndex:
        if number not in self._indexes:
            self._indexes[number] = ShardIndex.load(self._path(number), self.shards[number]["index_sha256"])
        return self._indexes[number]

    def _descriptor(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) == MAX_OPEN:
                self.close()
            self._open[number] = os.open(self._path(number), os.O_RDONLY)
        return self._open[number]

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


class TokenDataset(ShardReader):
    """A dataset folder (`<out>/video` or `<out>/image`) as a map from index to sample. Picklable.

    Args:
        folder: holds dataset.json, manifest.json and shards/.
        expected_tokenizer_sha256: refuse shards that were made by another tokenizer.
        split: which shards to use; None for all.

    Attributes:
        info: the content of dataset.json (kind, shape, vocab, tokenizer, image_source, sampling, ...).
        shape: (t, h, w) of every sample. vocab: ids lie in [0, vocab).
        manifest_id: identity of all the bytes; training refuses to resume on another.

    Raises:
        UserError: no finished dataset there, no such split, another tokenizer.
        DataError: a shard is missing or has another size than the manifest says.
    """

    def __init__(
        self, folder: str | Path, expected_tokenizer_sha256: str | None = None, split: str | None = "train"
    ) -> None:
        super().__init__(folder, split)
        self._check_tokenizer(expected_tokenizer_sha256)
        self.shape: tuple[int, ...] = tuple(self.info["shape"])
        self.vocab: int = self.info["vocab"]
        self._header = npy_header(self.shape)

    def _check_tokenizer(self, expected: str | None) -> None:
        found = self.info["tokenizer"]["sha256"]
        if expected is not None and found != expected:
            raise UserError(
                f"{self.folder}: these shards were made by tokenizer {found}, this run uses tokenizer {expected}; "
                "tokenize the videos again or use that tokenizer"
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: {"key" str, "ids" int64 tensor [t, h, w], "caption" str or None, "label" int or None}.

        Raises:
            DataError: the bytes on disk are not those that were written; names shard and key.
        """
        ids, fields = self.read(index)
        return {
            "key": self.key(index),
            "ids": torch.from_numpy(ids.astype(np.int64)),
            "caption": fields["caption"],
            "label": fields["label"],
        }

    def read(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Ids, int16 [t, h, w] (read-only), and all JSON fields of a sample. Raises as `__getitem__`."""
        text, array = self.members(index)
        if not array.startswith(self._header):
            raise DataError(f"{self.folder}: sample {self.key(index)} does not have shape {self.shape}")
        ids = np.frombuffer(array, dtype="<i2", offset=len(self._header)).reshape(self.shape)
        return ids, json.loads(text)
