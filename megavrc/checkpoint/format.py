"""One checkpoint folder: safetensors files, state.json, and a manifest with the SHA-256 of each of them.

    step-00001000/
        model-00001.safetensors ..       fp32 parameters
        exp_avg-00001.safetensors ..     AdamW's first moments, fp32, same names
        exp_avg_sq-00001.safetensors ..  AdamW's second moments
        buffers-00001.safetensors        persistent buffers (BatchNorm statistics, codebooks) in their own dtype
        state.json                       step and whatever else the writer needs to resume
        manifest.json                    {"format", "files": {name: {"bytes", "sha256"}},
                                          "groups": {group: {tensor: file}}, "sha256" of all this}

A group is any set of named whole tensors; how many files it has, and which rank wrote them, a reader need not know.
A folder with the final name is complete: it is written under another name and renamed last.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from megavrc.checkpoint.shards import File, Shard
from megavrc.errors import UserError
from megavrc.files import check_fields, check_format, read_json, read_object, sha256_json, write_json

FORMAT = "megavrc-checkpoint v2"
OLDER = ("megavrc-checkpoint v1",)


class DamagedCheckpoint(Exception):
    """A checkpoint whose bytes are not those that were written; the message names file and reason."""


def write_checkpoint_manifest(
    folder: Path, shards: list[Shard], groups: list[str], files: dict[str, File]
) -> None:
    """The manifest of files that are all on the disk already.

    Args:
        folder: that they are in.
        shards: all of them, of all ranks.
        groups: names of all groups, also of empty ones.
        files: every file of the folder as it was written.
    """
    index: dict[str, dict[str, str]] = {group: {} for group in groups}
    for shard in shards:
        index[shard.group] |= dict.fromkeys(shard.tensors, shard.file)
    content = {"format": FORMAT, "files": dict(sorted(files.items())), "groups": index}
    write_json(folder / "manifest.json", {**content, "sha256": sha256_json(content)})


def describe(path: Path) -> File:
    """A file as it is on the disk now."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path, cold=False)}


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading ---------------------------------------------------------------------------------------------------------


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a group, each read when it is asked for."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self._folder, self._files = folder, files
        self._open: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        if file not in self._open:
            self._open[file] = safe_open(self._folder / file, framework="pt")
        return self._open[file].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @cached_property
    def _index(self) -> dict[str, dict[str, str]]:
        return read_json(self.path / "manifest.json")["groups"]

    def tensors(self, group: str) -> Mapping[str, Tensor]:
        """The tensors of a group by name, on the CPU; each is read when it is asked for."""
        return StoredTensors(self.path, self._index[group])

    @property
    def groups(self) -> dict[str, Mapping[str, Tensor]]:
        """All groups, as of `tensors`."""
        return {group: self.tensors(group) for group in self._index}


def open_unverified(folder: Path) -> Checkpoint:
    """Open a checkpoint that was verified before, by another rank."""
    return Checkpoint(folder, read_object(folder / "state.json", {"step": int}))


def read(folder: str | Path) -> Checkpoint:
    """Verify and open one checkpoint folder. Raises as `verify`."""
    verify(Path(folder))
    try:
        return open_unverified(Path(folder))
    except UserError as error:
        raise DamagedCheckpoint(str(error)) from None


def verify(folder: Path, cold: bool = False) -> None:
    """Compare every byte with the manifest.

    Args:
        folder: of a checkpoint.
        cold: read from the disk what the kernel still has in memory.

    Raises:
        DamagedCheckpoint: a byte differs, or a file is missing or no file.
        OSError: a file cannot be read, which may not be the checkpoint's fault.
        UserError: written in a format of before, or by a newer megavrc.
    """
    files = read_checkpoint_manifest(folder)["files"].items()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda item: _verify_file(folder / item[0], item[1], cold), files))


def read_checkpoint_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, which must have the hash that it names. Raises as `verify`."""
    path = folder / "manifest.json"
    try:
        manifest = read_json(path)
    except UserError as error:
        raise DamagedCheckpoint(str(error)) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found in OLDER:
        raise UserError(
            f"{path.parent}: written by another version of megavrc ({found}; this one reads {FORMAT}); go on with that "
            "version, or choose another run_dir"
        )
    if re.fullmatch(r"megavrc-checkpoint v\d+", str(found)):
        check_format(path, found, FORMAT)
    if found != FORMAT or manifest.pop("sha256", None) != sha256_json(manifest):
        raise DamagedCheckpoint(f"{path}: its bytes have changed")
    try:
        check_fields(
            path, manifest, {"files": dict[str, dict[str, Any]], "groups": dict[str, dict[str, str]]}
        )
        for name, file in manifest["files"].items():
            check_fields(f"{path}: {name}", file, {"bytes": int, "sha256": str})
            if Path(name).name != name:
                raise UserError(f"{path}: {name!r} is not the name of a file of this folder")
    except UserError as error:
        raise DamagedCheckpoint(str(error)) from None
    return manifest


def _verify_file(path: Path, recorded: File, cold: bool) -> None:
    if not path.is_file():
        raise DamagedCheckpoint(f"{path}: missing, or not a file")
    if (size := path.stat().st_size) != recorded["bytes"]:
        raise DamagedCheckpoint(f"{path}: {size} bytes, {recorded['bytes']} were written")
    if _sha256(path, cold) != recorded["sha256"]:
        raise DamagedCheckpoint(f"{path}: its bytes have changed (SHA-256 does not match the manifest)")


def _sha256(path: Path, cold: bool) -> str:
    with open(path, "rb") as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
