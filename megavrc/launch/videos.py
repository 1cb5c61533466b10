"""The videos of a person, before anything is made of them: a folder, a table or a manifest, looked at by the doctor."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from megavrc.errors import UserError
from megavrc.progress import progress
from megavrc.tokenization.sampling import ClipSettings
from megavrc.training.tasks.vrc_config import TokenDataConfig
from megavrc.video import VideoError, count_frames, probe, read_clip
from megavrc.video.listing import list_folder, order_note
from megavrc.video.manifest import Entry, from_list, manifest_content
from megavrc.video.pictures import out_of_order, pictures

FRAMES = ClipSettings.frames  # of a clip, unless another number is asked for
NAMED = 3  # files that a line names
DECODING_S = 60  # spent on decoding videos to their end; of the others the first frame is decoded
MAX_WITHOUT = TokenDataConfig.max_incomplete  # training refuses more samples without a caption


class Line(NamedTuple):
    """A line of what is said of videos; a `note` harms nobody, with a `warn` nothing good can be trained."""

    name: str
    found: str
    state: Literal["ok", "note", "warn"] = "ok"
    advice: str = ""


def video_lines(path: Path, folder: Path | None = None) -> Iterator[Line]:
    """How many videos there are, which are damaged or short, how many have a caption.

    Args:
        path: a folder of videos, or a table of them (.csv, .jsonl), such as manifest.jsonl.
        folder: folder that the paths of a table are relative to.
    """
    try:
        entries, notes = _entries(path, folder)
    except UserError as error:
        yield Line(str(path), "cannot be listed", "warn", " ".join(str(error).split()))
        return
    yield Line(str(path), f"{len(entries)} videos", advice="; ".join(notes))
    files = sorted({path.parent / entry["path"] for entry in entries})
    yield from _files(files)
    yield from _order(files)
    yield _captions(path, entries)


def _entries(path: Path, folder: Path | None) -> tuple[list[Entry], list[str]]:
    """Entries whose paths are relative to the folder of `path`."""
    manifest = path.parent / "manifest.jsonl"
    if path.is_dir():
        entries, notes = list_folder(path, manifest)
    else:
        entries, notes = from_list(path, manifest, folder), []
    manifest_content(manifest, entries)  # could it be written?
    return entries, notes


def _files(files: list[Path]) -> Iterator[Line]:
    """Decode the files, to their end while there is time, and say which give no clip."""
    problems: dict[str, list[str]] = {"missing": [], "damaged": [], "short": []}
    opened, until = 0, time.monotonic() + DECODING_S
    for file in progress(files, "decode"):
        whole = time.monotonic() < until
        opened += not whole
        try:
            read_clip(file, 0, 1)  # colours that are not read (HDR) show in a picture only
            frames = count_frames(file) if whole else probe(file).frames or FRAMES  # some files do not say
            if frames < FRAMES:
                problems["short"].append(f"{file}: {frames} frames, a clip has {FRAMES}")
        except (VideoError, OSError) as error:
            problems["damaged" if os.path.exists(file) else "missing"].append(str(error))
    good = len(files) - sum(map(len, problems.values()))
    depth = f"of {opened} one frame was decoded, of the others all" if opened else "decoded to the end"
    yield Line("usable", f"{good} of {len(files)} files", "ok" if good else "warn", depth)
    for kind, said in problems.items():
        if said:
            yield Line(kind, f"{len(said)} files, left out later", "note", _few(said))


def _order(files: list[Path]) -> Iterator[Line]:
    """Folders of pictures among the files whose names may mean another order than the one they play in."""
    swapped: dict[Path, tuple[str, str]] = {}
    for folder in filter(os.path.isdir, files):
        with contextlib.suppress(OSError):  # one that may not be read counts as damaged
            if pair := out_of_order(pictures(folder)):
                swapped[folder] = pair
    for note in order_note(swapped):
        yield Line("order", f"{len(swapped)} folders", "warn", note)


def _few(said: list[str]) -> str:
    return "; ".join(said[:NAMED]) + (f"; and {len(said) - NAMED} more" if len(said) > NAMED else "")


def _captions(path: Path, entries: list[Entry]) -> Line:
    missing = [entry["path"] for entry in entries if not (entry["caption"] or "").strip()]
    found = f"{len(entries) - len(missing)} of {len(entries)} videos"
    if len(missing) <= MAX_WITHOUT * len(entries):
        return Line("captions", found)
    if all(entry["label"] is not None for entry in entries):
        classes = len({entry["label"] for entry in entries})
        words = f"--model.condition.kind class --model.condition.classes {classes} --model.condition.slots 1"
        return Line("captions", found, "note", f"all have a class: {words}")
    where = "a .txt beside each video, or a table" if path.is_dir() else "a column caption"
    advice = f"{os.path.basename(missing[0])} has none; needed: {where} (docs/own_videos.md)"
    return Line("captions", found, "warn", advice)
