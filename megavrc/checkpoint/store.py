"""The `checkpoints/` folder of a run: atomic commits, `latest`, fallback to older ones, retention."""

import itertools
import logging
import math
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megavrc.checkpoint.format import (
    Checkpoint,
    DamagedCheckpoint,
    describe,
    read,
    read_checkpoint_manifest,
    sync,
    verify,
    write_checkpoint_manifest,
)
from megavrc.checkpoint.shards import File, Groups, Probe, Shard, plan_shards, unprobed, write_shard
from megavrc.errors import TransientError, UserError
from megavrc.files import (
    DENIED,
    PASSING,
    PAUSES,
    patiently,
    read_json,
    read_regular,
    write_atomic,
    write_json,
)

log = logging.getLogger("megavrc")

UNFINISHED = ".unfinished-"


# --- writing ---------------------------------------------------------------------------------------------------------


def begin(store: Path, step: int) -> Path:
    """A new folder for the files of a checkpoint, under a name of its own that no reader takes for one.

    Whatever interrupted writes have left is removed, so the caller must be the only writer.
    """
    for leftover in store.glob(f"{UNFINISHED}*"):
        _delete(leftover)
    folder = _unfinished(store, _name(step))
    folder.mkdir(parents=True)
    return folder


def commit(
    unfinished: Path,
    step: int,
    shards: list[Shard],
    files: dict[str, File],
    groups: list[str],
    state: dict[str, Any],
    probe: Probe = unprobed,
) -> Path:
    """Make a checkpoint of a folder whose shards are all on the disk: manifest, one rename, then `latest`.

    One of the same step that is there, because the run went back behind it, is put out of the way and removed last.

    Args:
        unfinished: from `begin`.
        step: optimiser steps done.
        shards, files: all, of all ranks.
        groups: names of all groups, also of empty ones.
        state: JSON content to find again when resuming.
        probe: see `shards`.
    """
    store, final = unfinished.parent, unfinished.with_name(_name(step))
    write_json(unfinished / "state.json", state)
    probe("before_manifest")
    write_checkpoint_manifest(
        unfinished, shards, groups, files | {"state.json": describe(unfinished / "state.json")}
    )
    sync(unfinished)
    probe("before_rename")
    before = _unfinished(store, f"{final.name}-old")
    if final.exists():
        os.rename(final, before)
    os.rename(unfinished, final)
    probe("after_rename")
    sync(store)
    read_checkpoint_manifest(final)
    probe("before_latest")
    write_atomic(store / "latest", final.name.encode())
    sync(store)
    _delete(before)
    return final


