"""One command of the matrix: it ends with its runner, and stands still while others need the machine. Linux only.

A child is a session of its own, so that it is stopped and continued with all its processes.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from re import search

LOOK = 5.0  # seconds between looks at what else runs here
PATIENCE = 600.0  # seconds that a stopped command gets to save
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

_libc = ctypes.CDLL(None)


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative: the signal.
        stopped: the runner was asked to stop meanwhile.
        seconds: by the clock, without pauses. paused: the rest. cpu_seconds: of all its processes.
    """

    code: int
    stopped: bool
    seconds: float
    paused: float
    cpu_seconds: float


def run_child(
    words: list[str],
    folder: Path,
    environment: dict[str, str],
    log: Path,
    stop: threading.Event,
    busy: Callable[[int], str],
) -> Ended:
    """Run a command to its end, or to a stop.

    Args:
        words: the command line. folder: it runs in.
        environment: variables beside the runner's own.
        log: file that gets its output at the end.
        stop: set when the runner is to stop: the command gets SIGTERM.
        busy: called with the session's number every few seconds; while it gives a reason, the command is suspended.
    """
    before, start = _cpu_seconds(), time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        child = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: _libc.prctl(DIES_WITH_PARENT, signal.SIGKILL),
        )
    paused, since, looked = 0.0, 0.0, 0.0
    while child.poll() is None and not stop.wait(0.2):
        now = time.monotonic()
        if now - looked < LOOK:
            continue
        looked, reason = now, busy(child.pid)
        if reason and not since:
            print(f"  paused: {reason}", flush=True)
            _signal(child, signal.SIGSTOP)
            since = now
        elif since and not reason:
            print(f"  goes on after {now - since:.0f} s", flush=True)
            _signal(child, signal.SIGCONT)
            paused, since = paused + now - since, 0.0
    if since:
        paused += time.monotonic() - since
    stopped = child.poll() is None
    if stopped:
        _stop(child)
    seconds = time.monotonic() - start - paused
    return Ended(child.returncode, stopped, seconds, paused, _cpu_seconds() - before)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, also to one that is suspended; what does not end then is killed."""
    _signal(child, signal.SIGTERM)
    _signal(child, signal.SIGCONT)
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _signal(child, signal.SIGKILL)
        child.wait()


def _signal(child: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:  # it has just ended
        pass


def _cpu_seconds() -> float:
    """Of all children that have ended, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --- what else runs on this machine -----------------------------------------------------------------------------------


def others_at_work(session: int, pause: Path) -> str:
    """Why to stand still: a file that says so, tests or a benchmark; "" when nothing does."""
    return f"{pause} is there" if pause.exists() else next(tests_and_benchmarks(session), "")


def tests_and_benchmarks(session: int) -> Iterator[str]:
    """Those that run on this machine and are not suspended themselves, without this session and what has started us."""
    mine = set(_ancestors(os.getpid()))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state, _, _, its_session = _status(int(folder.name))
        except OSError:  # ended
            continue
        apart = int(folder.name) not in mine and its_session != session
        if apart and state not in "TtZX" and is_test_or_benchmark(words):
            yield f"process {folder.name}: {' '.join(words)[:100].strip()}"


def is_test_or_benchmark(words: list[str]) -> bool:
    """Whether a command line is pytest or one of this project's benchmarks; those of the study are not."""
    if Path(words[0]).name in ("pytest", "py.test"):
        return True
    if not Path(words[0]).name.startswith("python"):
        return False
    rest = [word for word in words[1:] if word == "-m" or not word.startswith("-")]
    module = rest[:1] == ["-m"]
    name, *more = [*rest[module:], "", ""]
    if name == "megavrc" if module else Path(name).name == "megavrc":
        return more[0] == "benchmark"
    if module:
        return name == "pytest" or name.startswith("megavrc.benchmarks")
    benchmark = search(r"(^|/)(tools/benchmark|benchmarks/[^/]+)\.py$", name)
    return bool(benchmark) or Path(name).name in ("pytest", "py.test")


def _ancestors(process: int) -> Iterator[int]:
    while process > 0:
        yield process
        process = _status(process)[1]


def _status(process: int) -> tuple[str, int, int, int]:
    """(state, parent, process group, session) of a process; OSError if there is none."""
    state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:4]
    parent, group, session = map(int, numbers)
    return state, parent, group, session


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        print(f"{signal.Signals(number).name}: stopping", file=sys.stderr, flush=True)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return stop
