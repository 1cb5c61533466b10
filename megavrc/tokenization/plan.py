"""The frozen plan of a tokenization job: which videos, cut how, into which shards, by which tokenizer.

Everything that decides the result is in the plan, so the result does not depend on how many tasks ran or died:

    <out>/plan.json     settings, tokenizer, shard counts, plan_sha256, and where the videos and the tokenizer lay
    <out>/plan.jsonl    one line a video: the manifest's entry and its shard
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from megavrc.config import UserError, read_json, sha256_json, write_atomic, write_json
from megavrc.data.order import permutation
from megavrc.data.shards import shard_name
from megavrc.tokenization.manifest import Entry, read_manifest
from megavrc.tokenizers import OmniTokenizer


@dataclass(frozen=True)
class Settings:
    """What decides the samples.

    Args:
        frames: frames of a clip.
        stride: step between two frames of a clip, in frames of the video.
        size: side of the square frames, in pixels.
        crop: resize the short side and cut the centre, or squash the frame into a square.
        short: a video with too few frames is skipped (and recorded), or its last frame is repeated.
        clips_per_video: clips cut from a video, each at a random place in its own equal part of the video.
        images_per_video: stage-1 frames drawn from a video, without replacement; all of them if it has fewer.
        image_source: encode a stage-1 frame as an image, or take the first latent frame of the clip that starts there.
        splits: splits of the manifest to tokenize.
        clips_per_shard: samples of a full video shard.
        clip_batch: clips in an encoder batch.
        image_batch: images in an encoder batch.
        seed: of the order of the videos in the shards, of clip starts and of image frames.
    """

    frames: int = 17
    stride: int = 1
    size: int = 256
    crop: Literal["center", "squash"] = "center"
    short: Literal["skip", "clamp"] = "skip"
    clips_per_video: int = 1
    images_per_video: int = 10
    image_source: Literal["image", "clip"] = "image"
    splits: list[str] = field(default_factory=lambda: ["train"])
    clips_per_shard: int = 2048
    clip_batch: int = 8
    image_batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (
            self.frames,
            self.stride,
            self.size,
            self.clips_per_video,
            self.clip_batch,
            self.image_batch,
        )
        if min(counts) < 1 or self.images_per_video < 0 or not self.splits:
            raise UserError(
                "frames, stride, size, clips and batches must be positive, and at least one split is needed"
            )
        if self.clips_per_shard < self.clips_per_video:
            raise UserError(
                f"clips_per_shard {self.clips_per_shard} < clips_per_video {self.clips_per_video}"
            )
        if not 0 <= self.seed < 2**64:
            raise UserError(f"seed {self.seed} is not in [0, 2**64)")

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last frame of a clip."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class Shard:
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
        sha256: of everything that decides the samples; neither root nor tokenizer_path, which may move.
    """

    out: Path
    settings: Settings
    root: Path
    tokenizer_path: Path
    tokenizer: dict[str, str]
    vocab: int
    shapes: dict[str, tuple[int, ...]]
    shards: dict[str, int]
    classes: list[str] | None
    sha256: str

    @property
    def units(self) -> list[Shard]:
        return [
            Shard(split, number, total) for split, total in self.shards.items() for number in range(total)
        ]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in ("video", "image") if kind == "video" or self.settings.images_per_video]

    def tar(self, kind: str, shard: Shard) -> Path:
        return self.out / kind / "shards" / shard.name

    def sources(self, wanted: list[Shard]) -> dict[Shard, list[Entry]]:
        """The videos of some shards, in order."""
        found: dict[Shard, list[Entry]] = {shard: [] for shard in wanted}
        for line in (self.out / "plan.jsonl").read_text().splitlines():
            entry = json.loads(line)
            shard = Shard(entry["split"], entry.pop("shard"), self.shards[entry["split"]])
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
            "image_source": sampling.pop("image_source"),
            "sampling": sampling,
            "classes": self.classes,
            "plan_sha256": self.sha256,
        }