def write(store: Path, step: int, groups: Groups, state: dict[str, Any], keep: int) -> Path:
    """Commit a checkpoint from one process: all of the above, then retention of the last `keep`."""
    shards = plan_shards(groups)
    unfinished = begin(store, step)
    files = {
        shard.file: write_shard(
            unfinished / shard.file, {name: groups[shard.group][name] for name in shard.tensors}
        )
        for shard in shards
    }
    final = commit(unfinished, step, shards, files, list(groups), {"step": step, **state})
    Retention(keep).apply(final)
    return final


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        last: so many of the newest.
        every: interval in steps of the checkpoints that stay for good (0: none).
        best: the one with the lowest "validation_loss" in its state, if any has one, of those on the newest's
            "validation_sets" (which old ones do not name).
    """

    last: int
    every: int = 0
    best: bool = True

    def most(self, steps: Sequence[int]) -> int:
        """Checkpoints of a run that saves at these steps that are there at once, with the one that is being written."""
        passing = [not self.every or step % self.every != 0 for step in steps]
        # While checkpoint `number` is written: those before the `last` newest that are not there for good.
        old = [0] * self.last + list(itertools.accumulate(passing, initial=0))
        return max(number + 1 - max(0, old[number] - self.best) for number in range(len(steps)))

    def apply(self, newest: Path, before: int | None = None) -> None:
        """Remove what need not stay; nothing before the newest one has been read back whole.

        Checkpoints of later steps than the newest, which a run that went back has left, are not touched until it has
        passed them: they would count among the newest, and be what damage falls back to.

        Args:
            before: step of the checkpoint that the newest goes on from; those between the two are of a left future.
        """
        there = [folder for folder in _newest_first(newest.parent) if folder.name <= newest.name]
        since = _step(newest) if before is None else before
        left = {folder for folder in there if since < _step(folder) < _step(newest)}
        candidates = [folder for folder in there if folder not in left]
        kept = {newest, *candidates[: self.last], *self._best(candidates)}
        if self.every:
            kept |= {folder for folder in candidates if _step(folder) % self.every == 0}
        doomed = [folder for folder in there if folder not in kept]
        if not doomed:
            return
        try:
            verify(newest, cold=True)
        except (DamagedCheckpoint, OSError) as error:
            log.error("DAMAGED CHECKPOINT, just written; no older one is removed: %s", error)
            return
        for folder in doomed:
            _remove(folder)

    def _best(self, candidates: list[Path]) -> list[Path]:
        known = [(folder, *found) for folder in candidates if self.best and (found := _validation(folder))]
        losses = {folder: loss for folder, loss, sets in known if sets in (None, known[0][2])}
        return [min(losses, key=losses.__getitem__)] if losses else []


def occupied(store: Path) -> int:
    """Bytes of all checkpoints there, with what interrupted writes have left, which `begin` removes."""
    files = itertools.chain(store.glob("step-*/*"), store.glob(f"{UNFINISHED}*/*"))
    return sum(file.stat().st_size for file in files)


def _validation(folder: Path) -> tuple[float, Any] | None:
    """The loss, and what tells the sets that it is on; None where there is none."""
    try:
        state = read_json(folder / "state.json")
    except (UserError, OSError):
        return None  # a damaged one
    loss = state.get("validation_loss") if isinstance(state, dict) else None
    # NaN would be below and above all others.
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        return None
    return loss, state.get("validation_sets")


# --- reading ---------------------------------------------------------------------------------------------------------


def newest_good(store: Path, until: int | None = None) -> Checkpoint | None:
    """The checkpoint that `latest` names, or the newest whole one before it; None when there never was one.

    Later ones, of a future that was left by going back, are taken only if none of these is whole.

    Args:
        store: the `checkpoints` folder of a run.
        until: only those of at most so many steps.

    Raises:
        UserError: there are checkpoints, and all of them are damaged, or they are of another version.
        TransientError: the folder, or every checkpoint that is not damaged, cannot be read, which may pass.
    """
    candidates = patiently(lambda: _candidates(store, until), PASSING | DENIED)
    pauses, unread = iter(PAUSES), None  # for all of them together
    for folder in candidates:
        try:
            return patiently(lambda folder=folder: read(folder), PASSING | DENIED, pauses)  # type: ignore[misc]
        except DamagedCheckpoint as error:
            log.error("DAMAGED CHECKPOINT, trying another one: %s", error)
        except TransientError as error:
            unread = error
            log.error("CHECKPOINT CANNOT BE READ, trying another one: %s", error)
    if unread:
        raise TransientError(f"{store}: none of {len(candidates)} checkpoints can be read: {unread}")
    if candidates:
        raise UserError(
            f"{store}: all {len(candidates)} checkpoints are damaged; restore one or start a new run_dir"
        )
    return None


def _candidates(store: Path, until: int | None) -> list[Path]:
    """The checkpoints in the order in which they are tried."""
    folders = [folder for folder in _newest_first(store) if until is None or _step(folder) <= until]
    try:
        named = read_regular(store / "latest").decode(errors="replace").strip()
    except FileNotFoundError:
        return folders
    return sorted(folders, key=lambda folder: folder.name > named)  # stable: newest first among either


def read_weights(
    run_or_checkpoint: str | Path, group: str = "model"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Parameters (fp32) and buffers by name, and the state, of a run's newest checkpoint or of a given one.

    Args:
        run_or_checkpoint: folder.
        group: to take the parameters from; what it has of the buffers replaces them.

    Raises:
        UserError: no checkpoint there, or a damaged one, or without that group.
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
    groups: Mapping[str, Mapping[str, Tensor]] = checkpoint.groups
    if group not in groups:
        raise UserError(f"{checkpoint.path}: has no {group!r}, only {', '.join(sorted(groups))}")
    return {**groups["buffers"], **groups[group]}, checkpoint.state


def _newest_first(store: Path) -> list[Path]:
    """Checkpoints by name. Unlike `glob`, which finds nothing in a folder that cannot be read, this raises OSError."""
    try:
        names = os.listdir(store)
    except FileNotFoundError:
        if store.is_symlink():
            raise TransientError(
                f"{store}: the folder that it links to is not there; is its drive?"
            ) from None
        return []
    except NotADirectoryError:
        raise UserError(f"{store}: is not a folder; choose another run_dir") from None
    steps = [name for name in names if name.startswith("step-") and name.removeprefix("step-").isdecimal()]
    return [store / name for name in sorted(steps, reverse=True)]


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """The folder of a run's checkpoint."""
    return run_dir / "checkpoints" / _name(step)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _unfinished(store: Path, name: str) -> Path:
    """A name that no other write has, nor what one has left that cannot be deleted."""
    return store / f"{UNFINISHED}{name}-{uuid.uuid4().hex[:8]}"


def _remove(folder: Path) -> None:
    """Rename before deleting, so that a half-deleted checkpoint never has the name of a whole one."""
    doomed = _unfinished(folder.parent, f"{folder.name}-old")
    os.rename(folder, doomed)
    _delete(doomed)


def _delete(leftover: Path) -> None:
    """Remove what nobody reads; if that fails, say so and leave it for the next time."""
    try:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s: cannot be deleted (%s); delete it by hand", leftover, error)
