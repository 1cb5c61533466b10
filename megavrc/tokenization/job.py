"""The commands of the offline job. Any number of tasks may run, die and run again: the plan decides the result."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from megavrc.config import UserError, progress, sha256_file
from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import DataError, read_done, write_manifest
from megavrc.tokenization.encode import tokenize_shard
from megavrc.tokenization.plan import Plan, Settings, Shard, failures_path, load_plan, make_plan
from megavrc.tokenizers import OmniTokenizer

EXIT_STOPPED = 75


def plan(manifest: Path, tokenizer: Path, out: Path, **settings: Any) -> None:
    """Freeze what is to be tokenized and how, in OUT/plan.json.

    Args:
        manifest: manifest.jsonl with the videos (tools/prepare_dataset.py makes one).
        tokenizer: folder or .ckpt file of the video tokenizer.
        out: folder of the job; OUT/video and OUT/image become the datasets.
        settings: see `Settings`.
    """
    made = make_plan(manifest, tokenizer, out, Settings(**settings))
    print(f"{out}/plan.json: {len(made.units)} shards, plan {made.sha256[:12]}")


def run(
    out: Path,
    tokenizer: Path | None = None,
    task: int | None = None,
    of: int | None = None,
    threads: int = 1,
    device: str | None = None,
) -> None:
    """Tokenize the shards of one task; shards that are done are skipped. Exit code 75 when stopped by a signal.

    Args:
        out: folder of the job, with its plan.
        tokenizer: where the tokenizer lies, if not where it was planned; its sha256 must be that of the plan.
        task: number of this task, from 0 (default: of the SLURM array, else 0).
        of: number of tasks (default: of the SLURM array, else 1).
        threads: CPU threads of the encoder; ids are promised equal for equal threads.
        device: torch device of the encoder (default: cuda where there is one).
    """
    stop = _Stop()
    work, todo = _todo(out, task, of)
    start = time.monotonic()
    with closing(_tokenize(work, todo, tokenizer, threads, device)) as videos:
        count = sum(1 for _ in progress(stop.check(videos), "tokenize", _count_videos(work, todo)))
    _report(work, todo, count, time.monotonic() - start)


def run_all(
    manifest: Path, tokenizer: Path, out: Path, workers: int = 1, threads: int = 1, **settings: Any
) -> None:
    """Plan, run and finalize on this machine, with several processes.

    Args:
        manifest: manifest.jsonl with the videos (tools/prepare_dataset.py makes one).
        tokenizer: folder or .ckpt file of the video tokenizer.
        out: folder of the job; OUT/video and OUT/image become the datasets.
        workers: tokenizing processes; each takes whole shards, so use at least as many shards (clips_per_shard).
        threads: CPU threads of each process.
        settings: see `Settings`.
    """
    plan(manifest, tokenizer, out, **settings)
    _Stop()
    work, todo = _todo(out, 0, 1)
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    processes = [
        context.Process(target=_work, args=(out, number, workers, threads, done)) for number in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        count = sum(1 for _ in progress(_watch(processes, done), "tokenize", _count_videos(work, todo)))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        print(
            f"a process ended with code {failed[0]}; the same command continues where it was", file=sys.stderr
        )
        sys.exit(failed[0])
    _report(work, todo, count, time.monotonic() - start)
    finalize(out)


def status(out: Path, of: int | None = None) -> None:
    """Say which shards are done, which videos failed and why, and which array tasks are still to run.

    Args:
        out: folder of the job.
        of: number of tasks of the job array (default: one for each shard).
    """
    work = load_plan(out)
    units = work.units
    missing = [number for number, shard in enumerate(units) if not _is_done(work, shard)]
    print(f"{out}: {len(units) - len(missing)} of {len(units)} shards done")
    reasons = Counter(failure["stage"] for shard in units for failure in _failures(work, shard))
    if reasons:
        counts = ", ".join(f"{stage} {count}" for stage, count in sorted(reasons.items()))
        print(f"{sum(reasons.values())} videos failed ({counts}); reasons in {out}/failures/")
    if missing:
        tasks = of or len(units)
        print(
            f"still to run: --array={_ranges(sorted({number % tasks for number in missing}))} with --of {tasks}"
        )


def finalize(out: Path) -> None:
    """Write dataset.json and manifest.json of the finished datasets.

    Args:
        out: folder of the job.
    """
    work = load_plan(out)
    missing = [shard for shard in work.units if not _is_done(work, shard)]
    if missing:
        raise UserError(
            f"{out}: {len(missing)} of {len(work.units)} shards are not done (first: {missing[0].name}); "
            "run the job again, `status` lists the tasks"
        )
    for kind in work.kinds:
        for left in (out / kind / "shards").glob(".*"):  # half-written files of tasks that were killed
            left.unlink()
        shards = [_entry(work, kind, shard) for shard in work.units]
        if not any(shard["count"] for shard in shards):
            raise UserError(f"{out}: no video gave a sample; the reasons are in {out}/failures/")
        manifest = write_manifest(out / kind, work.dataset(kind), shards)
        size, name = manifest["bytes"] / 1e6, manifest["manifest_id"][:12]
        print(
            f"{out}/{kind}: {manifest['count']} samples, {len(shards)} shards, {size:.1f} MB, manifest {name}"
        )


def verify(out: Path) -> None:
    """Read every byte of the finished datasets again and check it.

    Args:
        out: folder of the job.
    """
    work = load_plan(out)
    problems: list[str] = []
    for kind in work.kinds:
        for split in work.settings.splits:
            dataset = TokenDataset(out / kind, work.tokenizer["sha256"], split)
            before = len(problems)
            problems += _problems(dataset, f"verify {kind} {split}")
            print(f"{out}/{kind} {split}: {len(dataset)} samples, {len(problems) - before} problems")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise DataError(f"{out}: {len(problems)} problems; delete the damaged shards and run the job again")


# --- parts -----------------------------------------------------------------------------------------------------


class _Stop:
    """Ends the process with code 75 on SIGTERM or SIGUSR1, through the shard writers, which clean up.

    The flag is there because PyAV loses an exception that is raised while it waits for a file: the interrupted video
    then looks damaged, and must not be recorded as such.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        sys.exit(EXIT_STOPPED)

    def check(self, steps: Iterable[None]) -> Iterator[None]:
        """Pass the steps through until the signal has come."""
        for step in steps:
            if self.asked:
                sys.exit(EXIT_STOPPED)
            yield step


