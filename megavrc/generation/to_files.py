"""Clips of a converted folder as files: mp4 and GIF of each, one sheet of all, and a list that a later run resumes.

A folder only grows: a clip that differs from those of the list in anything gets a name of its own. Several processes
may add to one folder.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import check_fields, read_jsonl, write_atomic
from megavrc.generation.folder import Folder
from megavrc.model import ClipRequest, SamplingSettings
from megavrc.model.inputs import fit_picture
from megavrc.progress import progress
from megavrc.video import (
    MAX_FPS,
    MIN_FPS,
    VideoError,
    contact_sheet,
    count_frames,
    read_clip,
    read_frames,
    write_gif,
    write_mp4,
    write_png,
)
from megavrc.video.manifest import read_captions

log = logging.getLogger(__name__)
LIST = "prompts.jsonl"
SHEET_FRAMES = 6  # of a clip, on the sheet
SHEET_HEIGHT = 4000  # pixels, at most: what viewers show and people scroll through
ENLARGED = 128  # pixels: frames up to this size are drawn twice as large on the sheet
MAX_SCALE = 64  # 256 pixels become 16,384
Frames = NDArray[np.uint8]  # [T, H, W, 3]
Record = dict[str, Any]


@dataclass(frozen=True)
class ClipToWrite:
    """One clip to generate: the place of its prompt or label among all, the prompt or label, and its seed."""

    number: int
    caption: str | None
    label: int | None
    seed: int

    @property
    def name(self) -> str:
        """The name of its files, if no other clip of the folder has it."""
        what = _slug(self.caption) if self.caption is not None else f"label-{self.label}"
        return f"{self.number:04d}-{what}-seed{self.seed}"

    def record(self) -> Record:
        """Its entry in a video manifest, without its name."""
        return {"caption": self.caption, "label": self.label, "split": "generated", "seed": self.seed}


def clips_to_write(prompts: list[str], labels: list[int], seed: int, copies: int = 1) -> list[ClipToWrite]:
    """`copies` clips of each prompt, or of each label; copy j of prompt i gets the seed `seed` + i + j x prompts.

    So more copies leave the first ones as they are.
    """
    if copies < 1:
        raise UserError(f"clips_per_prompt: {copies} is not a positive number")
    what: list[tuple[str | None, int | None]] = [(prompt, None) for prompt in prompts]
    what += [(None, label) for label in labels]
    return [
        ClipToWrite(number, *each, seed + number + copy * len(what))
        for number, each in enumerate(what)
        for copy in range(copies)
    ]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line, or the captions of a .csv or .jsonl file; empty ones are skipped."""
    return [text for caption in read_captions(path) if (text := caption.strip())]


def read_image(path: Path, side: int) -> Tensor:
    """A picture, cropped to a square and resized as `first_frame` is, uint8 [side, side, 3]."""
    try:
        return fit_picture(torch.from_numpy(read_clip(path, start=0, frames=1, size=None)[0]), side)
    except VideoError as error:
        raise UserError(f"{path}: not a picture that can be read ({error.reason})") from None


def read_end(path: Path, side: int, frames: int) -> Tensor:
    """The last frames of a video, cropped to squares and resized, uint8 [frames, side, side, 3]."""
    try:
        there = count_frames(path)
        if not 1 <= frames <= there:
            raise UserError(f"{path}: has {there} frames, {frames} are to be continued")
        return torch.from_numpy(read_clip(path, start=there - frames, frames=frames, size=side))
    except VideoError as error:
        raise UserError(f"{path}: not a video that can be read ({error.reason})") from None


