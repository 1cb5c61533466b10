"""Requeueing of a job that has ended. The batch script itself calls it, after every attempt.

A job goes back until it is complete, unless the configuration is wrong (exit code 2) or it came back several times
without getting further; then `diagnosis.txt` says what happened. A node that dies takes the batch script with it, and
SLURM requeues that job by itself. A full disk or a damaged small file keeps no job away: what can be read counts.
"""

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from megavrc.errors import EXIT_CODES, EXIT_STOPPED, EXIT_USER, UserError
from megavrc.files import check_fields, read_lines_of_json, read_object, read_regular, write_atomic

log = logging.getLogger("megavrc")

MAX_STALLS = 3  # stays in a row without progress
# Of an attempt.
FIELDS = {"job": str, "restart": int, "nodes": str, "exit_code": int, "step": int, "time": float}
STOPPED = (0, EXIT_STOPPED)  # exit codes after a signal, of training and of tokenization


@dataclass(frozen=True)
class Attempt:
    """One stay of a job on its nodes.

    Attributes:
        job: SLURM's number. restart: how often SLURM had requeued it.
        nodes: its node list. exit_code: of srun, or 2 if a rank ended by a mistake of the user.
        step: the newest checkpoint's at the end. time: of the end, in s.
    """

    job: str
    restart: int
    nodes: str
    exit_code: int
    step: int
    time: float


def record(run_dir: Path, exit_code: int) -> list[Attempt]:
    """Add the attempt that ends now, inside its job; returns all of them, also if they cannot be written."""
    env = os.environ
    job, restart = env.get("SLURM_JOB_ID", ""), int(env.get("SLURM_RESTART_COUNT", "0"))
    attempt = Attempt(
        job=job,
        restart=restart,
        nodes=env.get("SLURM_JOB_NODELIST", ""),
        exit_code=EXIT_USER if _users_mistake(run_dir, job, restart) else exit_code,
        step=saved_step(run_dir),
        time=time.time(),
    )
    file = attempts_file(run_dir, env.get("SLURM_ARRAY_TASK_ID"))
    history = [*attempts(file), attempt]
    try:
        write_atomic(file, "".join(json.dumps(asdict(known)) + "\n" for known in history).encode())
    except OSError as error:
        log.warning("%s: this attempt is not written down (%s)", file, error.strerror)
    return history


def _users_mistake(run_dir: Path, job: str, restart: int) -> bool:
    """Whether a rank said so in this stay. Of the codes of all ranks srun returns the highest: that of a killed one."""
    for file in (run_dir / "heartbeats").glob("rank-*.json"):
        with contextlib.suppress(UserError, OSError):  # empty, if its node lost power
            said = read_object(file, {})
            if (said.get("exit_code"), said.get("job"), said.get("restart")) == (EXIT_USER, job, restart):
                return True
    return False


def attempts_file(run_dir: Path, task: str | None = None) -> Path:
    """The file that lists the attempts of a run, or of one array task."""
    return run_dir / "slurm" / ("attempts.jsonl" if task is None else f"attempts-{task}.jsonl")


def attempts(file: Path) -> list[Attempt]:
    """The attempts on record, oldest first, without damaged lines."""
    found = []
    with contextlib.suppress(UserError, OSError):  # no file, or it cannot be read
        for line in read_lines_of_json(file):
            with contextlib.suppress(UserError, TypeError):
                found.append(Attempt(**check_fields(file, line, FIELDS)))
    return found


def saved_step(run_dir: Path) -> int:
    """The step of the checkpoint that `latest` names, or if it names none, of the newest; 0 when there is none."""
    store = run_dir / "checkpoints"
    names, named = [folder.name for folder in store.glob("step-*")], ""
    with contextlib.suppress(UserError, OSError):  # none, or it cannot be read
        named = read_regular(store / "latest").decode(errors="replace").strip()
    numbers = [name.removeprefix("step-") for name in ([named] if named in names else names)]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def is_complete(run_dir: Path, history: list[Attempt]) -> bool:
    """Whether training is done. The `complete.json` of an earlier end stays until training goes on to more steps, so
    it counts for nothing after a failed attempt, unless it is newer than that: of an end outside of SLURM.
    """
    file = run_dir / "complete.json"
    if not file.is_file():
        return False
    return not history or history[-1].exit_code == 0 or file.stat().st_mtime > history[-1].time


def stop_reason(history: list[Attempt], complete: bool, counts_steps: bool, begun: int = 0) -> str | None:
    """Why the job must not go back into the queue; None if it should.

    Args:
        history: all attempts, the last one being that which ends now.
        complete: the work is done.
        counts_steps: progress is a newer checkpoint (training); otherwise any attempt that a signal ended made some.
        begun: step of the checkpoint that the job began with.
    """
    code = history[-1].exit_code
    if complete:
        return "complete"
    if code == EXIT_USER:
        return "exit code 2: the user's mistake, which would come back"
    if stalls(history, counts_steps, begun) >= MAX_STALLS:
        return f"{MAX_STALLS} attempts in a row made no progress"
    return None


def stalls(history: list[Attempt], counts_steps: bool, begun: int = 0) -> int:
    """Number of this job's last attempts that made no progress; a job that a person submits anew starts from zero."""
    count = 0
    for attempt, before in zip(reversed(history), [*reversed(history[:-1]), None], strict=True):
        if attempt.job != history[-1].job:
            break
        moved = attempt.step > (before.step if before else begun)
        if moved if counts_steps else attempt.exit_code in STOPPED:
            break
        count += 1
    return count


def diagnose(run_dir: Path, history: list[Attempt], reason: str, task: str | None) -> Path:
    """Write down why a job stopped, for the person who finds it; returns the file."""
    log = run_dir / "slurm" / f"{history[-1].job}.out"
    if task is not None:
        log = run_dir / "slurm" / f"{os.environ.get('SLURM_ARRAY_JOB_ID', '')}_{task}.out"
    lines = [f"{run_dir}: not requeued: {reason}", ""]
    for attempt in history[-10:]:
        meaning = EXIT_CODES.get(attempt.exit_code, "see the log")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.time))
        lines.append(
            f"{when}  job {attempt.job} restart {attempt.restart} on {attempt.nodes}: step {attempt.step}, "
            f"exit code {attempt.exit_code} ({meaning})"
        )
    lines += ["", f"The end of {log}:", *(_tail(log, 60) if log.is_file() else [])]
    lines += ["", "Once the cause is removed: megavrc submit_slurm requeue --run_dir=" + str(run_dir)]
    file = run_dir / "slurm" / ("diagnosis.txt" if task is None else f"diagnosis-{task}.txt")
    write_atomic(file, "".join(line + "\n" for line in lines).encode())
    return file


def _tail(file: Path, lines: int) -> list[str]:
    return file.read_text(errors="replace").splitlines()[-lines:]
