"""Decode chosen frames of a video, a file or a folder of pictures, in one sequential pass (PyAV, Pillow).

Frames are counted as they are decoded, never by the header, which may lie. A damaged file ends in `VideoError`:
frames that a decoder conceals or drops are not passed on silently. Of a folder only the wanted pictures are read.
"""

import io
import math
import os
from collections import deque
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from megavrc.video.colour import UNSPECIFIED, to_rgb
from megavrc.video.errors import VideoError, reason, stage
from megavrc.video.files import open_container, regular_file
from megavrc.video.pictures import MAX_AREA, Pictures, holds_picture, read_pixels

MAX_ASPECT = 4  # of a pixel; the widest that standards know has 3.6 (2.21:1 in 352x576)

STILLS = Disposition.attached_pic | Disposition.timed_thumbnails

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own leave the transparency of WebM out

# HEVC's decoder only logs a unit that it drops with its picture; so it raises.
EXPLODE = {"err_detect": "explode"}
# Decoders that begin anywhere: pictures before the first whole one are predicted from an empty one, and called sound.
BLIND = {"mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "h263", "h263i", "h263p", "flv"}

FRAME_DATA_TYPES = 64  # more than FFmpeg has

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB
Crop = Literal["center", "squash"]


class VideoInfo(NamedTuple):
    """Facts from the header. Sizes as displayed (square pixels, turned); `frames` 0 and `fps` 0.0 if unknown.

    A folder of pictures has no rate: `fps` is 0.0, and a manifest entry may give one of its own.
    """

    height: int
    width: int
    fps: float
    frames: int


def read_clip(
    path: str | Path,
    start: int,
    frames: int,
    stride: int = 1,
    size: int | None = 64,
    crop: Crop = "center",
    short: Literal["skip", "clamp"] = "skip",
) -> Frames:
    """Read the frames start, start + stride, .. of a video.

    Args:
        path: a video file, or a folder of pictures (8 bits a channel).
        start: index of the first frame, in decoded order.
        frames: number of frames T.
        stride: step between two frames.
        size: side of the square result in pixels; None keeps the size of the video.
        crop: `center` resizes the short side to `size` and cuts the centre, `squash` changes the proportions.
        short: what to do when the video ends early: `skip` raises, `clamp` repeats its last frame.

    Returns:
        uint8 [T, H, W, 3].

    Raises:
        VideoError: stage "open" or "decode" for a damaged file, "short" for too few frames (with `clamp`: when not
            even frame `start` exists).
    """
    if start < 0 or frames < 1 or stride < 1:
        raise ValueError(f"start {start}, frames {frames}, stride {stride}: start >= 0, the others >= 1")
    wanted = range(start, start + (frames - 1) * stride + 1, stride)
    kept, length = _collect(path, wanted, size, crop)
    if start >= length or (short == "skip" and wanted[-1] >= length):
        raise VideoError(path, "short", f"{length} frames, frame {wanted[-1]} is needed")
    if wanted[-1] >= length and length - 1 not in kept:  # the last frame lies between two strides
        kept |= _collect(path, [length - 1], size, crop)[0]
    return stack_pictures(path, [kept[min(index, length - 1)] for index in wanted])


def read_frames(
    path: str | Path, wanted: Sequence[int], size: int | None = None, crop: Crop = "center"
) -> Frames:
    """Read the frames `wanted` (indices in decoded order, in any order, repeats allowed) in one pass.

    Returns uint8 [len(wanted), H, W, 3] in the order of `wanted`; `size` and `crop` are those of `read_clip`.

    Raises:
        VideoError: stage "open", "decode", or "short" when a wanted frame is beyond the end.
    """
    if not len(wanted) or min(wanted) < 0:
        raise ValueError(f"wanted frames {list(wanted)}: at least one, none negative")
    kept, length = _collect(path, wanted, size, crop)
    if max(wanted) >= length:
        raise VideoError(path, "short", f"{length} frames, frame {max(wanted)} is needed")
    return stack_pictures(path, [kept[index] for index in wanted])


def read_picture(
    content: bytes, size: int | None = None, crop: Crop = "center", most_pixels: int = MAX_AREA
) -> NDArray[np.uint8]:
    """Read the bytes of a picture file, uint8 [H, W, 3]; `size` and `crop` are those of `read_clip`.

    Larger pictures than `most_pixels` are refused before they are decoded.

    Raises:
        VideoError: stage "open" for bytes that are no picture, "decode" for a damaged one.
    """
    pixels = read_pixels("the picture", io.BytesIO(content), most_pixels)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    try:
        return _shown(frame, 1.0, VideoReformatter(), size, crop)
    except (av.FFmpegError, ValueError) as error:  # of one so narrow that no size fits
        raise VideoError("the picture", "decode", reason(error)) from None


def resize_frames(frames_THWC: Frames, size: int | None, crop: Crop = "center") -> Frames:
    """Resize frames as those of a file are: `size` and `crop` are those of `read_clip`."""
    if size is None:
        return frames_THWC
    reformatter = VideoReformatter()
    pictures = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24") for frame in frames_THWC)
    return np.stack([_shown(picture, 1.0, reformatter, size, crop) for picture in pictures])


def count_frames(path: str | Path) -> int:
    """Count the frames that decode. Reads the whole file; `VideoError` if any part of it is damaged."""
    with decoding(path) as decoded:
        return sum(1 for _ in decoded)


def probe(path: str | Path) -> VideoInfo:
    """Read the header and the first frame of a video."""
    with decoding(path) as decoded:
        frame = next(decoded)
        shape = (frame.height, round(frame.width * decoded.pixel_aspect))
        height, width = _upright(np.empty(shape, np.uint8), frame).shape
        return VideoInfo(height, width, decoded.rate, decoded.length)


class FrameDecoder(Iterator[Any]):
    """The frames of the video in display order; any damage raises VideoError."""

    def __init__(self, path: str | Path, container: Any) -> None:
        self.path = path
        self.stream = _main_stream(path, container)
        self.stream.thread_type = "NONE"  # decoder threads do not mix with forked workers
        self.stream.codec_context.thread_count = 1
        self._codec = _codec(self.stream)
        self.position = 0
        self.rate, self.length = float(self.stream.average_rate or 0), int(self.stream.frames)
        stated = self.stream.sample_aspect_ratio  # of the container if it has one, else of the codec
        self._stated = None if stated == self.stream.codec_context.sample_aspect_ratio else stated
        self._transfer = self.stream.codec_context.color_trc  # of the container, before decoding changes it
        self._frames = self._decoded(container)
        self._slots: deque[int] = deque()
        # Of HEVC alone: times of the first key frame and of the newest picture, and of those that have not come out yet
        # (None: cannot be told).
        self._key: int | None = None
        self._shown = -math.inf
        self._due: set[int] | None = set()
        self.slot: int | None = None  # of the newest frame, in the order of decoding; of the time base

    def _decoded(self, container: Any) -> Iterator[Any]:
        for packet in container.demux(self.stream):
            # Cut off by the end of the file, or beside lost ones: decoders make pictures of it, and call them whole.
            if packet.is_corrupt:
                joined = " (or parts were joined: remux it)" if container.format.name == "mpegts" else ""
                raise VideoError(self.path, "decode", f"frame {self.position}: damaged or lost data{joined}")
            if packet.size and packet.dts is not None:  # an empty one says that the picture before stays
                self._slots.append(packet.dts)
            try:
                frames = self._codec.decode(packet)
            except av.InvalidDataError:
                if packet.is_keyframe or self._codec.name != "hevc" or not self._is_early(packet):
                    raise
                continue  # it lacks those that it refers to
            if self._codec.name == "hevc":
                self._check_due(packet, frames)
            if not self.position and self._codec.name in BLIND:
                while frames and frames[0].pict_type != PictureType.I:
                    frames.pop(0)
                    if self._slots:
                        self._slots.popleft()
            yield from frames
        if self._due:
            raise VideoError(self.path, "decode", f"frame {self.position}: its decoder dropped a picture")

    def _is_early(self, packet: Any) -> bool:
        """Whether a packet is decoded or shown before the first key frame: it may refer to some before that."""
        if packet.pts is None:
            return not self.position
        return self._key is None or packet.pts < self._key

    def _check_due(self, packet: Any, frames: list[Any]) -> None:
        """VideoError where a picture comes and one to be shown before it never did: damage can make a unit of HEVC look
        like another layer's, which its decoder leaves out without an error."""
        if packet.is_keyframe and self._key is None:
            self._key = packet.pts
        if packet.pts is not None and not packet.is_discard and not self._is_early(packet):
            if packet.pts < self._shown:  # a clock that starts again
                self._due = None
            if self._due is not None:
                self._due.add(packet.pts)
        for frame in frames:
            if frame.pts is None or self._due is None:
                continue
            self._shown = max(self._shown, frame.pts)
            self._due.discard(frame.pts)
            if self._due and min(self._due) < frame.pts:
                why = f"frame {self.position}: its decoder dropped a picture"
                raise VideoError(self.path, "decode", why)

    def __next__(self) -> Any:
        try:
            frame = next(self._frames)
        except StopIteration:
            if not self.position:
                raise VideoError(self.path, "decode", "no frame in the file") from None
            raise
        except av.FFmpegError as error:
            why = f"frame {self.position}: {reason(error)}"
            raise VideoError(self.path, stage(error, "decode"), why) from None
        if frame.is_corrupt:
            raise VideoError(self.path, "decode", f"frame {self.position}: damaged picture data")
        self.position += 1
        self.slot = self._slots.popleft() if self._slots else None
        if frame.color_trc == UNSPECIFIED:  # as frames of ProRes do not know that they are HDR
            frame.color_trc = self._transfer
        return frame

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel over its height: what the container states, or else the codec, now (streams may change)."""
        known = (self._stated, self.stream.codec_context.sample_aspect_ratio)
        sane = (float(aspect) for aspect in known if aspect and 1 / MAX_ASPECT <= aspect <= MAX_ASPECT)
        return next(sane, 1.0)


def _codec(stream: Any) -> Any:
    """The decoder of a stream: of a WebM with transparency, which FFmpeg's own leaves out, another if there is one."""
    usual = stream.codec_context
    if usual.name == "hevc":
        usual.options = EXPLODE
    name = ALPHA_DECODERS.get(usual.name) if stream.metadata.get("alpha_mode") == "1" else None
    if name is None or name not in av.codecs_available:
        return usual
    codec = av.CodecContext.create(name, "r")
    codec.extradata, codec.thread_count = usual.extradata, 1
    codec.colorspace, codec.color_range = usual.colorspace, usual.color_range  # the container's
    return codec


def _main_stream(path: str | Path, container: Any) -> Any:
    """The stream that players show: no cover or thumbnail; none of one frame, a default one, the largest, the longest,
    the first."""
    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & STILLS
    ]
    if not streams:
        raise VideoError(path, "open", "no video stream")

    def rank(stream: Any) -> tuple[bool, bool, int, int, int]:
        default = bool(stream.disposition & Disposition.default)
        return stream.frames != 1, default, stream.width * stream.height, stream.frames, -stream.index

    return max(streams, key=rank)


