"""The list of videos, `manifest.jsonl`: one object a line with id, path (relative to the file), caption, label, split.

A path is a video file or a folder of pictures. `start` and `end`, in seconds, make an entry a part of its video
(several entries may then share one path), `fps` is the rate of a folder of pictures. Other keys are kept and end up in
the samples' JSON, but for those that a plan refuses. All of it is strict JSON: NaN and Infinity are refused, under
whatever key. Everything that reads a manifest reads it here.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megavrc.errors import UserError
from megavrc.files import read_jsonl, read_lines, read_regular, read_table, write_atomic

Entry = dict[str, Any]
NAMES = {  # of keys in the tables of others, the best first; case does not matter
    "path": (
        *("path", "file_name", "filename", "file", "file_path", "filepath"),
        *("video", "video_path", "video_file"),
    ),
    "caption": ("caption", "text", "prompt"),
    **{name: (name,) for name in ("id", "label", "class", "split", "start", "end", "fps")},
}
MAX_CLASSES = 1_000_000  # their names are listed up to the highest label
MAX_NUMBER = 1e9  # of seconds or rates: above, there is no video (nor a float, for integers of JSON)
NUMBERS = {"start": "seconds", "end": "seconds", "fps": "frames a second"}  # optional keys of an entry


def read_manifest(path: Path) -> list[Entry]:
    """Read the list, with the optional keys filled in (caption and label None, split "train").

    Raises:
        UserError: missing file, a line that is not an object with a `path`, two lines with one id, or classes that do
            not fit their labels.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; make one with megavrc prepare_dataset")
    entries = [_entry(path, number, fields) for number, fields in read_jsonl(path, "path")]
    _check_unique(path, entries, path.parent)
    _check_classes(path, entries)
    return entries


def read_captions(path: Path, split: str | None = None) -> list[str]:
    """Captions of a file: one a line, or of a .jsonl or .csv file those of the entries of a split, or of all.

    An entry without a caption gives "".

    Raises:
        UserError: missing file, a line that is no object, or whose caption is no text; no caption at all.
    """
    kind = path.suffix.lower()
    if kind in (".json", ".tsv", ".parquet"):
        raise UserError(f"{path}: captions are read from .jsonl, .csv and .txt (one a line), not from {kind}")
    found: list[str] = []
    if kind in (".jsonl", ".csv"):
        rows = [
            (number, _named(path, number, row))
            for number, row in (read_jsonl if kind == ".jsonl" else read_table)(path)
        ]
        columns = sorted({name for _, row in rows for name in row})
        if "caption" not in columns:
            known = ", ".join(NAMES["caption"])
            raise UserError(
                f"{path}: holds no captions: no column is one of {known}; found: {', '.join(columns) or 'none'}"
            )
        found = [_caption(path, *row) for row in rows if split in (None, row[1].get("split") or "train")]
    else:
        found = [line for _, line in read_lines(path)]
    if not any(caption.strip() for caption in found):
        raise UserError(
            f"{path}: holds no captions" + f" of split {split!r}" * bool(split and kind != ".txt")
        )
    return found


def _caption(path: Path, number: int, fields: Entry) -> str:
    caption = fields.get("caption")
    if not isinstance(caption, str | None):
        raise UserError(f"{path} line {number}: caption must be a string or null, got {caption!r:.60}")
    return caption or ""


def _named(path: Path, number: int, fields: Entry) -> Entry:
    """The fields under their names here, as `NAMES` translates them; others keep theirs."""
    spelled: dict[str, str] = {}
    for name in fields:
        other = spelled.setdefault(name.strip().lower().replace(" ", "_"), name)
        if other != name:
            raise UserError(
                f"{path} line {number}: {other!r} and {name!r} are one name here; rename one of them"
            )
    own = {
        next((spelled[name] for name in names if name in spelled), key): key for key, names in NAMES.items()
    }
    return {own.get(name, name): value for name, value in fields.items()}


def _entry(path: Path, number: int, fields: Entry) -> Entry:
    if not isinstance(fields.get("path"), str) or not fields["path"].strip():
        raise UserError(f'{path} line {number}: expected an object with "path", a string that names a file')
    usual = {"id": _own_id(fields), "caption": None, "label": None, "split": "train"}
    entry = {**usual, **fields}
    entry |= {key: value for key, value in usual.items() if entry[key] is None}  # null is an absent value
    if entry.get("class") == "":  # as an empty cell of a table
        entry["class"] = None
    if problem := _problem(entry):
        raise UserError(f"{path} line {number}: {problem}")
    return entry


