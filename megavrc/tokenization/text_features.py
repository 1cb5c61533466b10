"""Captions of finished datasets to features of a frozen text encoder, shard by shard, beside the tokens.

What decides the features is frozen in `<dataset>/text_features/plan.json`; tasks may die and run again, as in job.py.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import listed, read_done, remove_half_written, write_shard_manifest
from megavrc.data.text_features import DTYPE, FORMAT, FeatureWriter, features_folder
from megavrc.errors import UserError
from megavrc.files import check_fields, check_format, read_json, sha256_json, write_json
from megavrc.progress import progress
from megavrc.tokenization.job import Stop, array_task, task_device
from megavrc.tokenization.result import array_expression, writing
from megavrc.tokenizers.text_encoder import TextEncoder, encoder_identity
from megavrc.user_files import resolve

PLAN_FORMAT = 1  # of plan.json there; not in its hash
WINDOW = 16  # encoder batches whose captions are sorted by length together


@dataclass(frozen=True)
class FeatureJob:
    """The features of one dataset, with the plan that is frozen in their folder."""

    tokens: TokenDataset
    plan: dict[str, Any]

    @property
    def folder(self) -> Path:
        return features_folder(self.tokens.folder)

    def tar(self, shard: int) -> Path:
        return self.folder / "shards" / self.tokens.shards[shard]["name"]

    def done(self, shard: int) -> dict[str, Any] | None:
        """The done file of a shard that is whole and of this plan."""
        return read_done(self.tar(shard), sha256_json(self.plan))


def text_features(
    out: Path,
    encoder: Path | None = None,
    max_tokens: int = 127,
    batch: int = 32,
    precision: Literal["fp32", "bf16"] = "fp32",
    task: int | None = None,
    of: int | None = None,
    threads: int = 1,
    device: str | None = None,
) -> None:
    """Run a frozen text encoder over the captions of the datasets in OUT, into OUT/{video,image}/text_features.

    Shards that are done are skipped; the task that finds all done writes the manifest. Exit code 75 when stopped by a
    signal.

    Args:
        out: folder of a tokenization job whose datasets are finished.
        encoder: folder of a text encoder (T5 and its kin) in Hugging Face format, with its tokenizer
            (default: MEGAVRC_TEXT_ENCODER).
        max_tokens: largest number of tokens of a caption; longer ones are cut. A model takes as many as it
            has condition slots less one.
        batch: captions in an encoder batch.
        precision: arithmetic of the encoder; features are stored in float16.
        task: number of this task, from 0 (default: of the SLURM array, else 0).
        of: number of tasks (default: of the SLURM array, else 1).
        threads: CPU threads of the encoder; features are promised equal for equal threads.
        device: torch device of the encoder (default: a GPU where there is one, under srun each process its own).
    """
    if min(max_tokens, batch, threads) < 1:
        raise UserError("max_tokens, batch and threads must be positive")
    where = task_device(device)
    stop = Stop()
    torch.set_num_threads(threads)
    task, of = array_task(task, of)
    encoder = resolve("text_encoder", encoder, "--encoder").path
    settings = {"encoder": encoder_identity(encoder), "max_tokens": max_tokens, "batch": batch}
    with writing(out):
        jobs = _plan(out, settings | {"precision": precision})
        units = [(job, shard) for job in jobs for shard in range(len(job.tokens.shards))]
        todo = [(job, shard) for job, shard in units[task::of] if not job.done(shard)]
        if todo:
            samples = _run(todo, TextEncoder(encoder, where, precision))
            total = sum(len(job.tokens.rows(shard)) for job, shard in todo)
            with closing(samples):
                for _ in progress(stop.check(samples), "text features", total):
                    pass
        missing = [number for number, (job, shard) in enumerate(units) if not job.done(shard)]
        for job in [] if missing else jobs:
            _finish(job)
    if missing:
        print(f"{out}: {len(units) - len(missing)} of {len(units)} shards done")
        print(f"still to run: {array_expression(missing, len(units))}")


def _plan(out: Path, settings: dict[str, Any]) -> list[FeatureJob]:
    """The datasets of a tokenization job, each with its plan frozen beside it."""
    jobs = []
    for kind in ("video", "image"):
        if (out / kind / "manifest.json").is_file():
            tokens = TokenDataset(out / kind, split=None)
            jobs.append(
                FeatureJob(tokens, settings | {"tokens": {"kind": kind, "manifest_id": tokens.manifest_id}})
            )
            _freeze(jobs[-1].folder / "plan.json", jobs[-1].plan)
    if not jobs:
        raise UserError(f"{out}: no finished dataset; megavrc tokenize_videos finalize makes one")
    return jobs


def _freeze(path: Path, plan: dict[str, Any]) -> None:
    old = read_json(path) if path.is_file() else plan
    check_format(path, check_fields(path, old, {}).get("format"), PLAN_FORMAT)
    if changed := [key for key in plan if old.get(key) != plan[key]]:
        raise UserError(
            f"{path} is another plan ({', '.join(changed)} differ); remove {path.parent} to make the features again"
        )
    if not path.is_file():
        write_json(path, {"format": PLAN_FORMAT, **plan})


def _run(todo: list[tuple[FeatureJob, int]], encoder: TextEncoder) -> Generator[int]:
    """Encode shards; yields after every sample."""
    for job, shard in todo:
        with FeatureWriter(job.tar(shard)) as writer:
            cut = 0
            for key, caption, features_LF, was_cut in _features(job, shard, encoder):
                writer.add(key, features_LF, {"caption": caption, "cut": was_cut})
                cut += was_cut
                yield 1
            writer.commit(plan_sha256=sha256_json(job.plan), width=encoder.width, cut=cut)


def _features(
    job: FeatureJob, shard: int, encoder: TextEncoder
) -> Iterator[tuple[str, str | None, np.ndarray, bool]]:
    """Key, caption, features and whether the caption was cut, of every sample in order.

    Batches are functions of the shard alone: padding, and with it the last bit of a feature, depends on them.
    """
    rows, batch = job.tokens.rows(shard), job.plan["batch"]
    nothing = torch.zeros(0, encoder.width), False
    for start in range(rows.start, rows.stop, WINDOW * batch):
        window = range(start, min(start + WINDOW * batch, rows.stop))
        captions = [job.tokens.read(index)[1]["caption"] for index in window]
        distinct = sorted({caption for caption in captions if caption}, key=lambda text: (len(text), text))
        found: dict[str, tuple[Tensor, bool]] = {}
        for first in range(0, len(distinct), batch):
            texts = distinct[first : first + batch]
            found |= zip(texts, encoder.encode(texts, job.plan["max_tokens"]), strict=True)
        for index, caption in zip(window, captions, strict=True):
            features_LF, was_cut = found.get(caption, nothing)
            yield job.tokens.key(index), caption, features_LF.half().numpy(), was_cut


def _finish(job: FeatureJob) -> None:
    """Write the manifest of features whose shards are all done."""
    remove_half_written(job.folder / "shards")  # not beside it, where another task may write the manifest
    done = [job.done(shard) or {} for shard in range(len(job.tokens.shards))]
    shards = [listed(shard["split"], entry) for shard, entry in zip(job.tokens.shards, done, strict=True)]
    info = {**job.plan, "width": done[0]["width"], "dtype": DTYPE}
    manifest = write_shard_manifest(job.folder, info, shards, FORMAT)
    size, name = manifest["bytes"] / 1e6, manifest["manifest_id"][:12]
    cut = sum(entry["cut"] for entry in done)
    print(f"{job.folder}: {manifest['count']} samples, {cut} captions cut, {size:.1f} MB, manifest {name}")
