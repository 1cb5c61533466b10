"""Pictures as frames (Pillow): turned as their EXIF says, on white where they are transparent."""

import re
import struct
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from megavrc.video.errors import VideoError, reason
from megavrc.video.files import regular_file

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
HEIF = {b"heic", b"heix", b"heim", b"heis", b"mif1"}  # brands of pictures; FFmpeg would give one tile of them
MAX_AREA = 2**31 // 8  # of a frame of FFmpeg, with 128 pixels more on each side
DAMAGE = (  # what Pillow and the libraries below it raise
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(struct.error, Image.DecompressionBombError),
)
STREAMS = {".mjpeg", ".mjpg"}  # begin like one picture, and hold many


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture; hidden files are none."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def pictures(folder: str | Path) -> list[Path]:
    """The pictures directly in a folder, by the last number in their names (frame_9 before frame_10)."""
    return sorted((path for path in Path(folder).iterdir() if is_picture(path)), key=_last_number)


def out_of_order(files: Iterable[Path]) -> tuple[str, str] | None:
    """The first picture of a folder that plays in the place of another by all numbers of their names, and that other.

    1.00.png (1, 0) in the place of 0.04.png (0, 4), for instance: the last number starts anew each second.
    """
    played = sorted(files, key=_last_number)
    pairs = zip(played, sorted(played, key=_all_numbers), strict=True)
    return next(((one.name, other.name) for one, other in pairs if one != other), None)


def _all_numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path.stem)]


def _last_number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1, path.name


def holds_picture(path: str | Path, file: BinaryIO) -> bool:
    """Whether a file's content, whatever its name, is one picture (animated PNG, AVIF and GIF are videos).

    Raises:
        VideoError: a HEIC picture, which is not read.
    """
    if Path(path).suffix.lower() in STREAMS:
        return False
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.format not in ("PNG", "AVIF") or not getattr(image, "is_animated", False)
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(12)
        if head[4:8] == b"ftyp" and head[8:] in HEIF:
            raise VideoError(path, "open", "a HEIC picture; make a JPEG or PNG of it") from None
        return False
    except DAMAGE:  # also a bomb: reading it says so
        return True


def read_pixels(path: str | Path, file: BinaryIO, most: int = MAX_AREA) -> NDArray[np.uint8]:
    """A picture as it is shown, uint8 [H, W, 3]; of several pages the first. `path` is for messages.

    One of more than `most` pixels is refused before it is decoded.

    Raises:
        VideoError: stage "open" for what is no picture, "decode" for a damaged one.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if (image.width + 128) * (image.height + 128) >= most:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if image.mode[0] in "IF":  # converting would clip them
                raise ValueError(f"not 8 bits a channel (mode {image.mode})")
            if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
                raise ValueError("an animated picture; make an mp4 or a GIF of it")
            shown = ImageOps.exif_transpose(image)
            if shown.has_transparency_data:
                coloured = shown.convert("RGBA")
                shown = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
            return np.asarray(shown.convert("RGB"))
    except UnidentifiedImageError:
        raise VideoError(path, "open", f"not a picture ({', '.join(FORMATS)})") from None
    except DAMAGE as error:
        raise VideoError(path, "decode", str(error)) from None


class Pictures(Iterator[Any]):
    """Picture files as frames; None, unread, in place of those that are not chosen."""

    rate, pixel_aspect = 0.0, 1.0

    def __init__(self, path: str | Path, chosen: Container[int] | None = None) -> None:
        self.path, self.chosen = path, chosen
        try:
            self.files = pictures(path) if Path(path).is_dir() else [Path(path)]
        except OSError as error:
            raise VideoError(path, "open", reason(error)) from None
        if not self.files:
            raise VideoError(path, "open", "no pictures in the folder")
        self.length, self.position = len(self.files), 0

    def __next__(self) -> Any:
        if self.position == self.length:
            raise StopIteration
        index, self.position = self.position, self.position + 1
        if self.chosen is not None and index not in self.chosen:
            return None
        name = self.files[index]
        try:
            with regular_file(name) as file:
                return av.VideoFrame.from_ndarray(read_pixels(name, file), format="rgb24")
        except VideoError as error:
            # A picture of a folder that is no picture is damage of the folder.
            where = "decode" if error.stage == "open" else error.stage
            raise VideoError(self.path, where, f"frame {index}: {name.name}: {error.reason}") from None
