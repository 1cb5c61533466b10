"""The safetensors files of a checkpoint: how tensors are divided over them, and how one is written."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARD_BYTES = 512 << 20  # largest file, unless a single tensor is larger
CHUNK = 16 << 20
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Groups = Mapping[str, Mapping[str, Tensor]]
File = dict[str, Any]  # {"bytes", "sha256"} of a file as it was written
Probe = Callable[[str], object]  # called with the name of each point of a write; tests break writes there


def unprobed(point: str) -> None:
    """The probe of a write that nobody disturbs."""


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a checkpoint, and the rank that writes it."""

    group: str
    file: str
    tensors: tuple[str, ...]
    owner: int = 0


def plan_shards(groups: Groups, ranks: int = 1, limit: int = SHARD_BYTES) -> list[Shard]:
    """Divide tensors over files of at most `limit` bytes, and files over ranks so that all write about as much.

    Args:
        groups: tensors by group and name; only their sizes matter, so they may be on the meta device.
        ranks: that write.
        limit: bytes; a larger tensor has a file of its own.
    """
    files: list[tuple[int, str, str, tuple[str, ...]]] = []
    for group, tensors in groups.items():
        total = sum(tensor.nbytes for tensor in tensors.values())
        for number, (names, size) in enumerate(_fill(tensors, min(limit, math.ceil(total / ranks))), 1):
            files.append((size, f"{group}-{number:05d}.safetensors", group, names))
    load, owners = [0] * min(ranks, len(files)), {}
    for size, file, *_ in sorted(files, reverse=True):  # the largest first: the rest evens out
        owners[file] = load.index(min(load))
        load[owners[file]] += size
    return [Shard(group, file, names, owners[file]) for _, file, group, names in files]


def _fill(tensors: Mapping[str, Tensor], limit: int) -> Iterator[tuple[tuple[str, ...], int]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > limit:
            yield tuple(names), size
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield tuple(names), size


def write_shard(path: Path, tensors: Mapping[str, Tensor], probe: Probe = unprobed) -> File:
    """Write CPU tensors as a safetensors file, down to the disk.

    Not safetensors' own writer: that one copies every tensor first and holds Python's lock, so that training would
    wait for it, and the file would have to be read again for its hash.
    """
    probe("before_shard")
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    with open(path, "wb") as file:
        file.write(head)
        file.flush()
        probe("mid_shard")
        for part in _chunks(tensors):
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    probe("after_shard")
    return {"bytes": len(head) + end, "sha256": digest.hexdigest()}


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(flat), CHUNK):
            yield flat[start : start + CHUNK]
