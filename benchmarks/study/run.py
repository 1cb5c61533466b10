"""Run the study's matrix in the background of a machine: `run.py {run,status}` (README.md beside this file)."""

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from child import others_at_work, run_child, stop_on_signals
from matrix import Job, Matrix
from outcome import write_result

from megavrc.config import command, load_config
from megavrc.errors import UserError
from megavrc.files import check_format, read_json, write_json

CHECKOUT = Path(__file__).resolve().parents[2]
MATRIX = Path("benchmarks") / "study" / "matrix.yaml"
RESULTS = CHECKOUT / "benchmarks" / "results" / "study"
STATE_FORMAT = 1  # of state.json


class Runner:
    """Runs the jobs of a matrix in a work folder, one after the other.

    Args:
        work: folder: state.json, sets/, runs/, logs/.
        code: checkout that every command runs in.
        matrix: its jobs.
        results: folder for the result files.
        stop: set when to stop.
        pauses: whether to stand still for tests, benchmarks and the file `pause`.
    """

    def __init__(
        self, work: Path, code: Path, matrix: Matrix, results: Path, stop: threading.Event, pauses: bool
    ) -> None:
        self.work, self.code, self.matrix, self.results = work, code, matrix, results
        self.stop, self.pauses = stop, pauses
        self.jobs: dict[str, dict[str, Any]] = read_state(work)
        self.products = {job.name: job.product for job in matrix.jobs(samples=True)}

    def run(self, jobs: list[Job], retry: bool) -> bool:
        """Run what is neither done nor waits. False if something failed."""
        for job in jobs:
            if self.stop.is_set():
                break
            status = self.status(job)
            if status == "done" or (status == "failed" and not retry):
                continue
            if missing := self.missing(job):
                print(f"{job.name}: waits for {missing}", flush=True)
            else:
                self._execute(job)
        return not any(self.status(job) == "failed" for job in jobs)

    def status(self, job: Job) -> str:
        """`done`, `failed`, `stopped`, `running` or `new`."""
        if job.product.exists():
            return "done"
        recorded = str(self.jobs.get(job.name, {}).get("status", "new"))
        return "new" if recorded == "done" else recorded  # what it has made was removed

    def missing(self, job: Job) -> str:
        """What a job waits for: jobs before it, a key of the configuration; "" if nothing."""
        missing = [name for name in job.after if not self.products[name].exists()]
        if job.needs and f"--{job.needs} " not in self._options:
            missing.append(job.needs)
        return ", ".join(missing)

    @functools.cached_property
    def _options(self) -> str:
        """The help of the training command, which names every key of the configuration."""
        words = [sys.executable, "pretrain/pretrain_vrc.py", "--help"]
        environment = {**os.environ, **self._environment()}
        return subprocess.run(
            words, cwd=self.code, env=environment, capture_output=True, text=True, check=True
        ).stdout

    def _environment(self) -> dict[str, str]:
        return {**self.matrix.environment, "PYTHONPATH": str(self.code)}

    def _execute(self, job: Job) -> None:
        """Run a job's command and record what comes of it."""
        print(f"{time.strftime('%H:%M:%S')} {job.name}", flush=True)
        attempt: dict[str, Any] = {
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "revision": revision(self.code),
        }
        record = self.jobs.setdefault(job.name, {"attempts": []})
        record["attempts"].append(attempt)
        self._save(job, "running")
        log = self.work / "logs" / f"{job.name.replace('/', '-')}.log"
        line = [sys.executable, *job.words]
        ended = run_child(line, self.code, self._environment(), log, self.stop, self._busy)
        attempt |= vars(ended)
        done = job.product.exists()
        status = "done" if done else "stopped" if self.stop.is_set() else "failed"
        self._save(job, status)
        if job.run and status != "stopped":
            write_result(self.results, self.work, self.code, job, self.jobs)
        print(f"{time.strftime('%H:%M:%S')} {job.name}: {status}, exit code {ended.code}; {log}", flush=True)

    def _busy(self, session: int) -> str:
        return others_at_work(session, self.work / "pause") if self.pauses else ""

    def _save(self, job: Job, status: str) -> None:
        self.jobs[job.name]["status"] = status
        state = {"format": STATE_FORMAT, "process": os.getpid(), "jobs": self.jobs}
        write_json(self.work / "state.json", state)


def read_state(work: Path) -> dict[str, dict[str, Any]]:
    """The record of every job that has been started."""
    file = work / "state.json"
    if not file.exists():
        return {}
    content: dict[str, Any] = read_json(file)
    check_format(file, content.get("format"), STATE_FORMAT)
    return content["jobs"]


