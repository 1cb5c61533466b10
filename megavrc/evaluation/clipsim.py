"""CLIPSIM (Wu et al. 2021): cosine of a caption and each frame of its clip, averaged over frames, then over clips.

Beside it stands what the captions of other clips get: a model that ignores its captions has the same. In the mode
`video` the frames of real clips take the place of the captions.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.evaluation.clip_model import Captions, Embeddings
from megavrc.evaluation.clip_source import (
    ClipSource,
    first,
    frame_range,
    pairs,
    read_at,
    source_facts,
    video_of,
    wholes,
)
from megavrc.evaluation.frechet import Array
from megavrc.evaluation.statistics import (
    MetricReport,
    as_metric,
    difference,
    mean_estimate,
    needed,
    verdict,
)
from megavrc.progress import progress
from megavrc.results import Metric, case, metric

Mode = Literal["text", "video"]


class Embedder(Protocol):
    """A network that embeds frames and captions in one space: a `ClipModel`, or another network of that kind."""

    facts: dict[str, Any]

    def frames(self, frames_NHWC: NDArray[np.uint8]) -> Embeddings: ...

    def captions(self, texts: Sequence[str]) -> Captions: ...


class Similarities(NamedTuple):
    """The mean cosine of each clip with its own caption (or real clip), and with that of another clip.

    Attributes:
        alone: clips beside which no other video has another caption; `other` is then `own`, and says nothing.
        cut: captions that are longer than the model reads.
    """

    own: Array
    other: Array
    alone: NDArray[np.bool_]
    cut: int


def similarities(
    source: ClipSource, model: Embedder, wanted: range, real: ClipSource | None = None
) -> Similarities:
    """Similarities of a source's clips.

    Args:
        wanted: numbers of the frames that count.
        real: compare with the frames of its clips instead of captions.

    Raises:
        UserError: a clip without a caption, one that is too short or cannot be read.
    """

    def embedded(clips: ClipSource, indices: Sequence[int]) -> list[Embeddings]:
        return [model.frames(read_at(clips, index, wanted)) for index in progress(indices, clips.name)]

    frames = embedded(source, range(len(source.clips)))
    if real is not None:
        targets = embedded(real, pairs(source, real))
        names, cut = [clip.key for clip in source.clips], 0
    else:
        if silent := [clip.key for clip in source.clips if not clip.prompt]:
            raise UserError(
                f"{source.name}: {len(silent)} clips have no caption ({first(silent)}): give --planned"
            )
        names = [str(clip.prompt) for clip in source.clips]
        captions = model.captions(names)
        targets, cut = [row[None] for row in captions.embeddings], sum(captions.cut)
    videos = [video_of(clip.key) for clip in source.clips]
    others = np.array([_other(names, videos, index) for index in range(len(names))])
    own = np.array([_cosine(a, b) for a, b in zip(frames, targets, strict=True)])
    other = np.array([_cosine(a, targets[index]) for a, index in zip(frames, others, strict=True)])
    return Similarities(own, other, others == np.arange(len(others)), cut)


def _other(names: list[str], videos: list[str], index: int) -> int:
    """The next clip of another video with another caption; itself if there is none."""
    places = (place % len(names) for place in range(index + 1, index + len(names)))
    apart = (p for p in places if names[p] != names[index] and videos[p] != videos[index])
    return next(apart, index)


def _cosine(frames_TD: Embeddings, target_TD: Embeddings) -> float:
    """Frame by frame where both have frames."""
    return float((frames_TD * target_TD).sum(axis=1).mean())


def measure_clipsim(
    clips: ClipSource,
    model: Embedder,
    against: ClipSource | None = None,
    real: ClipSource | None = None,
    mode: Mode = "text",
    frames: int = 16,
    stride: int = 1,
    draws: int = 1000,
    seed: int = 0,
) -> MetricReport:
    """CLIPSIM of one or two sources.

    Args:
        against: other clips of the same prompts; the difference is measured prompt for prompt.
        real: in the mode `text` its own CLIPSIM is measured too; in the mode `video` clips are compared with it.
        frames, stride: which frames of each clip count.

    Raises:
        UserError: see `similarities`.
    """
    wanted = frame_range(frames, stride)
    if mode == "video" and real is None:
        raise UserError("--mode video: give --real, the clips to compare with")
    sources = [clips, *([against] if against else []), *([real] if real and mode == "text" else [])]
    found = [similarities(source, model, wanted, real if mode == "video" else None) for source in sources]
    groups = [wholes(source) for source in sources]
    if against:
        order = pairs(clips, against)
        theirs = found[1]
        found[1] = Similarities(theirs.own[order], theirs.other[order], theirs.alone[order], theirs.cut)
        groups[1] = [groups[1][index] for index in order]
    cases = []
    for source, one, group in zip(sources, found, groups, strict=True):
        n = len(set(group))
        own = mean_estimate(one.own, draws, seed, group)
        metrics = {"clipsim": as_metric(own, n)} | _beside_others(one, group, draws, seed)
        metrics["n_for_5_percent"] = metric(needed(own.value, own.error, n, False), n=n)
        cases.append(case(source.name, metrics, {"clips": len(one.own), "cut_captions": one.cut}))
    metrics, lines = {}, []
    if against:
        mine, others = (mean_estimate(item.own, draws, seed, groups[0]) for item in found[:2])
        gap, n = difference(others, mine), len(set(groups[0]))
        metrics["clipsim: second - first"] = as_metric(gap, n)
        metrics["n_for_5_percent, paired"] = metric(needed(mine.value, gap.error, n, True), n=n)
        lines.append(verdict(gap, clips.name, against.name))
    for source, one in zip(sources, found, strict=True):
        if one.cut:
            lines.append(
                f"{source.name}: {one.cut} captions are longer than what the model reads, and were cut"
            )
        if one.alone.any():
            lines.append(
                f"{source.name}: {one.alone.sum()} clips have no other caption of another video beside them"
            )
    facts: dict[str, Any] = {
        "mode": mode,
        "clip": model.facts,
        "frames": frames,
        "stride": stride,
        "cosine": "not clamped, not times 100; mean over frames, then over clips",
        "interval": f"95%, bootstrap of videos (keys up to #) or prompts, {draws} draws",
        "sources": [source_facts(source) for source in sources],
        "seed": seed,
    }
    if mode == "video" and real:
        facts["real"] = source_facts(real)
    return MetricReport(cases, metrics, facts | {"remarks": lines}, lines)


def _beside_others(one: Similarities, group: Sequence[str], draws: int, seed: int) -> dict[str, Metric]:
    """What the captions of others get, and by how much the own ones get more, of the clips that have both."""
    known = ~one.alone
    if not known.any():
        return {}
    drawn = [name for name, has in zip(group, known, strict=True) if has]
    own, other = (mean_estimate(values[known], draws, seed, drawn) for values in (one.own, one.other))
    n = len({*drawn})
    return {"other_captions": as_metric(other, n), "above_others": as_metric(difference(own, other), n)}
