"""Small files: text, tables and JSON read, JSON written, atomic writes, hashes.

Whatever text a user brings is read here: UTF-8, or one line that names the file and the place.
"""

import csv
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megavrc.errors import UserError


def read_text(path: str | Path) -> str:
    """The content of a text file, which is UTF-8, with a byte order mark or without.

    Raises:
        OSError: it cannot be read.
        UserError: it holds another encoding.
    """
    content = io.BytesIO(Path(path).read_bytes())
    return "".join(text for _, text in _decoded(path, content))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file (see `read_text`) with their numbers from 1, without their ends.

    A line ends at \\n (or \\r\\n) and nowhere else: captions may hold what `str.splitlines` takes for an end.

    Raises:
        UserError: missing file, or a line in another encoding.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            for number, text in _decoded(path, file):
                yield number, text.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _decoded(path: str | Path, lines: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            reason = f"byte {line[error.start]:#04x} is no UTF-8; save the file as UTF-8"
            raise UserError(f"{path} line {number}: {reason}") from None
        if "\0" in text:  # as UTF-16 has without its mark
            raise UserError(f"{path} line {number}: byte 0x00 is no text; save the file as UTF-8")
        yield number, text


def read_jsonl(path: Path, *keys: str) -> Iterator[tuple[int, dict[str, Any]]]:
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


def read_table(path: Path, delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with a header line (CSV as in RFC 4180): cells by column, with the number of the first line.

    Spaces around names and cells do not count. Columns without a name are left out.

    Raises:
        UserError: missing file, another encoding, quotation marks that do not fit, a row of more cells than columns.
    """
    reader = csv.reader(
        (f"{line}\n" for _, line in read_lines(path)), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    number = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        while header and not header[-1]:
            header.pop()
        if twice := sorted({name for name in header if name and header.count(name) > 1}):
            raise UserError(f"{path} line 1: column {twice[0]} stands there twice")
        while True:
            number = reader.line_num + 1
            cells = [cell.strip() for cell in next(reader)]
            if any(cells[len(header) :]):
                raise UserError(
                    f"{path} line {number}: {len(cells)} cells, the header names {len(header)} "
                    f"({', '.join(header)}); a cell that holds {delimiter!r} needs quotation marks around it"
                )
            if any(cells):
                yield number, {name: cell for name, cell in zip(header, cells, strict=False) if name}
    except StopIteration:
        return
    except csv.Error as error:
        raise UserError(
            f"{path} line {number}: {error}; quotation marks come in pairs, lines end in a line feed"
        ) from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file; UserError naming it when it is missing or damaged."""
    try:
        return json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, no end of brackets
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
    """Write JSON atomically: readers see the old file or the whole new one.

    Bytes of a file name that are no UTF-8 are written as JSON can hold them, `\\udce9`, and read back the same.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode(errors="backslashreplace"))


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
