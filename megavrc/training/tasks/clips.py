"""Decoded clips for the video tokenizer: every video once, by all ranks together, into one memory map; or on demand."""

import contextlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megavrc.distributed import Rank, main_rank_decides, same_error_on_all_ranks
from megavrc.errors import UserError
from megavrc.files import check_fields, check_format, read_object, sha256_json, write_json
from megavrc.processes import appearing
from megavrc.progress import progress
from megavrc.training.tasks.tokenizer_config import ClipDataConfig
from megavrc.video import VideoError
from megavrc.video.manifest import Entry, read_manifest
from megavrc.video.shots import read_start, shot

log = logging.getLogger("megavrc")

CACHE_FORMAT = 1
DAMAGED = "%s: the cache is damaged, and made anew (%s)"
Failures = list[tuple[int, str]]


class TrainingClips:
    """Map-style source of uint8 clips [frames, size, size, 3]: {"clip", "key", "caption"}.

    Of videos decoded on demand, one that cannot be is replaced by the next in the manifest that can.

    Args:
        config: which videos, how many frames, what size.
        cache: folder for the memory map; the same videos and settings find it again there.
        rank: of this process; all ranks must build it together.

    Raises:
        UserError: no manifest, a line that is not an entry, or not one video that can be decoded.
    """

    def __init__(self, config: ClipDataConfig, cache: Path, rank: Rank) -> None:
        self.config = config
        manifest = Path(config.path)
        with same_error_on_all_ranks(rank):
            entries = _entries(manifest, config)
        self.sha256 = sha256_json([*map(_identity, entries), _settings(config)])
        self._root, self._entries = manifest.parent, entries
        self._clips = None
        if not config.cache:
            return
        array = cache / f"clips-{self.sha256[:16]}.npy"
        index = array.with_suffix(".json")
        shape = (len(entries), config.frames, config.size, config.size, 3)
        if not main_rank_decides(lambda: _read_cache(array, index, shape) is not None, rank):
            _decode_together(entries, self._root, config, array, index, rank)
        with same_error_on_all_ranks(rank):
            found = _read_cache(array, index, shape)
            if found is None:
                raise UserError(f"{index}: not whole on this machine; all ranks must see one run_dir")
        decoded, self._clips = found
        if failed := decoded.get("failed"):  # at every start: videos that were missing once may be there now
            what = "%d of %d videos are left out, the first because: %s; delete %s to decode them again"
            log.warning(what, len(failed), len(entries), failed[0][1], index)
        self._rows: list[int] = decoded["kept"]
        self._crc32: list[int] | None = decoded.get("crc32")
        self._entries = [entries[row] for row in self._rows]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._clips is None:
            clip, index = self._decode(index)
        else:
            clip = self._cached(index)
        entry = self._entries[index]
        return {"clip": clip, "key": entry["id"], "caption": entry.get("caption")}

    def _cached(self, index: int) -> np.ndarray:
        """A clip of the memory map; from its video again, if its bytes are not those that were written."""
        assert self._clips is not None
        row = self._rows[index]
        clip: np.ndarray = self._clips[row]
        if self._crc32 is None or zlib.crc32(clip.data) == self._crc32[row]:
            return clip
        log.warning("%s: row %d is damaged; its video is decoded again", self._clips.filename, row)
        try:
            return _read(self._root, self._entries[index], self.config)
        except VideoError as error:
            raise UserError(
                f"{self._clips.filename}: row {row} is damaged, and {error}; delete the file"
            ) from None

    def _decode(self, index: int) -> tuple[np.ndarray, int]:
        """The first clip from `index` on that can be decoded, and its index."""
        for candidate in (*range(index, len(self)), *range(index)):
            try:
                return _read(self._root, self._entries[candidate], self.config), candidate
            except VideoError as error:
                log.warning("%s; the next video takes its place", error)
        raise UserError(f"{self.config.path}: no video can be decoded")


def _settings(config: ClipDataConfig) -> list[Any]:
    return [config.frames, config.size, config.crop] + ([] if config.cache else ["on demand"])


def _read(root: Path, entry: Entry, config: ClipDataConfig) -> np.ndarray:
    return read_start(root / entry["path"], entry, config.frames, config.size, config.crop)


def _entries(manifest: Path, config: ClipDataConfig) -> list[Entry]:
    entries = [entry for entry in read_manifest(manifest) if entry["split"] == config.split]
    if not entries:
        raise UserError(f"{manifest}: no videos of split {config.split!r}")
    return entries[: config.limit or None]


def _identity(entry: Entry) -> list[Any]:
    """What decides an entry's frames; entries that are no shots as ever, so that old runs find their cache."""
    return [entry["id"], entry["path"]] + ([*part, entry.get("fps")] if (part := shot(entry)) else [])