def _todo(out: Path, task: int | None, of: int | None) -> tuple[Plan, list[Shard]]:
    """The plan, and those shards of a task that are not done."""
    array = os.environ
    if of is None:
        of = int(array.get("SLURM_ARRAY_TASK_COUNT", 1))
    if task is None:
        task = int(array.get("SLURM_ARRAY_TASK_ID", 0)) - int(array.get("SLURM_ARRAY_TASK_MIN", 0))
    if not 0 <= task < of:
        raise UserError(f"task {task} of {of}: tasks are numbered from 0")
    work = load_plan(out)
    return work, [shard for shard in work.units[task::of] if not _is_done(work, shard)]


def _is_done(work: Plan, shard: Shard) -> bool:
    return all(read_done(work.tar(kind, shard), work.sha256) for kind in work.kinds)


def _count_videos(work: Plan, todo: list[Shard]) -> int:
    return sum(len(entries) for entries in work.sources(todo).values())


def _tokenize(
    work: Plan, todo: list[Shard], tokenizer: Path | None, threads: int, device: str | None
) -> Generator[None]:
    """Tokenize the shards; yields after every video."""
    if not todo:
        return
    torch.set_num_threads(threads)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = OmniTokenizer.from_checkpoint(tokenizer or work.tokenizer_path, device)
    if loaded.sha256 != work.tokenizer["sha256"]:
        raise UserError(f"the plan is for tokenizer {work.tokenizer['sha256']}, this one is {loaded.sha256}")
    for shard, entries in work.sources(todo).items():
        yield from tokenize_shard(work, shard, entries, loaded)


def _work(out: Path, task: int, of: int, threads: int, done: Any) -> None:
    """One process of `run_all`."""
    stop = _Stop()
    try:
        with closing(_tokenize(*_todo(out, task, of), None, threads, None)) as videos:
            for _ in stop.check(videos):
                with done.get_lock():
                    done.value += 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _watch(processes: list[Any], done: Any) -> Iterator[None]:
    """Yields for every video that one of the processes has finished, until all have ended or one has failed."""
    seen = 0
    while seen < done.value or (
        any(process.is_alive() for process in processes)
        and not any(process.exitcode for process in processes)
    ):
        if seen < done.value:
            seen += 1
            yield
        else:
            time.sleep(0.05)


def _report(work: Plan, todo: list[Shard], videos: int, seconds: float) -> None:
    done = [read_done(work.tar("video", shard), work.sha256) for shard in todo]
    clips = sum(entry["count"] for entry in done if entry)
    failed = sum(entry["failed"] for entry in done if entry)
    rate = f", {clips / seconds:.1f} clips/s" if clips else ""
    note = f", {failed} videos failed (see {work.out}/failures/)" if failed else ""
    skipped = "" if todo else " (all shards of this task were done)"
    print(f"tokenized {videos} videos: {clips} clips in {seconds:.1f} s{rate}{note}{skipped}")


def _failures(work: Plan, shard: Shard) -> list[dict[str, Any]]:
    path = failures_path(work, shard)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _entry(work: Plan, kind: str, shard: Shard) -> dict[str, Any]:
    done = read_done(work.tar(kind, shard), work.sha256) or {}
    return {
        "split": shard.split,
        **{key: done[key] for key in ("name", "count", "bytes", "sha256", "index_sha256")},
    }


def _problems(dataset: TokenDataset, label: str) -> Iterator[str]:
    for shard in dataset.shards:
        path = dataset.folder / "shards" / shard["name"]
        if (found := sha256_file(path)) != shard["sha256"]:
            yield f"{path}: sha256 {found[:12]}, the manifest says {shard['sha256'][:12]}"
    keys: set[str] = set()
    for index in progress(range(len(dataset)), label):
        try:
            ids, _ = dataset.read(index)
            if ids.min() < 0 or ids.max() >= dataset.vocab:
                yield f"sample {dataset.key(index)}: ids outside the vocabulary of {dataset.vocab}"
            keys.add(dataset.key(index))
        except DataError as error:
            yield str(error)
    if len(keys) < len(dataset):
        yield f"{dataset.folder}: {len(dataset) - len(keys)} keys are damaged or stand there twice"


def _ranges(numbers: list[int]) -> str:
    """1,2,3,7 -> "1-3,7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
