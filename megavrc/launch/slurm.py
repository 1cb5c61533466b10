"""The sbatch script of a job that is stopped and started until it is done.

The folder of a submission, `RUN/slurm/N`, holds the script, the code and the configuration as they were: nothing that
is edited afterwards reaches a queued job.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from megavrc.errors import UserError
from megavrc.files import named_path

GPU_SETTINGS = """\
export TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_FR_BUFFER_SIZE=2000 # a hung collective leaves a record of all ranks
export TRITON_CACHE_DIR=${TMPDIR:-/tmp}/triton-$SLURM_JOB_ID # on the node's own disk, not shared
"""

TEMPLATE = """\
#!/bin/bash
{directives}
# Rendered by megavrc submit_slurm. SLURM sends USR1 {grace} s before the time limit; the trap hands it on and
# {on_signal}. Then `requeue` puts the job back into the queue,
# unless it is done, wrong, or failing without progress.
set -uo pipefail
here=$(realpath {here})
{setup}export PYTHONPATH=$here/code${{PYTHONPATH:+:$PYTHONPATH}} PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun forgets it since 22.05
export MEGAVRC_MISTAKE=$here/mistake
rm -f "$MEGAVRC_MISTAKE"
{gpu_settings}trap 'kill -USR1 "$step"' USR1
srun --kill-on-bad-exit=1 --wait=60 {command} &
step=$!
while :; do # a trapped signal ends `wait`, not the step
    wait "$step"
    code=$?
    kill -0 "$step" 2> /dev/null || break
done
[ -e "$MEGAVRC_MISTAKE" ] && code=2 # of one rank; srun has the highest of all codes, that of a rank that it killed
{python} "$here/code/tools/submit_slurm.py" requeue --run_dir={run_dir} --exit_code="$code" || exit
exit "$code"
"""


@dataclass(frozen=True)
class Resources:
    """The resources that a job asks SLURM for.

    Attributes:
        nodes: number of machines.
        gpus: GPUs of each node; 0 trains on CPUs.
        tasks: processes on each node (default: one a GPU, or one).
        cpus: cores of each process (default: SLURM's).
        mem: memory of a node, such as 200G; 0 is all of it (default: SLURM's).
        time: time limit of one attempt, such as 24:00:00 (default: the partition's).
        partition: partition of the cluster, as of sbatch.
        array: tokenization only: array tasks that share the work.
        grace: seconds before the time limit at which the job gets the signal to save and stop.
        name: name of the job (default: from the run folder).
        setup: shell lines to run first, such as "module load cuda; source .venv/bin/activate".
        python: the interpreter (default: the one that submits).
        sbatch: more options of sbatch, such as "--account=A --qos=Q --exclusive --mail-type=FAIL".
    """

    nodes: int = 1
    gpus: int = 0
    tasks: int = 0
    cpus: int = 0
    mem: str = ""
    time: str = ""
    partition: str = ""
    array: int = 0
    grace: int = 600
    name: str = ""
    setup: str = ""
    python: str = sys.executable
    sbatch: str = ""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus", "tasks", "cpus", "array", "grace"):
            if getattr(self, name) < (name == "nodes"):
                raise UserError(f"--{name}: {getattr(self, name)} is too small")
        if self.grace >= _seconds(self.time):  # SLURM would signal a job as soon as it starts
            raise UserError(
                f"--grace: {self.grace} seconds before the end of --time {self.time} are before its begin; give a "
                "smaller --grace or a longer --time"
            )

    @property
    def tasks_per_node(self) -> int:
        return self.tasks or self.gpus or 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    def directives(self, run_dir: Path) -> Iterator[str]:
        """Options of sbatch."""
        yield f"--job-name={self.name or '-'.join(named_path(run_dir).parts[-2:])}"
        yield f"--nodes={self.nodes}"
        yield f"--ntasks-per-node={self.tasks_per_node}"
        for option, value in {
            "gpus-per-node": self.gpus,
            "cpus-per-task": self.cpus,
            "mem": self.mem,
            "time": self.time,
            "partition": self.partition,
        }.items():
            if value:
                yield f"--{option}={value}"
        if self.array:
            yield f"--array=0-{self.array - 1}"
        yield "--requeue"
        yield "--open-mode=append"
        yield f"--signal=B:USR1@{self.grace}"
        folder = str(run_dir).replace("%", "%%")  # SLURM's own patterns begin so
        yield f"--output={folder}/slurm/{'%A_%a' if self.array else '%j'}.out"
        try:
            yield from shlex.split(self.sbatch)
        except ValueError as error:
            raise UserError(f"--sbatch {self.sbatch!r}: {error}") from None


def render_script(words: list[str], run_dir: Path, here: Path, resources: Resources) -> str:
    """The text of a job's script.

    Args:
        words: the command: a script of the repository and its options.
        run_dir: folder of the run, or of the tokenization job.
        here: folder of this submission, with `code/`.
        resources: what it asks for.

    Raises:
        UserError: the folder has a name that SLURM or PYTHONPATH cannot carry.
    """
    if odd := re.search(r"[\x00-\x1f\x7f\\:]", str(run_dir)):
        raise UserError(
            f"{str(run_dir)!r}: a job's folder cannot have {odd[0]!r} in its name; choose another one"
        )
    script, *options = words
    command = " ".join(
        [shlex.quote(resources.python), f'"$here/code/{script}"', *(shlex.quote(word) for word in options)]
    )
    return TEMPLATE.format(
        directives="\n".join(f"#SBATCH {_quoted(option)}" for option in resources.directives(run_dir)),
        grace=resources.grace,
        on_signal="tokenization stops" if resources.array else "all ranks save after the same step and stop",
        here=shlex.quote(str(here)),
        setup=f"{resources.setup}\n" if resources.setup else "",
        gpu_settings=GPU_SETTINGS if resources.gpus else "",
        command=command,
        python=shlex.quote(resources.python),
        run_dir=shlex.quote(str(run_dir)),
    )


def _seconds(time: str) -> float:
    """A time limit of SLURM: minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]]; infinite for
    what is none, and for 0."""
    found = re.fullmatch(r"(\d+-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        return inf
    parts = [int(part) for part in found.groups()[1:] if part]
    if not found[1] and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    days = int((found[1] or "0-")[:-1])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds or inf


def _quoted(option: str) -> str:
    """As sbatch reads it: blanks, quotes and # count only in quotes, a backslash takes the next character as it is."""
    if re.fullmatch(r"[\w@%+=:,./-]*", option):
        return option
    if "\n" in option:
        raise UserError(f"{option!r}: an option of sbatch is one line; take the line feed out")
    return '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def new_submission(run_dir: Path) -> Path:
    """The folder of the next submission of a run, not made yet."""
    known = submissions(run_dir)
    return run_dir / "slurm" / str(int(known[-1].name) + 1 if known else 1)


def submissions(run_dir: Path) -> list[Path]:
    """Folders of the submissions of a run, oldest first."""
    folders = [path for path in (run_dir / "slurm").glob("*") if path.name.isdecimal()]
    return sorted(folders, key=lambda path: int(path.name))
