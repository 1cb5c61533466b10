"""Random access to a finished token dataset; every byte that is read is checked."""

import bisect
import contextlib
import errno
import json
import logging
import math
import os
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from megavrc.data.mirror import Mirror
from megavrc.data.shards import (
    FORMAT,
    MAX_VOCAB,
    PROOF,
    WITHOUT,
    DataError,
    ShardIndex,
    check_listed,
    index_path,
    manifest_id,
    npy_header,
)
from megavrc.errors import UserError
from megavrc.files import NOT_JSON, PASSING, check_fields, check_format, patiently, read_json, sha256_file

log = logging.getLogger(__name__)
T = TypeVar("T")

DRIVE = PASSING - {errno.EIO}  # that a disk also says of a bad sector, for ever: damage
MAX_OPEN = 256  # shards held open at once by all readers of a process; it may usually open 1024 files
MAX_INDEXES = 1024  # held in memory: about 0.1 MB each


class ShardReader:
    """A folder of shards as a map from index to the members of a sample. Picklable.

    Args:
        folder: holds dataset.json, manifest.json and shards/; or the local copy of such a folder elsewhere.
        split: which shards to use; None for all.
        format: what the samples must be.
        finish: the command that finishes such a folder.
        strict: raise if a shard is missing or has another size; otherwise warn, and raise when a sample is read.

    Attributes:
        folder: on this machine. address: what the user calls it.
        info: the content of dataset.json.
        manifest_id: identity of all the bytes; training refuses to resume on another.

    Raises:
        UserError: no finished dataset there, another format, no such split.
        DataError: a shard is missing or has another size than the manifest says.
    """

    def __init__(
        self,
        folder: str | Path | Mirror,
        split: str | None,
        format: str = FORMAT,
        finish: str = "finalize",
        strict: bool = True,
    ) -> None:
        self.mirror = folder if isinstance(folder, Mirror) else None
        self.folder = folder.folder if isinstance(folder, Mirror) else Path(folder)
        self.address = folder.url if isinstance(folder, Mirror) else str(folder)
        self.split, self.strict = split, strict
        if self.mirror:
            self.mirror.refresh("manifest.json", "dataset.json")
        if not (self.folder / "manifest.json").is_file():
            inside = [
                f"{self.address}/{kind}" for kind in ("video", "image") if (self.folder / kind).is_dir()
            ]
            if inside:
                raise UserError(
                    f"{self.address}: the folder of a job; its datasets are {' and '.join(inside)}"
                )
            raise UserError(
                f"{self.address}: no manifest.json; finish it with megavrc tokenize_videos {finish}"
            )
        self.info: dict[str, Any] = check_fields(
            f"{self.address}/dataset.json", read_json(self.folder / "dataset.json"), {}
        )
        check_format(f"{self.address}/dataset.json", self.info.get("format"), format)
        manifest = self._read_manifest()
        self.manifest_id: str = manifest["manifest_id"]
        if manifest_id(self.info, manifest["shards"]) != self.manifest_id:
            raise DataError(
                f"{self.address}: dataset.json or manifest.json was changed: the manifest_id does not fit"
            )
        self.shards = [shard for shard in manifest["shards"] if split in (None, shard["split"])]
        if not any(shard["count"] for shard in self.shards):
            known = sorted({shard["split"] for shard in manifest["shards"] if shard["count"]})
            raise UserError(f"{self.address}: no samples of split {split!r} (there is: {', '.join(known)})")
        self._ends = list(accumulate(shard["count"] for shard in self.shards))
        self._indexes: dict[int, ShardIndex] = {}
        self._open: dict[int, int] = {}
        for problem in [] if self.mirror else self._wrong_sizes():
            if strict:
                raise DataError(problem)
            log.warning("%s", problem)

    def _read_manifest(self) -> dict[str, Any]:
        where = f"{self.address}/manifest.json"
        fields = {"manifest_id": str, "shards": list[dict[str, Any]]}
        manifest = check_fields(where, read_json(self.folder / "manifest.json"), fields)
        for number, shard in enumerate(manifest["shards"]):
            check_listed(
                f"{where}: shard {number}", check_fields(f"{where}: shard {number}", shard, {"split": str})
            )
        return manifest

    def changed_shards(self) -> Iterator[str]:
        """A line for each shard whose bytes are not those of the manifest; reads them all."""
        for number, shard in enumerate(self.shards):
            if (found := sha256_file(self._path(number))) != shard["sha256"]:
                yield f"{self._path(number)}: sha256 {found[:12]}, the manifest says {shard['sha256'][:12]}"

    def _wrong_sizes(self) -> Iterator[str]:
        for number, shard in enumerate(self.shards):
            path = self._path(number)
            if not path.is_file():
                yield f"{path}: shard is missing"
            elif (size := path.stat().st_size) != shard["bytes"]:
                yield f"{path}: shard has {size} bytes, the manifest says {shard['bytes']}"

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
            TransientError: the drive fails in a way that may pass.
        """
        number, row = self._locate(index)
        at = patiently(lambda: self._index(number), DRIVE)
        (start, array_at), (text_size, array_size) = at.offsets[row].tolist(), at.sizes[row].tolist()
        crc32 = at.crc32[row].tolist()
        for _ in range(2):  # once more from a new descriptor or download: network drives lose theirs
            try:
                content = patiently(lambda: self._read(number, array_at + array_size - start, start), DRIVE)
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
            else:
                text, array = content[:text_size], content[array_at - start :]  # the members are adjacent
                if [zlib.crc32(text), zlib.crc32(array)] == crc32:
                    return text, array
                reason = "is damaged (crc32 does not fit)"
            self._close(number)
            if self.mirror:
                self._path(number).unlink(missing_ok=True)
        raise DataError(f"{self._path(number)}: sample {self.key(index)} {reason}")

    def _read(self, number: int, size: int, start: int) -> bytes:
        try:
            return os.pread(self._descriptor(number), size, start)
        except OSError:
            self._close(number)  # a stale one would stay so
            raise

    def will_read(self, indices: Iterable[int]) -> None:
        """Let the kernel fetch these samples, all at once and in any order; what is wrong with them, reading says."""
        for index in indices if hasattr(os, "posix_fadvise") else ():
            with contextlib.suppress(OSError, DataError):
                number, row = self._locate(index)
                at = self._index(number)
                start, end = int(at.offsets[row, 0]), int(at.offsets[row, 1] + at.sizes[row, 1])
                os.posix_fadvise(self._descriptor(number), start, end - start, os.POSIX_FADV_WILLNEED)

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.shards[number]["count"]

    def _path(self, number: int) -> Path:
        folder, shard = self.folder / "shards", self.shards[number]
        return (folder / shard["sha256"][:16] if self.mirror else folder) / shard["name"]

    def _index(self, number: int) -> ShardIndex:
        return _recent(self._indexes, number, self._load_index, MAX_INDEXES)

    def _load_index(self, number: int) -> ShardIndex:
        path, sha256 = self._path(number), self.shards[number]["index_sha256"]
        if self.mirror:
            index = index_path(path)
            self.mirror.fetch(f"shards/{index.name}", index, sha256)
        return ShardIndex.load(path, sha256)

    def _descriptor(self, number: int) -> int:
        _reading.add(self)
        return _recent(self._open, number, self._open_shard, max(1, MAX_OPEN // len(_reading)), os.close)

    def _open_shard(self, number: int) -> int:
        path, shard = self._path(number), self.shards[number]
        if self.mirror:
            return self.mirror.open(f"shards/{path.name}", path, shard["sha256"], shard["bytes"])
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer

    def _close(self, number: int) -> None:
        if number in self._open:
            os.close(self._open.pop(number))

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def _recent(
    kept: dict[int, T], key: int, make: Callable[[int], T], most: int, drop: Callable[[T], object] = id
) -> T:
    """`kept[key]`, made if it is not there; those that were not asked for longest go when there are too many."""
    found = kept.pop(key) if key in kept else make(key)
    kept[key] = found
    while len(kept) > most:
        drop(kept.pop(next(iter(kept))))
    return found


_reading: weakref.WeakSet[ShardReader] = weakref.WeakSet()  # in this process; each has its share of MAX_OPEN


class TokenDataset(ShardReader):
    """A dataset folder (`<out>/video` or `<out>/image`) as a map from index to sample. Picklable.

    Args:
        folder: holds dataset.json, manifest.json and shards/; or the local copy of such a folder elsewhere.
        expected_tokenizer_sha256: refuse shards that were made by another tokenizer.
        split: which shards to use; None for all.
        strict: as in `ShardReader`.

    Attributes:
        info: the content of dataset.json (kind, shape, vocab, tokenizer, image_source, sampling, ...).
        shape: (t, h, w) of every sample. vocab: ids lie in [0, vocab).
        manifest_id: identity of all the bytes; training refuses to resume on another.

    Raises:
        UserError: no finished dataset there, no such split, another tokenizer.
        DataError: a shard is missing or has another size than the manifest says.
    """

    def __init__(
        self,
        folder: str | Path | Mirror,
        expected_tokenizer_sha256: str | None = None,
        split: str | None = "train",
        strict: bool = True,
    ) -> None:
        super().__init__(folder, split, strict=strict)
        where = f"{self.address}/dataset.json"
        check_fields(where, self.info, {"kind": str, "shape": list[int], "vocab": int, "tokenizer": dict})
        check_fields(where, self.info, {PROOF: dict | None, WITHOUT: dict[str, dict[str, int]] | None})
        check_fields(f"{where}: tokenizer", self.info["tokenizer"], {"sha256": str})
        if not 0 < self.info["vocab"] <= MAX_VOCAB:
            raise UserError(f"{where}: vocab is {self.info['vocab']}, expected 1 to {MAX_VOCAB}")
        if len(self.info["shape"]) != 3 or not all(0 < side < 2**20 for side in self.info["shape"]):
            raise UserError(f"{where}: shape is {self.info['shape']}, expected [t, h, w]")
        self._check_tokenizer(expected_tokenizer_sha256)
        self.shape: tuple[int, ...] = tuple(self.info["shape"])
        self.vocab: int = self.info["vocab"]
        self._header = npy_header(self.shape)

    def _check_tokenizer(self, expected: str | None) -> None:
        found = self.info["tokenizer"]["sha256"]
        if expected is not None and found != expected:
            raise UserError(
                f"{self.address}: these shards were made by tokenizer {found}, this run uses tokenizer {expected}; "
                "tokenize the videos again or use that tokenizer"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """The identity that a run is bound to, and that tells a person how another dataset differs."""
        return {
            "manifest": self.manifest_id,
            "split": self.split,
            "samples": len(self),
            "shards": len(self.shards),
            "tokenizer": self.info["tokenizer"]["sha256"],
        }

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
        size = len(self._header) + 2 * math.prod(self.shape)
        if not array.startswith(self._header) or len(array) != size:
            raise DataError(f"{self.folder}: sample {self.key(index)} does not have shape {self.shape}")
        ids = np.frombuffer(array, dtype="<i2", offset=len(self._header)).reshape(self.shape)
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise DataError(
                f"{self.folder}: sample {self.key(index)}: ids outside the vocabulary of {self.vocab}"
            )
        where = f"{self.folder}: sample {self.key(index)}"
        try:
            return ids, check_fields(where, json.loads(text), {"caption": str | None, "label": int | None})
        except UserError as error:
            raise DataError(str(error)) from None
        except NOT_JSON as error:
            raise DataError(f"{where}: not valid JSON ({error})") from None