def generate_files(
    folder: Folder,
    wanted: list[ClipToWrite],
    out: Path,
    settings: SamplingSettings,
    beginning: Tensor | None = None,
    frames: int | None = None,
    overlap: int | None = None,
    batch_size: int = 4,
    fps: float = 8,
    scale: int = 1,
) -> int:
    """Generate what is not there yet and add it to what is in `out`.

    Args:
        folder: the model.
        wanted: the clips.
        out: NAME.mp4 and NAME.gif of each clip, sheet.png of (the first of) them, prompts.jsonl.
        settings: sampling.
        beginning: uint8 [1 + 4k, H, W, 3], the first frames of all clips.
        frames: frames of a clip (default: as many as the model makes; more are made in windows).
        overlap: frames that a window takes over from the one before.
        batch_size: clips generated at once.
        fps: frames a second of the files.
        scale: enlarge each pixel this many times in the files.

    Returns:
        How many clips were generated now; the others were there, made from the same model, precision, prompt, seed and
        sampling.

    Raises:
        UserError: a clip that the model cannot make; then none is made. A list that is damaged.
    """
    for name, value in {"batch_size": batch_size, "scale": scale}.items():
        if not value > 0:
            raise UserError(f"{name}: {value} is not a positive number")
    if not MIN_FPS <= fps <= MAX_FPS:
        raise UserError(f"fps: {fps} is not between {MIN_FPS:g} and {MAX_FPS:g}")
    if scale > MAX_SCALE:
        raise UserError(f"scale: {scale} is more than {MAX_SCALE}")
    origin: Record = {"model": folder.identity(), "fps": fps, "scale": scale, "frames": frames}
    origin |= {"dtype": str(folder.model.tokens.weight.dtype), "quantize": folder.quantize}
    origin["sampling"] = dataclasses.asdict(settings)
    if overlap is not None:
        origin["overlap"] = overlap
    if beginning is not None:
        origin["beginning"] = hashlib.sha256(beginning.numpy().tobytes()).hexdigest()
    listed, asked = _listed(out), [(clip.name, clip.record() | origin) for clip in wanted]
    records = _named(folder, out, listed, asked)
    there = {record["id"] for record in listed.values() if _file(out, record, "gif").is_file()}
    missing = [i for i, record in enumerate(records) if record["id"] not in there]
    if missing:
        request = _request(folder, [wanted[i] for i in missing], settings, beginning, frames, overlap)
        out.mkdir(parents=True, exist_ok=True)
        _generate(folder, request, batch_size, out, [asked[i] for i in missing])
        listed = _listed(out)
        records = _named(folder, out, listed, asked)
    mine = {record["id"]: record for record in records}
    shown = _write_sheet(out, [*records, *(listed[name] for name in [*listed][::-1] if name not in mine)])
    if shown < len(records):
        log.info("%s/sheet.png: shows the first %d of these %d clips", out, shown, len(records))
    return len(missing)


def _request(
    folder: Folder,
    wanted: list[ClipToWrite],
    settings: SamplingSettings,
    beginning: Tensor | None,
    frames: int | None,
    overlap: int | None,
) -> ClipRequest:
    """All clips as one request; UserError if the model cannot make one of them."""
    request = folder.request(
        [clip.caption for clip in wanted if clip.caption is not None] or None,
        [clip.label for clip in wanted if clip.label is not None] or None,
        seed=[clip.seed for clip in wanted],
        settings=settings,
        clip=None if beginning is None else beginning.expand(len(wanted), -1, -1, -1, -1),
        frames=frames,
        overlap=overlap,
    )
    folder.stream_request(request, by_frame=False)  # refuses what cannot be; works only when it is read
    return request


def _generate(
    folder: Folder,
    request: ClipRequest,
    batch_size: int,
    out: Path,
    new: list[tuple[str, Record]],
) -> None:
    """Generate the clips of a request, whose names and records are `new`; write their files, and the list after each
    batch."""
    seen = 0  # frames of the batch at hand

    def batches() -> Iterator[int]:
        """After each window the clips that it finished: 0 until the last one of a batch."""
        nonlocal seen
        for start in range(0, len(new), batch_size):
            part, chunks = slice(start, start + batch_size), []
            for chunk in folder.stream_request(request[part], by_frame=False):
                chunks.append(chunk)
                seen = sum(map(_length, chunks))
                yield 0
            clips = torch.cat(chunks, dim=1).numpy()
            _add(folder, out, new[part], clips)
            yield len(clips)

    def note() -> str:
        return f"frame {seen} of {request.frames}" if request.frames else ""

    for _ in progress(batches(), f"generate {len(new)} clips", len(new), note, units=int):
        pass


def _length(chunk_BTHWC: Tensor) -> int:
    return chunk_BTHWC.shape[1]


