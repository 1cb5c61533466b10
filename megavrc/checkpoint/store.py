"""The `checkpoints/` folder of a run: atomic commits, `latest`, fallback to older ones, retention."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from megavrc.checkpoint.format import Checkpoint, DamagedCheckpoint, Groups, read, sync, write_files
from megavrc.config import UserError, write_atomic

log = logging.getLogger("megavrc")

UNFINISHED = ".unfinished-"


def write(store: Path, step: int, groups: Groups, state: dict[str, Any], keep: int) -> Path:
    """Commit a checkpoint: everything on disk under a temporary name, then one rename, then `latest`.

    Args:
        store: the `checkpoints` folder of a run; this process must be its only writer.
        step: optimiser steps done.
        groups: file name to {tensor name: tensor}, see `format`.
        state: JSON content to find again when resuming; "step" is added.
        keep: how many checkpoints stay.
    """
    final = store / f"step-{step:08d}"
    for leftover in store.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    unfinished = store / f"{UNFINISHED}{final.name}"
    write_files(unfinished, groups, {"step": step, **state})
    if final.exists():  # the run went back behind this step after damage, and came here again
        _remove(final)
    os.rename(unfinished, final)
    sync(store)
    write_atomic(store / "latest", final.name.encode())
    for old in _newest_first(store)[keep:]:
        if old != final:
            _remove(old)
    return final


def newest_good(store: Path) -> Checkpoint | None:
    """The checkpoint that `latest` names if it is whole, else the newest whole one; None when there never was one.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    candidates = _newest_first(store)
    latest = store / "latest"
    if latest.is_file():
        named = store / latest.read_text().strip()
        candidates.sort(key=lambda path: path != named)  # stable: the named one first
    for path in candidates:
        try:
            return read(path)
        except DamagedCheckpoint as error:
            log.error("DAMAGED CHECKPOINT, trying an older one: %s", error)
    if candidates:
        raise UserError(
            f"{store}: all {len(candidates)} checkpoints are damaged; restore one or start a new run_dir"
        )
    return None


def read_weights(run_or_checkpoint: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Parameters (fp32) and buffers by name, and the state, of a run's newest checkpoint or of a given one.

    Raises:
        UserError: no checkpoint there, or a damaged one.
    """
    path = Path(run_or_checkpoint)
    if (path / "manifest.json").is_file():
        try:
            checkpoint = read(path)
        except DamagedCheckpoint as error:
            raise UserError(f"damaged checkpoint: {error}") from None
    else:
        found = newest_good(path / "checkpoints")
        if found is None:
            raise UserError(
                f"{path}: no checkpoints there; expected a run folder or a step-* folder in its checkpoints/"
            )
        checkpoint = found
    return checkpoint.tensors("model") | checkpoint.tensors("buffers"), checkpoint.state


def _newest_first(store: Path) -> list[Path]:
    return sorted(store.glob("step-*"), reverse=True)


def _remove(folder: Path) -> None:
    """Rename before deleting, so that a half-deleted checkpoint never has the name of a whole one."""
    doomed = folder.with_name(f"{UNFINISHED}{folder.name}-old")
    os.rename(folder, doomed)
    shutil.rmtree(doomed)
