"""One command of the study's runner: it is stopped by SIGTERM, suspended while others work, and never outlives it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import others
import pytest

from megavrc.paper import child

COUNT = (
    "import pathlib, signal, sys, time\n"
    "def end(*_):\n"
    "    pathlib.Path('saved').touch()\n"
    "    sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "for number in range(int(sys.argv[1])):\n"
    "    pathlib.Path('count').write_text(str(number))\n"
    "    time.sleep(0.02)\n"
)


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


def run(folder: Path, numbers: int, stop: threading.Event, busy: Callable[[int], str]) -> child.Ended:
    return child.run_child(
        [sys.executable, "-c", COUNT, str(numbers)], folder, {}, folder / "log", stop, busy
    )


def test_a_stop_is_a_sigterm_that_the_command_may_answer(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Thread(target=lambda: (wait_for((tmp_path / "count").exists), stop.set())).start()
    ended = run(tmp_path, 10**6, stop, lambda _: "")
    assert ended.stopped and ended.code == 0 and (tmp_path / "saved").exists()


def test_a_command_stands_still_while_there_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "LOOK", 0.3)
    counts: list[str] = []

    def busy(session: int) -> str:
        if not (tmp_path / "count").exists():
            return ""
        counts.append((tmp_path / "count").read_text())
        return "tests" if len(counts) < 4 else ""

    ended = run(tmp_path, 60, threading.Event(), busy)
    assert len(set(counts[1:4])) == 1, "it counts on while suspended"
    assert (ended.code, (tmp_path / "count").read_text()) == (0, "59")
    assert ended.paused > 0.8 and ended.seconds > 60 * 0.02, "a pause is no time of the run"


def test_a_suspended_command_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LOOK", 0.1)
    stop = threading.Event()

    def busy(session: int) -> str:
        if not (tmp_path / "count").exists():
            return ""
        threading.Timer(0.5, stop.set).start()
        return "tests"

    ended = run(tmp_path, 10**6, stop, busy)
    assert ended.stopped and ended.code == 0 and (tmp_path / "saved").exists()


def test_a_command_dies_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    """Also a suspended one: nothing would ever continue it, and it would hold its run."""
    script = (
        "import sys, threading\nfrom pathlib import Path\nfrom megavrc.paper import child\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "child.LOOK = 0.1\n"
        f"child.run_child([sys.executable, '-c', {COUNT!r}, '1000000'], folder, {{}}, folder / 'log',\n"
        "    threading.Event(), lambda session: (folder / 'session').write_text(str(session)) and 'tests')\n"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(Path(child.__file__).parents[2])}
    )
    wait_for(lambda: (tmp_path / "session").exists() and (tmp_path / "session").read_text())
    session = int((tmp_path / "session").read_text())
    stat = Path(f"/proc/{session}/stat")
    wait_for(lambda: others._status(session)[0] == "T")
    runner.kill()
    runner.wait()
    wait_for(lambda: not stat.exists() or others._status(session)[0] in "ZX")


@pytest.mark.parametrize(
    "line",
    [
        "python -m pytest -n 0 tests/study",
        "/venv/bin/python3.11 -u -m pytest",
        "/venv/bin/pytest tests",
        "python /venv/bin/pytest tests",
        "python tools/benchmark.py generate --preset b",
        "python /home/me/megavrc/benchmarks/faults.py --json x.json",
        "python -m megavrc.benchmarks.train_case",
    ],
)
def test_tests_and_benchmarks_are_known(line: str) -> None:
    assert others.is_test_or_benchmark(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "python benchmarks/study/run.py run --work w",
        "python benchmarks/study/measure.py bits",
        "python pretrain/pretrain_vrc.py --config=c.yaml",
        "python -m megavrc evaluate speed benchmark",
        "python",
        "bash -c pytest",
        "grep -r pytest .",
        "vim tools/benchmark.py",
        "python tools/evaluate.py speed pytest",
    ],
)
def test_other_commands_are_not(line: str) -> None:
    assert not others.is_test_or_benchmark(line.split(" "))


def test_others_are_seen_unless_they_are_ours_or_stand_still(tmp_path: Path) -> None:
    script = tmp_path / "benchmarks" / "wait.py"
    script.parent.mkdir()
    script.write_text("import time\nprint(1, flush=True)\ntime.sleep(100)\n")

    def seen(session: int = -1) -> set[int]:
        return {int(text.split()[1].rstrip(":")) for text in others.tests_and_benchmarks(session)}

    words = [sys.executable, str(script)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as other:
        assert other.stdout and other.stdout.readline() == b"1\n"
        assert other.pid in seen() and other.pid not in seen(session=other.pid)
        other.send_signal(signal.SIGSTOP)
        wait_for(lambda: others._status(other.pid)[0] == "T")
        assert other.pid not in seen()
        other.kill()
    assert os.getpid() not in seen(), "it has started us"


def test_a_file_says_that_others_are_at_work(tmp_path: Path) -> None:
    (tmp_path / "pause").touch()
    assert others.others_at_work(-1, tmp_path / "pause") == f"{tmp_path / 'pause'} is there"
