"""The commands that make shards. Any number of tasks may run, die and run again: the plan decides the result."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from megavrc.data.shards import done_path, read_done
from megavrc.errors import EXIT_STOPPED, UserError
from megavrc.hardware import check_device
from megavrc.progress import progress
from megavrc.tokenization.decoders import Decoders
from megavrc.tokenization.encode import tokenize_shard
from megavrc.tokenization.plan import Plan, PlannedShard, check_decoder, load_plan, make_tokenization_plan
from megavrc.tokenization.result import can_be_retried, finalize, is_done, writing
from megavrc.tokenization.sampling import ClipSettings
from megavrc.tokenization.sources import changed, is_recorded, record_sources, words
from megavrc.tokenizers import OmniTokenizer
from megavrc.user_files import resolve

MOST_DECODERS = 16  # unless more are asked for
MOST_SECONDS = 1e6  # eleven days: above three and a half weeks, no process can be waited for
MOST_THREADS = 1024  # or decoders; far above the cores of a machine, and below what a system starts


def plan(manifest: Path, out: Path, tokenizer: Path | None = None, **settings: Any) -> None:
    """Freeze what is to be tokenized and how, in OUT/plan.json.

    Args:
        manifest: manifest.jsonl with the videos (megavrc prepare_dataset makes one).
        out: folder of the job; OUT/video and OUT/image become the datasets.
        tokenizer: folder or .ckpt file of the video tokenizer (default: MEGAVRC_OMNITOKENIZER).
        settings: see `ClipSettings`.
    """
    with writing(out):
        found = resolve("omnitokenizer", tokenizer, "--tokenizer").path
        new = not (out / "plan.json").is_file()

        def record(made: Plan) -> None:
            if new and not is_recorded(made):
                record_sources(made, made.units)

        made = make_tokenization_plan(manifest, found, out, ClipSettings(**settings), record)
    print(f"{out}/plan.json: {len(made.units)} shards, plan {made.sha256[:12]}")


def run(
    out: Path,
    tokenizer: Path | None = None,
    task: int | None = None,
    of: int | None = None,
    decoders: int | None = None,
    timeout: float = 300.0,
    threads: int = 1,
    device: str | None = None,
    retry_failed: bool = False,
    redo_changed: bool = False,
) -> None:
    """Tokenize the shards of one task; shards that are done are skipped. Exit code 75 when stopped by a signal.

    PyAV and FFmpeg must be those of the plan.

    Args:
        out: folder of the job, with its plan.
        tokenizer: folder or file of the tokenizer, if not where it was planned; its sha256 must be that of the plan.
        task: number of this task, from 0 (default: of the SLURM array, else 0).
        of: number of tasks (default: of the SLURM array, else 1).
        decoders: decoding processes (default: the cores of this task less the threads, at most 16).
        timeout: seconds that one video may take to decode; then it is recorded as failed.
        threads: CPU threads of the encoder; ids are promised equal for equal threads.
        device: torch device of the encoder (default: a GPU where there is one, under srun each process its own).
        retry_failed: also redo shards that are done but lack videos which could not be read, timed out or crashed.
        redo_changed: also redo shards with videos that changed since they were planned, and take these as they are.
    """
    stop, rate = Stop(), _Rate()
    work, todo = _todo(out, *array_task(task, of), retry_failed, redo_changed)
    if todo:
        check_decoder(out, work.decoder)
    videos = _tokenize(work, todo, tokenizer, decoders, timeout, threads, device)
    with writing(out), closing(videos):
        for clips in progress(stop.check(videos), "tokenize", _count_videos(work, todo), rate.text):
            rate.add(clips)
    _report(work, todo, rate)


def run_all(
    manifest: Path,
    out: Path,
    tokenizer: Path | None = None,
    workers: int = 1,
    decoders: int = 1,
    timeout: float = 300.0,
    threads: int = 1,
    **settings: Any,
) -> None:
    """Plan, run and finalize on this machine, with several processes.

    Args:
        manifest: manifest.jsonl with the videos (megavrc prepare_dataset makes one).
        out: folder of the job; OUT/video and OUT/image become the datasets.
        tokenizer: folder or .ckpt file of the video tokenizer (default: MEGAVRC_OMNITOKENIZER).
        workers: encoding processes; each takes whole shards, so use at least as many shards (clips_per_shard).
        decoders: decoding processes of each worker.
        timeout: seconds that one video may take to decode; then it is recorded as failed.
        threads: CPU threads of each worker.
        settings: see `ClipSettings`.
    """
    if workers < 1:
        raise UserError(f"--workers: {workers} is not a positive number")
    _check_options(decoders, timeout, threads)
    plan(manifest, out, tokenizer, **settings)
    Stop()
    rate = _Rate()
    work, todo = _todo(out, 0, 1)
    if todo:
        check_decoder(out, work.decoder)
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", 2)  # videos, clips
    processes = [
        context.Process(target=_work, args=(out, number, workers, decoders, timeout, threads, done))
        for number in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        for clips in progress(_watch(processes, done), "tokenize", _count_videos(work, todo), rate.text):
            rate.add(clips)
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
    _report(work, todo, rate)
    finalize(out)


# --- parts -----------------------------------------------------------------------------------------------------


class Stop:
    """Ends the process with code 75 on a signal, through the shard writers, which clean up.

    The flag is there because an exception that is raised in a destructor is lost. A signal that comes while a writer
    opens or removes its temporary file can leave it, as a kill does; `finalize` removes such files.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        sys.exit(EXIT_STOPPED)

    def check(self, steps: Iterable[int]) -> Iterator[int]:
        """Pass the steps through until the signal has come."""
        for step in steps:
            if self.asked:
                sys.exit(EXIT_STOPPED)
            yield step


