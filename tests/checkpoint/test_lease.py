"""The lease on a run folder, between real processes: one job at a time, takeover of the dead, never of the living."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megavrc.checkpoint import Lease
from megavrc.errors import UserError


class Job:
    """A process that takes the lease, tells what came of it, and holds what it has got."""

    def __init__(self, run_dir: Path, slurm_job: str = "") -> None:
        fork = multiprocessing.get_context("fork")  # importing anew would take most of the time
        self._tells, self._told = fork.Pipe(duplex=False)
        self.process = fork.Process(target=self._hold, args=(run_dir, slurm_job))
        self.process.start()

    def _hold(self, run_dir: Path, slurm_job: str) -> None:
        os.environ["SLURM_JOB_ID"] = slurm_job
        try:
            Lease(run_dir, beat=0.05, stale=0.5)
            self._told.send("holds")
        except UserError as error:
            self._told.send(str(error))
        signal.pause()

    def answer(self) -> str:
        return self._tells.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def disguise(run_dir: Path, **changes: object) -> Path:
    """Make the newest lease look as if another machine held it."""
    path = max((run_dir / "lease").glob("*.json"))
    owner = json.loads(path.read_text()) | {"machine": "elsewhere"} | changes
    path.write_text(json.dumps(owner))
    return path


def test_of_many_simultaneous_starts_exactly_one_proceeds_and_the_others_name_it(tmp_path: Path) -> None:
    jobs = [Job(tmp_path, str(4000 + number)) for number in range(6)]
    answers = [job.answer() for job in jobs]
    assert answers.count("holds") == 1, answers
    owner = answers.index("holds")
    refused = [answer for answer in answers if answer != "holds"]
    assert all(f"in use by process {jobs[owner].process.pid} on " in answer for answer in refused), refused
    assert all(f"SLURM job {4000 + owner}" in answer for answer in refused)
    for job in jobs:
        job.kill()  # without a word
    successors = [Job(tmp_path) for _ in range(6)]
    assert [job.answer() for job in successors].count("holds") == 1
    for job in successors:
        job.kill()
    assert len(list((tmp_path / "lease").iterdir())) == 1


def test_a_file_system_that_links_within_one_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As BeeGFS 7 and AFS do; what killed jobs have left there is no hindrance, and goes."""
    link = os.link

    def within_one_folder(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source))
        link(source, target)

    monkeypatch.setattr(os, "link", within_one_folder)
    (tmp_path / "lease" / ".new-folder").mkdir(parents=True)  # of an earlier version
    (tmp_path / "lease" / ".new-0123").write_text("{")
    lease = Lease(tmp_path)
    assert sorted(os.listdir(tmp_path / "lease")) == [".new-folder", "00000001.json"]
    lease.release()


def test_a_start_whose_file_was_removed_names_the_job_that_holds_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job has taken the run just now, and has removed what it found."""
    link, holders = os.link, []

    def too_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        holders.append(Lease(tmp_path))
        link(source, target)

    monkeypatch.setattr(os, "link", too_late)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        Lease(tmp_path)
    holders[0].release()


def test_a_released_lease_is_free_at_once(tmp_path: Path) -> None:
    for _ in range(3):
        lease = Lease(tmp_path)
        with pytest.raises(UserError, match="choose another run_dir"):
            Lease(tmp_path)
        lease.check()
        lease.release()


def test_a_heartbeat_that_moves_is_alive_and_one_that_stands_still_is_not(tmp_path: Path) -> None:
    holder = Lease(tmp_path, beat=0.05)
    path = disguise(tmp_path)
    for skew in (-7 * 24 * 3600, 0, 3600):  # whatever the times look like, they move
        os.utime(path, (time.time() + skew,) * 2)
        with pytest.raises(UserError, match="in use by"):
            Lease(tmp_path, beat=0.05, stale=5.0 if skew >= 0 else 8 * 24 * 3600.0)
    holder.release()
    disguise(tmp_path, released=False)
    begin = time.monotonic()
    taken = Lease(tmp_path, stale=0.3)
    assert time.monotonic() - begin >= 0.3, "a standing heartbeat is watched first"
    taken.release()
    old = disguise(tmp_path, released=False)
    os.utime(old, (time.time() - 999,) * 2)
    Lease(tmp_path).release()  # long dead: no waiting


def test_who_was_taken_over_notices(tmp_path: Path) -> None:
    suspended = Lease(tmp_path, beat=60)
    os.utime(disguise(tmp_path), (time.time() - 999,) * 2)
    successor = Lease(tmp_path)
    with pytest.raises(UserError, match=f"taken over by process {os.getpid()}"):
        suspended.check()
    suspended.release()
    successor.check()
    successor.release()


def test_a_job_that_slurm_starts_again_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    before = Lease(tmp_path, beat=60)
    disguise(tmp_path)  # it ran on another node
    with pytest.raises(UserError, match="SLURM job 17"):
        _second_job_sees_a_beat(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    Lease(tmp_path, stale=600).release()
    before.release()


def _second_job_sees_a_beat(run_dir: Path) -> None:
    path = max((run_dir / "lease").glob("*.json"))
    beating = subprocess.Popen(
        [sys.executable, "-c", f"import os, time\nwhile True: time.sleep(0.05); os.utime({str(path)!r})"]
    )
    try:
        Lease(run_dir, stale=20)
    finally:
        beating.kill()
        beating.wait()


def test_a_damaged_lease_is_nobody_s_once_it_stands_still(tmp_path: Path) -> None:
    Lease(tmp_path).release()
    max((tmp_path / "lease").glob("*.json")).write_text("{")
    Lease(tmp_path, stale=0.2).release()


def test_a_lease_of_a_newer_format_is_not_taken_over(tmp_path: Path) -> None:
    Lease(tmp_path).release()
    path = disguise(tmp_path, format=2, released=True)
    before = path.read_text()
    with pytest.raises(UserError, match=r"made by a newer megavrc \(format 2, this one reads up to 1\)"):
        Lease(tmp_path)
    assert path.read_text() == before
    disguise(tmp_path, format=1)
    Lease(tmp_path).release()
