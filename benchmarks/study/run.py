"""Run the study's matrix in the background of a machine: `run.py {run,status}` (README.md beside this file)."""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from matrix import Matrix, StudyJob
from others import others_at_work
from outcome import write_result

from megavrc.config import command, load_config
from megavrc.errors import UserError, check_least
from megavrc.files import read_json
from megavrc.paper.child import stop_on_signals
from megavrc.paper.jobs import JobRunner, MatrixJob, hold

CHECKOUT = Path(__file__).resolve().parents[2]
MATRIX = Path("benchmarks") / "study" / "matrix.yaml"
RESULTS = CHECKOUT / "benchmarks" / "results" / "study"


class Runner(JobRunner):
    """Runs the jobs of the study in a work folder: state.json, sets/, runs/, logs/.

    Args:
        work, code, stop: as of `JobRunner`.
        matrix: its jobs.
        results: folder for the result files.
        pauses: whether to stand still for tests, benchmarks and the file `pause`.
    """

    def __init__(
        self, work: Path, code: Path, matrix: Matrix, results: Path, stop: threading.Event, pauses: bool
    ) -> None:
        products = {job.name: job.product for job in matrix.jobs(samples=True, tune=True)}
        environment = {**matrix.environment, "PYTHONPATH": str(code)}
        super().__init__(work, code, products, environment, stop, self._others)
        self.matrix, self.results, self.pauses = matrix, results, pauses

    def missing(self, job: MatrixJob) -> str:
        """What a job waits for: jobs before it, a key of the configuration; "" if nothing."""
        missing = super().missing(job)
        needs = job.needs if isinstance(job, StudyJob) else ""
        if needs and f"--{needs} " not in self._options:
            missing = f"{missing}, {needs}" if missing else needs
        return missing

    @functools.cached_property
    def _options(self) -> str:
        """The help of the training command, which names every key of the configuration."""
        words = [sys.executable, "pretrain/pretrain_vrc.py", "--help"]
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            words, cwd=self.code, env=environment, capture_output=True, text=True, check=True
        ).stdout

    def circumstances(self) -> dict[str, str]:
        return {"revision": revision(self.code)}

    def record(self, job: MatrixJob) -> None:
        if isinstance(job, StudyJob) and job.run:
            write_result(self.results, self.work, self.code, job, self.jobs)

    def _others(self, session: int) -> str:
        return others_at_work(session, self.work / "pause") if self.pauses else ""


def run(
    work: Path,
    priority: int = 0,
    results: Path = RESULTS,
    retry: bool = False,
    update: bool = False,
    samples: bool = False,
    tune: bool = False,
    seeds: list[int] | None = None,
    pauses: bool = True,
    smoke: bool = False,
) -> int:
    """Run the matrix: what is there is skipped, what was stopped goes on. SIGTERM stops it at the next step.

    Niceness 19, one thread, one command at a time, in a frozen clone of this checkout's revision.

    Args:
        work: folder outside of the checkout for the clone, sets, runs and logs.
        priority: of the runs, up to this one: 0 is P0 of docs/study_rules.md.
        results: folder for a result file a run.
        retry: repeat what has failed.
        update: move the frozen clone to this checkout's revision.
        samples: draw clips from the finished runs too, and score them.
        tune: find the best temperatures of the finished runs on validation prompts, and draw and score clips with them.
        seeds: runs of these seeds alone (default: all): another work folder, whose `sets` is a link to this one's, may
            run others at the same time.
        pauses: stand still while tests or benchmarks run on this machine, or WORK/pause exists.
        smoke: the whole matrix at toy size, in this checkout as it is.
    """
    check_least(priority=(priority, 0))
    work, results = work.resolve(), results.resolve()
    if CHECKOUT in [work, *work.parents] and not smoke:
        raise UserError(f"--work {work}: is inside the checkout; choose a folder outside of it")
    work.mkdir(parents=True, exist_ok=True)
    os.nice(19)
    with open(work / "lock", "w") as lock:
        hold(lock, work)
        code = CHECKOUT if smoke else frozen_clone(work, update)
        matrix = Matrix(code / MATRIX, work, smoke)
        runner = Runner(work, code, matrix, results, stop_on_signals(), pauses)
        fine = runner.run(matrix.jobs(priority, samples, tune, seeds or ()), retry)
    return 0 if fine else 1


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


def status(work: Path, priority: int = 9, samples: bool = False, tune: bool = False) -> None:
    """Print what of the matrix is done, running, stopped, failed or waiting, and the core-minutes of each.

    Args:
        work: folder of `run`.
        priority: of the runs, up to this one.
        samples: also what draws and scores clips.
        tune: also what finds temperatures, and draws and scores clips with them.
    """
    if not (work / "state.json").exists():
        raise UserError(f"{work}: has no state.json; no matrix has been started there")
    code = work / "code" if (work / "code").exists() else CHECKOUT
    matrix = Matrix(code / MATRIX, work.resolve())
    runner = Runner(work.resolve(), code, matrix, RESULTS, threading.Event(), False)
    process, total = _process_at_work(work), 0.0
    print(f"{'':28s} core-minutes, estimate")
    for job in matrix.jobs(priority, samples, tune):
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


def estimated_minutes(job: StudyJob, gflops: float) -> float:
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
            hold(lock, work)
        except UserError:
            return int(read_json(work / "state.json")["process"])
    return 0


if __name__ == "__main__":
    command({"run": run, "status": status})
