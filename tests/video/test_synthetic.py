"""What holds of every command that makes a set of clips: it may be killed."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megavrc.errors import UserError
from megavrc.video.synthetic import _spread

ROOT = Path(__file__).parents[2]
NEEDS_VIZDOOM = pytest.mark.skipif(
    importlib.util.find_spec("vizdoom") is None, reason='needs vizdoom (39 MB): pip install -e ".[study]"'
)


def start(tool: str, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a command; OUT is in the environment of every process that it starts."""
    command = [sys.executable, str(ROOT / "tools" / tool), f"--out={out}", *options]
    with open(out.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "SET": str(out)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def running(out: Path) -> list[int]:
    """Processes of a command that was started with OUT."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SET={out}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


@pytest.mark.parametrize(
    "tool, options, number, alone",
    [
        ("make_shapes.py", ["--clips=200", "--val=0"], signal.SIGKILL, True),
        pytest.param(
            "make_gameplay.py",
            ["--clips=40", "--val=0", "--test=0"],
            signal.SIGINT,
            False,
            marks=NEEDS_VIZDOOM,
        ),  # Ctrl-C, which the engine would see too
    ],
    ids=["shapes", "gameplay"],
)
def test_a_killed_command_leaves_no_process_and_goes_on_where_it_was(
    tmp_path: Path, tool: str, options: list[str], number: int, alone: bool
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = start(tool, killed, *options)
    while not list(killed.glob("videos/train-*.mp4")):
        assert command.poll() is None, killed.with_suffix(".log").read_text()
        time.sleep(0.02)
    assert len(running(killed)) >= 3
    os.kill(command.pid, number) if alone else os.killpg(command.pid, number)
    command.wait()
    assert not (killed / "manifest.jsonl").exists()
    deadline = time.monotonic() + 60
    while left := running(killed):  # the processes notice that nobody reads their results
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    for out, processes in ((killed, 2), (whole, 1)):
        assert start(tool, out, *options, f"--processes={processes}").wait() == 0
    for path in [whole / "manifest.jsonl", *sorted((whole / "videos").iterdir())]:
        assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def work(job: int) -> int:
    if job == 7:
        raise UserError(f"job {job}")
    if job == 8:
        os._exit(1)
    return 2 * job


def test_work_is_spread_over_processes() -> None:
    assert list(_spread(work, range(7), 3)) == [0, 2, 4, 6, 8, 10, 12]
    assert list(_spread(work, [], 2)) == [] and list(_spread(work, [1], 2)) == [2]
    with pytest.raises(UserError, match="job 7"):
        list(_spread(work, range(6, 100), 2))
    with pytest.raises(RuntimeError, match="the same command goes on"):
        list(_spread(work, [8, 9], 2))
