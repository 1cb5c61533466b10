"""The shard format: plain WebDataset tars with a sidecar index, written so that a crash leaves nothing half done.

    <dataset>/dataset.json      what a sample is: kind, shape, vocab, tokenizer, sampling
    <dataset>/manifest.json     the shards in order (split, name, count, bytes, sha256) and their common manifest_id
    <dataset>/shards/train-000000-of-000002.tar
                     train-000000-of-000002.tar.idx.npz      key, offset, size and crc32 of every member
                     train-000000-of-000002.tar.done.json    written last: the shard is whole

A sample is two adjacent members, `{key}.json` (an object) and `{key}.npy` (int16 ids, C order, .npy version 1.0).
Nothing in a tar depends on when, where or by whom it was written, so the same ids give the same bytes.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import secrets
import socket
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from webdataset import TarWriter

from megavrc.errors import UserError
from megavrc.files import (
    check_fields,
    read_object,
    read_regular,
    sha256_file,
    sha256_json,
    write_atomic,
    write_json,
)

log = logging.getLogger(__name__)

FORMAT = "megavrc-shards 1"
# Of a shard: in manifests, and in done files too.
LISTED = {"name": str, "count": int, "bytes": int, "sha256": str, "index_sha256": str}
STAMP = {"plan_sha256": str, "failed": int | None, "width": int | None, "cut": int | None}
PROOF = "proof"  # in dataset.json: how many samples were compared with their videos, or why none were
WITHOUT = "without"  # there too: how many videos of a split have no caption, how many no label
BLOCK = 512  # tar pads headers and members to this many bytes
MAX_VOCAB = 2**15  # ids are int16
# What `write_atomic` and `MemberWriter` call the half-written files of a job, whose folder may be the user's own.
HALF_WRITTEN = re.compile(
    r"\.(plan\.jsonl?|(dataset|manifest)\.json|.+-\d{6,}(\.jsonl|-of-\d{6,}\.tar.*))\.(\w{8}|\w{16}\.tmp)"
)


class DataError(UserError):
    """Damaged or missing bytes in a dataset; the message names the shard and, where it applies, the sample."""


def shard_name(split: str, number: int, total: int) -> str:
    """File name of a shard; the total is in it so that a folder with shards of two plans is seen at a glance."""
    return f"{split}-{number:06d}-of-{total:06d}.tar"


def index_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.idx.npz")


def done_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.done.json")


def npy_header(shape: tuple[int, ...], dtype: str = "<i2") -> bytes:
    """The bytes before the values in a `.npy` member of this shape."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


