"""The frozen plan of a tokenization job: which videos, cut how, into which shards, by which tokenizer.

Everything that decides the result is in the plan, so the result does not depend on how many tasks ran or died:

    <out>/plan.json     settings, tokenizer, decoder, shard counts, plan_sha256, and where videos and tokenizer lay
    <out>/plan.jsonl    one line a video: the manifest's entry and its shard
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavrc.data.order import permutation
from megavrc.data.shards import shard_name
from megavrc.errors import UserError
from megavrc.files import (
    check_format,
    named_path,
    read_json,
    read_jsonl,
    read_regular,
    sha256_json,
    write_atomic,
    write_json,
)
from megavrc.tokenization.sampling import ClipSettings, source_key
from megavrc.tokenizers import OmniTokenizer
from megavrc.video.manifest import Entry, read_manifest
from megavrc.video.versions import decoder_versions

SIZE = 256  # pixels, where neither the user nor the tokenizer says
FORMAT = 1  # of plan.json, plan.jsonl and failures/
PLACES = {"root", "tokenizer_path", "plan_sha256"}  # of plan.json: the first two may move
UNHASHED = {*PLACES, "format"}  # does not decide the samples
TAKEN = {"shard", "source", "stride", "start_frame"}  # keys that plans and samples write themselves


@dataclass(frozen=True)
class PlannedShard:
    """One unit of work: the videos of one shard of the video dataset and of the same shard of the image dataset."""

    split: str
    number: int
    total: int

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number, self.total)


@dataclass(frozen=True)
class Plan:
    """A plan as it lies in `out`.

    Attributes:
        shapes: of a sample's ids by kind of dataset, (t, h, w).
        shards: number of shards by split.
        decoder: see `decoder_versions`; None in plans made before it was recorded.
        sha256: of everything that decides the samples; neither root nor tokenizer_path, which may move.
    """

    out: Path
    settings: ClipSettings
    root: Path
    tokenizer_path: Path
    tokenizer: dict[str, str]
    vocab: int
    shapes: dict[str, tuple[int, ...]]
    shards: dict[str, int]
    classes: list[str] | None
    decoder: dict[str, str] | None
    sha256: str

    @property
    def units(self) -> list[PlannedShard]:
        return [
            PlannedShard(split, number, total)
            for split, total in self.shards.items()
            for number in range(total)
        ]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in ("video", "image") if kind == "video" or self.settings.images_per_video]

    def tar(self, kind: str, shard: PlannedShard) -> Path:
        return self.out / kind / "shards" / shard.name

    def sources(self, wanted: list[PlannedShard]) -> dict[PlannedShard, list[Entry]]:
        """The videos of some shards, in order."""
        found: dict[PlannedShard, list[Entry]] = {shard: [] for shard in wanted}
        for _, entry in read_jsonl(self.out / "plan.jsonl"):
            shard = PlannedShard(entry["split"], entry.pop("shard"), self.shards[entry["split"]])
            if shard in found:
                found[shard].append(entry)
        return found

    def dataset(self, kind: str) -> dict[str, Any]:
        """The content of `dataset.json` of a kind."""
        sampling = dataclasses.asdict(self.settings)
        return {
            "kind": kind,
            "shape": list(self.shapes[kind]),
            "dtype": "<i2",
            "vocab": self.vocab,
            "tokenizer": self.tokenizer,
            **({"decoder": self.decoder} if self.decoder else {}),
            "image_source": sampling.pop("image_source"),
            "sampling": sampling,
            "classes": self.classes,
            "plan_sha256": self.sha256,
        }


def make_tokenization_plan(
    manifest: Path,
    tokenizer_path: Path,
    out: Path,
    settings: ClipSettings,
    before: Callable[[Plan], object] | None = None,
) -> Plan:
    """Freeze a plan in `out`; the same plan again is no change.

    Args:
        before: called with the plan when its list of videos is written, and before plan.json is, which makes it one.

    Raises:
        UserError: nothing to tokenize, a key of `TAKEN`, a tokenizer that does not fit, or another plan lies there
            already, or one for another decoder.
    """
    everything = read_manifest(manifest)
    entries = [entry for entry in everything if entry["split"] in settings.splits]
    _check_ids(entries)
    if not (out / "plan.json").is_file():  # a job that goes on keeps what it was planned with
        _check_own_keys(manifest, entries)
    lines: list[str] = []
    shards: dict[str, int] = {}
    for split in settings.splits:
        chosen = sorted((e for e in entries if e["split"] == split), key=lambda e: e["id"])
        if not chosen:
            raise UserError(f"{manifest}: no video of split {split!r}")
        videos = settings.clips_per_shard // settings.clips_per_video
        mixed = permutation(len(chosen), key=settings.seed)  # so that every shard holds a bit of everything
        lines += [json.dumps({**chosen[i], "shard": place // videos}) for place, i in enumerate(mixed)]
        shards[split] = -(-len(chosen) // videos)
    tokenizer = OmniTokenizer.from_checkpoint(tokenizer_path)
    settings = dataclasses.replace(settings, size=_size(settings.size, tokenizer.size))
    content = {
        "settings": dataclasses.asdict(settings),
        "tokenizer": {"name": named_path(tokenizer_path).name, "sha256": tokenizer.sha256},
        "vocab": tokenizer.config.codes,
        "shapes": _shapes(tokenizer, settings),
        "shards": shards,
        "classes": names_by_label(everything),  # a job for each split has the same
        "decoder": decoder_versions(),
        "sources_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }
    if (out / "plan.json").is_file():
        old = _read_plan(out)
        if "decoder" not in old:  # made before it was recorded: its shards are bound to its hash
            del content["decoder"]
        # As plans of before have it: of these splits alone, and none if a single video had no label.
        if old["classes"] in (None, names_by_label(entries)):
            content["classes"] = old["classes"]
        _refuse_another(out, old, content)
    write_atomic(out / "plan.jsonl", "".join(line + "\n" for line in lines).encode())
    places = {"root": str(manifest.parent.resolve()), "tokenizer_path": str(tokenizer_path.resolve())}
    sealed = {"format": FORMAT, **content, "plan_sha256": sha256_json(content)} | places
    if before:
        before(_plan_of(out, sealed))
    write_json(out / "plan.json", sealed)
    return load_plan(out)


def load_plan(out: Path) -> Plan:
    """Read the plan of a job, both files of which must be as they were written.

    Raises:
        UserError: there is none, or it was damaged or changed.
    """
    if not (out / "plan.json").is_file():
        job = named_path(out).parent
        if (job / "plan.json").is_file():
            raise UserError(f"{out}: a part of a job, whose folder is {job}")
        raise UserError(f"{out}: no plan.json; make one with megavrc tokenize_videos plan")
    content = _read_plan(out)
    try:
        lines = read_regular(out / "plan.jsonl")
    except FileNotFoundError:
        lines = b""
    if lines[-1:] != b"\n" or hashlib.sha256(lines[:-1]).hexdigest() != content["sources_sha256"]:
        raise UserError(
            f"{out}/plan.jsonl: missing, damaged or changed since it was planned (its sha256 is another); "
            "the same plan command as then writes it again"
        )
    return _plan_of(out, content)


def _plan_of(out: Path, content: dict[str, Any]) -> Plan:
    """From the content of plan.json."""
    return Plan(
        out=out,
        settings=ClipSettings(**content["settings"]),
        root=Path(content["root"]),
        tokenizer_path=Path(content["tokenizer_path"]),
        tokenizer=content["tokenizer"],
        vocab=content["vocab"],
        shapes={kind: tuple(shape) for kind, shape in content["shapes"].items()},
        shards=content["shards"],
        classes=content["classes"],
        decoder=content.get("decoder"),
        sha256=content["plan_sha256"],
    )


def _read_plan(out: Path) -> dict[str, Any]:
    """The content of plan.json, which must have the hash that it names."""
    content = read_json(out / "plan.json")
    if isinstance(content, dict):
        check_format(out / "plan.json", content.get("format"), FORMAT)
        decides = {key: value for key, value in content.items() if key not in UNHASHED}
        places = all(isinstance(content.get(place), str) for place in PLACES)
        if places and content.get("plan_sha256") == sha256_json(decides):
            return content
    raise UserError(
        f"{out}/plan.json: damaged or changed since it was planned (plan_sha256 is not that of its content); "
        "delete it and give the same plan command as then: what is done stays done"
    )


def _size(asked: int | None, trained: int | None) -> int:
    """The side of the frames: as asked for, or as the tokenizer was trained on."""
    if asked and trained and asked != trained:
        print(
            f"warning: --size {asked}: the tokenizer was trained on frames of {trained} pixels",
            file=sys.stderr,
        )
    return asked or trained or SIZE


def _shapes(tokenizer: OmniTokenizer, settings: ClipSettings) -> dict[str, list[int]]:
    """Ids of a clip and of an image, found by encoding an empty clip."""
    size = settings.size or SIZE
    try:
        empty = np.zeros((1, settings.frames, size, size, 3), np.uint8)
        _, frames, height, width = encode(tokenizer, empty).shape
    except ValueError as error:
        raise UserError(f"clips of {settings.frames} frames of size {size}: {error}") from None
    return {"video": [frames, height, width], "image": [1, height, width]}


def encode(tokenizer: OmniTokenizer, frames_BTHWC: np.ndarray) -> np.ndarray:
    """Ids, int64 [B, t, h, w], of uint8 frames [B, T, H, W, 3]."""
    return tokenizer.encode(torch.from_numpy(frames_BTHWC)).cpu().numpy()


def names_by_label(entries: list[Entry]) -> list[str] | None:
    """Names by label (the label itself where there is no name); None if no video has a label."""
    names = {entry["label"]: str(entry["class"]) for entry in entries if entry.get("class") is not None}
    most = max((entry["label"] for entry in entries if entry["label"] is not None), default=None)
    return None if most is None else [names.get(label, str(label)) for label in range(most + 1)]


def _check_own_keys(manifest: Path, entries: list[Entry]) -> None:
    """UserError for a key that the job's own would replace."""
    for entry in entries:
        if taken := sorted(TAKEN & entry.keys()):
            raise UserError(
                f"{manifest}: id {entry['id']!r} has a key {taken[0]}, which is the job's own; rename the column"
            )


