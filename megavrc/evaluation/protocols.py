"""Protocols of FVD as data: which clips, which of their frames, at which size, and how covariances are normalised.

The facts are those of the projects' code and of what their authors say in issues: StyleGAN-V, Latte (whose copy of
StyleGAN-V's metric takes real clips at stride 3, and 6 for Taichi-HD), VideoPoet (appendix A.5.5).
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import (
    ClipSource,
    Frames,
    PlannedClip,
    Within,
    first,
    frame_range,
    video_of,
)
from megavrc.files import sha256_json
from megavrc.video.manifest import fraction
from megavrc.video.read import Crop

ProtocolName = Literal["latte", "stylegan-v", "videopoet-msrvtt", "custom"]
DatasetName = Literal["ffs", "sky", "taichi", "ucf101", "msrvtt"]


@dataclass(frozen=True)
class FVDProtocol:
    """The choice and the cut of the real clips and of the measured ones.

    Attributes:
        name: a preset's, or "custom (from NAME)".
        select: real videos: the `first` ones, sorted by key, or `random` ones.
        n: clips of either side; fewer where there are fewer.
        frames: of a clip that the network sees.
        real_stride, stride: step between frames of real and of measured clips.
        place: where in a real video its clip begins: `random`, `centre` or `start`. Measured ones begin at their start.
        size: both are resized (short side, bicubic) and their centre cut, to this side; None keeps them.
        ddof: of the covariance.
        split: whose videos the protocol compares with: a split, several ("train+test"), or any ("as given").
    """

    name: str
    select: Literal["first", "random"] = "random"
    n: int = 2048
    frames: int = 16
    real_stride: int = 1
    stride: int = 1
    place: Literal["random", "centre", "start"] = "random"
    size: int | None = 256
    ddof: int = 0
    split: str = "as given"


PRESETS: dict[str, FVDProtocol] = {
    "stylegan-v": FVDProtocol("stylegan-v", select="first", split="train"),
    "latte": FVDProtocol("latte", real_stride=3, split="train"),
    "videopoet-msrvtt": FVDProtocol("videopoet-msrvtt", place="centre", split="test"),
    "custom": FVDProtocol("custom", size=None),
}
CHOICES = {"select": ("first", "random"), "place": ("random", "centre", "start")}
LEAST = {"n": 2, "frames": 1, "real_stride": 1, "stride": 1, "size": 8, "ddof": 0}
OF_DATASETS: dict[tuple[str, str | None], dict[str, Any]] = {  # what a preset has for one data set
    ("latte", "taichi"): {"real_stride": 6},
    ("stylegan-v", "ucf101"): {"split": "train+test"},
}


def protocol_of(name: str, dataset: str | None = None, changes: Sequence[str] = ()) -> FVDProtocol:
    """A preset, for a data set, with what a user changes of it: then it is a custom one.

    Args:
        changes: NAME=VALUE, fields of FVDProtocol (`size=none` keeps sizes).

    Raises:
        UserError: no such field, or not a value of it.
    """
    preset = dataclasses.replace(PRESETS[name], **OF_DATASETS.get((name, dataset), {}))
    changed = dataclasses.replace(preset, **dict(map(_change, changes)))
    if changed == preset or name == "custom":
        return changed
    return dataclasses.replace(changed, name=f"custom (from {name})")


def _change(word: str) -> tuple[str, Any]:
    key, _, text = word.partition("=")
    if key not in {**LEAST, **CHOICES}:
        raise UserError(
            f"--change {word}: expected NAME=VALUE, NAME one of {', '.join({**LEAST, **CHOICES})}"
        )
    if key in CHOICES:
        if text not in CHOICES[key]:
            raise UserError(f"--change {word}: one of {', '.join(CHOICES[key])}")
        return key, text
    if key == "size" and text == "none":
        return key, None
    if not text.isdecimal() or int(text) < LEAST[key] or (key == "ddof" and int(text) > 1):
        wanted = "0 or 1" if key == "ddof" else f"an integer from {LEAST[key]} on"
        raise UserError(f"--change {word}: expected {wanted}")
    return key, int(text)


class Window(NamedTuple):
    """Frames of one clip of a source."""

    clip: int  # its index
    wanted: range


class Chosen(NamedTuple):
    """Windows of real videos, those of a second, disjoint set, and the keys of videos that are too short for one."""

    windows: list[Window]
    rest: list[Window]
    short: list[str]


def real_windows(source: ClipSource, protocol: FVDProtocol, more: int = 0, seed: int = 0) -> Chosen:
    """One window in each of the protocol's real videos, and `more` of others: of other films, where there are several.

    A video must have frames * stride frames, as StyleGAN-V asks; shorter ones are not part of the population, and are
    named. One that is there again, with another of its captions (keys VIDEO#NUMBER), counts once. What is chosen
    depends on keys and seed only.
    """
    keys = [clip.key for clip in source.clips]
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    if protocol.select == "random":
        order.sort(key=lambda index: fraction(f"{seed} {keys[index]}"))
    windows: list[Window] = []
    short: list[str] = []
    seen: set[str] = set()
    films: set[str] = set()  # of the first windows: with more of them two real sets would be too much alike
    for index in order:
        if len(windows) == protocol.n + more:
            break
        if len(windows) == protocol.n and not films:
            films = {video_of(keys[window.clip]) for window in windows}
        if len(films) > 1 and video_of(keys[index]) in films:
            continue
        if "#" in keys[index]:
            if (content := source.identity(index)) in seen:
                continue
            seen.add(content)
        length = source.length(index)
        if length < protocol.frames * protocol.real_stride:
            short.append(keys[index])
            continue
        windows.append(Window(index, _window(protocol, length, f"{seed} place {keys[index]}")))
    if len(windows) < 2:
        raise UserError(
            f"{source.name}: {len(windows)} real clips of {protocol.frames} frames at stride {protocol.real_stride}, "
            f"{len(short)} are too short ({first(short)}); at least 2 are needed"
        )
    return Chosen(windows[: protocol.n], windows[protocol.n :], short)


@dataclass(frozen=True)
class WindowClips(Within):
    """Windows of a source's clips as clips of their own, whose frame k * stride is the window's frame k.

    What is made of them (reconstructions, clips for their prompts) is then compared as generated clips are: from the
    first frame on, at the protocol's stride.
    """

    windows: Sequence[Window]
    stride: int = 1

    @functools.cached_property
    def clips(self) -> Sequence[PlannedClip]:
        """Those of the source; a clip that is there again has another key, and the same video."""
        seen: Counter[int] = Counter()
        rows = []
        for window in self.windows:
            row, again = self.of.clips[window.clip], seen[window.clip]
            if again:
                mark = "#" if video_of(row.key) == row.key else ""
                row = row._replace(key=f"{row.key}{mark}again{again}")
            rows.append(row)
            seen[window.clip] += 1
        return rows

    def identity(self, index: int) -> str:
        window = self.windows[index]
        return sha256_json([self.of.identity(window.clip), list(window.wanted), self.stride])

    def length(self, index: int) -> int:
        return (len(self.windows[index].wanted) - 1) * self.stride + 1

    def read(
        self, index: int, wanted: Sequence[int], size: int | None = None, crop: Crop = "center"
    ) -> Frames:
        window = self.windows[index]
        return self.of.read(
            window.clip, [window.wanted[frame // self.stride] for frame in wanted], size, crop
        )


def _window(protocol: FVDProtocol, length: int, text: str) -> range:
    last = (protocol.frames - 1) * protocol.real_stride
    free = length - last  # places where it can begin
    begin = {"start": 0, "centre": (free - 1) // 2, "random": int(fraction(text) * free)}[protocol.place]
    return range(begin, begin + last + 1, protocol.real_stride)


def measured_windows(source: ClipSource, protocol: FVDProtocol) -> list[Window]:
    """The beginning of every clip; UserError, naming them, where some are too short."""
    wanted = frame_range(protocol.frames, protocol.stride)
    lengths = [source.length(index) for index in range(len(source.clips))]
    short = [clip.key for clip, length in zip(source.clips, lengths, strict=True) if length <= wanted[-1]]
    if short:
        raise UserError(
            f"{source.name}: {len(short)} clips have fewer than the {wanted[-1] + 1} frames that are compared "
            f"({first(short)})"
        )
    if len(lengths) < 2:
        raise UserError(f"{source.name}: {len(lengths)} clip, at least 2 are needed")
    return [Window(index, wanted) for index in range(len(lengths))]


def remarks(protocol: FVDProtocol, real: ClipSource, counts: dict[str, int], clips: ClipSource) -> list[str]:
    """Reasons why a number cannot be compared with others."""
    said = [
        f"N {count} of {name}, the protocol has {protocol.n}"
        for name, count in counts.items()
        if count != protocol.n
    ]
    if protocol.split != "as given" and real.split not in (None, protocol.split):
        said.append(f"real clips are of the split {real.split}, the protocol compares with {protocol.split}")
    if real.storage != clips.storage:
        said.append(
            f"stored differently: real {real.storage}, measured {clips.storage}; compression moves values"
        )
    return said


def protocol_facts(protocol: FVDProtocol) -> dict[str, Any]:
    """Everything that decides the value, for a result file."""
    selected = "hash of seed and key" if protocol.select == "random" else "sorted keys"
    return {
        **dataclasses.asdict(protocol),
        "resize": "short side, bicubic; centre cut",
        "selected_by": selected,
    }
