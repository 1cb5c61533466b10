"""Files that processes under test wait for, so that they can be ended at a known point."""

import fcntl
import signal
import time
from pathlib import Path

import pytest


class Held:
    """A video that whoever opens it waits for (at most /proc/sys/fs/lease-break-time, 45 s). A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "Held":
        self._handler = signal.signal(signal.SIGIO, signal.SIG_IGN)  # says that somebody opens the file
        self._file = open(self.path, "rb+")
        try:
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            self.__exit__()
            pytest.skip(f"no leases on files here ({error})")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        signal.signal(signal.SIGIO, self._handler)

    def opened(self) -> bool:
        """Whether somebody waits for the file."""
        return fcntl.fcntl(self._file, fcntl.F_GETLEASE) != fcntl.F_WRLCK

    def wait_for_opener(self) -> None:
        """Until somebody waits for the file."""
        for _ in range(600):
            if self.opened():
                return
            time.sleep(0.05)
        raise AssertionError(f"nobody opened {self.path}")
