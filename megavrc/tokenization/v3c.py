"""The Vimeo Creative Commons Collection (V3C): shots of long videos, with text that belongs to the whole video.

Expected: V3C1, V3C2 or V3C3 (or the folder that holds them), each with

    videos/00001/00001.mp4      at any depth
    msb/00001.tsv               shot boundaries: startframe, starttime, endframe, endtime (seconds) under a header line

and metadata as JSON, one object a video: `<id>.json` or `<id>.info.json` in info/, metadata/ or videos/, or a table.
"""

import html
import math
import re
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megavrc.errors import UserError
from megavrc.files import check_fields, named_path, read_json, read_jsonl, read_table
from megavrc.progress import progress
from megavrc.video.listing import Listing, files_below, videos_below
from megavrc.video.manifest import Entry, fraction, path_from, split_of

PUBLISHED = {"V3C1": 7475, "V3C2": 9760, "V3C3": 11215}  # videos
COLUMNS = ("startframe", "starttime", "endframe", "endtime")
TEXT = ("title", "description", "tags", "categories")
NAMES = {  # of our field -> in metadata: Vimeo's own objects and those of download programs differ
    "title": ("title", "name"),
    "description": ("description",),
    "tags": ("tags",),
    "categories": ("categories",),
    "licence": ("license", "licence"),
    "language": ("language",),
    "creator": ("uploader", "user"),
    "url": ("webpage_url", "link"),
    "width": ("width",),
    "height": ("height",),
}


class Shot(NamedTuple):
    """One line of an msb file: number from 1, as TRECVID counts, seconds, and frames."""

    number: int
    start: float
    end: float
    frames: int


@dataclass(frozen=True)
class Filters:
    """Filters of shots; see `v3c`. Where the metadata says nothing, it excludes nothing."""

    languages: list[str] | None
    licences: list[str] | None
    min_side: int
    min_words: int
    min_frames: int
    min_seconds: float
    max_seconds: float

    def why_not(self, about: Entry, shot: Shot, caption: str | None) -> str | None:
        """Why a shot is left out, or None."""
        language = about.get("language", "").lower()[:2]  # en, en-US
        if self.languages and language and language not in self.languages:
            return "of another language"
        if self.licences and about.get("licence", self.licences[0]) not in self.licences:
            return "under another licence"
        if min(about.get("width", self.min_side), about.get("height", self.min_side)) < self.min_side:
            return f"with a side below {self.min_side} pixels"
        if len((caption or "").split()) < self.min_words:
            return f"with a caption of fewer than {self.min_words} words"
        if shot.frames < self.min_frames or not self.min_seconds <= shot.end - shot.start <= self.max_seconds:
            return "too short or too long"
        return None