def _add(folder: Folder, out: Path, new: list[tuple[str, Record]], clips: NDArray[np.uint8]) -> None:
    """Write clips, and their lines into the list as it is now: other processes may have added to it.

    The lines come first: a line without its file counts for nothing, and a process that is killed leaves no file that
    the list does not name.
    """
    with _alone(out):
        listed = _listed(out)
        records = _named(folder, out, listed, new)
        _write_list(out, (listed | {record["id"]: record for record in records}).values())
        try:
            for record, clip in zip(records, clips, strict=True):
                write_gif(_file(out, record, "gif"), clip, record["fps"], record["scale"])
                write_mp4(_file(out, record, "mp4"), clip, record["fps"], record["scale"])
        except BaseException:
            _write_list(out, _listed(out).values())
            raise


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """While this process adds to a folder, others wait."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network drives lock no folder
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- the list ----------------------------------------------------------------------------------------------------


def _listed(out: Path) -> dict[str, Record]:
    """The lines of the list whose clips are there, by their names."""
    return {record["id"]: record for record in _read_list(out) if _file(out, record, "mp4").is_file()}


def _read_list(out: Path) -> list[Record]:
    if not (out / LIST).is_file():
        return []
    try:
        lines = read_jsonl(out / LIST, "id")
        fields = {"id": str, "scale": int}
        # Older versions had no scale.
        scaled = (record | {"scale": record.get("scale", 1)} for _, record in lines)
        records = [check_fields(out / LIST, record, fields) for record in scaled]
        for record in records:
            if not _is_name(record["id"]):
                raise UserError(f"{out / LIST}: id {record['id']!r:.80} is not the name of a file")
            if not 1 <= record["scale"] <= MAX_SCALE:
                raise UserError(f"{out / LIST}: scale {record['scale']!r:.40} is not from 1 to {MAX_SCALE}")
    except UserError as error:
        raise UserError(f"{error}; correct it, or move it away: then all clips are made again") from None
    defaults = dataclasses.asdict(SamplingSettings())  # what older versions could not say
    for record in records:
        if isinstance(record.get("sampling"), dict):
            record["sampling"] = defaults | record["sampling"]
    return records


def _is_name(text: str) -> bool:
    """Of a file in this very folder, not elsewhere, with a suffix that still fits."""
    return Path(text).name == text and "\0" not in text and 0 < len(text.encode(errors="replace")) <= 250


def _write_list(out: Path, records: Iterable[Record]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_atomic(out / LIST, "".join(lines).encode())


def _file(out: Path, record: Record, suffix: str) -> Path:
    return out / f"{record['id']}.{suffix}"


def _named(
    folder: Folder, out: Path, listed: dict[str, Record], wanted: list[tuple[str, Record]]
) -> list[Record]:
    """Records with their names: that of the same clip in the list, else their own, with a number if it is taken."""
    there: dict[str, list[Record]] = {}
    for record in listed.values():
        there.setdefault(_asked(record), []).append(record)
    taken = {path.stem for path in out.glob("*.mp4")}
    named = []
    for name, record in wanted:
        content, alike = _content(folder, record), there.get(_asked(record), ())
        known = next((one for one in alike if _content(folder, one) == content), None)
        if known is None:
            tries = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
            free = next(each for each in tries if each not in taken)
            known = {"id": free, "path": f"{free}.mp4"} | record
        named.append(known)
    return named


def _asked(record: Record) -> str:
    return str([record.get(key) for key in ("caption", "label", "seed")])


def _content(folder: Folder, record: Record) -> Record:
    """What makes it this clip and no other, however it was asked for: with what is generated where nothing is said."""
    later, patch = folder.model.config.frames, folder.video_tokenizer.config.temporal_patch
    said = {key: value for key, value in record.items() if key not in ("id", "path") and value is not None}
    content: Record = {"frames": 1 + later * patch, "overlap": 1 + later // 2 * patch} | said
    if isinstance(sampling := content.get("sampling"), dict):
        content["sampling"] = _as_drawn(sampling, later)
    return content


def _as_drawn(sampling: Record, later: int) -> Record:
    """Sampling as so many later frames get it."""
    passes, guidance = sampling["later_passes"], sampling["guidance"]
    passes = passes if isinstance(passes, list) else [passes] * later
    later_guidance = guidance if sampling["later_guidance"] is None else sampling["later_guidance"]
    return sampling | {
        "later_passes": [*passes, *[1] * (later - len(passes))],
        "later_guidance": later_guidance,
        "plausibility": sampling["plausibility"] if not guidance == later_guidance == 1 else 0,
    }


# --- the sheet ---------------------------------------------------------------------------------------------------


def _write_sheet(out: Path, records: list[Record]) -> int:
    """Draw clips, a row each, as many as fit; returns how many."""
    rows: list[tuple[str, Frames]] = []
    height = 0
    for record in records:
        try:
            frames = _stills(out, record)
        except VideoError:  # a file that somebody put in the place of an earlier clip
            continue
        what = record["caption"] if record.get("caption") is not None else f"label {record.get('label')}"
        rows.append((f"{what} (seed {record.get('seed')})", frames))
        height += contact_sheet(rows[-1:], 1, _enlarged(frames)).shape[0]
        if height > SHEET_HEIGHT and len(rows) > 1:
            rows.pop()
            break
    if rows:
        write_png(out / "sheet.png", contact_sheet(rows, SHEET_FRAMES, _enlarged(rows[0][1])))
    return len(rows)


def _enlarged(frames: Frames) -> int:
    return 2 if frames.shape[1] <= ENLARGED else 1


def _stills(out: Path, record: Record) -> Frames:
    """Frames of a clip for the sheet, at the model's size."""
    path, scale = _file(out, record, "mp4"), record["scale"]
    inside = slice(scale // 2, None, scale)  # not at the edge of an enlarged pixel, where colours bleed
    frames = np.linspace(0, count_frames(path) - 1, SHEET_FRAMES).round().astype(int)
    return read_frames(path, sorted(set(frames.tolist())))[:, inside, inside]


def _slug(text: str) -> str:
    """A file name's worth of a prompt."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "prompt"
