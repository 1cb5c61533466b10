"""Jobs on a real SLURM: whatever ends a stay on the nodes, the job comes back and ends as if nothing had happened."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster import Cluster, missing, processes, running_cluster, wait_for
from runs import PRETRAIN, ROOT, launch, make_tokens, metrics, weights, write_config

from megavrc.launch.requeue import attempts, attempts_file

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

STEPS = 150


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset of all runs."""
    folder = tmp_path_factory.mktemp("data")
    make_tokens(folder / "tokens")
    return folder


@pytest.fixture(scope="module")
def reference(data: Path) -> Path:
    """Two ranks that nothing disturbed, beside their data."""
    config = write_config(data, data / "tokens", "run", STEPS)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = launch("python", *torchrun, PRETRAIN, f"--config={config}")
    assert done.returncode == 0, done.stderr
    return data


@dataclass
class Job:
    """A submitted training of two ranks on two nodes."""

    cluster: Cluster
    run: Path
    number: str

    def tool(self, *words: str) -> str:
        return tool(self.cluster, *words)

    def reach(self, more: int = 5) -> int:
        """Wait until the current stay has made some steps; returns the last one."""
        start = self.step
        wait_for(f"{more} more steps of {self.run}", lambda: self.step >= start + more)
        return self.step

    @property
    def step(self) -> int:
        return int(metrics(self.run)[-1]["step"]) if metrics(self.run) else 0

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.run / "slurm").glob("*.out")))

    def codes(self) -> list[int]:
        return [attempt.exit_code for attempt in attempts(attempts_file(self.run))]

    def wait_complete(self, seconds: float = 600) -> None:
        try:
            wait_for("complete.json", (self.run / "complete.json").exists, seconds)
            wait_for("the job's end", lambda: self.state() == "COMPLETED", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-4000:]}") from None

    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    def ranks_on(self, node: str) -> list[int]:
        """Process numbers of the training on a node (both are this machine)."""
        found = processes(f"SLURM_JOB_ID={self.number}", PRETRAIN)
        return [number for number, environ in found if f"SLURMD_NODENAME={node}" in environ]

    def check_against(self, reference: Path, steps: int = STEPS) -> None:
        """Every step once and in order, and the very weights, moments and statistics."""
        assert [line["step"] for line in metrics(self.run)] == list(range(1, steps + 1))
        ours, theirs = weights(self.run, steps), weights(reference / "run", steps)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def tool(cluster: Cluster, *words: str) -> str:
    """tools/submit_slurm.py; its jobs inherit the environment."""
    environment = ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1"]
    script = ROOT / "tools" / "submit_slurm.py"
    return cluster.run(*environment, sys.executable, script, *words, cwd=ROOT)


def submit(cluster: Cluster, data: Path, folder: Path, *options: str, **train: Any) -> Job:
    config = write_config(folder, data / "tokens", "run", **{"steps": STEPS, **train})
    setup = "export MASTER_ADDR=127.0.0.1"  # the names n1 and n2 do not resolve
    tool(cluster, "submit", "--nodes=2", f"--setup={setup}", *options, "--", PRETRAIN, f"--config={config}")
    config.write_text("edited: afterwards")  # what is queued does not change
    job = json.loads((folder / "run" / "slurm" / "1" / "job.json").read_text())["job"]
    return Job(cluster, folder / "run", job)


@pytest.mark.slow  # test_slurm_arrays.py has jobs that come back among the fast tests
def test_a_stopped_and_a_killed_job_come_back_and_finish(
    cluster: Cluster, reference: Path, tmp_path: Path
) -> None:
    job = submit(cluster, reference, tmp_path)
    stopped = job.reach()
    cluster.run("scancel", "--signal=USR1", job.number)
    wait_for("the first attempt's end", job.codes)
    assert job.codes() == [0] and attempts(attempts_file(job.run))[0].step >= stopped
    job.reach(25)  # beyond the next checkpoint
    os.kill(job.ranks_on("n2")[0], signal.SIGKILL)
    job.wait_complete()
    assert len(job.codes()) == 3 and job.codes()[1] not in (0, 2) and job.codes()[2] == 0
    job.check_against(reference)
    started = json.loads((job.run / "run.json").read_text())["starts"]
    assert {start["command"][0] for start in started} == {f"{job.run}/slurm/1/code/{PRETRAIN}"}
    shown = job.tool("status", f"--run_dir={job.run}")
    assert f"step       {STEPS} saved, complete" in shown and "attempts   3" in shown


