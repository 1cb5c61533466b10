"""A remote dataset folder as a local one that fills itself: whole, verified files, least recently used ones dropped.

    <cache>/<name>-<hash of the URL>/manifest.json, dataset.json    as at the URL
                                     shards/<hash of the shard>/<shard>, <its index>

Any number of processes share a cache. A file appears under its name only whole and with the hash that the manifest
gives, so what is there needs no network.
"""

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from megavrc.errors import TransientError, UserError
from megavrc.files import sha256_file

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds after which there is no further try; one alone may wait for minutes
WITH_A_COPY = 5  # tries of a download where the copy of last time will do
SHARDS = "shards/*/*"  # what may be dropped; shards of local datasets lie one folder higher


class FetchError(UserError):
    """A remote file could not be had; the message names it and the reason."""


class NetworkError(FetchError, TransientError):
    """The network failed; the file seems to be there, and another time it may come."""


def is_remote(address: str | Path) -> bool:
    """Whether an address is a URL, such as s3://bucket/tokens/video, and not a local folder."""
    return "://" in str(address)


@dataclass(frozen=True)
class Mirror:
    """The local copy of a remote folder. Picklable.

    Attributes:
        url: of the folder; any that fsspec opens.
        folder: its copy.
        cache: folder of all copies, of which `limit` holds.
        limit: bytes of all shards together; those that are being fetched right now may exceed it.
        attempts: tries of a download before it is given up, by default for four minutes; fewer where there is a copy.
        wait: seconds before the second try; each further wait is twice as long.
    """

    url: str
    folder: Path
    cache: Path
    limit: int
    attempts: int = 9
    wait: float = 1.0

    @staticmethod
    def of(url: str, cache: str | Path, limit: int, **options: Any) -> "Mirror":
        """The copy of `url` inside the folder `cache`; UserError if there can be no such folder or URL."""
        import fsspec  # here, so that local datasets do without

        url = url.rstrip("/")
        try:
            fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:  # no such protocol; the package for it is missing
            raise UserError(f"data.path: {url}: {error}") from None
        try:
            Path(cache).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache_dir: {cache}: {error.strerror}") from None
        name = f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        return Mirror(url, Path(cache) / name, Path(cache), limit, **options)

    def child(self, name: str) -> "Mirror":
        """The copy of a folder inside this one."""
        return Mirror(
            f"{self.url}/{name}", self.folder / name, self.cache, self.limit, self.attempts, self.wait
        )

    def refresh(self, *names: str) -> None:
        """Fetch small files that may have changed; without the network, the copies of last time will do."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = self.folder / name
            try:
                self._download(name, path, None, lambda: False)
            except FetchError as error:
                if not path.is_file():
                    raise
                log.warning("%s; using the copy of last time, %s", error, path)

    def fetch(self, name: str, path: Path, sha256: str) -> None:
        """Make sure that a small file is there, an index for instance, whole and with this hash."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._download(name, path, sha256, lambda: path.is_file() and sha256_file(path) == sha256)

    def open(self, name: str, path: Path, sha256: str, size: int) -> int:
        """A descriptor of a shard, fetched to `path` if it is not there; it stays good when the file is dropped.

        Raises:
            FetchError: it cannot be had, or is larger than the limit; NetworkError if that may be another time.
        """
        if size > self.limit:
            raise FetchError(
                f"{self.url}/{name}: {size} bytes do not fit the cache of {self.limit} (data.cache_gb)"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with self._lock():
                if path.is_file():
                    os.utime(path)  # the least recently used is the one with the oldest time
                    return os.open(path, os.O_RDONLY)
            self._download(name, path, sha256, path.is_file, size)

    def _lock(self) -> FileLock:
        """Held while files are opened and dropped, never for long."""
        return FileLock(self.cache / "cache.lock")

    def _make_room(self, size: int) -> None:
        """Drop shards until `size` more bytes fit."""
        with self._lock():
            shards = sorted(self._files(".tar"))
            free = self.limit - sum(bytes for _, bytes, _ in (*shards, *self._files(".tar.part")))
            for _, bytes, path in shards:
                if free >= size:
                    break
                path.unlink(missing_ok=True)
                free += bytes

    def _files(self, suffix: str) -> Iterator[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of the shards in the cache."""
        for path in self.cache.rglob(SHARDS + suffix):
            with contextlib.suppress(FileNotFoundError):  # a `.part` that is whole now
                stat = path.stat()
                yield stat.st_mtime_ns, stat.st_size, path

    def _download(
        self, name: str, path: Path, sha256: str | None, there: Callable[[], bool], room: int = 0
    ) -> None:
        """Fetch a file unless it is `there`, after making `room` for it; again and again until it comes."""
        attempts = min(self.attempts, WITH_A_COPY) if path.is_file() else self.attempts
        patience = time.monotonic() + PATIENCE
        for attempt in itertools.count(1):
            with FileLock(f"{path}.lock"):  # so that no other process writes the same `.part`
                if there():
                    return
                if room:
                    self._make_room(room)
                try:
                    return self._copy(name, path, sha256)
                except Exception as error:  # each file system has errors of its own
                    _part(path).unlink(missing_ok=True)
                    reason = f"{self.url}/{name}: {type(error).__name__}: {error}"
                    if _lasts(error):
                        raise FetchError(reason) from error
                    if attempt == attempts or time.monotonic() > patience:
                        raise NetworkError(f"{reason} (attempt {attempt})") from error
            log.warning("%s; trying again", reason)
            time.sleep(self.wait * 2 ** (attempt - 1))  # without the lock: all wait at the same time

    def _copy(self, name: str, path: Path, sha256: str | None) -> None:
        import fsspec

        # File systems are made per process: they do not survive a fork.
        filesystem, remote = fsspec.core.url_to_fs(f"{self.url}/{name}")
        filesystem.get_file(remote, str(_part(path)))
        with open(_part(path), "r+b") as file:
            os.fsync(file.fileno())
        if sha256 is not None and (found := sha256_file(_part(path))) != sha256:
            raise ValueError(f"sha256 is {found[:12]}, the manifest says {sha256[:12]}")
        os.replace(_part(path), path)


def _lasts(error: Exception) -> bool:
    """Whether another try cannot help: no such file, no right to it, no package for it, no room in the cache."""
    return (
        isinstance(error, FileNotFoundError | PermissionError | ImportError)
        or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        or getattr(error, "status", None) in (401, 403)  # of aiohttp
    )


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
