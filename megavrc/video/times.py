"""Frames by the time at which they are shown: shots of a longer file, and videos of variable frame rate.

Times are seconds from the beginning of the video stream. In files with an index a shot is reached by a jump to the key
frame before it; other files, and those where the jump goes wrong, are read from their beginning.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from megavrc.video.errors import VideoError
from megavrc.video.read import Crop, FrameDecoder, Frames, decoding, frame_pixels, stack_pictures

SLACK = 1e-3  # seconds; files may round times to milliseconds
TICK = 1e-6  # seconds; frames are told apart by their times in this unit
# Containers that say when each frame is shown, and jump to where they are told.
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
UNTIMED = {"avi"}  # knows the order of decoding only, and where a picture stays for longer


def frame_times(
    path: str | Path, start: float = 0.0, end: float = np.inf, decode: bool = False, around: bool = False
) -> NDArray[np.float64]:
    """The times at which the frames in [start, end) are shown, float64 [n], ascending.

    Args:
        path: a video file.
        start, end: seconds.
        decode: decode all frames up to `end`, even where the time stamps of packets would do. Slow, but right where
            some packets hold no picture.
        around: also the frame that is still shown at `start`, and the first one from `end` on, if there are such.

    Raises:
        VideoError: stage "io", "open" or "decode".
    """
    with _reading(path, 0.0 if decode else start) as video:
        if video.indexed and not decode:
            shown = list(_packet_times(video, end))
            if start > 0 and shown and shown[0] > start + TICK:
                # Past it: an mp4 is searched by times of decoding, which run ahead where the frame rate varies.
                video.jump(0.0)
                shown = list(_packet_times(video, end))
        else:
            shown = []
            for _, time in video:
                shown.append(time)
                if time >= end:
                    break
    return within(np.unique(np.array(shown, dtype=np.float64)), start, end, around)


def within(times: NDArray[np.float64], start: float, end: float, around: bool = False) -> NDArray[np.float64]:
    """Those of `times`, ascending, in [start, end); for `around` see `frame_times`."""
    first, last = np.searchsorted(times, (start - SLACK, end - SLACK)).tolist()
    if around:
        if first and (first == len(times) or times[first] > start + SLACK):
            first -= 1
        last += 1
    return times[first:last]


def read_frames_at(
    path: str | Path, wanted: Sequence[float], size: int | None = None, crop: Crop = "center"
) -> Frames:
    """Read the frames that are shown from the times `wanted` on (values of `frame_times`, ascending, repeats allowed).

    Returns uint8 [len(wanted), H, W, 3]; `size` and `crop` are those of `read_clip`.

    Raises:
        VideoError: stage "io", "open" or "decode", also when there is no frame at a wanted time.
    """
    try:
        return _read(path, wanted, size, crop, jump=True)
    except VideoError as error:
        if error.stage != "decode":
            raise
    return _read(path, wanted, size, crop, jump=False)


def _read(path: str | Path, wanted: Sequence[float], size: int | None, crop: Crop, jump: bool) -> Frames:
    chosen = {_tick(time) for time in wanted}
    kept: dict[int, NDArray[np.uint8]] = {}
    reformatter = VideoReformatter()
    with _reading(path, wanted[0] if jump else 0.0) as video:
        for frame, time in video:
            if _tick(time) in chosen:
                kept[_tick(time)] = frame_pixels(video.decoder, frame, reformatter, size, crop)
            if time > wanted[-1] + TICK or len(kept) == len(chosen):
                break
    if missing := chosen - set(kept):
        raise VideoError(path, "decode", f"no frame at {min(missing) * TICK:.3f} s")
    return stack_pictures(path, [kept[_tick(time)] for time in wanted])


def _tick(time: float) -> int:
    return round(time / TICK)


class _Timed(Iterator[tuple[Any, float]]):
    """The frames of an open video, and when they are shown."""

    def __init__(self, decoder: FrameDecoder) -> None:
        self.stream, self.container = decoder.stream, decoder.stream.container
        self.indexed = self.container.format.name in INDEXED
        self._untimed = self.container.format.name in UNTIMED
        self.decoder = decoder

    def __next__(self) -> tuple[Any, float]:
        frame = next(self.decoder)
        stamp = self.decoder.slot if self._untimed else frame.pts
        if stamp is None:
            return frame, (self.decoder.position - 1) / float(self.stream.average_rate or 25)
        return frame, self.seconds(stamp)

    def seconds(self, stamp: int) -> float:
        return float((stamp - (self.stream.start_time or 0)) * self.stream.time_base)

    def jump(self, time: float) -> None:
        """To the key frame before."""
        stamp = int(time / self.stream.time_base) + (self.stream.start_time or 0)
        self.container.seek(stamp, stream=self.stream)


@contextmanager
def _reading(path: str | Path, start: float = 0.0) -> Iterator[_Timed]:
    with decoding(path) as decoder:
        if not isinstance(decoder, FrameDecoder):
            raise VideoError(path, "open", "a folder of pictures has no times")
        video = _Timed(decoder)
        try:
            if start > 0 and video.indexed:
                video.jump(start)
            yield video
        except av.FFmpegError as error:
            raise VideoError(path, "decode", str(error)) from None


def _packet_times(video: _Timed, end: float) -> Iterator[float]:
    """When the pictures of the packets from here to `end` are shown, in no order."""
    for packet in video.container.demux(video.stream):
        if packet.pts is not None:
            yield video.seconds(packet.pts)
        if packet.dts is not None and video.seconds(packet.dts) >= end:  # later packets are shown later still
            return