def _check_ids(entries: list[Entry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        other = seen.setdefault(source_key(entry["id"]), entry["id"])
        if other != entry["id"]:
            raise UserError(f"ids {other!r} and {entry['id']!r} have one hash; rename one of them")


def check_decoder(out: Path, planned: dict[str, str] | None) -> None:
    """UserError unless the decoder is that of the plan: another may give other pixels, and so other ids.

    A plan made before it was recorded gets a warning.
    """
    here = decoder_versions()
    if planned is None:
        print(
            f"warning: {out}/plan.json does not name its decoder; before it did, untagged HD was taken as BT.601 and "
            "every pixel as square: if some shards were done then, rather plan again with another --out. "
            f"Have the same on every machine, here {_words(here)}",
            file=sys.stderr,
        )
    elif changed := [name for name in here if planned.get(name) != here[name]]:
        there = _words({name: planned.get(name, "unknown") for name in changed})
        raise UserError(
            f"{out}/plan.json: decoder is {there} there, {_words({name: here[name] for name in changed})} here, "
            f"so ids may differ; have the same here (pip install av=={planned.get('av')} brings its FFmpeg), "
            "or plan again with another --out"
        )


def _words(versions: dict[str, str]) -> str:
    return " ".join(f"{name} {version}" for name, version in versions.items())


def _refuse_another(out: Path, old: dict[str, Any], content: dict[str, Any]) -> None:
    own = {"settings", "decoder"}  # compared below
    changed = [key for key in content if old.get(key) != content[key] and key not in own]
    changed += [key for key, value in content["settings"].items() if old["settings"].get(key) != value]
    if changed:
        raise UserError(
            f"{out}/plan.json is another plan ({', '.join(changed)} differ); use another --out folder"
        )
    if "decoder" in old:
        check_decoder(out, old["decoder"])


def failures_path(plan: Plan, shard: PlannedShard) -> Path:
    """The file that lists the videos of a shard that gave no sample, {source, start, stage, reason} a line."""
    return plan.out / "failures" / f"{shard.split}-{shard.number:06d}.jsonl"


def json_line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
