"""SLURM jobs from a command of this repository: render, submit, requeue, status.

Only what needs the configuration classes imports them: `requeue` must work in a job whose environment is broken.
"""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from megavrc.config import dump_yaml, load_config, options_of
from megavrc.errors import EXIT_CODES, UserError
from megavrc.files import check_fields, check_format, read_object, write_json
from megavrc.launch.requeue import (
    attempts,
    attempts_file,
    diagnose,
    is_complete,
    record,
    saved_step,
    stop_reason,
)
from megavrc.launch.slurm import Resources, new_submission, render_script, submissions
from megavrc.launch.snapshot import ENTRIES, snapshot

TRAINING = ("pretrain/pretrain_vrc.py", "pretrain/pretrain_tokenizer.py")
JOB = "job.json"  # what was submitted, and SLURM's number of it
JOB_FORMAT = 1  # of it and of attempts.jsonl
TOKENIZATION = ["tools/tokenize_videos.py", "run"]


def render(*command: str, **resources: Any) -> None:
    """Print the script that `submit` would submit; nothing is written.

    Args:
        command: what to run, after `--`: pretrain_vrc or pretrain_tokenizer and its options, or tokenize_videos run.
        resources: see `Resources`.
    """
    run_dir, words, _ = _understand(command, wanted := Resources(**resources))
    print(render_script(words, run_dir, new_submission(run_dir), wanted), end="")


def submit(*command: str, **resources: Any) -> None:
    """Check the configuration, copy code and configuration into the run folder, and submit.

    Args:
        command: what to run, after `--`: pretrain_vrc or pretrain_tokenizer and its options, or tokenize_videos run.
        resources: see `Resources`.
    """
    run_dir, words, config = _understand(command, wanted := Resources(**resources))
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch here; `render` prints the script, to submit it where there is one"
        )
    _refuse_second_job(run_dir)
    here = new_submission(run_dir)
    text = render_script(words, run_dir, here, wanted)
    here.mkdir(parents=True)
    try:
        revision = snapshot(here / "code")
        if config is not None:
            dump_yaml(config, here / "config.yaml")
        script = here / "job.sbatch"
        script.write_text(text)
        job = _sbatch(script)
    except BaseException:  # a full disk, Ctrl-C, or SLURM does not take it
        shutil.rmtree(here, ignore_errors=True)
        raise
    _note_job(script, job, {"command": list(command), "revision": revision, "folder": os.getcwd()})


def requeue(run_dir: Path, exit_code: int | None = None) -> int:
    """Put a job back into the queue. Batch scripts call it with an exit code. Without one it
    repeats the last submission, with the code and configuration of that time.

    Args:
        run_dir: folder of the run (of tokenization: OUT).
        exit_code: exit code of the attempt that ends now, inside its job.
    """
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if exit_code is None:
        if is_complete(run_dir, attempts(attempts_file(run_dir))):
            raise UserError(f"{run_dir}: is complete; raise train.steps and submit anew to go on")
        _refuse_second_job(run_dir)
        last = _last_submission(run_dir)
        script, known = last / "job.sbatch", _read_job(last)
        _note_job(script, _sbatch(script, known.get("folder")), known)
        return 0
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError("--exit_code is for the batch script: there is no SLURM_JOB_ID here")
    history = record(run_dir, exit_code)
    done = is_complete(run_dir, history) if task is None else exit_code == 0
    reason = stop_reason(history, done, counts_steps=task is None, begun=_begun(run_dir))
    with contextlib.suppress(OSError):  # the log's disk is full
        verdict = f"not requeued: {reason}" if reason else "requeued"
        print(f"step {history[-1].step}, exit code {exit_code}: {verdict}", flush=True)
    if reason is None:
        if task is not None:  # one task of an array has the array's own number, which would requeue all tasks
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
        return _slurm("scontrol", "requeue", job).returncode
    if not done:
        print(f"see {diagnose(run_dir, history, reason, task)}", flush=True)
    return 0


def status(run_dir: Path) -> None:
    """Say where a submitted run stands: its job, the step it has reached, its restarts.

    Args:
        run_dir: folder of the run (of tokenization: OUT).
    """
    newest = _last_submission(run_dir)
    job = _read_job(newest)["job"]
    print(f"job        {job} (submission {newest.name}): {_job_state(job) or 'not in the queue'}")
    if (run_dir / "plan.json").is_file():
        print(f"progress   megavrc tokenize_videos status --out={run_dir}")
    else:
        complete = is_complete(run_dir, attempts(attempts_file(run_dir)))
        print(f"step       {saved_step(run_dir)} saved{', complete' if complete else ''}")
    for file in sorted((run_dir / "slurm").glob("attempts*.jsonl")):
        if not (history := attempts(file)):
            continue
        last = history[-1]
        print(
            f"{file.stem:10} {len(history)}, the last on {last.nodes}: step {last.step}, exit code "
            f"{last.exit_code} ({EXIT_CODES.get(last.exit_code, 'see the log')})"
        )
    for file in sorted((run_dir / "slurm").glob("diagnosis*.txt")):
        print(f"stopped    see {file}")


# --- parts -----------------------------------------------------------------------------------------------------


