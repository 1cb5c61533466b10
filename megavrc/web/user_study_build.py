"""`megavrc user_study build`: pairs of clips of two models, made alike, in files that do not tell whose they are.

Notable: one file holds both clips of a pair, side by side. So they cannot get out of step, they are encoded as one, and
no property of the file (size, bit rate, metadata) belongs to one of the two. Each pair has a file for either order.
"""

import random
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import ClipSource, Frames, pairs
from megavrc.evaluation.clip_source import first as first_few
from megavrc.files import sha256_json
from megavrc.generation.clip_sources import GeneratedClips, open_source, some_clips
from megavrc.processes import appearing
from megavrc.progress import progress
from megavrc.video.write import MAX_FPS, MIN_FPS, enlarge, write_mp4
from megavrc.web.user_study import QUESTIONS, ClipPair, UserStudy, write_user_study

SHOWN = 448  # pixels that small clips are enlarged to, by whole factors
LARGEST = 2048  # pixels of a side that can be asked for
BLOCK = 16  # of H.264: no block holds parts of both clips
TILES = 8  # a side, of a picture in pieces
TOKEN = 16  # random bytes of a name or a link


def build_study(
    first: Path,
    second: Path,
    out: Path,
    planned: Path | None = None,
    names: tuple[str, str] | None = None,
    n: int | None = None,
    raters: int = 0,
    repeats: int = 2,
    attention: int = 1,
    frames: int | None = None,
    size: int | None = None,
    fps: float = 8,
    seed: int = 0,
) -> None:
    """Make a blind study of two models' clips of the same prompts: pairs of clips that are alike in all but content.

    Clips are given as for megavrc evaluate fvd. Exactly the planned ones must be there.

    Args:
        first: clips of one model.
        second: clips of the other.
        out: folder of the study; must not be there yet.
        planned: list of the clips that must be there, or be generated: JSON lines with id and caption.
        names: names of the two models in the report (default: those of their folders).
        n: number of prompts, drawn by the seed (default: all).
        raters: number of personal links to make (default: one open link for all).
        repeats: pairs that each rater sees again with sides changed.
        attention: pairs of a clip and the same clip in pieces.
        frames: frames of each clip, from its first on (default: as many as all have).
        size: side of a clip in pixels, a square from its centre (default: as they are; if they differ, the smallest
            side).
        fps: frames a second.
        seed: seed of the prompts drawn, and of generated clips where a model is given.
    """
    if out.exists() or out.is_symlink():  # also one that leads nowhere
        raise UserError(f"{out}: is there already; name another place")
    names = _names(first, second, names)
    one = open_source(first, planned, seed=seed)
    sources = one, open_source(second, planned, one, seed)
    chosen = _chosen(*sources, n, seed)
    _check_numbers(len(chosen), raters, repeats, attention, fps)
    shown = [some_clips(source, [row.indices[side] for row in chosen]) for side, source in enumerate(sources)]
    alike = _alike(shown, chosen, frames, size)
    with appearing(out) as unfinished:
        (unfinished / "clips").mkdir(parents=True)
        study = UserStudy(
            folder=unfinished,
            names=names,
            questions=[name for name in QUESTIONS if name != "text_match" or chosen[0].prompt is not None],
            pairs=_write_pairs(shown, chosen, alike, attention, fps, unfinished / "clips"),
            repeats=repeats,
            links=[secrets.token_hex(TOKEN) for _ in range(raters)],
            open_link=None if raters else secrets.token_hex(TOKEN),
            width=alike.width,
            height=alike.height,
            second_at=alike.second_at,
            seconds=alike.frames / fps,
            protocol=_protocol(shown, alike, fps, seed),
        )
        write_user_study(study)
    print(f"{out}: {len(chosen)} pairs; serve it: megavrc user_study serve {out}")


class StudyPrompt(NamedTuple):
    """A prompt of the study, and its clips' indices in both sources."""

    key: str
    prompt: str | None
    indices: tuple[int, int]


def _chosen(one: ClipSource, other: ClipSource, n: int | None, seed: int) -> list[StudyPrompt]:
    found = [
        StudyPrompt(
            mine.key, (mine.prompt or other.clips[index].prompt or "").strip() or None, (place, index)
        )
        for place, (mine, index) in enumerate(zip(one.clips, pairs(one, other), strict=True))
    ]
    silent = [row.key for row in found if row.prompt is None]
    if silent and len(silent) < len(found):
        raise UserError(
            f"{one.name}: {len(silent)} clips have no prompt ({first_few(silent)}): give --planned"
        )
    if same := [row.key for row in found if one.identity(row.indices[0]) == other.identity(row.indices[1])]:
        raise UserError(f"{one.name} and {other.name}: {len(same)} clips are the same ({first_few(same)})")
    if n is not None and not 1 <= n <= len(found):
        raise UserError(f"--n: {n}, there are {len(found)} prompts")
    return sorted(random.Random(seed).sample(found, n or len(found)))


def _check_numbers(prompts: int, raters: int, repeats: int, attention: int, fps: float) -> None:
    half = (prompts + 1) // 2  # those that a rater sees first can come again
    for name, value, most in (
        ("raters", raters, 10000),
        ("repeats", repeats, half),
        ("attention", attention, prompts),
    ):
        if not 0 <= value <= most:
            raise UserError(f"--{name}: {value}, from 0 to {most} of {prompts} prompts")
    if not MIN_FPS <= fps <= MAX_FPS:
        raise UserError(f"--fps: {fps} is not between {MIN_FPS:g} and {MAX_FPS:g}")


