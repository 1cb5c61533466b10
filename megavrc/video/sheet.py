"""Pictures of many clips: a contact sheet (one row of frames a clip) and a grid that moves."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from megavrc.video.write import enlarge

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB
Picture = NDArray[np.uint8]  # [H, W, 3], RGB

PAPER, INK = 250, 20  # grey levels
TEXT = 13  # pixels
LEADING = 7  # pixels that a line of text is higher than its letters
GAP = 4  # between pictures, pixels


def contact_sheet(rows: Sequence[tuple[str, Frames]], columns: int = 6, scale: int = 2) -> Picture:
    """Draw one row a clip: its label, then `columns` of its frames, evenly spaced, first and last included.

    Args:
        rows: (label, uint8 [T, H, W, 3]); the clips may differ in size and length.
        columns: frames a row.
        scale: enlarge each pixel this many times (nearest).

    Returns:
        uint8 [height, width, 3].
    """
    if not rows or columns < 1:
        raise ValueError("a contact sheet needs at least one row and one column")
    strips = [_labelled(label, _row(_spread(frames, columns), scale)) for label, frames in rows]
    return _stack(strips)


def clip_grid(
    clips: Sequence[tuple[str, Frames]],
    columns: int = 4,
    scale: int = 3,
    headings: Sequence[str] = (),
    text: int = TEXT,
) -> Frames:
    """Put clips of one size and length side by side, each under its label, as one clip: uint8 [T, height, width, 3].

    Args:
        clips: (label, uint8 [T, H, W, 3]).
        columns: clips a row.
        scale: enlarge each pixel this many times (nearest).
        headings: one a row, across it.
        text: size of labels in pixels.
    """
    if not clips or columns < 1:
        raise ValueError("a grid needs at least one clip and one column")
    lengths = {len(frames) for _, frames in clips}
    if len(lengths) > 1:
        raise ValueError(f"a grid needs clips of one length, not {sorted(lengths)}")
    lines = [clips[i : i + columns] for i in range(0, len(clips), columns)]

    def picture(time: int) -> Picture:
        rows = []
        for number, line in enumerate(lines):
            cells = [_labelled(label, _row([frames[time]], scale), text) for label, frames in line]
            row = np.concatenate(cells, axis=1)
            rows.append(_labelled(headings[number], row, text + text // 4) if headings else row)
        return _stack(rows)

    return np.stack([picture(time) for time in range(lengths.pop())])


def _spread(frames: Frames, columns: int) -> Frames:
    return frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]


def _row(pictures: Frames | list[Picture], scale: int) -> Picture:
    return np.concatenate(
        [_pad(enlarge(picture, scale), right=GAP, bottom=GAP) for picture in pictures], axis=1
    )


def _labelled(label: str, picture: Picture, size: int = TEXT) -> Picture:
    """Write `label` above a picture, as much of it as fits, in letters of `size` pixels."""
    height, width = picture.shape[:2]
    font, line = ImageFont.load_default(size), size + LEADING
    text, room = label[:width], width - GAP  # a letter is a pixel wide or more
    if font.getlength(text) > room:
        ends = bisect_right(range(len(text)), room, key=lambda end: font.getlength(text[:end] + "…"))
        text = text[: ends - 1] + "…" if ends else ""
    canvas = Image.new("RGB", (width, line + height), (PAPER,) * 3)
    ImageDraw.Draw(canvas).text((1, 2), text, font=font, fill=(INK,) * 3)
    canvas.paste(Image.fromarray(np.ascontiguousarray(picture)), (0, line))
    return np.asarray(canvas)


def _stack(pictures: Sequence[Picture]) -> Picture:
    """Put pictures below each other, left-aligned, inside a margin."""
    width = max(picture.shape[1] for picture in pictures)
    lines = [_pad(picture, right=width - picture.shape[1]) for picture in pictures]
    return _pad(np.concatenate(lines), left=GAP, top=GAP)


def _pad(picture: Picture, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0) -> Picture:
    return np.pad(picture, ((top, bottom), (left, right), (0, 0)), constant_values=PAPER)
