"""One command of a matrix: it ends with its runner, and stands still while others need the machine. Linux only.

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOOK = 5.0  # seconds between looks at what else runs here
PATIENCE = 600.0  # seconds that a stopped command gets to save
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

_libc = ctypes.CDLL(None)


@dataclass
class Ended:
    """The end of a command.

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


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        print(f"{signal.Signals(number).name}: stopping", file=sys.stderr, flush=True)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return stop