@contextmanager
def decoding(path: str | Path, chosen: Container[int] | None = None) -> Iterator[FrameDecoder | Pictures]:
    """The frames of a video or of a folder of pictures, of which only those `chosen` need be read; VideoError."""
    if os.path.isdir(path):  # of a name that is too long, too
        yield Pictures(path, chosen)
        return
    with regular_file(path) as file:
        if holds_picture(path, file):
            yield Pictures(path, chosen)
            return
        try:
            with open_container(path, file) as container:
                yield FrameDecoder(path, container)
        except av.FFmpegError as error:  # of conversion, seeking and the like; decoding names the frame
            raise VideoError(path, stage(error, "decode"), reason(error)) from None


def _collect(
    path: str | Path, wanted: Sequence[int], size: int | None, crop: Crop
) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """Return the wanted frames that exist, by index, and how many frames were decoded up to the last wanted one."""
    if crop not in ("center", "squash"):
        raise ValueError(f"crop {crop!r}: choose center or squash")
    chosen, last = set(wanted), max(wanted)
    kept: dict[int, NDArray[np.uint8]] = {}
    reformatter = VideoReformatter()  # keeps its tables from frame to frame
    with decoding(path, chosen) as decoded:
        for index, frame in enumerate(decoded):
            if index in chosen:
                kept[index] = frame_pixels(decoded, frame, reformatter, size, crop)
            if index == last:
                break
        return kept, decoded.position


