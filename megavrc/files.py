"""Small files: JSON read and written, atomic writes, hashes."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from megavrc.errors import UserError


def read_json(path: str | Path) -> Any:
    """Read a JSON file; UserError naming it when it is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # also numbers of thousands of digits, and no end of brackets
        raise UserError(f"{path}: not valid JSON ({error})") from None


_FORMAT = re.compile(r"(\D*)([1-9]\d{0,8})")


def check_format(path: str | Path, found: object, known: int | str) -> None:
    """Refuse a file in a format that its reader does not know: docs/formats.md lists them all.

    Args:
        path: for the message.
        found: what the file says; None, as in files from before they had a number, is format 1.
        known: the newest that can be read: a number, or a name that ends in one ("megavrc-shards 1").

    Raises:
        UserError: a newer format, or that of another kind of file.
    """
    theirs, mine = (_FORMAT.fullmatch(str(value)) for value in (1 if found is None else found, known))
    if theirs is None or mine is None or theirs[1] != mine[1]:
        raise UserError(f"{path}: format {found!r}, expected {known!r}")
    if int(theirs[2]) > int(mine[2]):
        raise UserError(
            f"{path}: made by a newer megavrc (format {theirs[2]}, this one reads up to {mine[2]}); use that version"
        )


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically: readers see the old file or the whole new one."""
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write a file through a temporary neighbour, fsync and rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names no file
        raise


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `content` (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