def test_any_name_of_a_run_folder(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    """Blanks, quotes, # and SLURM's own patterns; no training is needed to see that."""
    name = 'my run\'s "x" #1 %j 50% é'
    config = write_config(tmp_path, data / "tokens", name, 5)
    words = [
        "--nodes=2",
        "--sbatch=--comment='a b'",
        "--python=/bin/true",
        "--",
        PRETRAIN,
        f"--config={config}",
    ]
    tool(cluster, "submit", *words)
    [folder] = (tmp_path / name / "slurm").glob("1")
    number = json.loads((folder / "job.json").read_text())["job"]
    wait_for("its log", (tmp_path / name / "slurm" / f"{number}.out").exists, 60)
    assert "Comment=a b" in cluster.run("scontrol", "show", "job", number)
    wait_for("its end", lambda: cluster.job(number)["JobState"] == "COMPLETED", 60)


def test_an_early_mistake_of_one_rank_is_not_run_again(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    """Before there are heartbeats; of the codes of all ranks srun returns that of the other, which it kills."""
    python = tmp_path / "python"
    mistaken = '[ "${SLURM_PROCID:-0}" = 1 ] && set -- "$@" --train.stepz=1'
    python.write_text(f'#!/bin/sh\n{mistaken}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = submit(cluster, data, tmp_path, f"--python={python}")
    wait_for("the job's end", lambda: job.state() == "FAILED", 120)
    assert job.codes() == [2]
    assert "stepz" in (job.run / "slurm" / "diagnosis.txt").read_text()


@pytest.mark.slow
def test_preemption(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    job = submit(cluster, reference, tmp_path)
    job.reach()
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--ntasks-per-node=4", "--exclusive"]
    other = cluster.run(*urgent, "--wrap=sleep 3", f"--output={tmp_path}/urgent.out").strip()
    wait_for("the urgent job", lambda: cluster.job(other)["JobState"] in ("RUNNING", "COMPLETED"))
    assert not (job.run / "complete.json").exists()
    job.wait_complete()
    assert cluster.job(other)["JobState"] == "COMPLETED"
    assert cluster.job(job.number)["Restarts"] == "1"
    job.check_against(reference)


@pytest.mark.slow
def test_the_time_limit(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    """SLURM looks at limits now and then only, so the signal may come up to a minute early: at once, here."""
    steps = _steps_of(seconds=150, reference=reference)
    job = submit(cluster, reference, tmp_path, "--time=00:03:00", "--grace=60", steps=steps)
    job.wait_complete(1200)
    assert int(cluster.job(job.number)["Restarts"]) >= 1 and set(job.codes()) <= {0, 138}
    config = write_config(tmp_path, reference / "tokens", "undisturbed", steps)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert launch("python", *torchrun, PRETRAIN, f"--config={config}").returncode == 0
    (tmp_path / "whole").mkdir()
    (tmp_path / "undisturbed").rename(tmp_path / "whole" / "run")
    job.check_against(tmp_path / "whole", steps)


def _steps_of(seconds: float, reference: Path) -> int:
    lines = metrics(reference / "run")
    return int(seconds * (len(lines) - 1) / (lines[-1]["time"] - lines[0]["time"]))


@pytest.mark.slow
def test_a_node_dies(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    """The processes of node n2, its daemon included, end without a word. SLURM itself requeues the job."""
    job = submit(cluster, reference, tmp_path)
    job.reach(25)
    rank = job.ranks_on("n2")[0]
    step_daemon = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    cluster.daemons["n2"].kill()
    for process in (step_daemon, rank):
        os.kill(process, signal.SIGKILL)
    cluster.daemons["n2"].wait()
    wait_for("the job's requeue", lambda: job.state() not in ("RUNNING", "COMPLETING"))
    cluster.start_node("n2")
    job.wait_complete()
    job.check_against(reference)


@pytest.mark.slow
def test_a_hang_and_then_an_end_that_was_another_one(
    cluster: Cluster, reference: Path, tmp_path: Path
) -> None:
    """The first stay of both jobs fails; that of the second before it has removed the complete.json of the first."""
    setup = "--setup=export MASTER_ADDR=127.0.0.1; [ ${SLURM_RESTART_COUNT:-0} = 0 ] && export "
    hang = f"{setup} MEGAVRC_FAULT=backward:1:25:sleep:1000"
    job = submit(cluster, reference, tmp_path, hang, watchdog_s=10.0)
    job.wait_complete()
    assert len(job.codes()) == 2 and job.codes()[0] not in (0, 2), "85, or of a rank that srun killed then"
    assert "all ranks exit with code 85" in job.log() and "HOLDS UP THE OTHERS" in job.log()
    job.check_against(reference)
    config = write_config(tmp_path, reference / "tokens", "run", STEPS + 20)
    words = ["--nodes=2", f"{setup} MEGAVRC_FAULT=backward:*:*:raise", "--", PRETRAIN, f"--config={config}"]
    job.tool("submit", *words)
    number = json.loads((job.run / "slurm" / "2" / "job.json").read_text())["job"]
    more = Job(cluster, job.run, number)
    wait_for("the job's end", lambda: more.state() == "COMPLETED", 240)
    assert len(more.codes()) == 2 and more.codes()[0] not in (0, 2) and more.step == STEPS + 20


@pytest.mark.slow
def test_a_crash_loop_ends_with_a_diagnosis(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    setup = "--setup=export MASTER_ADDR=127.0.0.1 MEGAVRC_FAULT=backward:*:*:raise"
    job = submit(cluster, reference, tmp_path, setup)
    diagnosis = job.run / "slurm" / "diagnosis.txt"
    wait_for("the diagnosis", diagnosis.is_file, 240)
    wait_for("the job's end", lambda: job.state() == "FAILED", 30)
    assert len(job.codes()) == 3 and 0 not in job.codes()
    text = diagnosis.read_text()
    assert "3 attempts in a row made no progress" in text and "FaultError" in text
    job.tool("requeue", f"--run_dir={job.run}")
    number = json.loads((job.run / "slurm" / "1" / "job.json").read_text())["job"]
    assert number != job.number and not diagnosis.exists() and job.codes() == []
    cluster.run("scancel", number)


@pytest.mark.slow
def test_a_mistake_is_not_run_again(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    job = submit(cluster, reference, tmp_path, **{"workers": 0, "steps": 2})
    job.wait_complete()
    (job.run / "complete.json").unlink()
    tokens = tmp_path / "other"
    make_tokens(tokens, count=8)
    config = write_config(tmp_path, tokens, "run", 2)  # other data in the folder of this run
    again = ["--nodes=2", "--setup=export MASTER_ADDR=127.0.0.1", "--", PRETRAIN, f"--config={config}"]
    job.tool("submit", *again)
    number = json.loads((job.run / "slurm" / "2" / "job.json").read_text())["job"]
    wait_for("the job's end", lambda: cluster.job(number)["JobState"] == "FAILED", 60)
    assert "holds another run" in (job.run / "slurm" / "diagnosis.txt").read_text()
    assert job.codes()[-1] == 2


@pytest.mark.slow
def test_a_damaged_sample_is_a_mistake_too(cluster: Cluster, tmp_path: Path) -> None:
    """One rank meets it and exits with 2; srun may report the code of the other, which it kills."""
    tar = next(make_tokens(tmp_path / "tokens").rglob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[content.index(b"\x93NUMPY") + 150] ^= 1
    tar.write_bytes(content)
    job = submit(cluster, tmp_path, tmp_path)
    wait_for("the job's end", lambda: job.state() == "FAILED", 240)
    assert job.codes() == [2]
    text = (job.run / "slurm" / "diagnosis.txt").read_text()
    assert "the user's mistake" in text and "crc32 does not fit" in text


@pytest.mark.slow
def test_a_cancelled_job_stays_away(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    job = submit(cluster, reference, tmp_path)
    job.reach()
    cluster.run("scancel", job.number)
    wait_for("its end", lambda: job.state() == "CANCELLED", 60)
    time.sleep(8)  # longer than a requeued job waits here
    assert job.state() == "CANCELLED"
