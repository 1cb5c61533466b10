"""Files whose every frame is known: flat patches of stored YCbCr codes, above them the frame's number in bits."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

# The decoding contract: what stored codes (Y, Cb, Cr; 8 bits) become under each tag. From the formulas of ITU-R BT.601,
# BT.709 and BT.2020 (test_the_table_follows_the_standards); docs/tokenization.md has the same table.
TAGS = ("BT.601 limited", "BT.601 full", "BT.709 limited", "BT.709 full", "BT.2020 limited", "BT.2020 full")
GOLDEN = {
    (16, 128, 128): ((0, 0, 0), (16, 16, 16), (0, 0, 0), (16, 16, 16), (0, 0, 0), (16, 16, 16)),
    (126, 128, 128): (
        (128, 128, 128),
        (126, 126, 126),
        (128, 128, 128),
        (126, 126, 126),
        (128, 128, 128),
        (126, 126, 126),
    ),
    (235, 128, 128): (
        (255, 255, 255),
        (235, 235, 235),
        (255, 255, 255),
        (235, 235, 235),
        (255, 255, 255),
        (235, 235, 235),
    ),
    (90, 100, 180): (
        (169, 55, 30),
        (163, 63, 40),
        (179, 64, 27),
        (172, 71, 38),
        (173, 58, 26),
        (167, 65, 37),
    ),
    (150, 90, 100): (
        (111, 194, 79),
        (111, 183, 83),
        (106, 179, 76),
        (106, 170, 79),
        (109, 181, 75),
        (109, 172, 79),
    ),
    (70, 170, 110): (
        (34, 61, 148),
        (45, 68, 144),
        (31, 64, 152),
        (42, 71, 148),
        (33, 67, 153),
        (43, 73, 149),
    ),
    (120, 160, 150): (
        (156, 91, 186),
        (151, 93, 177),
        (161, 103, 189),
        (155, 104, 179),
        (158, 101, 190),
        (152, 102, 180),
    ),
}
MATRICES = {"BT.601": 6, "BT.709": 1, "BT.2020": 9}  # as files say them (ITU-T H.273)
PATCH, BITS, COUNT = 32, 5, 20
WIDTH, HEIGHT = PATCH * len(GOLDEN), 2 * PATCH


def number_of(frame_HWC: np.ndarray) -> int:
    """The frame's number, from the blocks on top of it; the frame may be resized, not cut."""
    down, right = frame_HWC.shape[0] / HEIGHT, frame_HWC.shape[1] / WIDTH
    columns = [int((bit + 0.5) * PATCH * right) for bit in range(BITS)]
    return sum(1 << bit for bit, x in enumerate(columns) if frame_HWC[int(PATCH // 2 * down), x].mean() > 128)


def patches_of(frame_HWC: np.ndarray) -> np.ndarray:
    """The middle of every patch, int [patches, 3]."""
    return frame_HWC[PATCH * 3 // 2, PATCH // 2 : WIDTH : PATCH].astype(int)


def write(
    path: Path,
    tag: str | None = None,
    pixels: str = "yuv420p",
    size: tuple[int, int] | None = None,
    codec: str = "libx264",
    count: int = COUNT,
    options: dict[str, str] | None = None,
    **context: Any,
) -> Path:
    """Write `count` frames that hold the stored codes of the table, and tag them ("BT.709 full", or not at all).

    Args:
        size: (width, height); the pictures are cut or extended to it.
        context: more fields of the codec's context, such as sample_aspect_ratio.
    """
    width, height = size or (WIDTH, HEIGHT)
    tags = (
        {}
        if tag is None
        else {"colorspace": MATRICES[tag.split()[0]], "color_range": 2 if tag.endswith("full") else 1}
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=25, options={"qp": "0", "preset": "ultrafast"} if options is None else options
        )
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for name, value in {**tags, **context}.items():
            setattr(stream.codec_context, name, value)
        for index in range(count):
            frame = _frame(index, pixels, width, height)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            for name, value in tags.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _frame(index: int, pixels: str, width: int, height: int) -> av.VideoFrame:
    codes = np.full((3, HEIGHT, WIDTH), 128, np.uint16)
    for place, stored in enumerate(GOLDEN):
        codes[:, PATCH:, place * PATCH : (place + 1) * PATCH] = np.array(stored)[:, None, None]
    codes[0, :PATCH] = 16
    for bit in range(BITS):
        codes[0, :PATCH, bit * PATCH : (bit + 1) * PATCH] = 235 if index >> bit & 1 else 16
    more = (max(0, height - codes.shape[1]), max(0, width - codes.shape[2]))
    codes = np.pad(codes, ((0, 0), (0, more[0]), (0, more[1])), mode="edge")[:, :height, :width]
    frame = av.VideoFrame(width, height, pixels)
    for number, plane in enumerate(frame.planes):
        step = width // plane.width
        values = codes[number, ::step, ::step]
        values = values << 2 if "10le" in pixels else values.astype(np.uint8)
        line = np.zeros((plane.height, plane.line_size), np.uint8)
        line[:, : values.itemsize * plane.width] = np.ascontiguousarray(values).view(np.uint8)
        plane.update(line.tobytes())
    return frame


def remux(
    source: Path, to: Path, options: dict[str, str] | None = None, first: int = 0, **metadata: str
) -> Path:
    """Write the packets of a video, from the `first` on, into a container whose kind the suffix of `to` says."""
    with av.open(str(source)) as read, av.open(str(to), "w", options=options or {}) as out:
        out.metadata.update(metadata)
        stream = out.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(read.demux(video=0)):
            if packet.dts is not None and number >= first:
                packet.stream = stream
                out.mux(packet)
    return to
