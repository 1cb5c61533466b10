"""Does a clip of one moving shape show what its caption says? A detector without learned parts, and its scores.

The detector sees pixels only. Everything it measures scales with the size of the clip, 64 pixels being the nominal.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import ClipSource, first, read_whole, source_facts, wholes
from megavrc.evaluation.quality import mean_psnr
from megavrc.evaluation.scene_fit import pieces
from megavrc.evaluation.statistics import MetricReport, clustered_share, share_difference
from megavrc.progress import progress
from megavrc.results import case
from megavrc.video.shapes import (
    CANVAS,
    COLOURS,
    COMBINATIONS,
    SHAPES,
    Combination,
    caption,
    signed_distance,
)

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB
Clips = NDArray[np.uint8]  # [B, T, H, W, 3]

CHROMA = 0.3  # max - min of RGB / 255 from which a pixel belongs to the shape
MIN_AREA = 40.0  # nominal pixels; the smallest true shape has 200
MIN_COSINE = 0.8  # with the nearest colour; neighbours of the palette are at 0.5
MIN_IOU = 0.5  # with the nearest template, mean over frames
MIN_TRAVEL = 6.0  # nominal pixels between first and last frames; true clips travel 24
DRAWS = 1000  # of the bootstrap
BATCH = 24  # clips that are reconstructed or generated together
AREAS = {"square": 4.0, "circle": np.pi, "triangle": 2.0}  # at r = 1


class Detection(NamedTuple):
    """Attributes that a clip shows; None where nothing is found.

    `iou` is the mean overlap with the template of `shape`; `whole` says that every frame shows one piece, specks aside.
    """

    colour: str | None
    shape: str | None
    direction: str | None
    iou: float
    whole: bool


Score = dict[str, float]
"""Fractions of clips whose `colour`, `shape`, `direction` and `all` three are right; `n` clips; `psnr` in dB.

`iou`: mean overlap with the template of the shape found, 0 where none is; `whole`: fraction of clips that show one
piece in every frame. `all` asks for neither. `colour_low`, `colour_high` and so on: the 95% interval of a fraction.
"""


def detect(frames_THWC: Frames) -> Detection:
    """Find the shape in a clip, uint8 [T, H, W, 3].

    The shape is where pixels are saturated. Colour: direction of its mean RGB away from grey. Shape: the template of
    equal area and centroid with the largest intersection over union, summed over frames. Direction: the way of its
    centroid.
    """
    frames = frames_THWC.astype(np.float32)
    chroma = (frames.max(axis=-1) - frames.min(axis=-1)) / 255
    mask_THW = chroma > CHROMA
    scale = frames.shape[1] / CANVAS
    visible = np.flatnonzero(mask_THW.sum(axis=(1, 2)) >= MIN_AREA * scale**2)
    if 2 * len(visible) < len(frames):  # in most frames there is nothing
        return Detection(None, None, None, 0.0, False)
    shape, iou = _shape(mask_THW[visible])
    direction = _direction(mask_THW, visible, MIN_TRAVEL * scale)
    whole = bool((pieces(mask_THW, scale)[1] == 1).all())
    return Detection(_colour(frames[mask_THW].mean(axis=0)), shape, direction, iou, whole)


def _colour(rgb: NDArray[np.float32]) -> str | None:
    def hue(colour: NDArray[np.float32]) -> NDArray[np.float32]:
        away = colour - colour.mean()
        return away / np.linalg.norm(away)

    if np.ptp(rgb) < CHROMA * 255:  # many colours that cancel out
        return None
    cosines = {name: float(hue(rgb) @ hue(np.asarray(value, np.float32))) for name, value in COLOURS.items()}
    best = max(cosines, key=lambda name: cosines[name])
    return best if cosines[best] >= MIN_COSINE else None


def _shape(mask_THW: NDArray[np.bool_]) -> tuple[str | None, float]:
    totals = dict.fromkeys(SHAPES, 0.0)
    for mask in mask_THW:
        for shape in SHAPES:
            template = _template(shape, mask)
            totals[shape] += float((mask & template).sum() / (mask | template).sum())
    best = max(totals, key=lambda shape: totals[shape])
    iou = totals[best] / len(mask_THW)
    return (best if iou >= MIN_IOU else None), iou


def _template(shape: str, mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The shape with the area and the centroid of a mask.

    Not with its bounding box, which a single stray pixel moves: in a box too wide a square looks like a circle.
    """
    rows, columns = np.nonzero(mask_HW)
    r = float(np.sqrt(len(rows) / AREAS[shape]))
    below = r / 3 if shape == "triangle" else 0.0  # the centroid lies below the middle of the height
    height, width = mask_HW.shape
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(rows.mean() - below)
    x = np.arange(width, dtype=np.float32)[None] - np.float32(columns.mean())
    return signed_distance(shape, x, y, r) < 0