def v3c(
    folder: Path,
    out: Path,
    metadata: Path | None = None,
    captions: Path | None = None,
    template: str = "{title}. {description}",
    max_words: int = 60,
    min_words: int = 0,
    languages: list[str] | None = None,
    licences: list[str] | None = None,
    min_side: int = 0,
    min_frames: int = 17,
    min_seconds: float = 0.0,
    max_seconds: float = float("inf"),
    shots_per_video: int = 0,
    clips: int = 0,
    val_fraction: float = 0.0,
    seed: int = 0,
) -> Listing:
    """List the shots of V3C with start and end; the text comes from the metadata of the whole video, or from a file.

    Args:
        folder: V3C1, V3C2 or V3C3, or the folder that holds them.
        out: the manifest to write; the paths in it are relative to it.
        metadata: .jsonl or .csv with an `id` column, or a folder of <id>.json; default: JSON files of the part.
        captions: .jsonl of {id, caption} for shots (ids as in the manifest); they replace the text of the video.
        template: caption made of {title}, {description}, {tags}, {categories}; markup and addresses are removed.
        max_words: largest number of words of a caption; longer ones are cut.
        min_words: smallest number of words of a caption; other shots are left out.
        languages: two-letter codes to keep; videos whose metadata names no language are kept.
        licences: licences to keep, spelled as in the metadata; videos whose metadata names none are kept.
        min_side: smallest short side in pixels, as the metadata says.
        min_frames: smallest number of frames of a shot: (frames - 1) * stride + 1 of the clips to be cut.
        min_seconds: seconds of the shortest shot.
        max_seconds: seconds of the longest shot.
        shots_per_video: largest number of shots of a video, drawn, so that long videos do not dominate; 0: all.
        clips: number of shots drawn from those that the filters leave; 0: all.
        val_fraction: share of the videos (never of their shots) that become split `val`.
        seed: seed of the two draws.
    """
    _check_template(template)
    for name, value, least in (
        ("max_words", max_words, 1),
        ("shots_per_video", shots_per_video, 0),
        ("clips", clips, 0),
    ):
        if value < least:
            raise UserError(f"--{name} {value}: at least {least}")
    filters = Filters(languages, licences, min_side, min_words, min_frames, min_seconds, max_seconds)
    spoken = _captions(captions) if captions else {}
    dropped: Counter[str] = Counter()
    entries: list[Entry] = []
    notes: list[str] = []
    for part in _collections(folder):
        files, boundaries, more = _videos(part)
        known = _metadata(part, metadata)
        notes += [*more, f"{part.name}: metadata of {len(known.keys() & files.keys())} videos"]
        for name in progress(sorted(files.keys() & boundaries.keys()), part.name):
            about = known.get(name, {})
            video = {
                "caption": make_caption(template, about, max_words),
                "path": path_from(out.parent, files[name]),
                "split": split_of(name, val_fraction),
            }
            shots = _entries(name, {**about, **video}, _shots(boundaries[name]), spoken, filters, dropped)
            entries += _draw(shots, shots_per_video, seed)
    notes += [f"{count} shots {why} are left out" for why, count in dropped.items()]
    if not entries:
        raise UserError(f"{folder}: no shot is left ({'; '.join(notes)})")
    most = f" of at most {shots_per_video} a video" if shots_per_video else ""
    notes.append(f"{len(entries)} shots{most} to choose from" + f", {clips} asked for" * bool(clips))
    return Listing(_draw(entries, clips, seed), notes)


def make_caption(template: str, about: Entry, max_words: int) -> str | None:
    """Fill the template with the cleaned fields of a video; None if nothing is left."""
    fields = {key: about.get(key) or "" for key in TEXT}
    plain = {
        key: _clean(", ".join(value) if isinstance(value, list) else value) for key, value in fields.items()
    }
    text = re.sub(r"\s+([.,;:!?])", r"\1", template.format(**plain))
    text = re.sub(r"([.!?,;:])[.,;:]+", r"\1", text).lstrip(" .,;:-")  # what empty fields leave behind
    return " ".join(text.split()[:max_words]).rstrip(" ,;:-") or None


# --- parts -----------------------------------------------------------------------------------------------------


def _entries(
    name: str,
    video: Entry,
    shots: list[Shot],
    spoken: dict[str, str | None],
    filters: Filters,
    dropped: Counter[str],
) -> list[Entry]:
    """Entries of the shots of a video that pass the filters; the others are counted in `dropped`."""
    entries = []
    for shot in shots:
        key = f"{name}_{shot.number}"
        entry = {
            "id": key,
            **video,
            "label": None,
            "start": shot.start,
            "end": shot.end,
            "caption_of": "video",
        }
        if key in spoken:
            entry |= {"caption": spoken[key], "caption_of": "shot"}
        if why := filters.why_not(video, shot, entry["caption"]):
            dropped[why] += 1
        else:
            entries.append(entry)
    return entries


def _clean(text: str) -> str:
    """Text without markup, web and mail addresses."""
    text = re.sub(r"<[^>]*>", " ", html.unescape(text))
    text = re.sub(r"(?:https?://|www\.)\S+|\S+@\S+\.\w+", " ", text)
    return " ".join(text.split())


def _check_template(template: str) -> None:
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"template {template!r}: {error}") from None
    if not used <= set(TEXT):
        raise UserError(f"template {template!r}: the fields are {', '.join(TEXT)}")


