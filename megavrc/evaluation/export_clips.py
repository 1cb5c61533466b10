"""Clips in the layouts that other suites read: VBench's names, folders of frames, one .npz."""

import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import ClipSource, PlannedClip, first, read_whole
from megavrc.processes import appearing
from megavrc.progress import progress
from megavrc.video.write import write_mp4, write_png

Layout = Literal["vbench", "frames", "npz"]
LONGEST = 255  # bytes of a file's name


def export_clips(source: ClipSource, layout: Layout, out: Path, fps: float = 8) -> int:
    """Write all clips; the result appears whole or not at all.

    Args:
        layout: `vbench`, {prompt}-{index}.mp4, the index counting the clips of one prompt; `frames`, a folder of PNG a
            clip, side by side (StyleGAN-V and FVMD read no deeper), a slash in a key made _; `npz`, one file with an
            array by key, and `keys`, `prompts` and `labels`.
        out: a folder, or FILE.npz; must not be there.
        fps: of mp4 files.

    Returns:
        How many clips.

    Raises:
        UserError: something lies there; a clip that cannot be read; a prompt or key that cannot be a file's name.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; name another place")
    if layout == "npz" and out.suffix != ".npz":
        raise UserError(f"{out}: name a file that ends in .npz")
    names = _names(source, layout)
    with appearing(out) as unfinished:
        _write(source, layout, unfinished, names, fps)
    return len(names)


def _write(source: ClipSource, layout: Layout, out: Path, names: list[str], fps: float) -> None:
    clips = progress(range(len(names)), f"export {len(names)} clips")
    if layout == "npz":
        with zipfile.ZipFile(out, "w") as archive:  # clip by clip, as numpy's savez has it
            for index in clips:
                _add(archive, names[index], read_whole(source, index))
            for name, column in _columns(source.clips).items():
                _add(archive, name, column)
        return
    out.mkdir()
    for index in clips:
        frames, path = read_whole(source, index), out / names[index]
        if layout == "vbench":
            write_mp4(path, frames, fps)
            continue
        path.mkdir(parents=True)
        for number, frame in enumerate(frames):
            write_png(path / f"{number:05d}.png", frame)


def _add(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _columns(clips: Sequence[PlannedClip]) -> dict[str, Any]:
    """What is known of all clips."""
    found: dict[str, Any] = {"keys": np.array([clip.key for clip in clips])}
    if all(clip.prompt is not None for clip in clips):
        found["prompts"] = np.array([clip.prompt for clip in clips])
    if all(clip.label is not None for clip in clips):
        found["labels"] = np.array([clip.label for clip in clips])
    return found


def _names(source: ClipSource, layout: Layout) -> list[str]:
    """A name for each clip, none of which leaves the folder or falls together with another's."""
    clips = source.clips
    if layout == "npz":
        return [f"clip_{index:06d}" for index in range(len(clips))]
    if layout == "vbench":
        given = names = _prompt_names(source)
    else:
        given = [clip.key for clip in clips]
        names = [key.replace("/", "_") for key in given]
    bad = [key for key, name in zip(given, names, strict=True) if not (_is_path(key) and _is_name(name))]
    if bad:
        raise UserError(
            f"{source.name}: {len(bad)} of its clips cannot be files by their names ({first(bad)})"
        )
    seen = Counter(name.casefold() for name in names)  # some file systems know no case
    if doubled := [name for name in names if seen[name.casefold()] > 1]:
        raise UserError(f"{source.name}: {len(doubled)} clips would have one file ({first(doubled)})")
    return names


def _prompt_names(source: ClipSource) -> list[str]:
    if silent := [clip.key for clip in source.clips if not clip.prompt]:
        raise UserError(
            f"{source.name}: {len(silent)} clips have no prompt ({first(silent)}): give --planned"
        )
    counts: Counter[str | None] = Counter()
    names = []
    for clip in source.clips:
        names.append(f"{clip.prompt}-{counts[clip.prompt]}.mp4")
        counts[clip.prompt] += 1
    return names


def _is_path(key: str) -> bool:
    """Whether a key, which may be a path, stays inside its folder."""
    return not key.startswith("/") and ".." not in PurePosixPath(key).parts


def _is_name(name: str) -> bool:
    """Whether a name is that of one file that is not hidden."""
    plain = name and not name.startswith(".") and not any(mark in name for mark in "\0\n/")
    return bool(plain) and len(os.fsencode(name)) <= LONGEST
