"""Lists of the videos below a folder: files, or folders of pictures."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from megavrc.errors import UserError
from megavrc.files import named_path, read_text
from megavrc.video.manifest import Entry, path_from, split_of
from megavrc.video.pictures import is_picture, out_of_order

VIDEO_SUFFIXES = {  # of what video/files.py opens
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".flv", ".mkv", ".webm", ".avi", ".divx"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".vob"),
    *(".wmv", ".asf", ".wtv", ".rm", ".rmvb", ".ogv", ".ogm", ".mxf", ".nut", ".dv", ".ivf"),
    *(".gif", ".apng", ".y4m", ".mjpeg", ".mjpg"),
    *(".h264", ".264", ".h265", ".265", ".hevc", ".obu", ".vc1"),
}


class Listing(NamedTuple):
    """A list of videos, and what a person should know of how it came about, one line each."""

    entries: list[Entry]
    notes: list[str]


def list_folder(folder: Path, out: Path, val_fraction: float = 0.0) -> Listing:
    """Entries for every video file below a folder, links followed.

    The class is the name of the parent folder (none for videos directly in `folder`), the caption the content of a
    `.txt` file beside the video. Which videos are validation depends on their path alone.
    """
    files = files_below(folder)
    videos = list(filter(is_video, files))
    entries, texts = _entries(folder, out, videos, val_fraction)
    notes = left_out(set(files).difference(videos, texts))
    if not videos:
        known = " ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"{folder}: no video files below it (known: {known}){'; '.join(['', *notes])}")
    return Listing(entries, notes)


def from_frames(folder: Path, out: Path, val_fraction: float = 0.0, fps: float | None = None) -> Listing:
    """Entries for every folder of pictures at or below a folder, at any depth; otherwise as `list_folder`.

    Each has `frames`, its number of pictures, and `fps` if it is given (pictures do not say their rate).
    """
    folder = named_path(folder)  # whose name is an entry's where it holds the pictures
    counts: dict[Path, int] = {}
    swapped: dict[Path, tuple[str, str]] = {}
    others: set[Path] = set()
    for where, names in _walk(folder):  # of pictures there may be millions, so they are counted and not kept
        chosen = [name for name in names if is_picture(Path(name))]
        if chosen:
            counts[where] = len(chosen)
            if pair := out_of_order(map(Path, chosen)):
                swapped[where] = pair
        others.update(where / name for name in set(names).difference(chosen))
    videos = sorted(counts)
    entries, texts = _entries(folder, out, videos, val_fraction)
    notes = left_out(others.difference(texts)) + order_note(swapped)
    if not videos:
        raise UserError(f"{folder}: no folder of pictures at or below it{'; '.join(['', *notes])}")
    rate = {} if fps is None else {"fps": fps}
    entries = [
        {**entry, "frames": counts[video], **rate} for entry, video in zip(entries, videos, strict=True)
    ]
    return Listing(entries, notes)


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video; hidden files (as macOS leaves them in archives) are none."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def videos_below(folder: Path) -> list[Path]:
    """The video files below a folder, as `files_below`."""
    return sorted(where / name for where, names in _walk(folder) for name in names if is_video(Path(name)))


def files_below(folder: Path) -> list[Path]:
    """The files at any depth below a folder, sorted. Links to folders are followed.

    A folder is entered once, under its own name where that lies below `folder`: links may form circles.

    Raises:
        UserError: no such folder, or one that may not be read.
    """
    return sorted(where / name for where, names in _walk(folder) for name in names)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders that `files_below` enters, each with the names of its files."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        start = waiting.pop(0)
        real = start.resolve()
        for name, folders, names in os.walk(start, onerror=_unreadable):
            where = Path(name)
            if (here := real / where.relative_to(start)) in seen:
                folders.clear()
                continue
            seen.add(here)
            folders.sort()
            waiting += [path for path in (where / inner for inner in folders) if path.is_symlink()]
            yield where, names


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: {error.strerror}; make it readable, or move it elsewhere") from None


def left_out(files: Iterable[Path]) -> list[str]:
    """A line that counts by suffix the files that a listing leaves out; none if there are none."""
    kinds = Counter(
        "hidden" if path.name.startswith(".") else path.suffix.lower() or "without suffix" for path in files
    )
    if not kinds:
        return []
    counts = ", ".join(
        f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda k: (-k[1], k[0]))
    )
    return [f"{kinds.total()} files are left out: {counts}"]


def order_note(swapped: dict[Path, tuple[str, str]]) -> list[str]:
    """A line on folders of pictures, each with the two that `out_of_order` gives; none if there are none."""
    if not swapped:
        return []
    folder, (one, other) = min(swapped.items())
    return [
        f"{len(swapped)} folders play by the last number in their pictures' names, which is not the order of all "
        f"numbers: {folder} plays {one} before {other}; if that is wrong, rename them 0.png, 1.png, .."
    ]


def _entries(
    folder: Path, out: Path, videos: list[Path], val_fraction: float
) -> tuple[list[Entry], set[Path]]:
    """Entries of videos (files or folders) at or below a folder, and the files that their captions are from."""
    inside = {video: video.parent.name for video in videos if video not in (folder, folder / video.name)}
    classes = {name: label for label, name in enumerate(sorted(set(inside.values())))}
    beside = {parent: _texts(parent) for parent in {video.parent for video in videos}}
    entries, used = [], set()
    for video in videos:
        name = inside.get(video)
        text = beside[video.parent].get(video.name if video.is_dir() else video.stem)
        if text:
            used.add(text)
        entries.append(
            {
                "id": (key := video.name if video == folder else video.relative_to(folder).as_posix()),
                "path": path_from(out.parent, video),
                "caption": _caption(text) if text else None,
                "label": classes[name] if name else None,
                "class": name,
                "split": split_of(key, val_fraction),
            }
        )
    return entries, used


def _texts(folder: Path) -> dict[str, Path]:
    """The text files of a folder, by their names without `.txt`, which wins over `.TXT`."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".txt"}


def _caption(path: Path) -> str | None:
    """The content of a text file, with whatever line ends; None if it holds nothing."""
    return re.sub(r"\r\n?", "\n", read_text(path)).strip() or None
