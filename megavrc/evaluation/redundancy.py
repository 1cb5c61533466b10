"""Share of a clip that its earlier frames already hold: for a codec, in pixels, in tokens (the paper's Figure 2)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megavrc.evaluation.clip_source import ClipSource, Frames, frame_range, read_at, source_facts, wholes
from megavrc.evaluation.frechet import Array
from megavrc.evaluation.statistics import MetricReport, as_metric, clustered_share, mean_estimate
from megavrc.progress import progress
from megavrc.results import Metric, case
from megavrc.video.h264 import CRF, CodedFrame, GopMode, coded_frames

Encode = Callable[[Frames], NDArray[np.int64]]  # a clip to the ids of its latent frames, [t, h, w]

MODES: tuple[GopMode, ...] = ("ippp", "paper")
BLOCK = 16  # pixels, of a macroblock
ORANGE, GAP, LINE = (255, 140, 0), 6, 2  # of the picture of what stays: RGB; pixels between frames, of a line
SAME = 2  # grey levels that the pixels of an unchanged block may be apart


class ClipRedundancy(NamedTuple):
    """The findings of one clip.

    Attributes:
        coded: its frames in H.264, by mode.
        raw: bytes of its pixels.
        unchanged: share of blocks that are as in the frame before.
        equal: share of tokens that are those of the latent frame before, [t - 1]; empty without a tokenizer.
    """

    coded: dict[GopMode, list[CodedFrame]]
    raw: int
    unchanged: float
    equal: Array


def unchanged_blocks(frames_THWC: Frames) -> NDArray[np.bool_]:
    """Blocks that are as in the frame before, bool [T - 1, rows, columns]; edges that fill no block do not count."""
    _, height, width, _ = frames_THWC.shape
    rows, columns = height // BLOCK, width // BLOCK
    pixels = frames_THWC[:, : rows * BLOCK, : columns * BLOCK].astype(np.int16)
    apart = np.abs(np.diff(pixels, axis=0)).max(axis=-1)
    blocks = apart.reshape(len(apart), rows, BLOCK, columns, BLOCK).max(axis=(2, 4))
    unchanged: NDArray[np.bool_] = blocks <= SAME
    return unchanged


def outlined(frames_THWC: Frames) -> Frames:
    """The frames side by side, [H, W', 3]; orange lines surround what is as in the frame before."""
    pictures = frames_THWC.copy()
    for picture, same in zip(pictures[1:], unchanged_blocks(frames_THWC), strict=True):
        inside = np.kron(same, np.ones((BLOCK, BLOCK), bool))
        around = np.pad(inside, LINE)
        core = inside.copy()
        for shift in (-LINE, LINE):  # what is still inside one line further to each side
            for axis in (0, 1):
                core &= np.roll(around, shift, axis)[LINE:-LINE, LINE:-LINE]
        picture[: len(inside), : inside.shape[1]][inside & ~core] = ORANGE
    gap = np.full((frames_THWC.shape[1], GAP, 3), 255, np.uint8)
    strip: Frames = np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=1)
    return strip


def clip_redundancy(frames_THWC: Frames, crf: int = CRF, encode: Encode | None = None) -> ClipRedundancy:
    """How much of one clip its earlier frames hold; see `measure_redundancy`."""
    return ClipRedundancy(
        {mode: coded_frames(frames_THWC, mode, crf) for mode in MODES},
        frames_THWC.size,
        unchanged_blocks(frames_THWC).mean(),
        _equal_ids(encode(frames_THWC)) if encode else np.empty(0),
    )


def measure_redundancy(
    source: ClipSource,
    frames: int = 5,
    stride: int = 1,
    crf: int = CRF,
    encode: Encode | None = None,
    draws: int = 1000,
    seed: int = 0,
    size: int | None = None,
) -> MetricReport:
    """Redundancy of clips, which are in memory one at a time.

    Args:
        frames, stride: of each clip, from its first on.
        crf: x264 quality.
        encode: a video tokenizer: also compare the ids of neighbouring latent frames.
        size: side that clips are resized to (short side, then the centre); None keeps them.

    Raises:
        UserError: a clip that is too short, cannot be read, or that the tokenizer does not take.
    """
    places = progress(range(len(source.clips)), source.name)
    wanted = frame_range(frames, stride)
    found = [clip_redundancy(read_at(source, index, wanted, size), crf, encode) for index in places]
    n, raw = len(found), np.array([one.raw for one in found])
    drawn, cases = wholes(source), []

    def mean(values: Array, unit: str) -> Metric:
        return as_metric(mean_estimate(values, draws, seed, drawn), n, unit)

    for mode in MODES:
        coded = [one.coded[mode] for one in found]
        payloads = np.array([[frame.payload for frame in clip] for clip in coded], np.float64)
        packets = np.array([[frame.packet for frame in clip] for clip in coded], np.float64)
        values = {
            "later_over_first": payloads[:, 1:].mean(axis=1) / payloads[:, 0],
            "raw_over_coded": raw / packets.sum(axis=1),
        }
        values |= {f"payload/{t}": payloads[:, t] for t in range(frames)}
        values |= {f"packet/{t}": packets[:, t] for t in range(frames)}
        metrics = {name: mean(value, "bytes" if "/" in name else "") for name, value in values.items()}
        kinds = sorted({" ".join(frame.kind for frame in clip) for clip in coded})
        cases.append(case(f"H.264 {mode}", metrics, {"frames": kinds}))
    blocks = np.array([one.unchanged for one in found])
    if np.isfinite(blocks).all():  # a picture smaller than a block has none
        unchanged = clustered_share(blocks, drawn, draws, seed)
        cases.append(case("blocks of pixels", {"unchanged": unchanged}))
    if encode:
        equal = np.array([one.equal for one in found])
        metrics = {
            f"equal_to_the_one_before/{k}": clustered_share(column, drawn, draws, seed)
            for k, column in enumerate(equal.T, 1)
        }
        cases.append(case("tokens of latent frames", metrics))
    protocol: dict[str, Any] = {
        "clips": n,
        "sources": [source_facts(source)],
        "frames": frames,
        "stride": stride,
        "size": size,
        "unchanged": f"blocks of {BLOCK}x{BLOCK} pixels, none by more than {SAME} grey levels",
        "encoder": f"x264, crf {crf}, one group of pictures, one thread",
        "interval": f"95%, bootstrap of prompts or videos, {draws} draws; of shares that are equal in all of them, "
        "as wide as Wilson's",
        "seed": seed,
    }
    return MetricReport(cases, {}, protocol)


def _equal_ids(ids_THW: NDArray[np.int64]) -> Array:
    """Share of tokens that are those of the latent frame before, [t - 1]."""
    equal: Array = (ids_THW[1:] == ids_THW[:-1]).mean(axis=(1, 2))
    return equal
