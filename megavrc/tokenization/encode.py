"""Encoding: the cuts of one shard's videos to its tokens, in encoder batches that are fixed runs of the plan."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megavrc.data.shards import ShardWriter, done_path
from megavrc.files import write_atomic
from megavrc.tokenization.cut import Cut, Cuts
from megavrc.tokenization.plan import Plan, PlannedShard, encode, failures_path, json_line
from megavrc.tokenization.sampling import ClipSettings, source_key
from megavrc.tokenizers import OmniTokenizer
from megavrc.video.errors import VideoError
from megavrc.video.manifest import Entry

OWN_KEYS = {"id", "path", "split"}  # of a manifest entry; all its other keys go into the samples


@dataclass(frozen=True)
class Sample:
    """A sample to encode: uint8 frames [T, H, W, 3], and the sample's key and JSON fields."""

    key: str
    frames_THWC: np.ndarray
    fields: dict[str, Any]


def samples(settings: ClipSettings, entry: Entry, cuts: Cuts) -> tuple[list[Sample], list[Sample]]:
    """The clips and the stage-1 frames of a video."""
    extra = {key: value for key, value in entry.items() if key not in OWN_KEYS}
    fields = {**extra, "source": entry["id"], "stride": settings.stride}
    if settings.fps:
        fields["fps"] = settings.fps
    key = source_key(entry["id"])

    def made(kind: str, chosen: list[Cut]) -> list[Sample]:
        return [
            Sample(
                f"{key}-{kind}{cut.start:07d}",
                cuts.frames_NHWC[cut.rows],
                {**fields, "start_frame": cut.start},
            )
            for cut in chosen
        ]

    return made("", cuts.clips), made("f", cuts.images)


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
    plan: Plan,
    shard: PlannedShard,
    entries: list[Entry],
    cuts: Iterator[Cuts | VideoError],
    tokenizer: OmniTokenizer,
) -> Iterator[int]:
    """Write one shard of each kind, and the list of videos that failed.

    Args:
        cuts: what decoding made of the videos, in the order of `entries`; may go on with those of the next shard.

    Yields:
        After every video, its number of clips.
    """
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
        for entry, result in zip(entries, cuts, strict=False):
            made: tuple[list[Sample], ...] = ([], [])
            if isinstance(result, Cuts):
                made = samples(settings, entry, result)
            else:
                failures.append(_failure(entry, result))
            for encoder, cut in zip(encoders, made, strict=False):
                encoder.add(cut)
            yield len(made[0])
        for encoder in encoders:
            encoder.finish()
        for writer in writers.values():  # from here until the last commit the shard is not done
            done_path(writer.tar).unlink(missing_ok=True)
        _write_failures(failures_path(plan, shard), failures)
        for writer in writers.values():
            writer.commit(plan_sha256=plan.sha256, failed=len(failures))


def _failure(entry: Entry, error: VideoError) -> dict[str, Any]:
    """A line of the failure list; `start` is that of the shot, in seconds."""
    return {
        "source": entry["id"],
        "start": entry.get("start"),
        "stage": error.stage,
        "reason": error.reason,
    }


def _write_failures(path: Path, failures: list[dict[str, Any]]) -> None:
    path.unlink(missing_ok=True)
    if failures:
        write_atomic(path, "".join(map(json_line, failures)).encode())
