"""One checkpoint folder: safetensors files, state.json, and a manifest with the SHA-256 of each of them.

    step-00001000/
        model.safetensors        one fp32 tensor per parameter
        exp_avg.safetensors      AdamW's first moments, fp32, same names
        exp_avg_sq.safetensors   AdamW's second moments
        buffers.safetensors      persistent buffers (BatchNorm statistics, codebooks) in their own dtype
        state.json               step and whatever else the writer needs to resume
        manifest.json            {"format", "files": {name: {"bytes", "sha256"}}}

A folder with the final name is complete: it is written under another name and renamed last.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from megavrc.config import UserError, read_json, sha256_file, write_json

FORMAT = "megavrc-checkpoint v1"
Groups = dict[str, dict[str, Tensor]]


class DamagedCheckpoint(Exception):
    """A checkpoint whose bytes are not those that were written; the message names file and reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; tensors are read on request."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of `<group>.safetensors`, on the CPU."""
        return load_file(self.path / f"{group}.safetensors")

    def groups(self) -> Groups:
        """All tensors by group."""
        return {path.stem: self.tensors(path.stem) for path in sorted(self.path.glob("*.safetensors"))}


def write_files(folder: Path, groups: Groups, state: dict[str, Any]) -> None:
    """Write all files of a checkpoint into a new folder, down to the disk."""
    folder.mkdir(parents=True)
    for group, tensors in groups.items():
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{group}.safetensors"
        )
    write_json(folder / "state.json", state)
    names = sorted(path.name for path in folder.iterdir())
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in names
    }
    write_json(folder / "manifest.json", {"format": FORMAT, "files": files})
    for name in names:
        sync(folder / name)
    sync(folder)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify(folder: Path) -> None:
    """Compare every byte with the manifest. Raises DamagedCheckpoint."""
    try:
        manifest = read_json(folder / "manifest.json")
    except UserError as error:
        raise DamagedCheckpoint(str(error)) from None
    if manifest.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{folder}: format {manifest.get('format')!r}, expected {FORMAT!r}")
    for name, recorded in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: missing")
        if (size := path.stat().st_size) != recorded["bytes"]:
            raise DamagedCheckpoint(f"{path}: {size} bytes, {recorded['bytes']} were written")
        if sha256_file(path) != recorded["sha256"]:
            raise DamagedCheckpoint(f"{path}: its bytes have changed (SHA-256 does not match the manifest)")


def read(folder: str | Path) -> Checkpoint:
    """Verify and open one checkpoint folder. Raises DamagedCheckpoint."""
    verify(Path(folder))
    return Checkpoint(Path(folder), read_json(Path(folder) / "state.json"))
