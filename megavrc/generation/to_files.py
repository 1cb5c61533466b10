"""Clips of a converted folder as files: mp4 and GIF of each, one sheet of all, and a list that a later run resumes."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import read_lines, write_atomic
from megavrc.generation.folder import Folder
from megavrc.model import SamplingSettings
from megavrc.progress import progress
from megavrc.video import (
    VideoError,
    contact_sheet,
    count_frames,
    read_clip,
    read_frames,
    write_gif,
    write_mp4,
    write_png,
)

LIST = "prompts.jsonl"
SHEET_ROWS = 64
Frames = NDArray[np.uint8]  # [T, H, W, 3]


@dataclass(frozen=True)
class ClipToWrite:
    """One clip to generate: a prompt or a label, and its seed."""

    name: str
    caption: str | None
    label: int | None
    seed: int

    @property
    def text(self) -> str:
        """What the clip should show, for people."""
        return self.caption if self.caption is not None else f"label {self.label}"

    def record(self) -> dict[str, Any]:
        """The line of a video manifest."""
        return {
            "id": self.name,
            "path": f"{self.name}.mp4",
            "caption": self.caption,
            "label": self.label,
            "split": "generated",
            "seed": self.seed,
        }


def clips_to_write(prompts: list[str], labels: list[int], seed: int) -> list[ClipToWrite]:
    """Clip i gets seed + i, and a name that starts with i."""
    texts = [
        ClipToWrite(f"{i:04d}-{_slug(prompt)}", prompt, None, seed + i) for i, prompt in enumerate(prompts)
    ]
    return texts + [
        ClipToWrite(f"{i:04d}-label-{label}", None, label, seed + i) for i, label in enumerate(labels)
    ]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines are skipped."""
    lines = [line.strip() for _, line in read_lines(path)]
    if not any(lines):
        raise UserError(f"{path}: holds no prompts (one a line)")
    return [line for line in lines if line]


def read_image(path: Path, side: int) -> Tensor:
    """A picture, cropped to a square and resized, uint8 [side, side, 3]."""
    try:
        return torch.from_numpy(read_clip(path, start=0, frames=1, size=side)[0])
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
    """Generate what is not there yet and write it into `out`.

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
    """
    for name, value in {"batch_size": batch_size, "scale": scale, "fps": fps}.items():
        if not value > 0:
            raise UserError(f"{name}: {value} is not a positive number")
    out.mkdir(parents=True, exist_ok=True)
    origin: dict[str, Any] = {"model": folder.identity(), "fps": fps, "scale": scale, "frames": frames}
    origin |= {"dtype": str(folder.model.tokens.weight.dtype), "quantize": folder.quantize}
    origin["sampling"] = dataclasses.asdict(settings)
    if overlap is not None:
        origin["overlap"] = overlap
    if beginning is not None:
        origin["beginning"] = hashlib.sha256(beginning.numpy().tobytes()).hexdigest()
    records = [clip.record() | origin for clip in wanted]
    there = _finished(out)
    missing = [i for i, record in enumerate(records) if there.get(record["id"]) != record]
    done = set(range(len(records))).difference(missing)
    if missing:
        _write_list(out, records, done)  # before files that other lines speak of are written over
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    clips: dict[int, Frames] = {}
    for batch in progress(batches, f"generate {len(missing)} clips", len(batches)):
        made = _generate(folder, [wanted[i] for i in batch], settings, beginning, frames, overlap)
        for i, clip in zip(batch, made, strict=True):
            write_gif(out / f"{wanted[i].name}.gif", clip, fps, scale)
            write_mp4(out / f"{wanted[i].name}.mp4", clip, fps, scale)
            clips[i] = clip
        done.update(batch)
        _write_list(out, records, done)
    rows = [
        (clip.text, clips[i] if i in clips else _read_back(out, clip, scale)) for i, clip in enumerate(wanted)
    ]
    write_png(out / "sheet.png", contact_sheet(rows[:SHEET_ROWS]))
    return len(missing)


def _generate(
    folder: Folder,
    wanted: list[ClipToWrite],
    settings: SamplingSettings,
    beginning: Tensor | None,
    frames: int | None,
    overlap: int | None,
) -> list[Frames]:
    """Pixels of one batch, each uint8 [T, H, W, 3]."""
    chunks = folder.stream(
        [clip.caption for clip in wanted if clip.caption is not None] or None,
        [clip.label for clip in wanted if clip.label is not None] or None,
        seed=[clip.seed for clip in wanted],
        settings=settings,
        clip=None if beginning is None else beginning.expand(len(wanted), -1, -1, -1, -1),
        frames=frames,
        overlap=overlap,
        by_frame=False,
    )
    return list(torch.cat(list(chunks), dim=1).numpy())


def _finished(out: Path) -> dict[str, dict[str, Any]]:
    """Lines of an earlier run's list whose files are there."""
    if not (out / LIST).is_file():
        return {}
    try:
        records = [json.loads(line) for _, line in read_lines(out / LIST)]
    except json.JSONDecodeError as error:
        raise UserError(f"{out / LIST}: damaged ({error}); remove it to generate everything again") from None
    whole = [
        record
        for record in records
        if all((out / f"{record['id']}{end}").is_file() for end in (".mp4", ".gif"))
    ]
    return {record["id"]: record for record in whole}


def _write_list(out: Path, records: list[dict[str, Any]], done: set[int]) -> None:
    lines = [json.dumps(records[i], ensure_ascii=False) + "\n" for i in sorted(done)]
    write_atomic(out / LIST, "".join(lines).encode())


def _read_back(out: Path, clip: ClipToWrite, scale: int) -> Frames:
    path = out / f"{clip.name}.mp4"
    inside = slice(scale // 2, None, scale)  # not at the edge of an enlarged pixel, where colours bleed
    return read_frames(path, range(count_frames(path)))[:, inside, inside]


def _slug(text: str) -> str:
    """A file name's worth of a prompt."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "prompt"
