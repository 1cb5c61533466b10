"""The watchdog: heartbeats in the run folder, and a thread that names the rank that holds up the others.

    <run>/heartbeats/rank-00003.json     where the rank is; rewritten every few seconds
    <run>/heartbeats/rank-00003.stacks   its Python stacks when it gave up

Files, not messages: they are read when collectives hang and when any rank, the main one included, is gone. Every rank
judges by its own clock whether another's file still changes, so clocks need not agree.
"""

import contextlib
import faulthandler
import json
import os
import platform
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from megavrc.distributed import Rank, is_communication
from megavrc.errors import EXIT_HANG, EXIT_USER, TransientError, UserError
from megavrc.files import read_object, user_error

PULSE = 5.0  # seconds between heartbeats
PATIENCE = 2.5  # heartbeats that a rank may miss before it counts as silent

Heartbeats = dict[int, dict[str, Any]]
FIELDS = dict.fromkeys(("pulses", "beats", "step", "pid", "exit_code"), int) | {
    **dict.fromkeys(("phase", "state", "host"), str),
    "seconds": float,
    "communicates": bool,
}


class LostRank(Exception):
    """Other ranks are gone or have failed; the message names them.

    Attributes:
        exit_code: 85 if they are gone; theirs (see `exit_code_of`) if they failed by an error of their own.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> int:
    """Exit code of a rank that ends by its own error: 85 if another run may help, 2 for the user's mistake
    and for a GPU whose memory is full, else 1."""
    if isinstance(error, OSError) and error.filename is not None:
        error = user_error(error)
    if isinstance(error, TransientError):
        return EXIT_HANG
    return EXIT_USER if isinstance(error, UserError | torch.OutOfMemoryError) else 1


class Watchdog:
    """Sends this rank's heartbeats, and ends the process when nothing moves any more.

    Args:
        run_dir: gets heartbeats/; on a file system that all ranks see.
        rank: of this process.
        limit: seconds without progress, from the first step on, after which all ranks exit with code 85; 0: never, and
            no heartbeats. While the process is suspended (SIGSTOP, a job that SLURM suspends) none pass.
    """

    def __init__(self, run_dir: Path, rank: Rank, limit: float) -> None:
        self._folder, self._rank, self._limit = run_dir / "heartbeats", rank, limit
        self._pulse = min(PULSE, limit / 10)
        self._pulses = self._beats = 0
        self._place, self._state, self._exit_code = (0, "start"), "running", 0
        self._since = time.monotonic()
        self._main = threading.main_thread().ident
        self._done = threading.Event()
        if limit:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stacks(rank.rank).unlink(missing_ok=True)
            self._claim.unlink(missing_ok=True)
            self._publish()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def at(self, step: int, phase: str) -> None:
        """Progress: this rank begins `phase` of a step. All ranks pass the same phases in the same order."""
        self._place, self._since = (step, phase), time.monotonic()
        self._beats += 1

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching. Raises LostRank instead of an error of communication, which names nobody."""
        if not self._limit:
            return
        self._done.set()
        self._thread.join(2 * self._pulse)  # it may be stuck in the file system
        self._state = f"failed: {error}" if error else "left"
        if error is None or not is_communication(error):
            self._exit_code = exit_code_of(error) if error else 0
            return self._publish()
        self._state = "failed: lost another rank"
        names, exit_code = self._lost()
        if names:
            raise LostRank(f"{'; '.join(names)}; this is rank {self._rank.rank}", exit_code) from error
        return None

    # --- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._done.wait(self._pulse):
            self._publish()
            now = time.monotonic()
            if now - last > PATIENCE * self._pulse:  # this process stood still as a whole: it was suspended
                self._since = now
            last = now
            if self._beats and now - self._since > self._limit:
                self._give_up()
                last = time.monotonic()

    def _give_up(self) -> None:
        self._state, beats = "hangs", self._beats
        # Of a full disk, here and below: nothing may keep this rank from ending.
        with contextlib.suppress(OSError):
            with open(self._stacks(self._rank.rank), "w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        self._publish()
        before = self._read()
        for _ in range(round(2 * PATIENCE)):
            time.sleep(self._pulse)
            self._publish()
        if self._done.is_set():  # it was only slow
            return
        if self._beats != beats:  # the same; if it waits for one that hangs, that one ends, or this one later
            self._state = "running"
            return self._publish()
        if self._claims_report():
            with contextlib.suppress(OSError):
                print(self._report(before, self._read()), file=sys.stderr, flush=True)
        # A launcher kills the others when the first one exits: let the report be written.
        time.sleep(self._pulse)
        os._exit(EXIT_HANG)

    def _report(self, before: Heartbeats, after: Heartbeats) -> str:
        names = suspects(before, after, self._rank.world_size)
        lines = [f"error: no progress for {self._limit:g} s; all ranks exit with code {EXIT_HANG}"]
        for rank in range(self._rank.world_size):
            mark = "HOLDS UP THE OTHERS" if rank in names else "waits"
            lines.append(f"  {_describe(rank, after.get(rank))}: {mark}")
        for rank in names:
            stacks = self._stacks(rank)
            known = rank in after and after[rank]["state"] == "hangs" and stacks.is_file()
            lines.append(
                stacks.read_text() if known else f"  rank {rank} does not answer, so it has no stacks"
            )
        return "\n".join([*lines, f"  all stacks: {self._folder}"])

    # --- heartbeats ------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        self._pulses += 1
        step, phase = self._place
        content = {
            "pulses": self._pulses,
            "beats": self._beats,
            "step": step,
            "phase": phase,
            "seconds": round(time.monotonic() - self._since, 1),
            "state": self._state,
            "exit_code": self._exit_code,  # to be, of a rank that failed by an error of its own
            "communicates": _communicates(sys._current_frames().get(self._main or 0)),
            "host": platform.node(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        }
        path = self._file(self._rank.rank)
        new = path.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk is no reason to stop
            new.write_text(json.dumps(content))
            os.replace(new, path)

    def _read(self) -> Heartbeats:
        found = {}
        for rank in range(self._rank.world_size):
            try:
                found[rank] = read_object(self._file(rank), FIELDS)
            except (OSError, UserError):  # none yet, or damaged: as if none had come
                continue
        return found

    def _lost(self) -> tuple[list[str], int]:
        """Ranks that failed or else fell silent, described, and what to exit with."""
        before = self._read()
        for _ in range(round(PATIENCE)):
            self._publish()
            time.sleep(self._pulse)
        after = self._read()
        mine = self._rank.rank
        failed = [r for r in after if r != mine and after[r]["exit_code"]]
        gone = [r for r in range(self._rank.world_size) if r != mine and _silent(before.get(r), after.get(r))]
        codes = {after[rank]["exit_code"] for rank in failed}
        exit_code = max(codes - {EXIT_HANG}, default=EXIT_HANG)
        return [_describe(rank, after.get(rank)) for rank in failed or gone], exit_code

    def _claims_report(self) -> bool:
        """Whether this rank is the first to report the hang; without a disk to agree on, every one is."""
        try:
            self._claim.touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            pass
        return True

    @property
    def _claim(self) -> Path:
        return self._folder / "reported"

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"

    def _stacks(self, rank: int) -> Path:
        return self._file(rank).with_suffix(".stacks")


def suspects(before: Heartbeats, after: Heartbeats, world_size: int) -> list[int]:
    """The ranks that hold up the others, from all heartbeats at two times; empty when nothing tells.

    Silent ones; else those that are behind; else those that are not waiting for others.
    """
    ranks = range(world_size)
    silent = [rank for rank in ranks if _silent(before.get(rank), after.get(rank))]
    if silent:
        return silent
    beats = [after[rank]["beats"] for rank in ranks]
    if min(beats) < max(beats):
        return [rank for rank in ranks if beats[rank] == min(beats)]
    return [rank for rank in ranks if not after[rank]["communicates"]]


def _silent(before: dict[str, Any] | None, after: dict[str, Any] | None) -> bool:
    """Whether a rank's process no longer runs, or its machine does not: no heartbeat came between."""
    if after is None:
        return True
    ended = after["state"] != "running"  # it said so itself
    return not ended and before is not None and before["pulses"] == after["pulses"]


def _describe(rank: int, heartbeat: dict[str, Any] | None) -> str:
    if heartbeat is None:
        return f"rank {rank} (never seen)"
    at = f"at step {heartbeat['step']}, {heartbeat['phase']}"
    state = heartbeat["state"] if heartbeat["state"].startswith("failed") else "is silent, last heartbeat"
    state = f"for {heartbeat['seconds']:.0f} s" if heartbeat["state"] == "hangs" else state
    return f"rank {rank} (host {heartbeat['host']}, pid {heartbeat['pid']}) {state} {at}"


def _communicates(frame: FrameType | None) -> bool:
    """Whether a thread is inside torch.distributed, that is, waits for other ranks."""
    while frame is not None:
        if f"{os.sep}torch{os.sep}distributed{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
