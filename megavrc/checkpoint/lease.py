"""The lease on a run folder: one job at a time, whatever the machines' clocks say.

    lease/00000007.json   the owner: host, process, SLURM job; its modification time is the owner's heartbeat

A lease is taken by creating the file after the highest number, which only one process can; the holder of the highest
number holds the run. A lease ends by being marked as released, because its process no longer exists (same machine),
because SLURM has started the same job again, or because its heartbeat has stood still for `STALE` seconds. Heartbeats
are compared with each other and with the file system's own clock, never with this machine's.
"""

import contextlib
import json
import os
import platform
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from megavrc.errors import UserError
from megavrc.files import check_fields, check_format, patiently, read_json, write_json
from megavrc.processes import process_start, this_machine

FORMAT = 1
FIELDS = dict.fromkeys(("host", "machine", "slurm_job", "slurm_restarts", "time"), str) | {
    "pid": int,
    "started": int | None,
}
BEAT = 5.0  # seconds between heartbeats
NEW = ".new-"  # begins the names of leases that are not taken yet
STALE = 60.0  # seconds without one after which the owner is taken for dead


class Lease:
    """Holds a run folder from construction to `release`.

    Args:
        run_dir: to hold.
        beat, stale: see the constants.

    Raises:
        UserError: another job holds the run; it is named.
        TransientError: the file system fails in a way that may pass.
        OSError: it fails in another way.
    """

    def __init__(self, run_dir: Path, beat: float = BEAT, stale: float = STALE) -> None:
        self._folder = run_dir / "lease"
        self._me = _owner()
        self._number = patiently(lambda: self._take(beat, stale))
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, args=(beat,), daemon=True, name="lease")
        self._heart.start()

    def check(self) -> None:
        """Refuse to go on when another job has taken the run over, as after a long suspension. Raises UserError."""
        number, owner = _newest(self._folder)
        if number != self._number:
            raise UserError(f"{self._folder.parent}: taken over by {_named(owner)}; this job stops")

    def release(self) -> None:
        """Let the next job have the run at once."""
        self._released.set()
        self._heart.join()
        with contextlib.suppress(OSError, UserError):
            self.check()
            write_json(self._path(self._number), {**self._me, "released": True})

    def _take(self, beat: float, stale: float) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        number, owner = _newest(self._folder)
        if owner == self._me:  # taken, although that told of an error
            return number
        if number and not _has_ended(self._path(number), owner, beat, stale):
            raise _in_use(self._folder, owner)
        written = self._folder / f"{NEW}{self._me['token']}"  # BeeGFS and AFS link within one folder only
        # Another job has just taken it, and may have removed what is written here: seen below.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            try:
                written.write_text(json.dumps(self._me))
                os.link(written, self._path(number + 1))
            finally:
                written.unlink(missing_ok=True)
        newest, owner = _newest(self._folder)
        if owner != self._me:
            # Leases may have come and gone meanwhile; then ours may stand behind a living one.
            if newest > number + 1:
                self._withdraw(number + 1)
            raise _in_use(self._folder, owner)
        self._path(number).unlink(missing_ok=True)
        self._remove_leftovers()
        return newest

    def _remove_leftovers(self) -> None:
        """What jobs that were killed here have left, or write in vain now, for the run is taken."""
        for name in os.listdir(self._folder):
            with contextlib.suppress(OSError):  # folders of earlier versions, or a drive with hiccups
                if name.startswith(NEW):
                    os.unlink(self._folder / name)

    def _withdraw(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            if read_json(self._path(number)) == self._me:
                self._path(number).unlink()

    def _beat(self, seconds: float) -> None:
        while not self._released.wait(seconds):
            # An error: taken over, which `check` tells, or a file system with hiccups.
            with contextlib.suppress(OSError):
                os.utime(self._path(self._number))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"


def _newest(folder: Path) -> tuple[int, dict[str, Any]]:
    """Number and owner of the newest lease; 0 if there never was one."""
    # Not `glob`, which finds nothing where a folder cannot be read.
    numbers = [name.removesuffix(".json") for name in os.listdir(folder) if name.endswith(".json")]
    newest = max((name for name in numbers if name.isdecimal()), default=None)
    if newest is None:
        return 0, {}
    path = folder / f"{newest}.json"
    try:
        owner = read_json(path)
    except UserError:
        # Its successor has just removed it; or it is damaged: nobody's, as soon as its heartbeat stands still.
        return (int(newest), {}) if path.exists() else _newest(folder)
    if isinstance(owner, dict):
        check_format(path, owner.get("format"), FORMAT)
    try:
        return int(newest), check_fields(path, owner, FIELDS)
    except UserError:
        return int(newest), {}


def _has_ended(path: Path, owner: dict[str, Any], beat: float, stale: float) -> bool:
    me = _owner()
    if owner.get("released"):
        return True
    if owner.get("machine") == me["machine"]:
        return process_start(owner["pid"]) != owner["started"]
    if me["slurm_job"] and owner.get("slurm_job") == me["slurm_job"]:
        if owner.get("slurm_restarts") != me["slurm_restarts"]:
            return True  # SLURM starts a job again only when its former start is over
    try:
        last = path.stat().st_mtime_ns
        with tempfile.TemporaryFile(dir=path.parent) as now:
            age = (os.fstat(now.fileno()).st_mtime_ns - last) / 1e9
        deadline = time.monotonic() + (0 if age > stale else stale)
        while time.monotonic() < deadline:
            time.sleep(min(beat, 1.0) / 4)
            if path.stat().st_mtime_ns != last:
                return False
    except FileNotFoundError:
        return False  # taken over by yet another job
    return True


def _in_use(folder: Path, owner: dict[str, Any]) -> UserError:
    return UserError(
        f"{folder.parent}: in use by {_named(owner)}; wait for that job, stop it, or choose another run_dir"
    )


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "a job whose lease cannot be read"
    job = f", SLURM job {owner['slurm_job']}" if owner["slurm_job"] else ""
    return f"process {owner['pid']} on {owner['host']}{job}, since {owner['time']}"


def _owner() -> dict[str, Any]:
    """The identity of this process, so that others can tell whether it lives."""
    return {
        "format": FORMAT,
        "host": platform.node(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "machine": this_machine(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": uuid.uuid4().hex,
    }