def _direction(mask_THW: NDArray[np.bool_], visible: NDArray[np.intp], min_travel: float) -> str | None:
    centres = np.stack([np.argwhere(mask_THW[t]).mean(axis=0) for t in visible])  # (y, x)
    ends = max(1, len(visible) // 6)
    dy, dx = centres[-ends:].mean(axis=0) - centres[:ends].mean(axis=0)
    if max(abs(dx), abs(dy)) < min_travel:
        return None
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def score(
    clips: Sequence[Frames] | Clips, expected: Sequence[Combination], drawn: Sequence[str] = ()
) -> Score:
    """Score clips, each uint8 [T, H, W, 3], against what their captions say.

    Args:
        drawn: the video or prompt of each clip, which intervals draw as wholes; without them there are no intervals.
    """
    found = [detect(frames) for frames in clips]
    if not found:
        raise ValueError("no clips to score")
    columns = _columns(found, expected)
    scores = {name: float(values.mean()) for name, values in columns.items()}
    scores |= {"iou": float(np.mean([each.iou for each in found])), "n": len(found)}
    for name, values in columns.items() if drawn else ():
        share = clustered_share(values, drawn, DRAWS)
        scores |= {f"{name}_{end}": share[end] for end in ("low", "high")}
    return scores


def _columns(found: Sequence[Detection], expected: Sequence[Combination]) -> dict[str, NDArray[np.bool_]]:
    """For each clip whether its colour, shape, direction and all three are right, and whether it shows one piece."""
    hits = np.array(
        [
            [a == b for a, b in zip(one[:3], wanted, strict=True)]
            for one, wanted in zip(found, expected, strict=True)
        ]
    )
    columns = dict(zip(Combination._fields, hits.T, strict=True))
    return columns | {"all": hits.all(axis=1), "whole": np.array([each.whole for each in found])}


def measure_alignment(clips: ClipSource, real: ClipSource | None = None) -> MetricReport:
    """Shares of clips, whoever made them, that show the colour, the shape and the direction of their captions.

    Raises:
        UserError: a caption that is not one of `make_shapes`; a clip that cannot be read.
    """
    cases, sources = [], [clips, *([real] if real else [])]
    for source in sources:
        wanted = [_asked(source, index) for index in range(len(source.clips))]
        found = [detect(read_whole(source, index)) for index in progress(range(len(wanted)), source.name)]
        drawn, columns = wholes(source), _columns(found, wanted)
        metrics = {name: clustered_share(values, drawn, DRAWS) for name, values in columns.items()}
        cases.append(case(source.name, metrics, {"clips": len(found), "prompts_or_videos": len({*drawn})}))
    gaps = {}
    if real:
        mine, true = (row["metrics"] for row in cases)
        gaps = {f"{name}: measured - real": share_difference(mine[name], true[name]) for name in mine}
    protocol = {
        "asked": "by captions",
        "interval": f"95%, bootstrap of prompts or videos, {DRAWS} draws; of single clips: Wilson; Newcombe",
        "sources": [source_facts(source) for source in sources],
    }
    return MetricReport(cases, gaps, protocol)


SAID = {caption(combination): combination for combination in COMBINATIONS}


def _asked(source: ClipSource, index: int) -> Combination:
    text = source.clips[index].prompt
    if text not in SAID:
        others = [clip.key for clip in source.clips if clip.prompt not in SAID]
        raise UserError(
            f"{source.name}: {len(others)} clips have no caption such as {next(iter(SAID))!r} ({first(others)}): "
            "alignment is for captions of megavrc make_shapes; give them with --planned"
        )
    return SAID[text]


Generate = Callable[[list[str], list[int], float, float, float], Clips]
"""(prompts, seeds, temperature of the first frame, of the segments, guidance) -> uint8 [B, T, H, W, 3]."""


class Report(NamedTuple):
    """The scores by source, and some of the clips (for a contact sheet) as (label, frames)."""

    scores: dict[str, Score]
    examples: list[tuple[str, Frames]]


def evaluate(
    real: Sequence[tuple[Combination, Frames]],
    reconstruct: Callable[[Clips], Clips],
    generate: Generate,
    trained: Sequence[Combination],
    heldout: Sequence[Combination],
    prompts: int = 144,
    temperatures: tuple[float, float] = (0.7, 0.5),
    guidance: float = 1.0,
    seed: int = 0,
) -> Report:
    """Score real, reconstructed and generated clips.

    Args:
        real: clips of the validation split with what they show, all of one size.
        reconstruct: the video tokenizer, there and back.
        generate: the model.
        trained: combinations that the model was trained on.
        heldout: combinations that it never saw together; may be empty.
        prompts: generated clips for each set of combinations; rounded to whole rounds, so that every combination is
            asked for equally often.
        temperatures: of the first frame and of the segments, for `generated` and `heldout`.
        guidance: classifier-free guidance of all generated clips; unless it is 1, the set `unguided` repeats
            `generated` without it.
        seed: clip i is generated with the seed `seed` + i.

    Returns:
        Report with the scores `real`, `reconstructed` (and its PSNR against `real`), `generated`, `generated_t1`
        (both temperatures 1, as in the paper) and, where there are any, `heldout`, each with intervals: over
        prompts, Wilson's for real and reconstructed clips.
    """
    wanted, clips = [combination for combination, _ in real], np.stack([frames for _, frames in real])

    def run(function: Callable[[int, int], Clips], total: int, label: str) -> Clips:
        starts = progress(range(0, total, BATCH), label, total, units=lambda i: min(BATCH, total - i))
        return np.concatenate([function(i, min(i + BATCH, total)) for i in starts])

    def generated(combinations: Sequence[Combination], how: tuple[float, float, float], label: str) -> Clips:
        def one_batch(start: int, end: int) -> Clips:
            texts = [caption(combination) for combination in combinations[start:end]]
            return generate(texts, list(range(seed + start, seed + end)), *how)

        return run(one_batch, len(combinations), label)

    rebuilt = run(lambda start, end: reconstruct(clips[start:end]), len(clips), "reconstruct")
    single = [str(number) for number in range(len(wanted))]
    scores = {"real": score(clips, wanted, single), "reconstructed": score(rebuilt, wanted, single)}
    scores["reconstructed"]["psnr"] = mean_psnr(clips, rebuilt)
    shown = {"real": (wanted, clips), "reconstructed": (wanted, rebuilt)}
    for name, combinations, how in (
        ("generated", trained, (*temperatures, guidance)),
        ("generated_t1", trained, (1.0, 1.0, guidance)),
        ("heldout", heldout, (*temperatures, guidance)),
        ("unguided", trained if guidance != 1 else (), (*temperatures, 1.0)),
    ):
        if combinations:
            asked = list(combinations) * max(1, round(prompts / len(combinations)))
            made = generated(asked, how, name)
            scores[name] = score(made, asked, [caption(combination) for combination in asked])
            shown[name] = (asked, made)
    return Report(scores, [example for name in shown for example in _examples(name, *shown[name])])


def _examples(name: str, combinations: Sequence[Combination], clips: Clips) -> list[tuple[str, Frames]]:
    """Six clips of a set, evenly spread, under what they were asked for."""
    chosen = np.linspace(0, len(clips) - 1, min(6, len(clips))).astype(int)
    return [(f"{name}: {caption(combinations[i])}", clips[i]) for i in chosen]
