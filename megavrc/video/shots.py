"""The frames of a manifest's entry: of its whole video or of a shot, the video's own or resampled by the clock."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megavrc.video.errors import VideoError
from megavrc.video.manifest import Entry
from megavrc.video.read import Crop, Frames, probe, read_clip, read_frames
from megavrc.video.times import SLACK, frame_times, read_frames_at, within

T = TypeVar("T")
MOST_FRAMES = 10_000_000  # of a resampled video: four days at 25 a second
Read = Callable[[list[int]], Frames]  # frames by their numbers in the shot, uint8 [len, H, W, 3]


def shot(entry: Entry) -> tuple[float, float] | None:
    """The part of its file that a video is, [start, end) in seconds; None for all of it."""
    start, end = entry.get("start"), entry.get("end")
    if start is None and end is None:
        return None
    return (0.0 if start is None else start), (math.inf if end is None else end)


def read_start(path: Path, entry: Entry, frames: int, size: int, crop: Crop) -> Frames:
    """The first frames of an entry, uint8 [frames, size, size, 3].

    Raises:
        VideoError: the video is damaged, or has fewer frames.
    """
    if shot(entry) is None:
        return read_clip(path, 0, frames, size=size, crop=crop)

    def start(count: int, read: Read) -> Frames:
        if count < frames:
            raise VideoError(path, "short", f"{count} frames, frame {frames - 1} is needed")
        return read(list(range(frames)))

    return read_shot(path, entry, start, size, crop)


def read_shot(
    path: Path,
    entry: Entry,
    use: Callable[[int, Read], T],
    size: int | None = None,
    crop: Crop = "center",
    fps: float | None = None,
) -> T:
    """The result of `use(count, read)` on the frames that are shown in an entry's shot, if it has one.

    Args:
        use: called with the number of frames and a function that reads some of them; maybe a second time, when the
            first count is found wrong in reading.
        fps: first resample to this many frames a second (a slower video repeats frames).

    Raises:
        VideoError: the video is damaged, or is a folder of pictures and the entry has no `fps`.
    """

    def use_at(times: NDArray[np.float64], read: Callable[..., Frames]) -> T:
        if fps and len(times):
            if (
                times[-1] - times[0]
            ) * fps > MOST_FRAMES:  # times that jump: the list alone would fill the memory
                seconds = times[-1] - times[0]
                raise VideoError(
                    path, "open", f"lasts {seconds:.0f} s by its times: too many frames at {fps:g} fps"
                )
            times = resample(times, fps, *part)
        return use(len(times), lambda wanted: read(path, times[wanted].tolist(), size, crop))

    part, around = shot(entry) or (0.0, math.inf), fps is not None
    if path.is_dir():
        rate = _rate(path, entry)
        times = np.arange(probe(path).frames) / rate
        times = within(times, *part, around)
        return use_at(times, lambda path, at, *how: read_frames(path, [round(t * rate) for t in at], *how))
    try:
        return use_at(frame_times(path, *part, around=around), read_frames_at)
    except VideoError as error:
        if error.stage != "decode":
            raise
    # Some packets hold no picture.
    return use_at(frame_times(path, *part, decode=True, around=around), read_frames_at)


def resample(
    times: NDArray[np.float64], fps: float, start: float = 0.0, end: float = math.inf
) -> NDArray[np.float64]:
    """The times of the frames that are shown at some moments, 1 / fps apart.

    Args:
        times: of frames, ascending: the first may be before `start`, the last from `end` on, as `frame_times` has them.
        start, end: the moments are those from `start`, or from the first frame if that is later, to `end`, or to the
            last frame if that is earlier.
    """
    begin = max(times[0], start)
    if times[-1] >= end - SLACK:
        count = math.ceil((end - SLACK - begin) * fps)
    else:
        count = math.floor((times[-1] - begin + SLACK) * fps) + 1
    moments = begin + np.arange(max(count, 0)) / fps
    return times[np.searchsorted(times, moments + SLACK, side="right") - 1]


def _rate(folder: Path, entry: Entry) -> float:
    rate = entry.get("fps")
    if not isinstance(rate, int | float) or rate <= 0:
        raise VideoError(folder, "open", "a folder of pictures has no times: give its fps in the manifest")
    return rate
