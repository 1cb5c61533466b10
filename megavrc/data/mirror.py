"""A remote dataset folder as a local one that fills itself: whole, verified files, least recently used ones dropped.

    <cache>/<name>-<hash of the URL>/manifest.json, dataset.json    as at the URL
                                     shards/<hash of the shard>/<shard>, <its index>

Any number of processes share a cache. A file appears under its name only whole and with the hash that the manifest
gives, so what is there needs no network. While a file is being fetched, its `.part` already has its final size, so that
all processes count it against the limit.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from megavrc.config import UserError, sha256_file

log = logging.getLogger("megavrc")

CHUNK = 1 << 20
SHARDS = "shards/*/*"  # what may be dropped; shards of local datasets lie one folder higher


class FetchError(UserError):
    """A remote file could not be had; the message names it and the reason."""


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
        limit: bytes of all shards together; a file that somebody fetches right now may exceed it.
        attempts: tries of a download before it is given up.
        wait: seconds before the second try; each further wait is twice as long.
    """

    url: str
    folder: Path
    cache: Path
    limit: int
    attempts: int = 5
    wait: float = 1.0

    @staticmethod
    def of(url: str, cache: str | Path, limit: int, **options: Any) -> "Mirror":
        """The copy of `url` inside the folder `cache`."""
        url = url.rstrip("/")
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
            with FileLock(f"{path}.lock"):
                try:
                    self._download(name, path, None)
                except FetchError as error:
                    if not path.is_file():
                        raise
                    log.warning("%s; using the copy of last time, %s", error, path)

    def fetch(self, name: str, path: Path, sha256: str) -> None:
        """Make sure that a small file is there, an index for instance, whole and with this hash."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                self._download(name, path, sha256)

    def open(self, name: str, path: Path, sha256: str, size: int) -> int:
        """A descriptor of a shard, fetched to `path` if it is not there; it stays good when the file is dropped.

        Raises:
            FetchError: it cannot be had, or is larger than the limit.
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
            with FileLock(f"{path}.lock"):
                if not path.is_file():
                    self._reserve(_part(path), size)
                    self._download(name, path, sha256)

    def _lock(self) -> FileLock:
        """Held while files are opened and dropped, never for long."""
        return FileLock(self.cache / "cache.lock")

    def _reserve(self, part: Path, size: int) -> None:
        """Give a file to be fetched its size, and drop others until all fit the limit."""
        with self._lock():
            part.touch()
            os.truncate(part, size)
            shards = [(path.stat(), path) for path in self.cache.rglob(f"{SHARDS}.tar")]
            used = sum(stat.st_size for stat, _ in shards)
            used += sum(path.stat().st_size for path in self.cache.rglob(f"{SHARDS}.tar.part"))
            for stat, path in sorted(shards, key=lambda shard: shard[0].st_mtime_ns):
                if used <= self.limit:
                    break
                path.unlink()
                used -= stat.st_size

    def _download(self, name: str, path: Path, sha256: str | None) -> None:
        """Under the file's lock, so a `.part` that is there already was left by a process that died."""
        for attempt in range(1, self.attempts + 1):
            try:
                self._copy(name, _part(path))
                if sha256 is not None and (found := sha256_file(_part(path))) != sha256:
                    raise ValueError(f"sha256 is {found[:12]}, the manifest says {sha256[:12]}")
                return os.replace(_part(path), path)
            except Exception as error:  # each file system has errors of its own
                _part(path).unlink(missing_ok=True)
                reason = f"{type(error).__name__}: {error}"
                if attempt == self.attempts or isinstance(error, FileNotFoundError | ImportError):
                    raise FetchError(f"{self.url}/{name}: {reason} (attempt {attempt})") from error
                log.warning("%s/%s: %s; trying again", self.url, name, reason)
                time.sleep(self.wait * 2 ** (attempt - 1))
        return None

    def _copy(self, name: str, part: Path) -> None:
        with open(part, "r+b" if part.exists() else "wb") as target:
            size = 0
            for chunk in self._chunks(name):
                size += target.write(chunk)
            target.truncate(size)
            target.flush()
            os.fsync(target.fileno())

    def _chunks(self, name: str) -> Iterator[bytes]:
        import fsspec  # here, so that local datasets do without

        with fsspec.open(f"{self.url}/{name}", "rb") as source:
            while chunk := source.read(CHUNK):
                yield chunk


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
