"""Decoded clips for the video tokenizer: every video once, by all ranks together, into one memory map; or on demand."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megavrc.config import UserError, progress, read_json, sha256_json, write_json
from megavrc.distributed import Rank, together
from megavrc.training.config import ClipDataConfig
from megavrc.video import VideoError, read_clip

log = logging.getLogger("megavrc")

Entry = dict[str, Any]
Failures = list[tuple[int, str]]


class ClipSource:
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
        with together(rank):
            entries = _entries(manifest, config)
        self.sha256 = sha256_json([[entry["id"], entry["path"]] for entry in entries] + [_settings(config)])
        self._root, self._entries = manifest.parent, entries
        self._clips = None
        if not config.cache:
            return
        array = cache / f"clips-{self.sha256[:16]}.npy"
        index = array.with_suffix(".json")
        if not _exists_everywhere(index, rank):
            _decode_together(entries, self._root, config, array, index, rank)
        self._rows: list[int] = read_json(index)["kept"]
        self._entries = [entries[row] for row in self._rows]
        self._clips = np.load(array, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._clips is None:
            clip, index = self._decode(index)
        else:
            clip = self._clips[self._rows[index]]
        entry = self._entries[index]
        return {"clip": clip, "key": entry["id"], "caption": entry.get("caption")}

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
    return read_clip(root / entry["path"], 0, config.frames, size=config.size, crop=config.crop)


def _entries(manifest: Path, config: ClipDataConfig) -> list[Entry]:
    if not manifest.is_file():
        raise UserError(f"{manifest}: no such manifest; make one with tools/prepare_dataset.py")
    entries = []
    for number, line in enumerate(manifest.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            entry = {"id": entry["path"], **entry}
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(
                f"{manifest} line {number}: expected an object with a path, got {line[:60]!r}"
            ) from None
        if entry.get("split", "train") == config.split:
            entries.append(entry)
    if not entries:
        raise UserError(f"{manifest}: no videos of split {config.split!r}")
    return entries[: config.limit or None]


def _exists_everywhere(path: Path, rank: Rank) -> bool:
    """The main rank's answer, so that all ranks do the same."""
    answer = [path.is_file()]
    dist.broadcast_object_list(answer, src=0)
    return bool(answer[0])


def _decode_together(
    entries: list[Entry], root: Path, config: ClipDataConfig, array: Path, index: Path, rank: Rank
) -> None:
    """Each rank decodes every world_size-th video into one shared array; the index, written last, makes it valid."""
    unfinished = array.with_name(f".{array.name}.unfinished")
    shape = (len(entries), config.frames, config.size, config.size, 3)
    if rank.main:
        array.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape).flush()
    dist.barrier()
    clips = np.load(unfinished, mmap_mode="r+")
    failures: Failures = []
    mine = range(rank.rank, len(entries), rank.world_size)
    label = f"decoding {len(entries)} clips, 1 of {rank.world_size} shares"
    for row in progress(mine, label, len(mine)) if rank.main else mine:
        try:
            clips[row] = _read(root, entries[row], config)
        except VideoError as error:
            failures.append((row, str(error)))
    clips.flush()
    everywhere: list[Failures] = [[] for _ in range(rank.world_size)]
    dist.all_gather_object(everywhere, failures)
    failed = dict(sorted(failure for part in everywhere for failure in part))
    if len(failed) == len(entries):
        raise UserError(f"{config.path}: no video can be decoded, the first because: {failed[0]}")
    if failed:
        log.warning(
            "%d of %d videos are left out, the first because: %s", len(failed), len(entries), *failed.values()
        )
    if rank.main:
        os.replace(unfinished, array)
        kept = [row for row in range(len(entries)) if row not in failed]
        write_json(
            index, {"kept": kept, "failed": [[entries[row]["id"], why] for row, why in failed.items()]}
        )
    dist.barrier()


def window(clip_THWC: np.ndarray, frames: int, draw: Callable[[int], int]) -> torch.Tensor:
    """`frames` consecutive frames of a clip from a random first one; `draw(n)` gives an integer below n."""
    start = draw(len(clip_THWC) - frames + 1)
    return torch.from_numpy(np.array(clip_THWC[start : start + frames]))