def _understand(command: tuple[str, ...], resources: Resources) -> tuple[Path, list[str], Any]:
    """The run folder, the words to run in the job, and the configuration of a training run."""
    command = command[command[:1] == ("megavrc",) :]
    script = _entry(command[0]) if command else ""
    if script in TRAINING:
        config = _training_config(script, command[1:], resources)
        run_dir = Path(config.run_dir)
        words = [script, f"--config={new_submission(run_dir)}/config.yaml"]
        return run_dir, words, config
    if [script, *command[1:2]] == TOKENIZATION:
        if not resources.array:
            raise UserError("tokenization is an array of tasks: give --array=N")
        return _tokenization_out(command[2:]), [script, *command[1:]], None
    known = ", ".join((*TRAINING, " ".join(TOKENIZATION)))
    raise UserError(f"after `--` comes one of: {known}; not {' '.join(command[:2]) or 'nothing'}")


def _entry(word: str) -> str:
    """The script of a command that jobs can start, named by its path or as `megavrc` knows it."""
    names = {Path(entry).stem: entry for entry in ENTRIES}
    return names.get(word.replace("-", "_"), word.removeprefix("./"))


def _training_config(script: str, options: tuple[str, ...], resources: Resources) -> Any:
    from megavrc.training.tasks.tokenizer_config import TokenizerRunConfig
    from megavrc.training.tasks.vrc_config import RunConfig

    cls: Any = RunConfig if script == TRAINING[0] else TokenizerRunConfig
    config = load_config(cls, list(options))
    train, ranks = config.train, resources.ranks
    if resources.array:
        raise UserError("--array: is for tokenization")
    if train.global_batch % (ranks * train.micro_batch):
        raise UserError(
            f"train.global_batch: {train.global_batch} is not a multiple of {ranks} ranks x train.micro_batch "
            f"{train.micro_batch}"
        )
    return config


def _tokenization_out(options: tuple[str, ...]) -> Path:
    """The folder that its options name; UserError for options that the job would refuse."""
    from megavrc.tokenization.job import run

    try:
        given, _ = options_of(run, "tokenize_videos run").parse(list(options))
    except UserError as error:
        raise UserError(f"tokenize_videos run: {error}") from None
    out: Path = given.out
    return out


def _submitted(run_dir: Path) -> list[Path]:
    """Its submissions that SLURM took, oldest first."""
    return [folder for folder in submissions(run_dir) if (folder / JOB).is_file()]


def _last_submission(run_dir: Path) -> Path:
    if not (known := _submitted(run_dir)):
        raise UserError(f"{run_dir}: was never submitted")
    return known[-1]


def _refuse_second_job(run_dir: Path) -> None:
    for folder in _submitted(run_dir):
        job = _read_job(folder)["job"]
        if state := _job_state(job):
            raise UserError(f"{run_dir}: job {job} is {state}; `scancel {job}` first")


def _read_job(folder: Path) -> dict[str, Any]:
    content = read_object(folder / JOB, {})
    check_format(folder / JOB, content.get("format"), JOB_FORMAT)
    fields: dict[str, Any] = {"job": str, "folder": str | None, "step": int | None}  # the last two are newer
    return check_fields(folder / JOB, content, fields)


def _begun(run_dir: Path) -> int:
    """The step of the checkpoint that the job began with; 0 where that cannot be read."""
    with contextlib.suppress(UserError, OSError):
        return _read_job(_last_submission(run_dir)).get("step") or 0
    return 0


def _job_state(job: str) -> str:
    """Such as RUNNING; empty when SLURM has none that waits or runs. UserError when it does not answer."""
    found = _slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T", check=False)
    if found.returncode and "Invalid job id" not in found.stderr:  # said of jobs that it has forgotten
        raise UserError(f"squeue: does not say whether job {job} is done: {' '.join(found.stderr.split())}")
    return ", ".join(sorted(set(found.stdout.split())))


def _sbatch(script: Path, folder: str | None = None) -> str:
    """SLURM's number of the job. Its paths may be relative to `folder`, where it was submitted first."""
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"{folder}: the job was submitted from there, and it is gone; submit anew")
    return _slurm("sbatch", "--parsable", str(script.resolve()), cwd=folder).stdout.strip().partition(";")[0]


def _note_job(script: Path, job: str, record: dict[str, Any]) -> None:
    now, step = time.time(), saved_step(script.parents[2])
    write_json(script.with_name(JOB), {**record, "format": JOB_FORMAT, "job": job, "step": step, "time": now})
    logs = script.parents[1]
    for file in logs.glob("attempts*.jsonl"):  # a person has looked: count anew
        file.rename(file.with_name(f"{file.name}.{now:.0f}"))
    for file in logs.glob("diagnosis*.txt"):
        file.unlink()
    print(f"submitted job {job}: {script}")
    print(f"to watch: megavrc submit_slurm status --run_dir={script.parents[2]}")


def _slurm(*words: str, check: bool = True, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, cwd=cwd)
    except FileNotFoundError:
        raise UserError(f"there is no {words[0]} here; is this a machine of the SLURM cluster?") from None
    if check and done.returncode:
        raise UserError(f"{' '.join(words)}: {' '.join(done.stderr.split())}")
    return done
