"""Presets for the public data sets on the three readers of `manifest`: where things lie, splits, labels, captions.

Facts and their sources, and which could not be verified: docs/datasets.md.
"""

import unicodedata
from pathlib import Path
from typing import Any, Literal

from megavrc.errors import UserError
from megavrc.files import check_fields, named_path, read_json, read_lines
from megavrc.video.listing import Listing, files_below, from_frames, list_folder, videos_below
from megavrc.video.manifest import NAMES, Entry, fraction, from_list, path_from, present, spelled_otherwise

PUBLISHED = {  # videos by split, for the printed comparison
    "ucf101 all": {"train": 13320},
    "ucf101 1": {"train": 9537, "test": 3783},
    "skytimelapse": {"train": 35392, "test": 2815},  # clips of SKY_CLIP frames
    "taichi": {"train": 3049, "test": 285},
    "faceforensics": {"train": 704},
    "msrvtt": {"train": 6513, "val": 497, "test": 2990},
}
SKY_CLIP = 32


def videofolder(folder: Path, out: Path, val_fraction: float = 0.0) -> Listing:
    """List every video below a folder: class from the parent folder, caption from a .txt file beside the video.

    Args:
        folder: folder to search, with all its subfolders, also linked ones.
        out: the manifest to write; the paths in it are relative to it.
        val_fraction: share of the videos that become split `val`, chosen by their path.
    """
    return list_folder(folder, out, val_fraction)


def framefolder(
    folder: Path, out: Path, val_fraction: float = 0.0, fps: float | None = None, min_frames: int = 1
) -> Listing:
    """List every folder of pictures below a folder as a video: class from its parent folder.

    Args:
        folder: folder to search, with all its subfolders, also linked ones; pictures go by the last number in
            their names.
        out: the manifest to write; the paths in it are relative to it.
        val_fraction: share of the videos that become split `val`, chosen by their path.
        fps: frames a second of the pictures, kept in the manifest.
        min_frames: smallest number of pictures of a folder; others are left out.
    """
    return _long_enough(from_frames(folder, out, val_fraction, fps), min_frames)


def list_(table: Path, out: Path, folder: Path | None = None, val_fraction: float = 0.0) -> Listing:
    """List the videos of a .csv (with header) or .jsonl file with a column path, file_name, filename, file or video.

    caption (or text, prompt), label, split, start, end (seconds) and id are optional.

    Args:
        table: the .csv or .jsonl file; its other columns are kept.
        out: the manifest to write; the paths in it are relative to it.
        folder: folder that the paths in the table are relative to (default: that of the table). Its videos that no
            row names are counted.
        val_fraction: share of the videos that become split `val`, chosen by their path; rows with a split keep it.
    """
    entries, missing = present(from_list(table, out, folder, val_fraction), out.parent)
    notes = _missing(table, missing, entries, out.parent)
    if folder:
        named = {(out.parent / entry["path"]).resolve() for entry in entries}
        if unnamed := [path for path in videos_below(folder) if path.resolve() not in named]:
            notes.append(f"{len(unnamed)} videos of {folder} are in no row, the first is {unnamed[0].name}")
    others = dict.fromkeys(name for entry in entries for name in entry if name not in NAMES)
    if others and not any(entry["caption"] for entry in entries):
        notes.append(f"no captions: none of {', '.join(others)} is {' or '.join(NAMES['caption'])}")
    return Listing(entries, notes)


def ucf101(
    folder: Path, out: Path, lists: Path | None = None, fold: Literal["1", "2", "3", "all"] = "1"
) -> Listing:
    """List UCF101: class from the folder, label from classInd.txt, split from the train and test lists.

    Args:
        folder: UCF-101 with its 101 class folders, or the folder above it.
        out: the manifest to write; the paths in it are relative to it.
        lists: folder ucfTrainTestlist (default: found in `folder` or beside UCF-101).
        fold: number of the train and test lists; `all` puts every video into split `train`.
    """
    root = next((folder / name for name in ("UCF-101", "videos") if (folder / name).is_dir()), folder)
    around = [folder / "ucfTrainTestlist", named_path(root).parent / "ucfTrainTestlist", folder]
    lists = lists or next((place for place in around if (place / "classInd.txt").is_file()), around[0])
    classes = _class_ids(lists / "classInd.txt")
    entries, others = list_folder(root, out)
    for entry in entries:
        # The class is the folder's: files in HandstandPushups are called v_HandStandPushups_*.
        found = classes.get((entry["class"] or "").casefold())
        if found is None:
            raise UserError(f"{root}/{entry['id']}: not in a folder of a class of {lists}/classInd.txt")
        entry["class"], entry["label"] = found
    notes = [*others, f"{len({e['label'] for e in entries})} classes of {len(classes)} (published: 101)"]
    if fold != "all":
        entries, more = _ucf_fold(entries, lists, fold, classes)
        notes += more
    return Listing(entries, [*notes, *_counts(f"ucf101 {fold}", entries)])


