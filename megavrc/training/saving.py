"""Checkpoints of a run in progress, while it goes on.

    save     all ranks: each copies its share of the state to its host's memory              (training waits)
    write    each rank, in the background: its files, down to the disk, with hashes
    poll     all ranks, at the end of a step: have all written? Then the main rank is given all hashes
    commit   the main rank, in the background: manifest, rename, `latest`, retention

Collectives run on the training thread only. There is never a second write before the first is over. A write that
fails on any rank is undone, loudly, and training goes on.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megavrc.checkpoint import begin, commit, occupied
from megavrc.checkpoint.shards import File, Shard, plan_shards, write_shard
from megavrc.distributed import Rank, any_rank, fault
from megavrc.errors import TransientError, UserError
from megavrc.files import patiently
from megavrc.training.state import TrainingState

log = logging.getLogger("megavrc")

RETRY_AFTER = (1.0, 5.0)  # seconds, for a checkpoint that a run ends with


class Saver:
    """Writes checkpoints of a run; all ranks call each method together.

    Args:
        store: the `checkpoints` folder of the run.
        state: to save.
        rank: of this process.
        background: write while training goes on, from a copy of this rank's share in the host's memory, which stays
            allocated. Otherwise `save` returns after the commit, and holds two files' worth at a time.
        check: called on the main rank before anything is written and again before the commit; a UserError ends the run.
        retain: called on the main rank's writing thread with the folder of each new checkpoint and `before`.

    Attributes:
        before: step of the checkpoint that training goes on from; None: from none.
        failures: writes that failed.
        stalled: seconds that training has waited for checkpoints.
    """

    def __init__(
        self,
        store: Path,
        state: TrainingState,
        rank: Rank,
        background: bool,
        check: Callable[[], None],
        retain: Callable[[Path, int | None], None],
    ) -> None:
        self._store, self._state, self._rank, self._background = store, state, rank, background
        self._check, self._retain = check, retain
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._host: dict[tuple[str, str], Tensor] = {}
        self._write: _Write | None = None
        self.before: int | None = None
        self.failures, self.stalled = 0, 0.0

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Begin a checkpoint of this moment; first wait until the one before is over.

        Args:
            step: optimiser steps done.
            progress: for state.json; the main rank's counts.

        Raises:
            UserError: another job has taken over the run.
        """
        with self._stalling():
            self._finish()
            shards = plan_shards(self._state.like, self._rank.world_size)
            self._write = write = self._begin(_Write(step, {"step": step, **progress}, shards))
            for shard in shards:
                self._put(write, shard)
            if not self._background:
                self._finish()

    def finish(self) -> None:
        """Wait until the write under way is over, if there is one. Raises as `save` does."""
        with self._stalling():
            self._finish()

    def save_and_wait(self, step: int, progress: dict[str, Any]) -> None:
        """The checkpoint that a run ends with: committed on return, after several attempts if need be.

        Raises:
            TransientError: it cannot be written; the log says why.
        """
        for seconds in (0.0, *RETRY_AFTER):
            time.sleep(seconds)
            failures = self.failures
            self.save(step, progress)
            self.finish()
            if self.failures == failures:
                return
        raise TransientError(f"{self._store}: the last checkpoint could not be written, for the reason above")

    def poll(self) -> None:
        """Move a write on as far as that needs no waiting. Raises as `save` does."""
        if self._write is not None:
            with self._stalling():
                self._advance(self._write)

    def close(self) -> None:
        """Drop what has not begun to be written."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- the steps of a write ----------------------------------------------------------------------------------------

    def _begin(self, write: "_Write") -> "_Write":
        if self._rank.main:
            task = self._thread.submit(self._make_folder, write.step)
            wait([task])
            write.tasks.append(task)
            write.folder = None if task.exception() else task.result()
        folder = [write.folder]
        dist.broadcast_object_list(folder, src=0)
        write.folder = folder[0]
        return write

    def _make_folder(self, step: int) -> Path:
        self._check()
        return begin(self._store, step)

    def _put(self, write: "_Write", shard: Shard) -> None:
        """Gather the tensors of a file; on its owner, hand them to the writing thread."""
        mine = shard.owner == self._rank.rank
        group, tensors = self._state.groups[shard.group], {}
        for name in shard.tensors:
            full = group.get(name)
            if mine:
                tensors[name] = self._to_host(shard.group, name, full)
        if not mine or write.folder is None:
            return
        if self._rank.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        if not self._background:
            wait(write.tasks)
        task = self._thread.submit(write_shard, write.folder / shard.file, tensors, write.probe)
        write.tasks.append(task)
        write.files[shard.file] = task

    def _to_host(self, group: str, name: str, full: Tensor) -> Tensor:
        like = self._state.groups[group].like[name]
        if not self._background:
            return full.to("cpu", like.dtype, copy=True)
        if (group, name) not in self._host:
            # The GPU copies to ordinary memory at a fraction of the speed.
            pinned = self._rank.device.type == "cuda"
            self._host[group, name] = torch.empty(like.shape, dtype=like.dtype, pin_memory=pinned)
        return self._host[group, name].copy_(full, non_blocking=True)

    def _advance(self, write: "_Write") -> None:
        busy, failed = any_rank(not write.done, write.done and write.error is not None)
        if busy:
            return
        if failed or write.committing:
            self._write = None
            if failed:
                self._give_up(write)
            return
        parts: list[Any] = [None] * self._rank.world_size
        dist.all_gather_object(parts, {name: task.result() for name, task in write.files.items()})
        write.committing = True
        if self._rank.main:
            files = {name: file for part in parts for name, file in part.items()}
            write.tasks.append(self._thread.submit(self._commit, write, files))

    def _finish(self) -> None:
        while self._write is not None:
            wait(self._write.tasks)
            self._advance(self._write)

    def _commit(self, write: "_Write", files: dict[str, File]) -> None:
        assert write.folder is not None
        self._check()
        groups = list(self._state.groups)
        final = commit(write.folder, write.step, write.shards, files, groups, write.state, write.probe)
        try:
            self._retain(final, self.before)
        except OSError as error:  # the checkpoint is there all the same
            log.error("CHECKPOINTS NOT REMOVED: %s", error)
        self.before = write.step

    def _give_up(self, write: "_Write") -> None:
        errors: list[Any] = [None] * self._rank.world_size
        dist.all_gather_object(errors, write.error and _told(write.error))
        self.failures += 1
        if self._rank.main and write.folder is not None:
            shutil.rmtree(write.folder, ignore_errors=True)
        if fatal := [text for is_fatal, text in filter(None, errors) if is_fatal]:
            raise UserError(fatal[0])
        for number, error in enumerate(errors):
            if error:
                log.error("CHECKPOINT OF STEP %d NOT WRITTEN, rank %d: %s", write.step, number, error[1])
        log.error("training goes on; the checkpoints before are untouched, and the next save tries again")

    @contextlib.contextmanager
    def _stalling(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stalled += time.perf_counter() - start


@dataclass
class _Write:
    """A checkpoint on its way to the disk, as this rank sees it."""

    step: int
    state: dict[str, Any]
    shards: list[Shard]
    folder: Path | None = None  # None: it could not be made
    tasks: list[Future[Any]] = field(default_factory=list)
    files: dict[str, Future[File]] = field(default_factory=dict)
    committing: bool = False

    @property
    def done(self) -> bool:
        return all(task.done() for task in self.tasks)

    @property
    def error(self) -> BaseException | None:
        """The first one; only when done."""
        return next(filter(None, (task.exception() for task in self.tasks)), None)

    def probe(self, point: str) -> None:
        fault.point(point, self.step)


def _told(error: BaseException) -> tuple[bool, str]:
    """Whether the run must end, and why."""
    return (True, str(error)) if isinstance(error, UserError) else (False, repr(error))


def check_space(store: Path, state: TrainingState, checkpoints: int) -> None:
    """Refuse to begin a run whose checkpoints will not fit on the disk; write a little to see that it can be written.

    Args:
        store: the `checkpoints` folder of the run.
        state: to be saved.
        checkpoints: that will be there at once.

    Raises:
        UserError: there is too little room, or nothing can be written.
        TransientError: the file system fails in a way that may pass.
    """
    size = sum(tensor.nbytes for group in state.like.values() for tensor in group.values())
    needed = checkpoints * size - occupied(store)

    def free_after_a_write() -> int:
        store.mkdir(parents=True, exist_ok=True)
        probe = store / ".space"
        with open(probe, "wb") as file:
            file.write(bytes(min(size, 1 << 20)))
            os.fsync(file.fileno())
        probe.unlink()
        return shutil.disk_usage(store).free

    try:
        free = patiently(free_after_a_write)
    except OSError as error:
        raise UserError(f"{store}: checkpoints cannot be written: {error.strerror}") from None
    if needed > free:
        raise UserError(
            f"{store}: {free / 1e9:.2f} GB are free, {needed / 1e9:.2f} GB are needed for {checkpoints} checkpoints of "
            f"{size / 1e9:.2f} GB; free some, keep fewer (train.keep, keep_every, keep_best), or choose another run_dir"
        )
