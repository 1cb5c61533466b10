"""Programs that train, each a process of its own, but forked from one that has imported what they all need."""

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def server() -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """The way to fork_server.py, and the server, which ends with the tests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, ROOT / "tests" / "fork_server.py", str(theirs.fileno())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with theirs:
        return ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)


def end_server() -> None:
    if server.cache_info().currsize:
        channel, process = server()
        channel.shutdown(socket.SHUT_RDWR)
        process.wait()


class Forked:
    """A program that runs: a script and its words, as `python` would run them.

    Attributes:
        pid: number of its process.
        returncode: as that of subprocess.Popen; None while it is not known to have ended.
    """

    def __init__(
        self,
        *program: object,
        env: Mapping[str, str],
        cwd: Path = ROOT,
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._said, said = os.pipe()
        asked = {"words": list(map(str, program)), "environment": dict(env), "cwd": str(cwd)}
        files = [stdout.fileno() if stdout else 1, stderr.fileno() if stderr else 2, said]
        socket.send_fds(server()[0], [json.dumps(asked).encode()], files)
        os.close(said)
        self.pid = self._number()

    def _number(self) -> int:
        content = os.read(self._said, 4)
        assert len(content) == 4, "fork_server.py has ended"
        return int.from_bytes(content, "little", signed=True)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code; None where it still runs after `timeout` seconds."""
        if self.returncode is None and select.select([self._said], [], [], timeout)[0]:
            self.returncode = self._number()
            os.close(self._said)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.wait(0) is None:
            os.kill(self.pid, number)


def run_forked(
    *program: object, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, its output captured."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        forked = Forked(*program, stdout=out, stderr=err, env=env or os.environ, cwd=cwd)
        try:
            code = forked.wait(300)
        finally:
            forked.send_signal(signal.SIGKILL)
        assert code is not None, f"{program} does not end"
        said = [(file.seek(0), file.read())[1] for file in (out, err)]
    return subprocess.CompletedProcess(program, code, *said)