class MemberWriter:
    """Writes one shard beside its final name; only `commit` makes it appear. Use as a context manager.

    Args:
        tar: final path of the shard.
    """

    def __init__(self, tar: Path) -> None:
        self.tar = tar
        self._keys: list[str] = []
        self._members: list[tuple[int, int, int]] = []  # offset, size, crc32; two for each sample
        self._end = 0
        tar.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = tar.with_name(f".{tar.name}.{secrets.token_hex(8)}.tmp")
        self._file = open(self._temporary, "wb")
        self._writer = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)

    def append(self, key: str, fields: dict[str, Any], npy: bytes) -> None:
        """Append a sample: its JSON fields and the bytes of its array in .npy format."""
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()
        members = {"json": text, "npy": npy}
        self._writer.write({"__key__": key, **members})
        self._keys.append(key)
        for payload in members.values():
            self._members.append((self._end + BLOCK, len(payload), zlib.crc32(payload)))
            self._end += BLOCK + -(-len(payload) // BLOCK) * BLOCK

    def commit(self, **stamp: Any) -> None:
        """Make the shard appear: tar, then index, then the done file, which also holds `stamp`."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        done = {
            "name": self.tar.name,
            "count": len(self._keys),
            "bytes": self._temporary.stat().st_size,
            "sha256": sha256_file(self._temporary),
        }
        done_path(self.tar).unlink(missing_ok=True)  # while a shard is replaced it is not whole
        os.replace(self._temporary, self.tar)
        write_atomic(index_path(self.tar), self._index())
        _sync_folder(self.tar.parent)  # the done file must not survive a power failure that the others do not
        done["index_sha256"] = sha256_file(index_path(self.tar))
        write_json(done_path(self.tar), {**done, **stamp, "host": socket.gethostname()})

    def _index(self) -> bytes:
        members = np.array(self._members, dtype=np.int64).reshape(-1, 2, 3)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            keys=np.array(self._keys, dtype="S"),
            offsets=members[..., 0],
            sizes=members[..., 1].astype(np.uint32),
            crc32=members[..., 2].astype(np.uint32),
        )
        return buffer.getvalue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError):  # of a full disk; ValueError: closed by `commit`
            self._writer.close()  # before its file, into which it still writes
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Remove what tasks that were killed have left in a folder where none writes now; nothing of the user's."""
    for path in folder.glob(".*"):
        if HALF_WRITTEN.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some network drives know no such thing
        os.fsync(descriptor)
    os.close(descriptor)


class ShardWriter(MemberWriter):
    """A shard of ids.

    Args:
        tar: final path of the shard.
        shape: shape of every sample's ids, (t, h, w).
        vocab: ids must lie in [0, vocab).
    """

    def __init__(self, tar: Path, shape: tuple[int, ...], vocab: int) -> None:
        if vocab > MAX_VOCAB:
            raise UserError(
                f"a vocabulary of {vocab} does not fit the shards' int16 ids (at most {MAX_VOCAB})"
            )
        super().__init__(tar)
        self.shape, self.vocab = shape, vocab
        self._header = npy_header(shape)

    def add(self, key: str, ids: np.ndarray, fields: dict[str, Any]) -> None:
        """Append a sample: ids of `shape` with values in [0, vocab), and its JSON fields.

        Raises:
            ValueError: wrong shape or ids outside the vocabulary.
        """
        if ids.shape != self.shape:
            raise ValueError(f"sample {key}: ids have shape {ids.shape}, the dataset {self.shape}")
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise ValueError(
                f"sample {key}: ids {ids.min()}..{ids.max()} outside the vocabulary of {self.vocab}"
            )
        self.append(key, fields, self._header + ids.astype("<i2").tobytes())


@dataclass(frozen=True)
class ShardIndex:
    """Places of the members of each sample in the tar. Columns of the arrays: json, npy.

    Attributes:
        keys: bytes [n]. offsets: int64 [n, 2], of the payload. sizes: uint32 [n, 2]. crc32: uint32 [n, 2].
    """

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    crc32: np.ndarray

    @staticmethod
    def load(tar: Path, sha256: str) -> "ShardIndex":
        """Read the index of a shard; DataError if it is not the one that the manifest knows."""
        path = index_path(tar)
        if not path.is_file():
            raise DataError(f"{path}: index is missing; copy it again or tokenize again")
        content = read_regular(path)
        if (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise DataError(f"{path}: index is damaged: sha256 {found[:12]}, the manifest says {sha256[:12]}")
        try:
            return ShardIndex(*_index_arrays(content))
        except (ValueError, KeyError, zipfile.BadZipFile, EOFError, MemoryError) as error:
            raise DataError(f"{path}: index is damaged: {error}") from None


def _index_arrays(content: bytes) -> list[np.ndarray]:
    """Keys, offsets, sizes, crc32 of an index, whose arrays must fit each other. ValueError, KeyError, BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if sum(member.file_size for member in file.infolist()) > len(content):  # ours are not compressed
            raise ValueError("it would unpack to more than it is")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        keys, *columns = (arrays[name] for name in ("keys", "offsets", "sizes", "crc32"))
    if keys.ndim != 1 or keys.dtype.kind != "S" or any(column.shape != (len(keys), 2) for column in columns):
        raise ValueError("its arrays do not fit each other")
    if any(column.dtype.kind not in "iu" or (len(keys) and column.min() < 0) for column in columns):
        raise ValueError("its numbers are none")
    return [keys, *columns]


def read_done(tar: Path, plan_sha256: str) -> dict[str, Any] | None:
    """The done file of a shard that is whole and of this plan, otherwise None; one that is damaged is named."""
    if not (done_path(tar).is_file() and index_path(tar).is_file() and tar.is_file()):
        return None
    try:
        done = read_object(done_path(tar), LISTED | STAMP)
        check_listed(done_path(tar), done)
        if done["name"] != tar.name:
            raise UserError(f"{done_path(tar)}: name is {done['name']!r:.60}")
    except UserError as error:
        log.warning("%s; the shard counts as not done", error)
        return None
    whole = done["plan_sha256"] == plan_sha256 and done["bytes"] == tar.stat().st_size
    return done if whole else None


def check_listed(where: str | Path, shard: dict[str, Any]) -> None:
    """UserError unless what a done file or a manifest says of a shard can be true."""
    check_fields(where, shard, LISTED)
    for name in ("count", "bytes"):
        if not 0 <= shard[name] < 2**63:
            raise UserError(f"{where}: {name} is {shard[name]}")
    for name in ("sha256", "index_sha256"):
        if not re.fullmatch("[0-9a-f]{64}", shard[name]):
            raise UserError(f"{where}: {name} is {shard[name]!r:.80}, not a SHA-256")
    if Path(shard["name"]).name != shard["name"] or "\0" in shard["name"]:
        raise UserError(f"{where}: {shard['name']!r:.80} is not the name of a file")


def manifest_id(dataset: dict[str, Any], shards: list[dict[str, Any]]) -> str:
    """The identity of a dataset: what it is and the hash of every byte in it, but not what was found in these."""
    decides = {key: value for key, value in dataset.items() if key not in (PROOF, WITHOUT)}
    return sha256_json({"dataset": decides, "shards": shards})


def listed(split: str, done: dict[str, Any]) -> dict[str, Any]:
    """A shard as the manifest lists it, from its done file."""
    return {
        "split": split,
        **{name: done[name] for name in ("name", "count", "bytes", "sha256", "index_sha256")},
    }


def write_shard_manifest(
    folder: Path, dataset: dict[str, Any], shards: list[dict[str, Any]], format: str = FORMAT
) -> dict[str, Any]:
    """Write `dataset.json` and `manifest.json` of a finished dataset and return the manifest.

    Args:
        folder: the dataset's folder.
        dataset: for tokens at least kind, shape, vocab and tokenizer {name, sha256}.
        shards: in order, each with split, name, count, bytes, sha256, index_sha256.
        format: what the samples are.
    """
    dataset = {"format": format, **dataset}
    manifest = {
        "manifest_id": manifest_id(dataset, shards),
        "count": sum(shard["count"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
    }
    write_json(folder / "dataset.json", dataset)
    write_json(folder / "manifest.json", manifest)
    return manifest
