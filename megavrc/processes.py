"""Which process a file belongs to, so that others can tell whether it lives; and files that appear whole."""

import contextlib
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

WEEK = 7 * 86400.0  # seconds


def this_machine() -> str:
    """One boot of one kernel, and the process numbers that this process sees there (a container has its own)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: equal to no other
        return uuid.uuid4().hex


def process_start(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since the boot; None if there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = status.rpartition(")")[2].split()
    return None if after_name[0] in "ZX" else int(after_name[19])


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A hidden neighbour of `out` to write, a file or a folder, which is renamed to `out` as the block ends.

    After an error nothing is left. No other process is given the same. What killed ones of this machine have left is
    removed, and that of others (a container, before a restart) after a week.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    machine, pid = hashlib.sha256(this_machine().encode()).hexdigest()[:8], os.getpid()
    partial = out.with_name(f".unfinished-{machine}-{pid}-{process_start(pid)}-{out.name}")
    with contextlib.suppress(OSError):  # a folder that is not to be read
        for name in os.listdir(out.parent):
            owner = re.fullmatch(rf"\.unfinished-(\w+)-(\d+)-(\w+)-{re.escape(out.name)}", name)
            if not owner:
                continue
            left = out.with_name(name)
            if owner[1] == machine:
                gone = str(process_start(int(owner[2]))) != owner[3]
            else:
                gone = time.time() - left.stat().st_mtime > WEEK
            if gone:
                _remove(left)
    try:
        yield partial
        partial.rename(out)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()
