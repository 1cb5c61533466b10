"""Small files: text, tables and JSON read, JSON written, atomic writes, hashes; and patience with file systems.

Whatever text a user brings is read here: UTF-8, or one line that names the file and the place.
"""

import csv
import errno
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from megavrc.errors import TransientError, UserError

log = logging.getLogger("megavrc")
T = TypeVar("T")

NOT_JSON = (ValueError, RecursionError)  # what json.loads raises; the second for no end of brackets


def read_text(path: str | Path) -> str:
    """The content of a text file, which is UTF-8, with a byte order mark or without.

    Raises:
        OSError: it cannot be read.
        UserError: it holds another encoding.
    """
    content = io.BytesIO(read_regular(path))
    return "".join(text for _, text in _decoded(path, content))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file (see `read_text`) with their numbers from 1, without their ends.

    A line ends at \\n (or \\r\\n) and nowhere else: captions may hold what `str.splitlines` takes for an end.

    Raises:
        UserError: missing file, a line in another encoding, or a file whose lines end in \\r alone.
    """
    lines = _lines(path)
    begin = list(itertools.islice(lines, 2))
    if len(begin) == 1 and "\r" in begin[0][1]:
        raise UserError(
            f"{path}: one line with carriage returns in it, which end no lines here; save it with line feeds"
        )
    yield from itertools.chain(begin, lines)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            for number, text in _decoded(path, file):
                yield number, text.removesuffix("\n").rstrip("\r")
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
    """The lines of a file of one object a line with their numbers.

    Raises:
        UserError: a line that is no JSON (NaN and Infinity are none), a key that stands twice, or a line that lacks one
            of `keys`.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
            if "\\u" in line:  # half a character, which no file can hold, can be written so
                json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end].encode("unicode-escape").decode()
            raise UserError(f"{path} line {number}: {half} is half a character; correct the text") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: not valid JSON ({error})") from None
        if not isinstance(fields, dict) or not fields.keys() >= set(keys):
            wanted = " with " + " and ".join(f'"{key}"' for key in keys) if keys else ""
            raise UserError(f"{path} line {number}: expected an object{wanted}, got {line[:60]}")
        yield number, fields


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError if a key stands there twice, where json takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _number(text: str) -> float:
    """A number of JSON, which NaN and Infinity are not; ValueError for them, and for what no float can hold."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def read_table(path: Path, delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with a header line (CSV as in RFC 4180): cells by column, with the number of the first line.

    Spaces around names and cells do not count. Columns without a name are left out.

    Raises:
        UserError: missing file, another encoding, quotation marks that do not fit, a row of more cells than columns.
    """
    reader = csv.reader(
        (f"{line}\n" for _, line in _lines(path)), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    number = 1
    header: list[str] = []
    try:
        while True:
            number = reader.line_num + 1
            cells = [cell.strip() for cell in next(reader)]
            if not header:  # empty lines may stand before it
                while cells and not cells[-1]:
                    cells.pop()
                header = cells
                if twice := sorted({name for name in header if name and header.count(name) > 1}):
                    raise UserError(f"{path} line {number}: column {twice[0]} stands there twice")
                continue
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
        said = str(error)
        if "field limit" in said:
            said = f"a cell is longer than {csv.field_size_limit():,} characters: shorten it"
        raise UserError(
            f"{path} line {number}: {said}; quotation marks come in pairs, lines end in a line feed"
        ) from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file; UserError naming it when it is missing, damaged, or no regular file."""
    try:
        return json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except NOT_JSON as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def named_path(path: Path) -> Path:
    """The path; if it is `.` or ends in `..`, which hide its name and the folder above it, where it leads."""
    return path.resolve() if path.name in ("", "..") else path


def read_regular(path: str | Path) -> bytes:
    """The bytes of a file; UserError for a folder, and for a pipe, which would wait for its writer for ever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{path}: not a regular file")
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def read_object(path: str | Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read a JSON file that holds an object; the rest as `read_json` and `check_fields`."""
    return check_fields(path, read_json(path), fields)


def check_fields(where: str | Path, content: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """`content`, if it is an object with these fields.

    Args:
        where: what it was read from, for the message.
        content: from JSON.
        fields: their types: `str`, `int` (no bool), `float` (also int), `list[int]`, `dict[str, int]`, `str | None`
            (may be missing), `Any` (must be there).

    Raises:
        UserError: it is none, or a field is missing or of another type; names it.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected an object, got {content!r:.40}")
    for name, kind in fields.items():
        if name not in content and not isinstance(kind, UnionType):
            raise UserError(f"{where}: {name} is missing")
        if not _fits(content.get(name), kind):
            expected = getattr(kind, "__name__", "") if get_origin(kind) is None else str(kind)
            raise UserError(f"{where}: {name} is {content.get(name)!r:.40}, expected {expected or kind}")
    return content


def _fits(value: Any, kind: Any) -> bool:
    inner = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in inner)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values())
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)


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