def stack_pictures(path: str | Path, pictures: list[NDArray[np.uint8]]) -> Frames:
    """Frames uint8 [T, H, W, 3]; VideoError where their sizes differ."""
    if len({picture.shape for picture in pictures}) > 1:
        raise VideoError(path, "decode", "the size of the pictures changes within the video; choose a size")
    return np.stack(pictures)


def frame_pixels(
    decoded: FrameDecoder | Pictures, frame: Any, reformatter: Any, size: int | None, crop: Crop
) -> NDArray[np.uint8]:
    """A decoded frame as it is shown, uint8 [H, W, 3]; `size` and `crop` are those of `read_clip`. VideoError."""
    try:
        return _shown(frame, decoded.pixel_aspect, reformatter, size, crop)
    except (av.FFmpegError, ValueError) as error:
        why = f"frame {decoded.position - 1}: {reason(error)}"
        raise VideoError(decoded.path, "decode", why) from None


def _shown(
    frame: Any, pixel_aspect: float, reformatter: Any, size: int | None, crop: Crop
) -> NDArray[np.uint8]:
    """Convert to RGB [H, W, 3] as displayed: pixels made square, resized, turned, the centre cut."""
    height, width = frame.height, frame.width * pixel_aspect
    if size is not None:
        scale = size / min(height, width)
        height, width = (size, size) if crop == "squash" else (height * scale, width * scale)
    whole = _deinterlaced(frame) if frame.interlaced_frame else frame
    picture = _upright(to_rgb(reformatter, whole, round(height), round(width)), frame)
    if size is not None:
        top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
        picture = picture[top : top + size, left : left + size]
    return np.ascontiguousarray(picture)