def run(
    work: Path,
    priority: int = 0,
    results: Path = RESULTS,
    retry: bool = False,
    update: bool = False,
    samples: bool = False,
    pauses: bool = True,
    smoke: bool = False,
) -> int:
    """Run the matrix: what is there is skipped, what was stopped goes on. SIGTERM stops it at the next step.

    Niceness 19, one thread, one command at a time, in a frozen clone of this checkout's revision.

    Args:
        work: folder outside of the checkout for the clone, sets, runs and logs.
        priority: of the runs, up to this one: 0 is P0 of docs/study.md.
        results: folder for a result file a run.
        retry: repeat what has failed.
        update: move the frozen clone to this checkout's revision.
        samples: draw clips from the finished runs too, and score them.
        pauses: stand still while tests or benchmarks run on this machine, or WORK/pause exists.
        smoke: the whole matrix at toy size, in this checkout as it is.
    """
    work, results = work.resolve(), results.resolve()
    if CHECKOUT in [work, *work.parents] and not smoke:
        raise UserError(f"--work {work}: is inside the checkout; choose a folder outside of it")
    work.mkdir(parents=True, exist_ok=True)
    os.nice(19)
    with open(work / "lock", "w") as lock:
        _hold(lock, work)
        code = CHECKOUT if smoke else frozen_clone(work, update)
        matrix = Matrix(code / MATRIX, work, smoke)
        runner = Runner(work, code, matrix, results, stop_on_signals(), pauses)
        fine = runner.run(matrix.jobs(priority, samples), retry)
    return 0 if fine else 1


def _hold(lock: TextIO, work: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--work {work}: another runner is at work there") from None


def frozen_clone(work: Path, update: bool) -> Path:
    """The clone in the work folder, made of this checkout's last commit if it is missing, or with `update`."""
    clone = work / "code"
    if not clone.exists():
        unfinished = work / "code.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        _git("clone", "--quiet", "--no-checkout", str(CHECKOUT), str(unfinished))
        _freeze(unfinished)
        unfinished.rename(clone)
    elif update:
        _freeze(clone)
    return clone


def _freeze(clone: Path) -> None:
    """At this checkout's last commit: it need not be the one that the clone was made of."""
    _git("-C", str(clone), "fetch", "--quiet", str(CHECKOUT), "HEAD")
    _git("-C", str(clone), "checkout", "--quiet", "--detach", "FETCH_HEAD")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def revision(checkout: Path) -> str:
    """The commit of a checkout, with "-dirty" if files differ from it."""
    return _git("-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40")


def status(work: Path, priority: int = 9, samples: bool = False) -> None:
    """Print what of the matrix is done, running, stopped, failed or waiting, and the core-minutes of each.

    Args:
        work: folder of `run`.
        priority: of the runs, up to this one.
        samples: also what draws and scores clips.
    """
    if not (work / "state.json").exists():
        raise UserError(f"{work}: has no state.json; no matrix has been started there")
    code = work / "code" if (work / "code").exists() else CHECKOUT
    matrix = Matrix(code / MATRIX, work.resolve())
    runner = Runner(work.resolve(), code, matrix, RESULTS, threading.Event(), False)
    process, total = _process_at_work(work), 0.0
    print(f"{'':28s} core-minutes, estimate")
    for job in matrix.jobs(priority, samples):
        state = runner.status(job)
        if state == "running" and not process:  # its runner was killed
            state = "stopped"
        if state == "new":
            state = f"waits for {missing}" if (missing := runner.missing(job)) else "next"
        attempts = runner.jobs.get(job.name, {}).get("attempts", [])
        minutes = sum(attempt.get("cpu_seconds", 0.0) for attempt in attempts) / 60
        total += minutes
        estimate = f"{estimated_minutes(job, matrix.gflops):.0f}" if job.trains and not job.needs else ""
        print(f"{job.name:28s} {minutes:12.1f} {estimate:>9s}  {state}")
    print(f"{total:.1f} core-minutes; {f'process {process} is at work' if process else 'nobody is at work'}")


def estimated_minutes(job: Job, gflops: float) -> float:
    """Of one core, for the training of a run."""
    from megavrc.model.flops import training_flops
    from megavrc.training.tasks.vrc_config import RunConfig

    with contextlib.chdir(CHECKOUT):
        config = load_config(RunConfig, job.words[1:])
    return training_flops(config.model) * config.train.global_batch * config.train.steps / (60e9 * gflops)


def _process_at_work(work: Path) -> int:
    """The runner's process, 0 if none holds the folder."""
    with open(work / "lock", "w") as lock:
        try:
            _hold(lock, work)
        except UserError:
            return int(read_json(work / "state.json")["process"])
    return 0


if __name__ == "__main__":
    command({"run": run, "status": status})
