"""Reading speed of token shards: our stream against a webdataset pipeline on the same shards, in one run."""

import itertools
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor

from megavrc.data.dataset import TokenDataset
from megavrc.data.order import Order
from megavrc.data.shards import ShardWriter, listed, read_done, shard_name, write_shard_manifest
from megavrc.data.stream import Stream
from megavrc.errors import UserError
from megavrc.measure import turns
from megavrc.progress import progress
from megavrc.results import Metric, case, check_result_place, median_of, publish_tables, ratio, result

SHAPE, VOCAB = (5, 32, 32), 8192  # of a 17-frame clip at 256x256
SHUFFLE_BUFFER = 1000  # of webdataset; our order shuffles all samples

Batch = tuple[Tensor, list[str]]


def loader(
    samples: int = 20_000,
    shards: int = 10,
    batch: int = 32,
    rounds: int = 5,
    json: Path | None = None,
) -> None:
    """Measure samples a second of our stream and of a webdataset pipeline: shuffle, decode, batch.

    Both deliver batches of int64 ids and captions of the same generated shards, a whole epoch each time; ours also
    compares checksums. They take turns, in this process and in one worker process, with the shards in the page cache
    (warm) and after the kernel was asked to forget them (cold). By the clock, and by CPU time of all processes, which
    other programs on the machine disturb less. Medians over the rounds.

    Args:
        samples: clips in all shards together.
        shards: number of shards of equal size.
        batch: clips of a batch.
        rounds: measurements of each.
        json: file to write the results to.
    """
    check_result_place(json)
    if not 0 < batch * shards <= samples or samples % shards:
        raise UserError(f"--samples {samples}: must be a multiple of --shards, and a batch must fit a shard")
    rates: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_dataset(Path(name), samples, shards)
        jobs = {
            f"{kind}, {where}": run(folder, batch, workers)
            for where, workers in (("in process", 0), ("one worker", 1))
            for kind, run in (("megavrc", ours), ("webdataset", theirs))
        }
        for _, (state, job) in turns(itertools.product(("cold", "warm"), jobs), rounds):
            if state == "cold":
                forget(folder)
            rate = samples_per_second(jobs[job], samples // batch * batch)
            rates.setdefault(f"{job}, {state}", []).append(rate)
    cases = [
        case(
            job,
            {
                "rate": median_of([by_clock for by_clock, _ in found], "samples/s"),
                "cpu_rate": median_of([by_cpu for _, by_cpu in found], "samples/CPU s"),
            },
        )
        for job, found in rates.items()
    ]
    config = {"samples": samples, "shards": shards, "batch": batch, "shape": SHAPE}
    protocol = {"rounds": rounds, "spread": "range of the rounds"}
    publish_tables(result("benchmark loader", config, cases, ratios(cases), protocol), json)


def ratios(cases: list[dict[str, Any]]) -> dict[str, Metric]:
    """Our rates over those of webdataset."""
    rates = {row["name"]: row["metrics"] for row in cases}
    return {
        f"megavrc / webdataset, {job.removeprefix('megavrc, ')}{where}": ratio(
            found[key], rates[job.replace("megavrc", "webdataset")][key]
        )
        for key, where in (("rate", ""), ("cpu_rate", ", CPU time"))
        for job, found in rates.items()
        if job.startswith("megavrc")
    }


def ours(folder: Path, batch: int, workers: int) -> Callable[[], Iterable[Batch]]:
    """Opens the dataset and reads an epoch of it, shuffled as a whole."""

    def run() -> Iterable[Batch]:
        dataset = TokenDataset(folder)
        order = Order(len(dataset), seed=0)
        stream = Stream(
            dataset, order, global_batch=batch, micro_batch=batch, collate=_collate, workers=workers
        )
        return islice(stream, len(dataset) // batch)

    return run


def theirs(folder: Path, batch: int, workers: int) -> Callable[[], Iterable[Batch]]:
    """The same with webdataset as its documentation does it: shards and a buffer shuffled, decoded, batched."""

    def run() -> Iterable[Batch]:
        tars = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
        dataset = (
            webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0)
            .shuffle(SHUFFLE_BUFFER)
            .decode()
            .to_tuple("npy", "json")
            .map(lambda pair: {"ids": torch.from_numpy(pair[0].astype(np.int64)), **pair[1]})
            .batched(batch, partial=False, collation_fn=_collate)
        )
        return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)

    return run


def _collate(items: list[dict[str, Any]]) -> Batch:
    return torch.stack([item["ids"] for item in items]), [item["caption"] for item in items]


def samples_per_second(run: Callable[[], Iterable[Batch]], expected: int) -> tuple[float, float]:
    """Samples a second of a whole epoch, by the clock and by CPU time, from opening the files on."""
    start, cpu = time.perf_counter(), _cpu_time()
    batches = iter(run())
    count = sum(len(captions) for _, captions in batches)
    seconds = time.perf_counter() - start
    del batches  # its workers end, and only then their CPU time is known
    assert count == expected, f"{count} samples of {expected}"
    return count / seconds, count / (_cpu_time() - cpu)


def _cpu_time() -> float:
    """Of this process and those children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def write_dataset(
    folder: Path, samples: int, shards: int, shape: tuple[int, int, int] = SHAPE, vocab: int = VOCAB
) -> Path:
    """Shards of random ids with captions of about 80 bytes and labels below 101."""
    rng = np.random.default_rng(0)
    entries = []
    for number in progress(range(shards), "write shards"):
        tar = folder / "shards" / shard_name("train", number, shards)
        with ShardWriter(tar, shape, vocab) as writer:
            for sample in range(samples // shards):
                caption = (
                    f"clip {sample} of shard {number}, in which somebody walks along a street in the evening"
                )
                ids = rng.integers(0, vocab, shape)
                fields = {"caption": caption, "label": sample % 101, "source": "made"}
                writer.add(f"{number:08d}-{sample:07d}", ids, fields)
            writer.commit(plan_sha256="")
        done = read_done(tar, "")
        assert done is not None
        entries.append(listed("train", done))
    tokenizer = {"name": "none", "sha256": "0" * 64}
    info = {"kind": "video", "shape": list(shape), "vocab": vocab, "image_source": "clip"}
    write_shard_manifest(folder, {**info, "tokenizer": tokenizer}, entries)
    return folder


def forget(folder: Path) -> None:
    """Ask the kernel to drop the shards from its page cache."""
    for path in (folder / "shards").iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