class Alike(NamedTuple):
    """The properties that all clips share.

    Attributes:
        frames: of each.
        size: of the square that each is cut to (None: as they are).
        scale: by which that is enlarged.
        height, width: then, in pixels.
    """

    frames: int
    size: int | None
    scale: int
    height: int
    width: int

    @property
    def second_at(self) -> int:
        """Where the second clip begins in a file."""
        return (self.width // BLOCK + 2) * BLOCK


def _alike(
    sources: Sequence[ClipSource], chosen: Sequence[StudyPrompt], frames: int | None, size: int | None
) -> Alike:
    clips = [(source, row.key, place) for place, row in enumerate(chosen) for source in sources]
    lengths = [source.length(place) for source, _, place in clips]
    least = min(lengths)
    if frames is not None and frames < 1:
        raise UserError(f"--frames: {frames}, at least 1")
    if size is not None and not BLOCK <= size <= LARGEST:
        raise UserError(f"--size: {size}, from {BLOCK} to {LARGEST} pixels")
    if frames is not None and least < frames:
        source, key, _ = clips[lengths.index(least)]
        raise UserError(f"{source.name}: clip {key} has {least} frames, --frames is {frames}")
    frames = frames or least
    if max(lengths) > frames:
        print(f"note: clips have {least} to {max(lengths)} frames; the first {frames} of each are shown")
    # Clips of a model have one size: its first batch tells it, and is still there when they are written.
    differ = [row for row in clips if not (row[2] and isinstance(row[0], GeneratedClips))]
    shapes = {source.read(place, [0]).shape[1:3] for source, _, place in differ}
    if size is None and len(shapes) > 1:
        size = min(min(shape) for shape in shapes)
        print(f"note: clips have other sizes; of each a square of {size} pixels is shown")
    height, width = (size, size) if size else next(iter(shapes))
    scale = max(1, SHOWN // min(height, width))
    return Alike(frames, size, scale, scale * height, scale * width)


def _write_pairs(
    sources: Sequence[ClipSource],
    chosen: Sequence[StudyPrompt],
    alike: Alike,
    attention: int,
    fps: float,
    folder: Path,
) -> list[ClipPair]:
    """Write two files a pair, under names that are drawn; those of attention come last."""
    found = []
    # Checks of attention, spread over the pairs: of either model in turn.
    spread = {place * len(chosen) // attention: place % 2 for place in range(attention)}
    checks = []
    for place, row in enumerate(progress(chosen, f"{len(chosen)} pairs")):
        clips = [source.read(place, range(alike.frames), alike.size) for source in sources]
        found.append(
            ClipPair(row.key, row.prompt, False, *_write_both(clips[0], clips[1], alike, fps, folder))
        )
        if place in spread:
            whole = clips[spread[place]]
            files = _write_both(whole, in_pieces(whole, place), alike, fps, folder)
            checks.append(ClipPair(row.key, row.prompt, True, *files))
    return found + checks


def _write_both(one: Frames, other: Frames, alike: Alike, fps: float, folder: Path) -> tuple[str, str]:
    names, clips = [], [enlarge(clip, alike.scale) for clip in (one, other)]
    for left, right in (clips, clips[::-1]):
        # Between the clips their edges go on: no seam to encode.
        until = alike.second_at - BLOCK - alike.width
        parts = [left, left[:, :, -1:].repeat(until, 2), right[:, :, :1].repeat(BLOCK, 2), right]
        names.append(secrets.token_hex(TOKEN))
        write_mp4(folder / f"{names[-1]}.mp4", np.concatenate(parts, axis=2), fps)
    return names[0], names[1]


def in_pieces(frames_THWC: Frames, seed: int) -> Frames:
    """A clip whose pictures are cut into tiles, which lie in another order in each frame."""
    rng = np.random.default_rng(seed)
    height, width = (side // TILES for side in frames_THWC.shape[1:3])
    mixed = frames_THWC.copy()
    for frame, old in zip(mixed, frames_THWC, strict=True):
        for place, piece in enumerate(rng.permutation(TILES * TILES)):
            (y, x), (from_y, from_x) = divmod(place, TILES), divmod(int(piece), TILES)
            tile = old[from_y * height : (from_y + 1) * height, from_x * width : (from_x + 1) * width]
            frame[y * height : (y + 1) * height, x * width : (x + 1) * width] = tile
    return mixed


def _protocol(sources: Sequence[ClipSource], alike: Alike, fps: float, seed: int) -> dict[str, object]:
    """For results: what decided which clips are shown, and how."""
    return {
        "first": {"clips": sources[0].name, "storage": sources[0].storage},
        "second": {"clips": sources[1].name, "storage": sources[1].storage},
        "clips_sha256": sha256_json(
            [[source.identity(place) for place in range(len(source.clips))] for source in sources]
        ),
        "prompts": len(sources[0].clips),
        "seed": seed,
        "frames": alike.frames,
        "fps": fps,
        "pixels": f"{alike.width // alike.scale} x {alike.height // alike.scale}",
    }


def _names(first: Path, second: Path, names: tuple[str, str] | None) -> tuple[str, str]:
    """Names of the models that tell them apart."""
    if names is None:
        names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    if names[0] == names[1] or not all(name.strip() for name in names):
        raise UserError(f"--names: {names[0]!r} and {names[1]!r} do not tell the models apart")
    return names