def skytimelapse(folder: Path, out: Path, fps: float | None = None, min_frames: int = 1) -> Listing:
    """List SkyTimelapse: sky_train and sky_test with folders of pictures, two levels down; one class.

    Args:
        folder: folder that holds sky_train and sky_test.
        out: the manifest to write; the paths in it are relative to it.
        fps: frames a second of the pictures, kept in the manifest.
        min_frames: smallest number of pictures of a folder; the data set has folders with very few, which are
            left out.
    """
    parts = _parts(folder, [""], {"train": "sky_train", "test": "sky_test"}, "sky_train/<id>/<id>_<n>/*.jpg")
    entries, notes = _long_enough(_one_class("skytimelapse", folder, parts, out, fps), min_frames)
    for split, published in PUBLISHED["skytimelapse"].items():
        lengths = [entry["frames"] for entry in entries if entry["split"] == split]
        clips = sum(length // SKY_CLIP for length in lengths)
        notes.append(
            f"{split}: {len(lengths)} videos, {clips} clips of {SKY_CLIP} frames ({published} published)"
        )
    return Listing(entries, notes)


def taichi(folder: Path, out: Path, fps: float | None = None, min_frames: int = 1) -> Listing:
    """List Taichi-HD: train and test with video files, or with a folder of pictures each; one class.

    Args:
        folder: folder that holds train and test, or a folder `frames`, `taichi` or `taichi-256` that does.
        out: the manifest to write; the paths in it are relative to it.
        fps: frames a second of pictures, kept in the manifest.
        min_frames: smallest number of pictures of a folder; others are left out.
    """
    places = ["", "frames", "taichi", "taichi/frames", "taichi-256/frames", "taichi-256"]
    parts = _parts(
        folder, places, {"train": "train", "test": "test"}, "train/<video>.mp4 or train/<video>/*.png"
    )
    entries, notes = _long_enough(_one_class("taichi", folder, parts, out, fps), min_frames)
    return Listing(entries, [*notes, *_counts("taichi", entries)])


def faceforensics(folder: Path, out: Path, skip_seconds: float = 0.5, fps: float | None = None) -> Listing:
    """List FaceForensics: the cropped videos, or the original ones of FaceForensics++; one class.

    Args:
        folder: preprocess_ffs (or the folder above it), the root of FaceForensics++, or a folder of videos.
        out: the manifest to write; the paths in it are relative to it.
        skip_seconds: seconds left out at the start of every video, where many have artefacts; 0 keeps all.
        fps: frames a second, needed only for folders of pictures when seconds are skipped.
    """
    names = ("train", "val", "test")
    if (folder / "original_sequences").is_dir():  # never the manipulated ones
        parts = {"train": _only_folder(folder / "original_sequences" / "youtube", "videos")}
    elif found := _find_parts(folder, ["", "preprocess_ffs"], {split: f"{split}/videos" for split in names}):
        parts = found
    elif found := _find_parts(folder, ["", "preprocess_ffs"], {split: split for split in names}):
        parts = found
    else:
        parts = {"train": folder / "videos" if (folder / "videos").is_dir() else folder}
    entries, notes = _one_class("faceforensics", folder, parts, out, fps)
    if skip_seconds and fps is None and any("frames" in entry for entry in entries):
        raise UserError(f"{folder}: pictures do not say their rate: give --fps, or --skip_seconds 0")
    start = {"start": skip_seconds} if skip_seconds else {}
    return Listing([{**entry, **start} for entry in entries], [*notes, *_counts("faceforensics", entries)])


def msrvtt(
    folder: Path,
    out: Path,
    annotations: Path | None = None,
    captions: Literal["one", "all"] = "one",
    seed: int = 0,
) -> Listing:
    """List MSR-VTT: splits and about 20 captions a video from its JSON files.

    Args:
        folder: folder to search for <video_id>.mp4, with all its subfolders.
        out: the manifest to write; the paths in it are relative to it.
        annotations: folder with MSRVTT_data.json, or with the *videodatainfo.json files; default: found in `folder`.
        captions: `one` draws a caption for each video and keeps the others as `captions`; `all` makes an entry of
            every caption (the same video again and again: for evaluation over all captions).
        seed: seed of the drawn caption.
    """
    videos, texts = _msrvtt_json(annotations or folder)
    files = {path.stem: path for path in videos_below(folder)}
    entries: list[Entry] = []
    for name, video in videos.items():
        path = files.get(name, folder / f"{name}.mp4")
        split = {"validate": "val"}.get(video["split"], video["split"])
        # "start time" and "end time" are those of the clip in the YouTube video: the file is already cut.
        kept = {
            key.replace("start time", "source_start").replace("end time", "source_end"): video[key]
            for key in ("url", "category", "start time", "end time")
            if key in video
        }
        shared = {"path": path_from(out.parent, path), "label": None, "split": split, **kept}
        own = texts.get(name, [])
        if captions == "all":
            entries += [
                {"id": f"{name}#{number}", "caption": text, **shared} for number, text in enumerate(own)
            ]
        else:
            chosen = own[int(fraction(f"{seed}/{name}") * len(own))] if own else None
            entries.append({"id": name, "caption": chosen, **shared, "captions": own})
    entries, missing = present(entries, out.parent)
    notes = _missing(folder, missing, entries, out.parent)
    if mute := [name for name in videos if name not in texts]:
        notes.append(f"{len(mute)} videos have no caption, the first is {mute[0]}")
    return Listing(entries, [*notes, *_counts("msrvtt", entries)])


# --- parts -----------------------------------------------------------------------------------------------------


def _counts(name: str, entries: list[Entry]) -> list[str]:
    """A line for each split: how many videos, and how many were published."""
    published = PUBLISHED.get(name, {})
    paths: dict[str, set[str]] = {split: set() for split in published}
    for entry in entries:
        paths.setdefault(entry["split"], set()).add(entry["path"])
    return [
        f"{split}: {len(found)} videos" + (f" ({published[split]} published)" if split in published else "")
        for split, found in paths.items()
    ]


def _missing(source: Path, missing: list[Entry], kept: list[Entry], root: Path | None = None) -> list[str]:
    """A line about listed videos that do not exist (below `root`, if it is known); UserError if none does."""
    if not missing:
        return []
    paths = sorted({entry["path"] for entry in missing})
    first, hint = f"the first is {paths[0]:.200}", ""
    if root and (near := spelled_otherwise(root / path for path in paths)):
        form = "NFC" if unicodedata.is_normalized("NFC", near.name) else "NFD"
        hint = (
            f"; the name of {near} on disk is spelled with other Unicode characters ({form}): copy it from there "
            "into the table, or rename it"
        )
    if not kept:
        if hint:
            raise UserError(f"{source}: none of the {len(paths)} listed videos exists, {first}{hint}")
        raise UserError(
            f"{source}: none of the {len(paths)} listed videos exists, {first}; is --folder right?"
        )
    return [f"{len(paths)} listed videos are missing and left out, {first}{hint}"]


def _long_enough(listing: Listing, min_frames: int) -> Listing:
    entries, notes = listing
    kept = [entry for entry in entries if entry.get("frames", min_frames) >= min_frames]
    if not kept:
        raise UserError(f"none of the {len(entries)} videos has {min_frames} frames")
    left = len(entries) - len(kept)
    short = [f"{left} videos of fewer than {min_frames} frames are left out"] if left else []
    return Listing(kept, [*notes, *short])


def _find_parts(folder: Path, places: list[str], names: dict[str, str]) -> dict[str, Path]:
    """The folders of the splits in the first of some places that has one of them; empty if none has."""
    for place in places:
        found = {
            split: folder / place / name for split, name in names.items() if (folder / place / name).is_dir()
        }
        if found:
            return found
    return {}


def _parts(folder: Path, places: list[str], names: dict[str, str], expected: str) -> dict[str, Path]:
    if found := _find_parts(folder, places, names):
        return found
    raise UserError(
        f"{folder}: neither {' nor '.join(names.values())} lies there; expected {expected} below it"
    )


def _only_folder(folder: Path, inside: str) -> Path:
    """The one folder `folder`/*/`inside`; UserError if there are several or none."""
    found = sorted(folder.glob(f"*/{inside}"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.parent.name for path in found) or "none"
    raise UserError(
        f"{folder}: expected one folder */{inside}, found {names}; give the folder of videos itself"
    )


def _one_class(name: str, root: Path, parts: dict[str, Path], out: Path, fps: float | None) -> Listing:
    """Videos, or else folders of pictures, of some splits, all of class 0."""
    entries: list[Entry] = []
    notes: list[str] = []
    for split, part in parts.items():
        found, others = list_folder(part, out) if videos_below(part) else from_frames(part, out, fps=fps)
        inside = part.relative_to(root)
        own: dict[str, Any] = {"label": 0, "class": name, "split": split}
        entries += [{**entry, "id": (inside / entry["id"]).as_posix(), **own} for entry in found]
        notes += [f"{split}: {note}" for note in others]
    return Listing(entries, notes)


def _class_ids(path: Path) -> dict[str, tuple[str, int]]:
    """classInd.txt ("1 ApplyEyeMakeup", from 1) as lower-case name -> (name, label from 0)."""
    lines = [line.split() for line in _lines(path)]
    numbers = [line[0] for line in lines if len(line) > 1]
    if numbers != [str(number) for number in range(1, len(lines) + 1)] or not lines:
        raise UserError(f"{path}: expected lines `1 ApplyEyeMakeup`, `2 ApplyLipstick`, .. in order")
    return {line[1].casefold(): (line[1], label) for label, line in enumerate(lines)}


def _ucf_fold(
    entries: list[Entry], lists: Path, fold: str, classes: dict[str, tuple[str, int]]
) -> tuple[list[Entry], list[str]]:
    """The videos of a train and a test list with their split, and what is missing on either side."""
    listed: dict[str, tuple[str, str]] = {}  # key -> name as listed, split
    for split in ("train", "test"):
        path = lists / f"{split}list0{fold}.txt"
        for number, line in enumerate(_lines(path), 1):
            name, *label = line.split()
            known = classes.get(name.partition("/")[0].casefold())
            if known is None or label not in ([], [str(known[1] + 1)]):
                raise UserError(f"{path} line {number}: {line!r} does not agree with classInd.txt")
            listed[_ucf_key(name)] = name, split
    keys = [_ucf_key(entry["id"]) for entry in entries]
    kept = [
        {**entry, "split": listed[key][1]} for entry, key in zip(entries, keys, strict=True) if key in listed
    ]
    there = set(keys)
    missing = [{"path": name} for key, (name, _) in listed.items() if key not in there]
    notes = _missing(lists, missing, kept)
    if unlisted := [entry["id"] for entry, key in zip(entries, keys, strict=True) if key not in listed]:
        notes.append(f"{len(unlisted)} videos are in neither list and left out, the first is {unlisted[0]}")
    return kept, notes


def _ucf_key(name: str) -> str:
    """Class and file without suffix, in lower case: copies differ in the case of HandstandPushups and in the format."""
    path = Path(name)
    return f"{path.parent.name}/{path.stem}".casefold()


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; it comes with the data set's train and test lists (give --lists)"
        )
    return [line.strip() for _, line in read_lines(path) if line.strip()]


def _msrvtt_json(folder: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Videos by id, and their captions in order of `sen_id`."""
    found = files_below(folder)
    files = [path for path in found if path.name == "MSRVTT_data.json"]
    files = files or [path for path in found if path.name.endswith("videodatainfo.json")]
    if not files:
        raise UserError(
            f"{folder}: neither MSRVTT_data.json nor *videodatainfo.json below it; give --annotations"
        )
    videos: dict[str, Any] = {}
    sentences: dict[tuple[str, bool, Any], str] = {}  # numbers before texts, which do not compare
    for path in files:
        content = read_json(path)
        check_fields(path, content, {"videos": list[Entry], "sentences": list[Entry]})
        for number, video in enumerate(content["videos"]):
            check_fields(f"{path}: videos[{number}]", video, {"video_id": str, "split": str})
            videos[video["video_id"]] = video
        for number, row in enumerate(content["sentences"]):
            fields = {"video_id": str, "sen_id": int | str, "caption": str}
            check_fields(f"{path}: sentences[{number}]", row, fields)
            sentences[row["video_id"], isinstance(row["sen_id"], str), row["sen_id"]] = row["caption"]
    texts: dict[str, list[str]] = {}
    for (name, *_), caption in sorted(sentences.items()):
        texts.setdefault(name, []).append(caption)
    return videos, texts
