"""The list of videos, `manifest.jsonl`: one object a line with id, path (relative to the file), caption, label, split.

Other keys are kept and end up in the samples' JSON.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megavrc.config import UserError, write_atomic

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


def read_manifest(path: Path) -> list[Entry]:
    """Read the list, with the optional keys filled in (caption and label None, split "train").

    Raises:
        UserError: missing file, a line that is not an object with a `path`, or two lines with one id.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; make one with tools/prepare_dataset.py")
    entries = [
        _entry(path, number, line) for number, line in enumerate(path.read_text().splitlines(), 1) if line
    ]
    _check_unique(path, entries)
    return entries


def _entry(path: Path, number: int, line: str) -> Entry:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number}: not valid JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        raise UserError(f'{path} line {number}: expected an object with "path", got {line[:60]}')
    entry = {"id": fields["path"], "caption": None, "label": None, "split": "train", **fields}
    if not isinstance(entry["id"], str) or not isinstance(entry["split"], str):
        raise UserError(f"{path} line {number}: id and split must be strings")
    if not isinstance(entry["caption"], str | None):
        raise UserError(f"{path} line {number}: caption must be a string or null")
    if not isinstance(entry["label"], int | None) or (entry["label"] or 0) < 0:
        raise UserError(f"{path} line {number}: label must be an integer from 0, or null")
    return entry


def _check_unique(path: Path, entries: list[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry["id"] in seen:
            raise UserError(f"{path}: id {entry['id']!r} stands there twice; ids must be unique")
        seen.add(entry["id"])


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write the list, one object a line."""
    write_atomic(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode())


def from_folder(folder: Path, out: Path, val_fraction: float = 0.0) -> list[Entry]:
    """Entries for every video below a folder.

    The class is the name of the parent folder (none for videos directly in `folder`), the caption the content of a
    `.txt` file beside the video. Which videos are validation depends on their path alone.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    videos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise UserError(f"{folder}: no video files below it (known: {' '.join(sorted(VIDEO_SUFFIXES))})")
    classes = sorted({video.parent.name for video in videos if video.parent != folder})
    entries = []
    for video in videos:
        name = video.parent.name if video.parent != folder else None
        text = video.with_suffix(".txt")
        entries.append(
            {
                "id": (key := video.relative_to(folder).as_posix()),
                "path": os.path.relpath(video, out.parent),
                "caption": text.read_text().strip() if text.is_file() else None,
                "label": classes.index(name) if name else None,
                "class": name,
                "split": "val" if _fraction(key) < val_fraction else "train",
            }
        )
    return entries


def from_list(table: Path, out: Path) -> list[Entry]:
    """Entries from a .csv (with a header line) or .jsonl file whose paths are relative to it; needs a `path` column."""
    if table.suffix == ".jsonl":
        entries = read_manifest(table)
    elif table.suffix == ".csv" and table.is_file():
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
        entries = [
            _entry(table, number, json.dumps(_row(table, number, row))) for number, row in enumerate(rows, 2)
        ]
        _check_unique(table, entries)
    else:
        raise UserError(f"{table}: expected an existing .csv or .jsonl file")
    return [{**entry, "path": os.path.relpath(table.parent / entry["path"], out.parent)} for entry in entries]


def _row(table: Path, number: int, row: dict[str, str]) -> Entry:
    fields: Entry = {key: value for key, value in row.items() if value}  # an empty cell is an absent value
    if "label" in fields:
        try:
            fields["label"] = int(fields["label"])
        except ValueError:
            raise UserError(f"{table} line {number}: label {fields['label']!r} is not an integer") from None
    return fields


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
