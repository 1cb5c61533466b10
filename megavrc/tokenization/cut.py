"""A video's clips and stage-1 frames in one sequential decode. No torch: the decoding processes start with this."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megavrc.tokenization.manifest import Entry
from megavrc.tokenization.sampling import Settings, choose, resample, shot
from megavrc.video.read import VideoError, count_frames, probe, read_frames
from megavrc.video.times import SLACK, frame_times, read_frames_at

Frames = NDArray[np.uint8]  # [N, H, W, 3]


@dataclass(frozen=True)
class Cut:
    """A clip or a stage-1 frame: its first frame in the video, and its rows in `Cuts.frames_NHWC`."""

    start: int
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class Cuts:
    """What is to be encoded of a video. Frames that several clips and images share are there once."""

    frames_NHWC: Frames
    clips: list[Cut]
    images: list[Cut]


def cut(settings: Settings, path: Path, entry: Entry) -> Cuts:
    """The clips and the stage-1 frames of a video.

    Raises:
        VideoError: the video is damaged, or too short and `short` is "skip".
    """
    part = shot(entry)
    if part or settings.fps:
        return _by_time(settings, path, entry, part or (0.0, np.inf))

    def by_index(count: int) -> Cuts:
        return _cut(
            settings,
            path,
            entry,
            count,
            lambda wanted: read_frames(path, wanted, settings.size, settings.crop),
        )

    try:
        if (header := probe(path).frames) >= settings.span:
            return by_index(header)
    except VideoError as error:
        if error.stage != "short":
            raise
    return by_index(count_frames(path))  # the header lies, or says nothing: decode to know


def _by_time(settings: Settings, path: Path, entry: Entry, part: tuple[float, float]) -> Cuts:
    """A shot, or a video that is resampled: its frames are known by the times at which they are shown."""

    def cut_at(times: NDArray[np.float64], read: Callable[..., Frames]) -> Cuts:
        if settings.fps and len(times):
            times = resample(times, settings.fps)

        def read_rows(wanted: list[int]) -> Frames:
            return read(path, times[wanted].tolist(), settings.size, settings.crop)

        return _cut(settings, path, entry, len(times), read_rows)

    if path.is_dir():
        rate = _rate(path, entry)
        times = np.arange(probe(path).frames) / rate
        times = times[(times >= part[0] - SLACK) & (times < part[1] - SLACK)]
        return cut_at(times, lambda path, at, *how: read_frames(path, [round(t * rate) for t in at], *how))
    try:
        return cut_at(frame_times(path, *part), read_frames_at)
    except VideoError as error:
        if error.stage != "decode":
            raise
    return cut_at(frame_times(path, *part, decode=True), read_frames_at)  # some packets hold no picture


def _rate(folder: Path, entry: Entry) -> float:
    rate = entry.get("fps")
    if not isinstance(rate, int | float) or rate <= 0:
        raise VideoError(folder, "open", "a folder of pictures has no times: give its fps in the manifest")
    return rate


def _cut(
    settings: Settings, path: Path, entry: Entry, count: int, read: Callable[[list[int]], Frames]
) -> Cuts:
    clips, images = choose(settings, entry["id"], count)
    if not clips or not count:
        raise VideoError(path, "short", f"{count} frames, a clip needs {settings.span}")
    clip_offsets = np.arange(settings.frames) * settings.stride
    image_offsets = clip_offsets if settings.image_source == "clip" else clip_offsets[:1]
    runs = [np.minimum(start + clip_offsets, count - 1) for start in clips]
    runs += [np.minimum(start + image_offsets, count - 1) for start in images]
    wanted = np.unique(np.concatenate(runs))
    frames = read(wanted.tolist())
    cuts = [Cut(run[0].item(), np.searchsorted(wanted, run)) for run in runs]
    return Cuts(frames, cuts[: len(clips)], cuts[len(clips) :])