PICTURES = {".png": (b"\x89PNG\r\n",), ".svg": (b"<?xml", b"<svg")}  # by ending: how such a file begins


def check_picture_place(path: Path, kinds: Container[str] = PICTURES) -> None:
    """Whether a picture may be written there: UserError unless its name ends in one of `kinds` and what lies there
    already, if anything, is a picture of that kind."""
    if path.suffix not in kinds:
        endings = " or ".join(kind for kind in PICTURES if kind in kinds)
        raise UserError(f"{path}: name a file that ends in {endings}")
    check_place(path, PICTURES[path.suffix], f"{path.suffix[1:].upper()} picture")


def check_place(path: Path, begins: tuple[bytes, ...], what: str) -> None:
    """Whether a file may be written there: UserError if another one is there than what begins so."""
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(begins)):
        raise UserError(f"{path}: is there and is no {what}; choose another name, or delete it")


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `content` (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_lines_of_json(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of one a line; damaged lines are named in the log and left out."""
    found, damaged = [], []
    for number, line in enumerate(read_regular(path).split(b"\n"), 1):
        try:
            content = json.loads(line.decode()) if line.strip() else None
        except NOT_JSON:
            content = False
        if isinstance(content, dict):
            found.append(content)
        elif content is not None:
            damaged.append(str(number))
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        log.warning("%s: damaged lines are left out: %s%s", path, ", ".join(damaged[:5]), more)
    return found


def append_line(path: Path, text: str) -> None:
    """Add a line to a file. One that a full disk has cut short before it stays a line of its own."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = f"\n{text}"
        file.write(f"{text}\n".encode())


# --- patience --------------------------------------------------------------------------------------------------------

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between tries
PASSING = {
    getattr(errno, name)
    for name in (
        "EIO ESTALE ETIMEDOUT EAGAIN EBUSY EINTR ENOMEM ENFILE EMFILE ENODEV ENOLINK EREMOTEIO ESHUTDOWN "
        "ENOTCONN ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET"
    ).split()
}  # errors of network drives, and of machines that are short of something, that may be gone another time

DENIED = {errno.EACCES, errno.EPERM}  # may pass too: of a network drive whose ticket has run out


def patiently(
    action: Callable[[], T], passing: Container[int] = PASSING, pauses: Iterable[float] | None = None
) -> T:
    """`action()`, tried again after each pause while the file system fails in a way that may pass.

    Args:
        passing: the error numbers that may pass.
        pauses: in seconds (default: `PAUSES`); an iterator can be shared by several calls.

    Raises:
        TransientError: it still fails after the last pause.
        OSError: it fails in another way.
    """
    left = iter(PAUSES if pauses is None else pauses)
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in passing:
                raise
            said = reason_of(error)
            if (pause := next(left, None)) is None:
                raise TransientError(f"{said}; tried again and again; is the drive well?") from None
            log.warning("%s; trying again in %g s", said, pause)
        time.sleep(pause)


def reason_of(error: OSError) -> str:
    """The system's reason, and the file that it is about."""
    return f"{error.filename}: {error.strerror or error}" if error.filename else str(error)


def user_error(error: OSError) -> UserError:
    """The same as one for people, a TransientError if it may pass; one that names no file is raised as it is."""
    if error.filename is None:
        raise error
    return (TransientError if error.errno in PASSING else UserError)(reason_of(error))
