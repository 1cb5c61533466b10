"""The list of videos, `manifest.jsonl`: one object a line with id, path (relative to the file), caption, label, split.

A path is a video file or a folder of pictures. `start` and `end`, in seconds, make an entry a part of its video
(several entries may then share one path), `fps` is the rate of a folder of pictures. Other keys are kept and end up in
the samples' JSON. Everything that reads a manifest reads it here.
"""

import csv
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megavrc.errors import UserError
from megavrc.files import write_atomic
from megavrc.video.pictures import is_picture

Entry = dict[str, Any]
VIDEO_SUFFIXES = {
    ".mp4",
    ".mov",
    ".avi",
    ".mkv",
    ".webm",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".gif",
    ".flv",
    ".wmv",
    ".ts",
}
MAX_CLASSES = 1_000_000  # their names are listed up to the highest label
NUMBERS = {
    "start": "seconds",
    "end": "seconds",
    "fps": "frames a second",
}  # optional numeric keys of an entry


def read_manifest(path: Path) -> list[Entry]:
    """Read the list, with the optional keys filled in (caption and label None, split "train").

    Raises:
        UserError: missing file, a line that is not an object with a `path`, or two lines with one id.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; make one with megavrc prepare_dataset")
    entries = [_entry(path, number, fields) for number, fields in read_jsonl(path, "path")]
    _check_unique(path, entries)
    return entries


def read_captions(path: Path, split: str | None = None) -> list[str]:
    """Captions of a file: one a line, or of a .jsonl file the "caption" of each line ("" for none) of a split, or all.

    Raises:
        UserError: missing file, a line that is no object, or whose caption is no text; no caption at all.
    """
    if path.suffix == ".jsonl":
        captions = [
            _caption(path, number, fields)
            for number, fields in read_jsonl(path)
            if split in (None, fields.get("split", "train"))
        ]
    else:
        captions = [line for _, line in read_lines(path)]
    if not any(caption.strip() for caption in captions):
        raise UserError(f"{path}: holds no captions")
    return captions


def _caption(path: Path, number: int, fields: Entry) -> str:
    caption = fields.get("caption") or ""
    if not isinstance(caption, str):
        raise UserError(f"{path} line {number}: caption must be a string or null, got {caption!r:.60}")
    return caption


def read_jsonl(path: Path, *keys: str) -> Iterator[tuple[int, Entry]]:
    """The lines of a file of one object a line with their numbers; UserError if one lacks a key."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if "\\u" in line:  # half a character, which no file can hold, can be written so
                json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end].encode("unicode-escape").decode()
            raise UserError(f"{path} line {number}: {half} is half a character; mend the text") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: not valid JSON ({error})") from None
        if not isinstance(fields, dict) or not fields.keys() >= set(keys):
            wanted = " with " + " and ".join(f'"{key}"' for key in keys) if keys else ""
            raise UserError(f"{path} line {number}: expected an object{wanted}, got {line[:60]}")
        yield number, fields


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers from 1, without their ends.

    The text is UTF-8, with a byte order mark or without. A line ends at \\n (or \\r\\n) and nowhere else: captions may
    hold what `str.splitlines` takes for an end.

    Raises:
        UserError: missing file, or a line that is no UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        reason = f"byte {line[error.start]:#04x} is no UTF-8; save the file as UTF-8"
        raise UserError(f"{path} line {number}: {reason}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _entry(path: Path, number: int, fields: Entry) -> Entry:
    if not isinstance(fields.get("path"), str):
        raise UserError(f'{path} line {number}: expected an object with "path", a string')
    part = "-".join("" if fields.get(key) is None else str(fields[key]) for key in ("start", "end"))
    own = fields["path"] if part == "-" else f"{fields['path']}#{part}"
    entry = {"id": own, "caption": None, "label": None, "split": "train", **fields}
    if problem := _problem(entry):
        raise UserError(f"{path} line {number}: {problem}")
    return entry


def _problem(entry: Entry) -> str | None:
    if not isinstance(entry["id"], str) or not isinstance(entry["split"], str):
        return "id and split must be strings"
    if "\0" in entry["id"] + entry["path"] + entry["split"]:
        return "id, path and split must not hold a NUL character"
    if "/" in entry["split"] or entry["split"].startswith(".") or not entry["split"]:
        return f"split {entry['split']!r} becomes part of a file's name: no slash in it, no dot before it"
    if not isinstance(entry["caption"], str | None):
        return "caption must be a string or null"
    label = entry["label"]
    if isinstance(label, bool) or not isinstance(label, int | None) or not 0 <= (label or 0) < MAX_CLASSES:
        return f"label must be an integer from 0 to {MAX_CLASSES - 1}, or null"
    numbers = {key: entry[key] for key in NUMBERS if entry.get(key) is not None}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            return f"{key} must be a number from 0 ({NUMBERS[key]}), got {value!r}"
    if numbers.get("fps") == 0:
        return "fps must be above 0"
    if "end" in numbers and numbers["end"] <= numbers.get("start", 0):
        return f"end {numbers['end']} is not after start {numbers.get('start', 0)} (seconds)"
    return None


def _check_unique(path: Path, entries: list[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry["id"] in seen:
            raise UserError(f"{path}: id {entry['id']!r} stands there twice; ids must be unique")
        seen.add(entry["id"])


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write the list, one object a line; UserError if two entries have one id, or a name is no UTF-8."""
    entries = list(entries)
    _check_unique(path, [entry for entry in entries if "id" in entry])
    write_atomic(path, b"".join(_line(path, entry) for entry in entries))


def _line(path: Path, entry: Entry) -> bytes:
    try:
        return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8 in the name of a file
        raise UserError(f"{path}: cannot hold {entry.get('path')!a}; rename it in UTF-8") from None


def list_folder(folder: Path, out: Path, val_fraction: float = 0.0) -> list[Entry]:
    """Entries for every video file below a folder.

    The class is the name of the parent folder (none for videos directly in `folder`), the caption the content of a
    `.txt` file beside the video. Which videos are validation depends on their path alone.
    """
    files = [path for where, names in _walk(folder) for path in (where / name for name in names)]
    videos = sorted(path for path in files if is_video(path))
    if not videos:
        raise UserError(f"{folder}: no video files below it (known: {' '.join(sorted(VIDEO_SUFFIXES))})")
    return _entries(folder, out, videos, val_fraction)


def from_frames(folder: Path, out: Path, val_fraction: float = 0.0, fps: float | None = None) -> list[Entry]:
    """Entries for every folder of pictures at or below a folder, at any depth; otherwise as `list_folder`.

    Each has `frames`, its number of pictures, and `fps` if it is given (pictures do not say their rate).
    """
    counts = {where: sum(is_picture(where / name) for name in names) for where, names in _walk(folder)}
    videos = sorted(where for where, count in counts.items() if count)
    if not videos:
        raise UserError(f"{folder}: no folder of pictures at or below it")
    rate = {} if fps is None else {"fps": fps}
    entries = _entries(folder, out, videos, val_fraction)
    return [{**entry, "frames": counts[video], **rate} for entry, video in zip(entries, videos, strict=True)]


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video; hidden files (as macOS leaves them in archives) are none."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders at and below a folder, each with the names of its files."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return ((Path(where), names) for where, _, names in os.walk(folder))


def _entries(folder: Path, out: Path, videos: list[Path], val_fraction: float) -> list[Entry]:
    """Entries of videos (files or folders) at or below a folder."""
    inside = {video: video.parent.name for video in videos if video not in (folder, folder / video.name)}
    classes = {name: label for label, name in enumerate(sorted(set(inside.values())))}
    entries = []
    for video in videos:
        name = inside.get(video)
        text = video.parent / f"{video.name if video.is_dir() else video.stem}.txt"
        entries.append(
            {
                "id": (key := video.name if video == folder else video.relative_to(folder).as_posix()),
                "path": os.path.relpath(video, out.parent),
                "caption": _text(text) if text.is_file() else None,
                "label": classes[name] if name else None,
                "class": name,
                "split": "val" if fraction(key) < val_fraction else "train",
            }
        )
    return entries


def _text(path: Path) -> str:
    return "\n".join(line for _, line in read_lines(path)).strip()


def from_list(table: Path, out: Path) -> list[Entry]:
    """Entries from a .csv (with a header line) or .jsonl file whose paths are relative to it; needs a `path` column."""
    if table.suffix == ".jsonl":
        entries = read_manifest(table)
    elif table.suffix == ".csv" and table.is_file():
        rows = list(csv.DictReader(f"{line}\n" for _, line in read_lines(table)))
        entries = [_entry(table, number, _row(table, number, row)) for number, row in enumerate(rows, 2)]
        _check_unique(table, entries)
    else:
        raise UserError(f"{table}: expected an existing .csv or .jsonl file")
    return [{**entry, "path": os.path.relpath(table.parent / entry["path"], out.parent)} for entry in entries]


def present(entries: list[Entry], root: Path) -> tuple[list[Entry], list[Entry]]:
    """The entries whose video exists (paths relative to `root`), and those whose video is missing."""
    there = {path: (root / path).exists() for path in {entry["path"] for entry in entries}}
    return [e for e in entries if there[e["path"]]], [e for e in entries if not there[e["path"]]]


def _row(table: Path, number: int, row: dict[str, str]) -> Entry:
    fields: Entry = {key: value for key, value in row.items() if value}  # an empty cell is an absent value
    for key, kind in {"label": int, **dict.fromkeys(NUMBERS, float)}.items():
        try:
            fields[key] = kind(fields[key])
        except KeyError:
            continue
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise UserError(f"{table} line {number}: {key} {fields[key]!r} is not {what}") from None
    return fields


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: for choices that stay when the list grows."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8]) / 2**64
