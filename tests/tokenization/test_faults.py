"""Processes that are killed, files that hang or vanish, disks that are full: nothing is lost, doubled or torn."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
from held import Held
from jobs import ROOT, SMALL, files, start, tokenize

from megavrc.data.shards import ShardWriter
from megavrc.files import write_atomic
from megavrc.tokenization.job import plan, run
from megavrc.tokenization.result import finalize, status, verify


def planned(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "plan.jsonl").read_text().splitlines()]


def failures(out: Path) -> dict[str, tuple[str, str]]:
    lines = [line for path in (out / "failures").glob("*") for line in path.read_text().splitlines()]
    return {(line := json.loads(text))["source"]: (line["stage"], line["reason"]) for text in lines}


def done_files(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.done.json")}


@contextmanager
def absent(path: Path) -> Iterator[None]:
    aside = path.rename(path.with_suffix(".aside"))
    try:
        yield
    finally:
        aside.rename(path)


def running(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(of) == group and state != "Z":
            found.append(int(entry.name))
    return found


def test_what_may_work_another_time_is_done_again(
    done: Path, manifest: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One video hangs, one is away; the rest of the job goes on, and a later run mends their shards alone."""
    plan(manifest, tmp_path, tokenizer, **SMALL)
    first, second = [entry["path"] for entry in planned(tmp_path) if entry["shard"] == 1][:2]
    with Held(manifest.parent / first), absent(manifest.parent / second):
        run(tmp_path, timeout=2)
    finalize(tmp_path)
    found = failures(tmp_path)
    assert found[first] == ("timeout", "not decoded within 2 s")
    assert found[second] == ("io", "No such file or directory")
    status(tmp_path)
    assert "2 of them may work another time: run --retry-failed" in capsys.readouterr().out
    before = done_files(tmp_path)
    run(tmp_path)  # without being asked nothing is done again
    assert done_files(tmp_path) == before
    run(tmp_path, retry_failed=True)
    finalize(tmp_path)
    changed = {path.name for path, time_ns in done_files(tmp_path).items() if before[path] != time_ns}
    assert changed == {"train-000001-of-000003.tar.done.json"}
    assert files(tmp_path) == files(done)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_decoder_that_dies(
    deaths: int, done: Path, manifest: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Once is no fault of the video; twice is recorded, and the job goes on."""
    plan(manifest, tmp_path, tokenizer, **SMALL)
    victim = next(entry["path"] for entry in planned(tmp_path) if entry["shard"] == 1)

    path = manifest.parent / victim
    copy = Path(shutil.copy(path, tmp_path))

    def kill() -> None:
        decoder = None
        for _ in range(deaths):
            held.wait_for_opener()
            if deaths == 1:  # the next one finds the video
                copy.rename(path)
            decoder = next_decoder(decoder)
            os.kill(decoder.pid or 0, signal.SIGSEGV)
            wait([decoder.sentinel])  # join() would take the exit code away from the job

    killer = threading.Thread(target=kill)
    with Held(path) as held:
        killer.start()
        run(tmp_path, decoders=1)
        killer.join()
    finalize(tmp_path)
    if deaths == 1:
        assert files(tmp_path) == files(done)
    else:
        assert failures(tmp_path)[victim] == ("crash", "the decoding process died twice (exit code -11)")
        assert len(failures(tmp_path)) == 3


def next_decoder(last: Any) -> Any:
    """The decoding process, as soon as it is another one."""
    for _ in range(600):
        if found := [process for process in multiprocessing.active_children() if process is not last]:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no decoder was started again")


def test_decoders_end_with_their_job(manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    plan(manifest, tmp_path, tokenizer, **SMALL)
    with Held(manifest.parent / planned(tmp_path)[0]["path"]) as held:
        job = start("run", "--out", tmp_path, start_new_session=True)
        held.wait_for_opener()
        assert len(running(job.pid)) >= 3  # the job, the server, a decoder
        job.kill()
        job.wait()
        for _ in range(100):
            if not running(job.pid):
                break
            time.sleep(0.1)
        assert running(job.pid) == []


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))


@contextmanager
def tiny_disk(folder: Path) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=112k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refused(out: Path, message: str, **options: Any) -> None:
    job = start("run", "--out", out, stderr=subprocess.PIPE, **options)
    errors = job.communicate(timeout=120)[1].splitlines()
    assert job.returncode == 2
    assert [line for line in errors if not line.startswith("tokenize: ")] == [errors[-1]]
    assert errors[-1].startswith(f"error: {out}") and message in errors[-1]
    assert "run the same command again" in errors[-1]
    assert [path for path in out.rglob("*") if path.name.endswith(".tmp")] == []
    for tar in out.rglob("*.tar"):
        assert tar.with_name(f"{tar.name}.done.json").exists() or tar.stat().st_size % 512 == 0


def test_a_file_size_limit(done: Path, manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    plan(manifest, tmp_path, tokenizer, **SMALL)
    refused(tmp_path, "File too large", preexec_fn=limited)
    run(tmp_path)
    finalize(tmp_path)
    assert files(tmp_path) == files(done)


def test_a_full_disk(done: Path, manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    with tiny_disk(tmp_path):
        plan(manifest, tmp_path, tokenizer, **SMALL)
        refused(tmp_path, "No space left on device")
        assert len(done_files(tmp_path)) >= 2  # some shards are done and stay
        subprocess.run(["mount", "-o", "remount,size=10m", str(tmp_path)], check=True)
        run(tmp_path)
        finalize(tmp_path)
        assert files(tmp_path) == files(done)


@pytest.fixture(scope="module")
def long_job(manifest: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenize(manifest, tokenizer, tmp_path_factory.mktemp("long") / "out", **LONG)


LONG = {"clips_per_shard": 1, "images_per_video": 9}  # many shards: many moments to be killed at


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_random_kills(tasks: int, long_job: Path, manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Tasks and their decoders are killed at random moments and started again."""
    rng = random.Random(tasks)
    plan(manifest, tmp_path, tokenizer, **{**SMALL, **LONG})
    jobs: dict[int, subprocess.Popen[str]] = {}
    for _ in range(8):
        for task in range(tasks):
            if task not in jobs or jobs[task].poll() not in (None, 0):
                words = ("run", "--out", tmp_path, "--task", task, "--of", tasks, "--decoders", 2)
                jobs[task] = start(*words, start_new_session=True)
        alive = [job for job in jobs.values() if job.poll() is None]
        if not alive:
            break
        victim = rng.choice(alive)
        before = len(done_files(tmp_path))
        while victim.poll() is None and len(done_files(tmp_path)) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        group = running(victim.pid)
        if group and rng.random() < 0.3:
            os.kill(rng.choice(group), signal.SIGKILL)  # the task, the server or a decoder
        else:
            victim.kill()
            victim.wait()
    for task in range(tasks):
        jobs[task].wait(timeout=120)
        assert start("run", "--out", tmp_path, "--task", task, "--of", tasks).wait(timeout=120) == 0
    finalize(tmp_path)
    assert files(tmp_path) == files(long_job)


AT_RENAME = """
import os, signal, sys
from pathlib import Path
from megavrc.tokenization.job import run
replace, left = os.replace, [int(sys.argv[2])]
def dying(*names):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = dying
run(Path(sys.argv[1]), retry_failed=True)
"""


@pytest.mark.slow
def test_killed_at_every_rename(manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    """A shard that lacks a video is replaced; killed at any step, it is either the old one or not done."""
    one = {"clips_per_shard": 16}
    expected = files(tokenize(manifest, tokenizer, tmp_path / "expected", **one))
    for renames in range(20):
        out = tmp_path / str(renames)
        plan(manifest, out, tokenizer, **{**SMALL, **one})
        with absent(manifest.parent / "a/02.mp4"):
            run(out)
        command = [sys.executable, "-c", AT_RENAME, str(out), str(renames)]
        code = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
        assert code in (-signal.SIGKILL, 0)
        run(out)
        finalize(out)
        verify(out)
        run(out, retry_failed=True)
        finalize(out)
        assert files(out) == expected
        if code == 0:
            break
    assert renames == 7  # failures; tar, index, done file of both kinds


def test_finalizing_removes_what_killed_tasks_left_and_nothing_of_the_user(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    for place in (out, out / "video", out / "video" / "shards", out / "failures"):
        (place / ".ipynb_checkpoints").mkdir(parents=True)
        for name in (".gitignore", ".env", ".eslintrc.json.disabled"):
            (place / name).write_text("precious")
    before = files(out)
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *paths: None)  # as if killed just before
        written = [out / name for name in before if not Path(name).name.startswith(".")]
        for path in [*written, *done_files(out)]:
            write_atomic(path, b"half")
    ShardWriter(out / "video" / "shards" / "train-000000-of-000003.tar", (1, 2, 2), 8)._file.close()
    assert len(files(out)) == len(before) + len(written) + len(done_files(out)) + 1
    finalize(out, samples=0)
    proof = ("video/dataset.json", "image/dataset.json")  # not compared this time
    assert {name: text for name, text in files(out).items() if name not in proof} == {
        name: text for name, text in before.items() if name not in proof
    }
