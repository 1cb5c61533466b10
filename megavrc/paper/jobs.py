"""Commands that wait for each other, as data, and the runner that goes through them: what is done is not done again."""

import fcntl
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from megavrc.errors import UserError
from megavrc.files import check_format, read_object, write_json
from megavrc.paper.child import run_child

STATE_FORMAT = 1  # of state.json


@dataclass(frozen=True)
class MatrixJob:
    """One command.

    Attributes:
        name: unique in its matrix.
        words: of the command line, after the interpreter.
        product: a file that exists when the job is done.
        after: names of the jobs that must be done before.
    """

    name: str
    words: list[str]
    product: Path
    after: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The shell line that runs it."""
        own = self.words[:2] == ["-m", "megavrc"]
        return shlex.join(self.words[1:] if own else ["python", *self.words])


class JobRunner:
    """Runs jobs in a work folder, one after the other, and records every attempt in state.json.

    Args:
        work: folder: gets state.json and logs/.
        code: folder that every command runs in.
        products: of all jobs that any job waits for, by name.
        environment: variables beside this process's own.
        stop: set when to stop: the command at work gets SIGTERM.
        busy: called with the session of the command at work every few seconds; while it gives a reason, the command is
            suspended.
    """

    def __init__(
        self,
        work: Path,
        code: Path,
        products: Mapping[str, Path],
        environment: Mapping[str, str],
        stop: threading.Event,
        busy: Callable[[int], str] = lambda session: "",
    ) -> None:
        self.work, self.code, self.products = work, code, products
        self.environment, self.stop, self.busy = dict(environment), stop, busy
        self.jobs: dict[str, dict[str, Any]] = read_state(work)

    def run(self, jobs: Sequence[MatrixJob], retry: bool) -> bool:
        """Run what is neither done nor waits. False if something failed.

        Args:
            retry: also what has failed before.
        """
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

    def status(self, job: MatrixJob) -> str:
        """`done`, `failed`, `stopped`, `running` or `new`."""
        if job.product.exists():
            return "done"
        recorded = str(self.jobs.get(job.name, {}).get("status", "new"))
        return "new" if recorded == "done" else recorded  # what it has made was removed

    def missing(self, job: MatrixJob) -> str:
        """What a job waits for; "" if nothing."""
        return ", ".join(name for name in job.after if not self.products[name].exists())

    def record(self, job: MatrixJob) -> None:
        """What to do once a job was done or has failed."""

    def log(self, job: MatrixJob) -> Path:
        """The file with the output of a job's command."""
        return self.work / "logs" / f"{job.name.replace('/', '-')}.log"

    def _execute(self, job: MatrixJob) -> None:
        """Run a job's command and record what comes of it."""
        print(f"{time.strftime('%H:%M:%S')} {job.name}", flush=True)
        attempt = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), **self.circumstances()}
        self.jobs.setdefault(job.name, {"attempts": []})["attempts"].append(attempt)
        self._save(job, "running")
        log = self.log(job)
        line = [sys.executable, *job.words]
        ended = run_child(line, self.code, self.environment, log, self.stop, self.busy)
        attempt |= vars(ended)
        done = job.product.exists()
        status = "done" if done else "stopped" if self.stop.is_set() else "failed"
        self._save(job, status)
        if status != "stopped":
            self.record(job)
        print(f"{time.strftime('%H:%M:%S')} {job.name}: {status}, exit code {ended.code}; {log}", flush=True)

    def circumstances(self) -> dict[str, str]:
        """Facts to record of an attempt beside its time."""
        return {}

    def _save(self, job: MatrixJob, status: str) -> None:
        self.jobs[job.name]["status"] = status
        state = {"format": STATE_FORMAT, "process": os.getpid(), "jobs": self.jobs}
        write_json(self.work / "state.json", state)


def hold(lock: TextIO, work: Path) -> None:
    """Take a work folder by its open lock file, until that is closed; UserError if another runner has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{work}: another runner is at work there") from None


def read_state(work: Path) -> dict[str, dict[str, Any]]:
    """The record of every job that has been started."""
    file = work / "state.json"
    if not file.exists():
        return {}
    content = read_object(file, {"jobs": dict[str, dict[str, Any]]})
    check_format(file, content.get("format"), STATE_FORMAT)
    jobs: dict[str, dict[str, Any]] = content["jobs"]
    return jobs