def _upright(picture: NDArray[np.uint8], frame: Any) -> NDArray[np.uint8]:
    """Apply the display matrix of `frame` (multiples of 90 degrees and mirrors) to its picture [H, W, ..]."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return picture
    # Row major, for row vectors: displayed x = a x + c y, displayed y = b x + d y.
    a, b, _, c, d, *_ = np.frombuffer(matrix, dtype=np.int32)
    if abs(int(b)) > abs(int(a)):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _display_matrix(frame: Any) -> Any:
    """The display matrix that came with a frame, or None."""
    try:
        return frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # one of a type that PyAV has no name for, such as EXIF, hides all
        return _without_unnamed_data(frame).side_data.get("DISPLAYMATRIX")


def _without_unnamed_data(frame: Any) -> Any:
    """The frame less the side data whose types PyAV (to 18.1) does not know."""
    unnamed = set(range(FRAME_DATA_TYPES)).difference(kind.value for kind in SideDataType)
    return _filtered(frame, [("sidedata", f"mode=delete:type={number}") for number in unnamed])


def _deinterlaced(frame: Any) -> Any:
    """The first of its two fields, with lines between that follow its edges: no other frame counts, so that a frame is
    the same wherever reading begins."""
    return _filtered(frame, [("estdif", "mode=frame:deint=all")])


def _filtered(frame: Any, filters: list[tuple[str, str]]) -> Any:
    graph = av.filter.Graph()
    base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
    steps = [graph.add(name, options) for name, options in filters]
    graph.link_nodes(source, *steps, graph.add("buffersink")).configure()
    source.push(frame)
    source.push(None)
    return graph.pull()
