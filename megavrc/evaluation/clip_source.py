"""Clips to measure: a metric sees a `ClipSource`, not a model.

What is to be there is known before anything is read. A source that lacks a clip of it, or has another, is refused by
name: no metric leaves a clip out of its denominator.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.files import sha256_json
from megavrc.video.read import Crop

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB
NAMED = 3  # clips that a message names


class PlannedClip(NamedTuple):
    """A clip that is to be there: its key, and what it should show."""

    key: str
    prompt: str | None = None
    label: int | None = None


class ClipSource(Protocol):
    """Clips by their index in `clips`.

    Attributes:
        name: for messages and results.
        storage: how the pixels were kept ("mp4", "png", "npz"; "none" for clips that are made in this process):
            compression moves metrics.
        split: of the manifest that the clips are of, several as "train+test"; None where there is none.
        clips: all that there are, in their order.
    """

    @property
    def name(self) -> str: ...

    @property
    def storage(self) -> str: ...

    @property
    def split(self) -> str | None: ...

    @property
    def clips(self) -> Sequence[PlannedClip]: ...

    def identity(self, index: int) -> str:
        """Identity of the content of a clip: a hash of its file, or of all that it is made from."""
        ...

    def length(self, index: int) -> int:
        """Frames of a clip; UserError, naming it, where it cannot be read."""
        ...

    def read(
        self, index: int, wanted: Sequence[int], size: int | None = None, crop: Crop = "center"
    ) -> Frames:
        """Frames of a clip, uint8 [len(wanted), H, W, 3]; UserError, naming it, where it cannot be read.

        Args:
            wanted: their numbers in the clip, ascending.
            size, crop: as in `read_clip`.
        """
        ...


@dataclass(frozen=True)
class Within:
    """Clips that are cut out of a source: their name, storage, split and model are its own."""

    of: ClipSource

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def storage(self) -> str:
        return self.of.storage

    @property
    def split(self) -> str | None:
        return self.of.split

    @property
    def made_with(self) -> dict[str, Any]:
        return made_with(self.of)


@dataclass(frozen=True)
class Part(Within):
    """Some clips of a source, by their indices there."""

    chosen: Sequence[int]

    @property
    def clips(self) -> Sequence[PlannedClip]:
        return [self.of.clips[index] for index in self.chosen]

    def identity(self, index: int) -> str:
        return self.of.identity(self.chosen[index])

    def length(self, index: int) -> int:
        return self.of.length(self.chosen[index])

    def read(
        self, index: int, wanted: Sequence[int], size: int | None = None, crop: Crop = "center"
    ) -> Frames:
        return self.of.read(self.chosen[index], wanted, size, crop)


def source_facts(source: ClipSource) -> dict[str, Any]:
    """What a result says of clips: name, number, how the pixels were kept, and a hash of their content in order.

    Of clips that a model makes also which one, and how.
    """
    identities = [source.identity(index) for index in range(len(source.clips))]
    facts = {"name": source.name, "n": len(identities), "storage": source.storage}
    made = made_with(source)
    return facts | {"sha256": sha256_json(identities)} | ({"made_with": made} if made else {})


def made_with(source: ClipSource) -> dict[str, Any]:
    """The model of clips that one makes, and its settings; empty of other clips."""
    found: dict[str, Any] = getattr(source, "made_with", {})
    return found


def read_whole(source: ClipSource, index: int) -> Frames:
    """All frames of a clip."""
    return source.read(index, range(source.length(index)))


def frame_range(frames: int, stride: int) -> range:
    """Numbers of `frames` frames of a clip, from its first one on."""
    return range(0, (frames - 1) * stride + 1, stride)


def read_at(source: ClipSource, index: int, wanted: range, size: int | None = None) -> Frames:
    """Frames `wanted` of a clip, resized to `size`; UserError, naming it, where it is too short."""
    if (length := source.length(index)) <= wanted[-1]:
        key = source.clips[index].key
        raise UserError(f"{source.name}: clip {key} has {length} frames, {wanted[-1] + 1} are needed")
    return source.read(index, wanted, size)


def check_readable(*sources: ClipSource) -> None:
    """Refuse, by its name, a clip that cannot be read."""
    for source in sources:
        for index in range(len(source.clips)):
            source.length(index)


def check_planned(name: str, found: Iterable[str], planned: Iterable[str]) -> None:
    """Refuse, by their keys, clips that are missing or doubled, and those that nobody planned (of an earlier run)."""
    there, wanted = Counter(found), Counter(planned)
    problems = {
        "doubled": [key for key, count in (there | wanted).items() if count > 1],
        "missing": [key for key in wanted if key not in there],
        "stale, in no plan": [key for key in there if key not in wanted],
    }
    said = [f"{len(keys)} {what} ({first(keys)})" for what, keys in problems.items() if keys]
    if said:
        raise UserError(f"{name}: not the planned clips: {'; '.join(said)}")


def check_doubled(name: str, keys: Sequence[str]) -> None:
    """Refuse two clips of one key."""
    check_planned(name, keys, list(dict.fromkeys(keys)))


def first(keys: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(f"{key:.60}" for key in keys[:NAMED])
    return f"{shown}, .." if len(keys) > NAMED else shown


def wholes(source: ClipSource) -> list[str]:
    """The name of what a bootstrap draws as a whole, for each clip: its video (keys VIDEO#..), else its prompt.

    Where there is one of them for all, or one for each, clips are drawn.
    """
    keys = [clip.key for clip in source.clips]
    prompts = [clip.prompt or clip.key for clip in source.clips]
    for names in ([video_of(key) for key in keys], prompts):
        if 1 < len({*names}) < len(keys):
            return names
    return keys


def video_of(key: str) -> str:
    """The video of a clip: its key up to the last #, behind which the number of a caption stands, or where a shot is.

    A # of a file's own name (`C#/a.mp4`, `take #1.mp4`) is none of these.
    """
    found = re.fullmatch(r"(.+)#(\w+|[\d.]*-[\d.]*)", key, re.DOTALL)
    return found[1] if found else key


def pairs(one: ClipSource, other: ClipSource) -> list[int]:
    """The index, for each clip of `one`, of the clip of `other` that answers the same prompt: the one of its key.

    Where the sources have other keys, the n-th clip of a prompt or label is paired with the n-th.

    Raises:
        UserError: the clips do not go together, or clips of one key have other prompts or labels.
    """
    for names in (_keys, _prompts):
        mine, theirs = names(one), names(other)
        if sorted(mine) == sorted(theirs):
            places = {name: index for index, name in enumerate(theirs)}
            found = [places[name] for name in mine]
            _check_prompts(one, other, found)
            return found
    raise UserError(
        f"{one.name} and {other.name} are not clips of the same prompts ({len(one.clips)} and {len(other.clips)} "
        "clips): neither their keys nor their prompts or labels agree"
    )


def _check_prompts(one: ClipSource, other: ClipSource, found: Sequence[int]) -> None:
    """Refuse pairs whose prompts or labels differ; what a source does not say differs from nothing."""
    both = [(mine, other.clips[index]) for mine, index in zip(one.clips, found, strict=True)]
    apart = [
        mine.key
        for mine, theirs in both
        if any(None not in said and said[0] != said[1] for said in zip(mine[1:], theirs[1:], strict=True))
    ]
    if apart:
        raise UserError(
            f"{one.name} and {other.name} have other prompts or labels for {len(apart)} clips ({first(apart)})"
        )


def _keys(source: ClipSource) -> list[str]:
    return [clip.key for clip in source.clips]


def _prompts(source: ClipSource) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for clip in source.clips:
        what = f"{clip.prompt!r} {clip.label}" if (clip.prompt, clip.label) != (None, None) else clip.key
        names.append(f"{what} {seen[what]}")
        seen[what] += 1
    return names