class _Rate:
    """Counts videos and clips."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.videos = self.clips = 0

    def add(self, clips: int) -> None:
        self.videos += 1
        self.clips += clips

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def text(self) -> str:
        return f"{self.clips / self.seconds:.1f} clips/s"


def array_task(task: int | None, of: int | None) -> tuple[int, int]:
    """The number of this task and of all tasks; what is not given comes from the variables of a SLURM array.

    Without `of` the array is the job, whatever number it starts with. With `of` it may be any part of the job, such
    as the tasks that `status` found missing. Unless `task` is given, the processes that srun starts for a task share
    what is its own.
    """
    array = {
        name: int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in {"ID": 0, "MIN": 0, "MAX": 0, "COUNT": 1}.items()
    }
    if of is None:
        of = array["COUNT"]
        if task is None and array["MAX"] - array["MIN"] + 1 != of:
            raise UserError("a job array with gaps: say with --of how many tasks the whole job has")
        array["ID"] -= array["MIN"]
    given, task = task, array["ID"] if task is None else task
    if not 0 <= task < of:
        raise UserError(f"task {task} of {of}: tasks are numbered from 0")
    if given is None and "SLURM_STEP_NUM_TASKS" in os.environ:  # a process of srun
        task += of * int(os.environ["SLURM_PROCID"])  # every so manieth of those of the task
        of *= int(os.environ["SLURM_STEP_NUM_TASKS"])
    return task, of


def task_device(device: str | None) -> torch.device:
    """The device of this process: as given; without a number, its own of the GPUs of its node; else the CPU."""
    if device in (None, "auto", "cuda") and (gpus := torch.cuda.device_count()):
        device = f"cuda:{int(os.environ.get('SLURM_LOCALID', 0)) % gpus}"
    chosen = check_device(device or "auto")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def _todo(
    out: Path, task: int, of: int, retry: bool = False, redo: bool = False
) -> tuple[Plan, list[PlannedShard]]:
    """The plan, and those shards of a task that are not done, or are to be done again.

    Raises:
        UserError: videos of them are not those that were planned, and `redo` is not asked for.
    """
    work = load_plan(out)
    own = work.units[task::of]
    others = changed(work, own) if redo else {}
    todo = [
        shard
        for shard in own
        if not is_done(work, shard) or shard in others or (retry and can_be_retried(work, shard))
    ]
    if redo:
        for shard in others:
            for kind in work.kinds:  # before the new fingerprints: a killed task does it again
                done_path(work.tar(kind, shard)).unlink(missing_ok=True)
        record_sources(work, list(others))
    elif others := changed(work, todo, read=False):
        raise UserError(
            f"{out}: {words(others)}; put them back, or take them as they are: run --redo_changed, then finalize"
        )
    return work, todo


def _check_options(decoders: int | None, timeout: float, threads: int) -> None:
    if timeout <= 0 or threads < 1 or (decoders is not None and decoders < 1):
        raise UserError("timeout, threads and decoders must be positive")
    if timeout > MOST_SECONDS or max(threads, decoders or 0) > MOST_THREADS:
        raise UserError(f"timeout is at most {MOST_SECONDS:g} seconds, threads and decoders {MOST_THREADS}")


def _count_videos(work: Plan, todo: list[PlannedShard]) -> int:
    return sum(len(entries) for entries in work.sources(todo).values())


def _tokenize(
    work: Plan,
    todo: list[PlannedShard],
    tokenizer: Path | None,
    decoders: int | None,
    timeout: float,
    threads: int,
    device: str | None,
) -> Generator[int]:
    """Tokenize the shards; yields the number of clips after every video."""
    _check_options(decoders, timeout, threads)
    if not todo:
        return
    torch.set_num_threads(threads)
    where = task_device(device)
    loaded = OmniTokenizer.from_checkpoint(tokenizer or work.tokenizer_path, where, work.settings.precision)
    if loaded.sha256 != work.tokenizer["sha256"]:
        raise UserError(f"the plan is for tokenizer {work.tokenizer['sha256']}, this one is {loaded.sha256}")
    sources = work.sources(todo)
    videos = ((work.root / entry["path"], entry) for entries in sources.values() for entry in entries)
    with Decoders(decoders or max(1, min(_cores() - threads, MOST_DECODERS)), timeout) as pool:
        cuts = pool.cut(work.settings, videos)
        try:
            for shard, entries in sources.items():
                yield from tokenize_shard(work, shard, entries, cuts, loaded)
        except torch.OutOfMemoryError:
            raise UserError(
                "the encoder's memory is full; plan with smaller --clip_batch, --image_batch"
            ) from None


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(out: Path, task: int, of: int, decoders: int, timeout: float, threads: int, done: Any) -> None:
    """One process of `run_all`."""
    stop = Stop()
    try:
        videos = _tokenize(*_todo(out, task, of), None, decoders, timeout, threads, None)
        with writing(out), closing(videos):
            for clips in stop.check(videos):
                with done.get_lock():
                    done[0] += 1
                    done[1] += clips
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _watch(processes: list[Any], done: Any) -> Iterator[int]:
    """Yields for every video that one of the processes has finished, until all have ended or one has failed.

    What it yields is the number of new clips, those of several videos at once if these were finished together.
    """
    videos = clips = 0
    while videos < done[0] or (
        any(process.is_alive() for process in processes)
        and not any(process.exitcode for process in processes)
    ):
        if videos < done[0]:
            videos += 1
            yield (now := done[1]) - clips
            clips = now
        else:
            time.sleep(0.05)


def _report(work: Plan, todo: list[PlannedShard], rate: _Rate) -> None:
    done = [read_done(work.tar("video", shard), work.sha256) for shard in todo]
    failed = sum(entry.get("failed", 0) for entry in done if entry)
    speed = f", {rate.text()}" if rate.clips else ""
    note = f", {failed} videos failed (see {work.out}/failures/)" if failed else ""
    skipped = "" if todo else " (all shards of this task were done)"
    print(f"tokenized {rate.videos} videos: {rate.clips} clips in {rate.seconds:.1f} s{speed}{note}{skipped}")
