"""From the videos of one shard to its tokens: one decode a video, encoder batches that are fixed runs of the plan."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megavrc.config import write_atomic
from megavrc.data.shards import ShardWriter
from megavrc.tokenization.manifest import Entry
from megavrc.tokenization.plan import (
    Plan,
    Settings,
    Shard,
    choose,
    encode,
    failures_path,
    json_line,
    source_key,
)
from megavrc.tokenizers import OmniTokenizer
from megavrc.video.read import VideoError, count_frames, probe, read_frames

OWN_KEYS = {"id", "path", "split"}  # of a manifest entry; all its other keys go into the samples


@dataclass(frozen=True)
class Sample:
    """What is to be encoded: uint8 frames [T, H, W, 3], and the sample's key and JSON fields."""

    key: str
    frames_THWC: np.ndarray
    fields: dict[str, Any]


def cut(settings: Settings, path: Path, entry: Entry) -> tuple[list[Sample], list[Sample]]:
    """The clips and the stage-1 frames of a video.

    Raises:
        VideoError: the video is damaged, or too short and `short` is "skip".
    """
    try:
        if (header := probe(path).frames) >= settings.span:
            return _cut(settings, path, entry, header)
    except VideoError as error:
        if error.stage != "short":
            raise
    return _cut(settings, path, entry, count_frames(path))  # the header lies, or says nothing: decode to know


def _cut(settings: Settings, path: Path, entry: Entry, count: int) -> tuple[list[Sample], list[Sample]]:
    clips, images = choose(settings, entry["id"], count)
    if not clips:
        raise VideoError(path, "short", f"{count} frames, a clip needs {settings.span}")
    clip_offsets = np.arange(settings.frames) * settings.stride
    image_offsets = clip_offsets if settings.image_source == "clip" else clip_offsets[:1]
    runs = [np.minimum(start + clip_offsets, count - 1) for start in clips]
    runs += [np.minimum(start + image_offsets, count - 1) for start in images]
    wanted = np.unique(np.concatenate(runs))
    frames = read_frames(path, wanted.tolist(), settings.size, settings.crop)
    cuts = [frames[np.searchsorted(wanted, run)] for run in runs]
    extra = {key: value for key, value in entry.items() if key not in OWN_KEYS}
    shared = {**extra, "source": entry["id"], "stride": settings.stride}
    key = source_key(entry["id"])
    names = [f"{key}-{start:07d}" for start in clips] + [f"{key}-f{start:07d}" for start in images]
    samples = [
        Sample(name, cut, {**shared, "start_frame": start})
        for name, cut, start in zip(names, cuts, clips + images, strict=True)
    ]
    return samples[: len(clips)], samples[len(clips) :]


class BatchEncoder:
    """Encodes samples in batches that are fixed runs of slots, and writes them in order.

    A video owns a fixed number of slots whether it gives that many samples or not, and empty slots are encoded as
    black frames. So the place of a sample in its batch, on which the last bit of its latents may depend, depends on
    the plan alone.

    Args:
        writer: where the samples go; its shape decides how many latent frames of each are kept.
        batch: slots of an encoder batch.
        slots: slots of one video.
    """

    def __init__(self, tokenizer: OmniTokenizer, writer: ShardWriter, batch: int, slots: int) -> None:
        self.tokenizer, self.writer, self.batch, self.slots = tokenizer, writer, batch, slots
        self._pending: list[Sample | None] = []

    def add(self, samples: list[Sample]) -> None:
        """The samples of the next video, at most `slots`."""
        self._pending += [*samples, *[None] * (self.slots - len(samples))]
        while len(self._pending) >= self.batch:
            self._encode(self._pending[: self.batch])
            del self._pending[: self.batch]

    def finish(self) -> None:
        """Encode what is left."""
        if self._pending:
            self._encode(self._pending + [None] * (self.batch - len(self._pending)))

    def _encode(self, batch: list[Sample | None]) -> None:
        samples = [sample for sample in batch if sample is not None]
        if not samples:
            return
        black = np.zeros_like(samples[0].frames_THWC)
        frames_BTHWC = np.stack([black if sample is None else sample.frames_THWC for sample in batch])
        ids_BTHW = encode(self.tokenizer, frames_BTHWC)
        for sample, ids_THW in zip(batch, ids_BTHW, strict=True):
            if sample is not None:
                self.writer.add(sample.key, ids_THW[: self.writer.shape[0]], sample.fields)


def tokenize_shard(
    plan: Plan, shard: Shard, entries: list[Entry], tokenizer: OmniTokenizer
) -> Iterator[None]:
    """Write one shard of each kind, and the list of videos that failed; yields after every video."""
    settings = plan.settings
    failures: list[dict[str, Any]] = []
    with ExitStack() as stack:
        writers = {
            kind: stack.enter_context(ShardWriter(plan.tar(kind, shard), plan.shapes[kind], plan.vocab))
            for kind in plan.kinds
        }
        encoders = [BatchEncoder(tokenizer, writers["video"], settings.clip_batch, settings.clips_per_video)]
        if "image" in writers:
            batch = settings.clip_batch if settings.image_source == "clip" else settings.image_batch
            encoders.append(BatchEncoder(tokenizer, writers["image"], batch, settings.images_per_video))
        for entry in entries:
            samples: tuple[list[Sample], ...] = ([], [])
            try:
                samples = cut(settings, plan.root / entry["path"], entry)
            except VideoError as error:
                failures.append(
                    {"source": entry["id"], "start": None, "stage": error.stage, "reason": error.reason}
                )
            for encoder, cuts in zip(encoders, samples, strict=False):
                encoder.add(cuts)
            yield
        for encoder in encoders:
            encoder.finish()
        _write_failures(failures_path(plan, shard), failures)
        for writer in writers.values():
            writer.commit(plan_sha256=plan.sha256, failed=len(failures))


def _write_failures(path: Path, failures: list[dict[str, Any]]) -> None:
    path.unlink(missing_ok=True)
    if failures:
        write_atomic(path, "".join(map(json_line, failures)).encode())