def _own_id(fields: Entry) -> str:
    """The id of an entry that names none."""
    part = "-".join("" if fields.get(key) is None else str(fields[key]) for key in ("start", "end"))
    return fields["path"] if part == "-" else f"{fields['path']}#{part}"


def _problem(entry: Entry) -> str | None:
    if not isinstance(entry["id"], str) or not isinstance(entry["split"], str):
        return "id and split must be strings"
    if "\0" in entry["id"] + entry["path"] + entry["split"]:
        return "id, path and split must not hold a NUL character"
    if not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}", entry["split"]):
        return f"split {entry['split']!r:.60} becomes part of a file's name: no slash in it, no dot before it, not long"
    if not isinstance(entry["caption"], str | None):
        return "caption must be a string or null"
    label = entry["label"]
    if isinstance(label, bool) or not isinstance(label, int | None) or not 0 <= (label or 0) < MAX_CLASSES:
        return f"label must be an integer from 0 to {MAX_CLASSES - 1}, or null"
    numbers = {key: entry[key] for key in NUMBERS if entry.get(key) is not None}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_NUMBER:
            return f"{key} must be a number from 0 to {MAX_NUMBER:g} ({NUMBERS[key]}), got {value!r:.40}"
    if numbers.get("fps") == 0:
        return "fps must be above 0"
    if "end" in numbers and numbers["end"] <= numbers.get("start", 0):
        return f"end {numbers['end']} is not after start {numbers.get('start', 0)} (seconds)"
    return None


def _place(root: Path, entry: Entry) -> str:
    """The path of an entry's video from `root`: one for all its spellings, also the absolute ones."""
    near = os.path.normpath(entry["path"])
    # relpath gives the same for a path below `root`, at twenty times the cost.
    return os.path.relpath(root / near, root) if near.startswith(("/", os.pardir)) else near


def _check_unique(path: Path, entries: list[Entry], root: Path) -> None:
    """UserError if two entries have one id, or none of their own and one video, however its path is spelled."""
    seen: dict[Any, str] = {}
    for entry in entries:
        keys: list[Any] = [entry["id"]]
        if entry["id"] == _own_id(entry):
            keys.append((_place(root, entry), entry.get("start") or 0, entry.get("end")))
        for key in keys:
            if key in seen:
                other = f", also as {seen[key]!r}" * (seen[key] != entry["id"])
                raise UserError(f"{path}: id {entry['id']!r} stands there twice{other}; ids must be unique")
            seen[key] = entry["id"]


