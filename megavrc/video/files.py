"""Open what a user names: regular files on this machine, in formats that hold all of their content themselves.

The one place where videos and pictures are opened. FFmpeg gets a descriptor, never a name: a name may be an address
or a command to it (`http:`, `concat:`, `img%03d.jpg`), and some formats make it open further ones (playlists).
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av

from megavrc.video.errors import VideoError, reason, stage

# Names of FFmpeg's demuxers. None of them opens another file or host (`mov` only if it is told to); it must stay so.
CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut"),
    *("dv", "rm", "wtv", "ivf"),
    *("gif", "apng", "yuv4mpegpipe", "mjpeg", "jpeg_pipe"),
    *("h264", "hevc", "vvc", "av1", "obu", "m4v", "mpegvideo", "vc1"),  # bare streams
)

MATROSKA = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67")  # how its header and its Segment begin


@contextmanager
def regular_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file to read. Pipes, which wait for a writer, and devices, which may have no end, are refused.

    Raises:
        VideoError: stage "io" where it cannot be opened, "open" where it is no regular file.
    """
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
        file = open(path, "rb") if regular else None
    except OSError as error:
        raise VideoError(path, "io", reason(error)) from None
    except ValueError as error:  # no name of a file
        raise VideoError(path, "open", str(error)) from None
    if file is None:
        raise VideoError(path, "open", "not a regular file")
    with file:
        yield file


def open_container(path: str | Path, file: BinaryIO) -> Any:
    """Open a video with FFmpeg, by its descriptor. `path` is for messages."""
    options = {
        "fd": str(file.fileno()),
        "protocol_whitelist": "fd",
        "format_whitelist": ",".join(CONTAINERS),
    }
    _check_whole(path, file)
    _check_gif(path, file)
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # Python may have read ahead
    try:
        return av.open("fd:", options=options, metadata_errors="replace")
    except av.ArgumentError:  # how FFmpeg names a format that is not on the list
        formats = "not a video, or in a format that is not read (docs/tokenization.md lists them)"
        raise VideoError(path, "open", formats) from None
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, stage(error, "open"), reason(error)) from None


def _check_whole(path: str | Path, file: BinaryIO) -> None:
    """VideoError for a Matroska file (mkv, webm) that ends before it says: FFmpeg takes what is left for the whole.

    Such a file is two elements: 4 bytes of name, a size of 1 to 8 bytes, and the content. Of a recording that was
    never closed the second one's size is unknown, and nothing is said.
    """
    length, end = os.fstat(file.fileno()).st_size, 0
    for name in MATROSKA:
        file.seek(end)
        head = file.read(12)
        if end and len(head) < 12:
            end += 12
        elif head[:4] != name or len(head) < 12:
            return
        else:
            width = 9 - head[4].bit_length()  # as many zeros as bytes follow, then a one, then the number
            unknown = (1 << 7 * width) - 1
            size = int.from_bytes(head[4 : 4 + width]) & unknown
            if size == unknown or width > 8:
                return
            end += 4 + width + size
        if end > length:
            raise VideoError(path, "open", f"cut short: {length} of {end} bytes")


def _check_gif(path: str | Path, file: BinaryIO) -> None:
    """VideoError for a GIF that ends inside a block: FFmpeg shows the rest of its last picture as it was before.

    Blocks are colour tables, extensions (0x21, a label) and pictures (0x2C, 9 bytes, a table, the size of a code), the
    latter two in parts of a length byte and so much content, up to one of length 0. A trailer may be missing.
    """
    file.seek(0)
    head = file.read(13)
    if head[:6] not in (b"GIF87a", b"GIF89a"):
        return
    file.seek(_table(head[10:11]), os.SEEK_CUR)
    while (kind := file.read(1)) in (b"\x21", b"\x2c"):
        if kind == b"\x21":
            file.seek(1, os.SEEK_CUR)
        else:
            file.seek(_table(file.read(9)[8:]) + 1, os.SEEK_CUR)
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], os.SEEK_CUR)
        else:
            raise VideoError(
                path, "open", f"cut short: {os.fstat(file.fileno()).st_size} bytes, inside a picture"
            )


def _table(flags: bytes) -> int:
    """Bytes of the colour table that follows."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 128 else 0