def _read_cache(array: Path, index: Path, shape: tuple[int, ...]) -> tuple[dict[str, Any], np.memmap] | None:
    """What lies in the cache; None where there is nothing, or it is damaged, which is said: it is made anew."""
    if not index.is_file():
        return None
    try:
        decoded = read_object(index, {})
    except UserError as error:
        log.warning(DAMAGED, array, error)
        return None
    check_format(index, decoded.pop("format", None), CACHE_FORMAT)
    own = decoded.pop("sha256", None)  # not in caches of before
    try:
        fields = {"kept": list[int], "crc32": list[int] | None, "failed": list[list[str]] | None}
        check_fields(index, decoded, fields)
        clips = np.load(array, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        log.warning(DAMAGED, array, error)
        return None
    rows = range(shape[0])
    fits = clips.shape == shape and clips.dtype == np.uint8 and own in (None, sha256_json(decoded))
    if (
        not fits
        or any(row not in rows for row in decoded["kept"])
        or len(decoded.get("crc32", rows)) != len(rows)
    ):
        log.warning(DAMAGED, array, "its index does not fit")
        return None
    return decoded, clips


def _decode_together(
    entries: list[Entry], root: Path, config: ClipDataConfig, array: Path, index: Path, rank: Rank
) -> None:
    """Each rank decodes every world_size-th video into one shared array; the index, written last, makes it valid."""
    shape = (len(entries), config.frames, config.size, config.size, 3)
    with contextlib.ExitStack() as main:  # a job that began at the same time writes a file of its own
        unfinished = main_rank_decides(lambda: main.enter_context(appearing(array)), rank)
        with same_error_on_all_ranks(rank), _naming(unfinished):
            if rank.main:
                _make_room(unfinished, shape)
        with same_error_on_all_ranks(rank), _naming(unfinished):
            mine = _decode_share(entries, root, config, unfinished, rank)
        everywhere: list[tuple[Failures, dict[int, int]]] = [([], {}) for _ in range(rank.world_size)]
        dist.all_gather_object(everywhere, mine)
        failed = dict(sorted(failure for part, _ in everywhere for failure in part))
        crc32 = {row: crc for _, part in everywhere for row, crc in part.items()}
        if len(failed) == len(entries):
            first = next(iter(failed.values()))
            raise UserError(f"{config.path}: no video can be decoded, the first because: {first}")
    if rank.main:
        kept = [row for row in range(len(entries)) if row not in failed]
        reasons = [[entries[row]["id"], why] for row, why in failed.items()]
        content = {"kept": kept, "failed": reasons, "crc32": [crc32[row] for row in range(len(entries))]}
        write_json(index, {"format": CACHE_FORMAT, **content, "sha256": sha256_json(content)})
    dist.barrier()


def _make_room(unfinished: Path, shape: tuple[int, ...]) -> None:
    """An array of zeros that has its place on the disk, so that a full one is known before anything is decoded."""
    np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape).flush()
    with open(unfinished, "rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _decode_share(
    entries: list[Entry], root: Path, config: ClipDataConfig, unfinished: Path, rank: Rank
) -> tuple[Failures, dict[int, int]]:
    """Decode this rank's videos into their rows: which could not be, and the CRC-32 of each row."""
    failures: Failures = []
    sums: dict[int, int] = {}
    nothing = np.zeros((config.frames, config.size, config.size, 3), np.uint8)
    mine = range(rank.rank, len(entries), rank.world_size)
    label = f"decoding {len(entries)} clips, 1 of {rank.world_size} shares"
    # Written, not mapped, and never read: NFS sends whole pages of a map back, with parts of other ranks' rows.
    with open(os.open(unfinished, os.O_WRONLY), "wb") as file:
        start = os.fstat(file.fileno()).st_size - len(entries) * nothing.nbytes
        for row in progress(mine, label, len(mine)) if rank.main else mine:
            clip = nothing
            try:
                clip = np.ascontiguousarray(_read(root, entries[row], config))
                file.seek(start + row * clip.nbytes)
                file.write(clip.data)
            except VideoError as error:
                failures.append((row, str(error)))
            sums[row] = zlib.crc32(clip.data)
        file.flush()
        os.fsync(file.fileno())
    return failures, sums


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What the system says of a full disk names no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def window(clip_THWC: np.ndarray, frames: int, draw: Callable[[int], int]) -> torch.Tensor:
    """`frames` consecutive frames of a clip from a random first one; `draw(n)` gives an integer below n."""
    start = draw(len(clip_THWC) - frames + 1)
    return torch.from_numpy(np.array(clip_THWC[start : start + frames]))
