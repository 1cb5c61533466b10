"""Bytes that H.264 spends on each frame of a clip: how much of a frame the frames before it already hold.

x264 with one thread (slices of several threads cost bytes that depend on the machine) and with its macroblock tree, as
the paper's command has it: the default of x264, whose header says mbtree=1.
"""

import io
import re
from typing import Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB
GopMode = Literal["ippp", "paper"]

CRF = 23
SLICES = {1, 5}  # types of NAL units that hold a picture; others are headers and the encoder's name
START = re.compile(rb"\x00\x00\x01")


class CodedFrame(NamedTuple):
    """One frame as coded, in the order of showing.

    Attributes:
        kind: I, P or B. packet: bytes of its packet, as ffprobe says; the first one holds headers too. payload: bytes
            of its picture data alone.
    """

    kind: str
    packet: int
    payload: int


def coded_frames(frames_THWC: Frames, mode: GopMode = "ippp", crf: int = CRF) -> list[CodedFrame]:
    """Encode a clip as one group of pictures and say what each frame takes.

    Args:
        mode: `ippp`, one I frame and P frames, as the paper's appendix describes its figure; `paper`, the command that
            it states, literally (`-crf 23 -g T -keyint_min T -sc_threshold 0`): with it x264 also makes B frames.
        crf: x264 quality.
    """
    count, height, width, _ = frames_THWC.shape
    padded = np.pad(frames_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    options = {"crf": str(crf), "sc_threshold": "0", "keyint_min": str(count), "threads": "1"}
    options |= {"bf": "0"} if mode == "ippp" else {}
    buffer, reformatter = io.BytesIO(), VideoReformatter()
    sizes: dict[int, tuple[int, int]] = {}
    with av.open(buffer, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = padded.shape[1], padded.shape[2], "yuv420p"
        stream.codec_context.gop_size = count
        pictures = [
            reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24"), format="yuv420p"
            )
            for frame in padded
        ]
        for number, picture in enumerate([*pictures, None]):
            if picture is not None:
                picture.pts = number
            for packet in stream.encode(picture):
                sizes[packet.pts] = (packet.size, payload(bytes(packet)))
                container.mux(packet)
    buffer.seek(0)
    with av.open(buffer, format="h264") as container:
        kinds = [av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    order = sorted(sizes)
    return [CodedFrame(kind, *sizes[pts]) for kind, pts in zip(kinds, order, strict=True)]


def payload(packet: bytes) -> int:
    """Bytes of the picture data in a packet of a byte stream (Annex B): its NAL units that are slices."""
    starts = [found.end() for found in START.finditer(packet)]
    total = 0
    for start, following in zip(starts, [*starts[1:], len(packet) + 3], strict=False):
        unit = packet[start : following - 3].rstrip(b"\x00")
        total += len(unit) if unit and unit[0] & 31 in SLICES else 0
    return total