def make_plan(manifest: Path, tokenizer_path: Path, out: Path, settings: Settings) -> Plan:
    """Freeze a plan in `out`; the same plan again is no change.

    Raises:
        UserError: nothing to tokenize, a tokenizer that does not fit, or another plan lies there already.
    """
    entries = [entry for entry in read_manifest(manifest) if entry["split"] in settings.splits]
    _check_keys(entries)
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
    content = {
        "settings": dataclasses.asdict(settings),
        "tokenizer": {"name": tokenizer_path.name, "sha256": tokenizer.sha256},
        "vocab": tokenizer.config.codes,
        "shapes": _shapes(tokenizer, settings),
        "shards": shards,
        "classes": _classes(entries),
        "sources_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }
    _refuse_another(out, content)
    write_atomic(out / "plan.jsonl", "".join(line + "\n" for line in lines).encode())
    places = {"root": str(manifest.parent.resolve()), "tokenizer_path": str(tokenizer_path.resolve())}
    write_json(out / "plan.json", {**content, "plan_sha256": sha256_json(content), **places})
    return load_plan(out)


def load_plan(out: Path) -> Plan:
    """Read the plan of a job; UserError if there is none."""
    if not (out / "plan.json").is_file():
        raise UserError(f"{out}: no plan.json; make one with tools/tokenize_videos.py plan")
    content = read_json(out / "plan.json")
    return Plan(
        out=out,
        settings=Settings(**content["settings"]),
        root=Path(content["root"]),
        tokenizer_path=Path(content["tokenizer_path"]),
        tokenizer=content["tokenizer"],
        vocab=content["vocab"],
        shapes={kind: tuple(shape) for kind, shape in content["shapes"].items()},
        shards=content["shards"],
        classes=content["classes"],
        sha256=content["plan_sha256"],
    )


def source_key(source_id: str) -> str:
    """The part of a sample's key that stands for its video: no dots (they end a WebDataset key), of fixed length."""
    return hashlib.sha256(source_id.encode()).hexdigest()[:16]


def choose(settings: Settings, source_id: str, count: int) -> tuple[list[int], list[int]]:
    """Where to cut a video of `count` frames: first frames of its clips, and its stage-1 frames, both ascending.

    A function of (seed, source id, count) only. No clips if the video is too short and is to be skipped.
    """
    last = count - settings.span  # the last possible start of a whole clip
    if last < 0 and settings.short == "skip":
        return [], []
    starts = max(last, 0) + 1
    parts = settings.clips_per_video
    draws = _draw(settings.seed, source_id, "clips", parts).tolist()  # integers of 64 bits
    clips = sorted({(part * 2**64 + draw) * starts // (parts * 2**64) for part, draw in enumerate(draws)})
    frames = starts if settings.image_source == "clip" and settings.short == "skip" else count
    ranks = np.argsort(_draw(settings.seed, source_id, "images", frames), kind="stable")
    return clips, sorted(ranks[: settings.images_per_video].tolist())


def _draw(seed: int, source_id: str, what: str, count: int) -> np.ndarray:
    key = hashlib.sha256(f"{seed}/{what}/{source_id}".encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key)).random_raw(count)


def _shapes(tokenizer: OmniTokenizer, settings: Settings) -> dict[str, list[int]]:
    """Ids of a clip and of an image, found by encoding an empty clip."""
    empty = np.zeros((1, settings.frames, settings.size, settings.size, 3), np.uint8)
    try:
        _, frames, height, width = encode(tokenizer, empty).shape
    except ValueError as error:
        raise UserError(f"clips of {settings.frames} frames of size {settings.size}: {error}") from None
    return {"video": [frames, height, width], "image": [1, height, width]}


def encode(tokenizer: OmniTokenizer, frames_BTHWC: np.ndarray) -> np.ndarray:
    """Ids, int64 [B, t, h, w], of uint8 frames [B, T, H, W, 3]."""
    return tokenizer.encode(torch.from_numpy(frames_BTHWC)).cpu().numpy()


def _classes(entries: list[Entry]) -> list[str] | None:
    """Names by label (the label itself where there is no name), if every video has a label."""
    if any(entry["label"] is None for entry in entries):
        return None
    names = {entry["label"]: str(entry.get("class") or entry["label"]) for entry in entries}
    return [names.get(label, str(label)) for label in range(max(names) + 1)]


def _check_keys(entries: list[Entry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        other = seen.setdefault(source_key(entry["id"]), entry["id"])
        if other != entry["id"]:
            raise UserError(f"ids {other!r} and {entry['id']!r} have one hash; rename one of them")


def _refuse_another(out: Path, content: dict[str, Any]) -> None:
    if not (out / "plan.json").is_file():
        return
    old = read_json(out / "plan.json")
    changed = [key for key in content if old.get(key) != content[key] and key != "settings"]
    changed += [key for key, value in content["settings"].items() if old["settings"].get(key) != value]
    if changed:
        raise UserError(
            f"{out}/plan.json is another plan ({', '.join(changed)} differ); use another --out folder"
        )


def failures_path(plan: Plan, shard: Shard) -> Path:
    """Where the videos of a shard that gave no sample are listed, {source, start, stage, reason} a line."""
    return plan.out / "failures" / f"{shard.split}-{shard.number:06d}.jsonl"


def json_line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
