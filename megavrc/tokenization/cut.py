"""A video's clips and stage-1 frames in one sequential decode. No torch: the decoding processes start with this."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megavrc.tokenization.sampling import ClipSettings, choose
from megavrc.video.errors import VideoError
from megavrc.video.manifest import Entry
from megavrc.video.read import Frames, count_frames, probe, read_frames
from megavrc.video.shots import Read, read_shot, shot


@dataclass(frozen=True)
class Cut:
    """A clip or a stage-1 frame: its first frame in the video, and its rows in `Cuts.frames_NHWC`."""

    start: int
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class Cuts:
    """The parts of a video that are to be encoded. Frames that several clips and images share are there once."""

    frames_NHWC: Frames
    clips: list[Cut]
    images: list[Cut]


def cut(settings: ClipSettings, path: Path, entry: Entry) -> Cuts:
    """The clips and the stage-1 frames of a video.

    Raises:
        VideoError: the video is damaged, or too short and `short` is "skip".
    """
    use = functools.partial(_cut, settings, path, entry)
    if shot(entry) or settings.fps:
        return read_shot(path, entry, use, settings.size, settings.crop, settings.fps)

    def by_index(count: int) -> Cuts:
        return use(count, lambda wanted: read_frames(path, wanted, settings.size, settings.crop))

    try:
        header = probe(path).frames
        possible = path.is_dir() or header <= path.stat().st_size  # a picture takes a byte at least
        if possible and header >= settings.span:
            return by_index(header)
    except VideoError as error:
        if error.stage != "short":
            raise
    return by_index(count_frames(path))  # the header lies, or says nothing: decode to know


def _cut(settings: ClipSettings, path: Path, entry: Entry, count: int, read: Read) -> Cuts:
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