def _draw(entries: list[Entry], count: int, seed: int) -> list[Entry]:
    """`count` entries chosen by (seed, id) alone, in their old order; all if it is 0."""
    if not count:
        return entries
    chosen = sorted(range(len(entries)), key=lambda index: fraction(f"{seed}/{entries[index]['id']}"))
    return [entries[index] for index in sorted(chosen[:count])]


def _collections(folder: Path) -> list[Path]:
    folder = named_path(folder)  # a collection is known by its name
    found = [path for path in (folder, *sorted(folder.glob("*"))) if (path / "msb").is_dir()]
    if not found:
        raise UserError(
            f"{folder}: no folder `msb` of shot boundaries in it or one level down; expected V3C1/msb/*.tsv"
        )
    return found[:1] if found[0] == folder else found


def _videos(part: Path) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    """Videos and shot boundaries of a part by id, and what is missing on either side."""
    files = {path.stem: path for path in videos_below(part / "videos")}
    boundaries = {path.stem: path for path in (part / "msb").glob("*.tsv")}
    published = f" ({PUBLISHED[part.name]} published)" if part.name in PUBLISHED else ""
    notes = [f"{part.name}: {len(files)} videos{published}"]
    if missing := sorted(boundaries.keys() - files.keys()):
        notes.append(f"{part.name}: {len(missing)} videos with shots are missing, the first is {missing[0]}")
    if bare := sorted(files.keys() - boundaries.keys()):
        notes.append(f"{part.name}: {len(bare)} videos without shots are left out, the first is {bare[0]}")
    return files, boundaries, notes


def _captions(path: Path) -> dict[str, str | None]:
    found = {}
    for number, row in read_jsonl(path, "id", "caption"):
        check_fields(f"{path} line {number}", row, {"id": str, "caption": str | None})
        found[row["id"]] = row["caption"]
    return found


def _shots(path: Path) -> list[Shot]:
    shots = []
    for number, (line, row) in enumerate(read_table(path, "\t"), 1):
        try:
            first, start, last, end = (_finite(row[name]) for name in COLUMNS)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} line {line}: expected numbers {', '.join(COLUMNS)}") from None
        shots.append(Shot(number, start, end, int(last - first) + 1))  # endframe is the last one inside
    return shots


def _finite(cell: str) -> float:
    """A number; ValueError for NaN, infinity, and what is no number."""
    if not math.isfinite(value := float(cell)):
        raise ValueError(cell)
    return value


def _metadata(part: Path, given: Path | None) -> dict[str, Entry]:
    """What is known of the videos by id: title, description, tags, categories, licence, language, width, height."""
    if given is not None and not given.exists():
        raise UserError(f"{given}: no such file or folder of metadata")
    if given is not None and given.suffix == ".jsonl":
        raw = {str(row["id"]): row for _, row in read_jsonl(given, "id")}
    elif given is not None and given.suffix == ".csv":
        raw = {row.get("id", ""): row for _, row in read_table(given)}
    else:
        places = [given] if given else [part / name for name in ("info", "metadata", "videos")]
        files = [path for place in places if place.is_dir() for path in files_below(place)]
        paths = [path for path in files if path.suffix == ".json"]
        raw = {path.stem.removesuffix(".info"): read_json(path) for path in paths}
    return {name: _about(name, content) for name, content in raw.items()}


def _about(name: str, raw: Any) -> Entry:
    if not isinstance(raw, dict):
        raise UserError(f"metadata of {name}: expected an object, got {type(raw).__name__}")
    about: Entry = {}
    for field, names in NAMES.items():
        value = next((raw[name] for name in names if raw.get(name)), None)
        if field in ("tags", "categories") and value is not None:
            value = [_name(item) for item in (value if isinstance(value, list) else str(value).split(","))]
        elif field in ("width", "height") and value is not None:
            if not re.fullmatch(r"\d{1,9}", str(value)):
                raise UserError(f"metadata of {name}: {field} {value!r:.40} is not a number of pixels")
            value = int(value)
        elif value is not None:
            value = _name(value)
        if value:
            about[field] = value
    return about


def _name(value: Any) -> str:
    """A tag, category or user as text: some are objects with a `name`."""
    return (
        str(value.get("name") or value.get("tag") or "").strip()
        if isinstance(value, dict)
        else str(value).strip()
    )
