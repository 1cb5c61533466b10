"""Clips in files, whoever made them: a folder of videos or of folders of pictures, an .npz, a split of a manifest."""

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import Frames, PlannedClip, check_doubled, check_planned, first
from megavrc.files import read_jsonl, sha256_file, sha256_json
from megavrc.video.errors import VideoError
from megavrc.video.listing import files_below, from_frames, is_video, list_folder
from megavrc.video.manifest import Entry, read_manifest
from megavrc.video.pictures import is_picture, pictures
from megavrc.video.read import Crop, count_frames, read_frames, resize_frames
from megavrc.video.shots import Read, read_shot, shot

LISTS = ("prompts.jsonl", "manifest.jsonl")  # that may lie in a folder of clips and say what is in it
COMPANIONS = {".gif"}  # of the same clip, beside its video


@dataclass(frozen=True)
class FileClips:
    """Videos or folders of pictures, one a clip; shots of them where the entry says so."""

    name: str
    clips: Sequence[PlannedClip]
    entries: Sequence[Entry]
    paths: Sequence[Path]
    split: str | None = None
    _lengths: dict[tuple[Path, str], int] = field(default_factory=dict, repr=False, compare=False)
    _sums: dict[tuple[Path, int, int], str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def storage(self) -> str:
        kinds = {_kind(path) for path in dict.fromkeys(self.paths)}
        return " ".join(sorted(kinds))

    def identity(self, index: int) -> str:
        path, part = self.paths[index], shot(self.entries[index])
        files = pictures(path) if path.is_dir() else [path]
        try:
            sums = [self._sum(file) for file in files]
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from None
        rate = self.entries[index].get("fps") if part else None
        return sha256_json([sums, part and [str(second) for second in part], rate])

    def _sum(self, file: Path) -> str:
        """The hash of a file: read once for all captions and shots of a video, again where size or time changed."""
        known = file.stat()
        key = file, known.st_size, known.st_mtime_ns
        if key not in self._sums:
            self._sums[key] = sha256_file(file)
        return self._sums[key]

    def length(self, index: int) -> int:
        path, entry = self.paths[index], self.entries[index]
        part = shot(entry)
        key = path, "" if part is None else f"{part} {entry.get('fps')}"
        if key not in self._lengths:  # to decode once, whatever the number of captions
            try:
                if part is None:
                    length = count_frames(path)
                elif not (length := read_shot(path, entry, lambda count, _: count)):
                    raise VideoError(path, "short", "no frame lies in its shot")
            except VideoError as error:
                raise self._unreadable(index, error) from None
            self._lengths[key] = length
        return self._lengths[key]

    def read(
        self, index: int, wanted: Sequence[int], size: int | None = None, crop: Crop = "center"
    ) -> Frames:
        path, entry = self.paths[index], self.entries[index]

        def of_shot(count: int, read: Read) -> Frames:
            if max(wanted) >= count:
                raise VideoError(path, "short", f"{count} frames in its shot, frame {max(wanted)} is needed")
            return read(list(wanted))

        try:
            if shot(entry) is None:
                return read_frames(path, wanted, size, crop)
            return read_shot(path, entry, of_shot, size, crop)
        except VideoError as error:
            raise self._unreadable(index, error) from None

    def _unreadable(self, index: int, error: VideoError) -> UserError:
        return UserError(f"{self.name}: clip {self.clips[index].key} cannot be read: {error}")


def _kind(path: Path) -> str:
    names = [path] if not path.is_dir() else pictures(path)[:1]
    return " ".join(name.suffix.lower().lstrip(".") for name in names) or "none"


@dataclass(frozen=True)
class ArrayClips:
    """Clips in memory, uint8 [T, H, W, 3] each."""

    name: str
    clips: Sequence[PlannedClip]
    arrays: Sequence[Frames]
    storage: str = "none"
    split: str | None = None
    made_with: dict[str, Any] = field(default_factory=dict)  # of clips that a model has made

    def identity(self, index: int) -> str:
        frames = self.arrays[index]
        return hashlib.sha256(str(frames.shape).encode() + np.ascontiguousarray(frames).tobytes()).hexdigest()

    def length(self, index: int) -> int:
        return len(self.arrays[index])

    def read(
        self, index: int, wanted: Sequence[int], size: int | None = None, crop: Crop = "center"
    ) -> Frames:
        frames = self.arrays[index]
        if max(wanted) >= len(frames):
            key = self.clips[index].key
            raise UserError(f"{self.name}: clip {key} has {len(frames)} frames, {max(wanted) + 1} are needed")
        return resize_frames(frames[list(wanted)], size, crop)


Source = FileClips | ArrayClips


def open_clips(given: str | Path, planned: Path | None = None) -> Source:
    """Clips in files.

    Args:
        given: FOLDER of videos or of folders of pictures, at any depth (what `megavrc generate` writes, or any other
            program); FILE.npz with uint8 arrays, one [N, T, H, W, 3] or [T, H, W, 3] by key, and maybe `keys`,
            `prompts` and `labels`; manifest.jsonl:SPLIT, or several: manifest.jsonl:train+test.
        planned: a list of what must be there, JSON lines with `id` and maybe `caption` and `label`. Where there is
            none, prompts.jsonl or manifest.jsonl in the folder is it, if there is one.

    Raises:
        UserError: nothing there; another set than the planned one.
    """
    path, split = _split(given)
    if path.suffix == ".jsonl":
        source: Source = _of_manifest(path, split)
    elif path.suffix == ".npz":
        source = _of_npz(path)
    elif path.is_dir():
        source = _of_folder(path)
    else:
        raise UserError(f"{path}: no clips here; give a folder, an .npz file or manifest.jsonl:SPLIT")
    if planned is not None:
        wanted = planned_clips(planned)
        check_planned(source.name, [clip.key for clip in source.clips], [clip.key for clip in wanted])
        said = {clip.key: clip for clip in wanted}
        source = replace(source, clips=[_filled(clip, said[clip.key]) for clip in source.clips])
    return source


def planned_clips(path: Path) -> list[PlannedClip]:
    """A list of what must be there: JSON lines with `id` and maybe `caption` and `label`."""
    clips = []
    for number, row in read_jsonl(path, "id"):
        clip = PlannedClip(row["id"], row.get("caption"), row.get("label"))
        kinds = (str, str | None, int | None)
        if not all(map(isinstance, clip, kinds)) or isinstance(clip.label, bool):
            raise UserError(f"{path} line {number}: id and caption must be strings, label an integer")
        clips.append(clip)
    if not clips:
        raise UserError(f"{path}: names no clips")
    keys = [clip.key for clip in clips]
    check_doubled(str(path), keys)
    return clips


def _filled(found: PlannedClip, said: PlannedClip) -> PlannedClip:
    prompt = found.prompt if said.prompt is None else said.prompt
    return PlannedClip(found.key, prompt, found.label if said.label is None else said.label)


def _split(given: str | Path) -> tuple[Path, str | None]:
    path, colon, split = str(given).rpartition(":")
    return (Path(path), split) if colon and path.endswith(".jsonl") else (Path(given), None)


def _of_manifest(path: Path, split: str | None) -> FileClips:
    entries = read_manifest(path)
    splits = sorted({entry["split"] for entry in entries})
    if split is None and len(splits) != 1:
        raise UserError(f"{path}: which split? write {path}:SPLIT, of {', '.join(splits) or 'none'}")
    wanted = splits if split is None else [split] if split in splits else split.split("+")
    if unknown := [name for name in wanted if name not in splits]:
        raise UserError(
            f"{path}: no clips of the split {unknown[0]}; there are {', '.join(splits) or 'none'}"
        )
    chosen = [entry for entry in entries if entry["split"] in wanted]
    source = _of_entries(str(path) if split is None else f"{path}:{split}", path.parent, chosen)
    return replace(source, split=split or splits[0])


def _of_entries(name: str, root: Path, entries: Sequence[Entry]) -> FileClips:
    if missing := [entry["id"] for entry in entries if not (root / entry["path"]).exists()]:
        check_planned(name, [], missing)
    clips = [PlannedClip(entry["id"], entry["caption"], entry["label"]) for entry in entries]
    return FileClips(name, clips, entries, [root / entry["path"] for entry in entries])


def _of_folder(folder: Path) -> FileClips:
    list_ = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    if list_ is None:
        entries = _scanned(folder)
        keys = [entry["id"] for entry in entries]
        check_doubled(str(folder), keys)
        return _of_entries(str(folder), folder, entries)
    entries = read_manifest(list_)
    if not entries:
        raise UserError(f"{list_}: names no clips")
    if len({entry["split"] for entry in entries}) > 1:
        raise UserError(f"{folder}: has {list_.name} of several splits: name one, {list_}:SPLIT")
    source = _of_entries(str(folder), folder, entries)
    if stale := _unlisted(folder, source.paths):
        raise UserError(f"{folder}: {len(stale)} stale, not in {list_.name} ({first(stale)}): remove them")
    return source


def _unlisted(folder: Path, listed: Sequence[Path]) -> list[str]:
    """Videos and folders of pictures that a folder's list does not name; a GIF beside a listed video is part of it."""
    known = {path.resolve() for path in listed}
    ways = {path.with_suffix("") for path in known}
    found: dict[Path, None] = {}
    for file in sorted(folder.rglob("*")):
        companion = file.suffix.lower() in COMPANIONS and file.resolve().with_suffix("") in ways
        if is_video(file) and not companion:
            found[file] = None
        elif is_picture(file) and file.parent != folder:
            found[file.parent] = None
    return [path.relative_to(folder).as_posix() for path in found if path.resolve() not in known]


def _scanned(folder: Path) -> list[Entry]:
    """What lies in a folder; the key of a video is its name without the ending."""
    files = files_below(folder)
    videos = {file.parent for file in files if is_video(file)}
    frames = {file.parent for file in files if is_picture(file)} - {folder} - videos
    if videos and frames:
        raise UserError(f"{folder}: both videos and folders of pictures in it; measure them one by one")
    if frames:
        entries = from_frames(folder, folder / LISTS[1]).entries
        return [entry for entry in entries if entry["path"] != "."]  # a sheet that lies beside them
    if not videos:
        loose = any(is_picture(file) for file in files)
        hint = "; its pictures are one clip: name the folder above" if loose else ""
        raise UserError(f"{folder}: neither videos nor folders of pictures in it{hint}")
    entries = list_folder(folder, folder / LISTS[1]).entries
    return [{**entry, "id": str(Path(entry["id"]).with_suffix(""))} for entry in entries]


# --- arrays ----------------------------------------------------------------------------------------------------


def _read_npz(path: Path) -> dict[str, Any]:
    """The arrays of a file by name; UserError where it cannot be read or holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        with np.load(path, allow_pickle=False) as content:
            check_doubled(str(path), names)
            arrays = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        why = str(error) or type(error).__name__
        raise UserError(f"{path}: not an .npz file that can be read ({why})") from None
    if foreign := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise UserError(f"{path}: {foreign[0]}: not an array; leave it out of the file")
    return arrays


def _of_npz(path: Path) -> ArrayClips:
    arrays = _read_npz(path)
    said = {name: arrays.pop(name, None) for name in ("keys", "prompts", "labels")}
    if len(arrays) == 1 and next(iter(arrays.values())).ndim == 5:
        clips = list(next(iter(arrays.values())))
        keys = [f"{index:04d}" for index in range(len(clips))]
    else:
        clips, keys = list(arrays.values()), list(arrays)
    wrong = [key for key, clip in zip(keys, clips, strict=True) if not _is_clip(clip)]
    if wrong or not clips:
        raise UserError(
            f"{path}: {wrong[0] if wrong else 'nothing in it'}: expected uint8 [N, T, H, W, 3], or a [T, H, W, 3] by "
            "each key"
        )
    columns = {name: _column(path, name, said[name], len(clips)) for name in said}
    keys = [str(key) for key in columns["keys"] or keys]
    check_doubled(str(path), keys)
    prompts = [None if text is None else str(text) for text in columns["prompts"] or [None] * len(clips)]
    labels = columns["labels"] or [None] * len(clips)
    planned = [PlannedClip(*row) for row in zip(keys, prompts, labels, strict=True)]
    return ArrayClips(str(path), planned, clips, "npz")


def _is_clip(array: Any) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3 and array.size > 0


def _column(path: Path, name: str, values: Any, count: int) -> list[Any] | None:
    if values is None:
        return None
    kinds = "iu" if name == "labels" else "U"
    if values.ndim != 1 or len(values) != count or values.dtype.kind not in kinds:
        what = "integers" if name == "labels" else "texts"
        raise UserError(f"{path}: {name}: expected {count} {what}, one a clip")
    return list(values.tolist())