def _check_classes(path: Path, entries: list[Entry]) -> None:
    """UserError if a label has two names of classes, or a name two labels."""
    for one, other in (("label", "class"), ("class", "label")):
        first: dict[Any, Entry] = {}
        for entry in entries:
            if entry["label"] is None or entry.get("class") is None:
                continue
            known = first.setdefault(str(entry[one]), entry)
            if str(known[other]) != str(entry[other]):
                raise UserError(
                    f"{path}: {one} {entry[one]} has {other} {known[other]!r} ({known['id']}) and {entry[other]!r} "
                    f"({entry['id']}); correct one of them"
                )


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write the list, one object a line.

    Raises:
        UserError: as `manifest_content`, or another list at `path`, which stays.
    """
    content = manifest_content(path, entries)
    if path.exists() and read_regular(path) != content:
        raise UserError(f"{path}: is there and lists something else; choose another name, or delete it")
    write_atomic(path, content)


def manifest_content(path: Path, entries: Iterable[Entry]) -> bytes:
    """What `write_manifest` writes.

    Raises:
        UserError: an entry that cannot be read again, two entries with one id, or a name that is no UTF-8.
    """
    entries = list(entries)
    whole = [_entry(path, number, entry) for number, entry in enumerate(entries, 1)]
    _check_unique(path, whole, path.parent)
    _check_classes(path, whole)
    return b"".join(_line(path, entry) for entry in entries)


def _line(path: Path, entry: Entry) -> bytes:
    for name, value in entry.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            what = (
                "rename it in UTF-8"
                if name in ("id", "path", "class")
                else "it holds half a character: correct the text"
            )
            raise UserError(f"{path}: cannot hold {name} {value!a:.200}; {what}") from None
        except ValueError:
            what = "NaN and infinities are no numbers of JSON: leave the key out, or write null"
            raise UserError(f"{path}: cannot hold {name} {value!a:.200}; {what}") from None
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()


def from_list(table: Path, out: Path, folder: Path | None = None, val_fraction: float = 0.0) -> list[Entry]:
    """Entries from a .csv (with a header line) or .jsonl file whose paths are relative to `folder`, or else to it.

    The names of its columns are those of `NAMES`, others are kept. Of the rows that say no split, all or none of a
    video are validation, which depends on its path alone.

    Raises:
        UserError: no such file, no column of paths, or a row that is no entry.
    """
    kind = table.suffix.lower()
    if kind not in (".jsonl", ".csv") or not table.is_file():
        raise UserError(f"{table}: expected an existing .csv or .jsonl file")
    root = folder or table.parent
    entries = []
    for number, row in read_table(table) if kind == ".csv" else read_jsonl(table):
        fields = _named(table, number, row)
        if "path" not in fields:
            columns = (", ".join(row) or "none") + "; commas stand between cells" * (kind == ".csv")
            raise UserError(
                f"{table} line {number}: no column of paths ({', '.join(NAMES['path'])}); found: {columns}"
            )
        entry = _entry(table, number, _typed(table, number, fields) if kind == ".csv" else fields)
        if not fields.get("split"):
            entry["split"] = split_of(_place(root, entry), val_fraction)
        entries.append(entry)
    if not entries:
        raise UserError(f"{table}: holds no videos")
    if all(entry["label"] is None for entry in entries):  # then classes are numbered as those of a folder are
        names = sorted({name for name in map(_class, entries) if name is not None})
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
        entries = [{**entry, "label": numbers.get(_class(entry))} for entry in entries]
    _check_unique(table, entries, root)
    _check_classes(table, entries)
    return [{**entry, "path": path_from(out.parent, root / entry["path"])} for entry in entries]


def _class(entry: Entry) -> str | None:
    return None if entry.get("class") is None else str(entry["class"])


def _typed(table: Path, number: int, row: Entry) -> Entry:
    """The cells of a CSV as values."""
    fields = {key: value for key, value in row.items() if value}  # an empty cell is an absent value
    for key, kind in {"label": int, **dict.fromkeys(NUMBERS, float)}.items():
        if key not in fields:
            continue
        try:
            if not fields[key].isascii() or "_" in fields[key]:  # Python's own spellings of numbers
                raise ValueError
            fields[key] = kind(fields[key])
        except ValueError:
            what = "an integer (a name goes into a column class)" if kind is int else "a number"
            raise UserError(f"{table} line {number}: {key} {fields[key]!r:.40} is not {what}") from None
    return fields


def path_from(folder: Path, path: Path) -> str:
    """The path of a video relative to the folder of its manifest, either of which may lie behind links."""
    near, real = os.path.relpath(path, folder), os.path.realpath(folder)
    if real == os.path.abspath(folder) or not near.startswith(os.pardir):
        return near
    return os.path.relpath(os.path.realpath(path), real)  # `..` of a linked folder is where the link leads


def present(entries: list[Entry], root: Path) -> tuple[list[Entry], list[Entry]]:
    """The entries whose video exists (paths relative to `root`), and those whose video is missing."""
    there = {path: _exists(root / path) for path in {entry["path"] for entry in entries}}
    return [e for e in entries if there[e["path"]]], [e for e in entries if not there[e["path"]]]


def _exists(path: Path) -> bool:
    try:
        # `..` of a folder that is still to be made leads somewhere, too.
        return path.exists() or os.path.exists(os.path.realpath(path))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # of a caption in the column of paths
            raise
        return False


def spelled_otherwise(paths: Iterable[Path]) -> Path | None:
    """The first name on disk, a file's or that of a folder above it, that differs from one in these paths in its
    Unicode form only.

    Archives of macOS hold NFD, where an accent is a character of its own; most tables hold NFC.
    """

    @functools.cache
    def names(folder: Path) -> dict[str, str]:
        with contextlib.suppress(OSError):
            return {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}
        return {}

    for path in paths:
        if str(path).isascii():  # has one form, and asks nothing of the disk
            continue
        real = Path(os.path.realpath(path))
        missing = next((each for each in (*real.parents[::-1], real) if not os.path.lexists(each)), None)
        if missing and (name := names(missing.parent).get(unicodedata.normalize("NFC", missing.name))):
            return missing.parent / name
    return None


def split_of(key: str, val_fraction: float) -> str:
    """`val` for this share of all keys, else `train`; depends on the key alone. UserError for what is no share."""
    if not 0 <= val_fraction <= 1:
        raise UserError(f"--val_fraction {val_fraction}: a share from 0 to 1, such as 0.05")
    return "val" if fraction(key) < val_fraction else "train"


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: for choices that stay when the list grows."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8]) / 2**64
