"""Starts scripts of this folder on gloo ranks."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked import Forked, run_forked
from ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment() -> dict[str, str]:
    """One thread a rank, and the repository importable; no launcher's variables."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}{os.pathsep}{HERE.parent}",
    }


def run_world(ranks: int, script: str | Path, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a script on so many ranks, output captured; that of several ranks is all in `stderr`."""
    if ranks == 1:
        return run_forked(HERE / script, *words, env=environment())
    with tempfile.TemporaryDirectory() as folder:
        ended = World(ranks, Path(folder), script, *words).wait()
    code = next(filter(None, ended.codes), 0)
    return subprocess.CompletedProcess(words, code, "", "\n".join(ended.outputs))


def run_torchrun(ranks: int, script: Path, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """The same under torch's launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *launcher, str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), cwd=ROOT)


def world_results(root: Path, script: str, *words: str | Path) -> dict[str, Any]:
    """What a script that starts ranks of its own has written to root/results.json; with its stdout and stderr."""
    done = run_world(1, script, *words, root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "results.json").read_text()) | {"stdout": done.stdout, "stderr": done.stderr}


@dataclass
class Ended:
    """How the ranks of a world ended: exit codes (negative: by that signal), outputs and seconds until each end."""

    codes: list[int]
    outputs: list[str]
    seconds: list[float]


class World:
    """Ranks as processes of their own, without a launcher that kills or restarts them."""

    def __init__(self, ranks: int, folder: Path, script: str | Path, *words: str | Path, **env: str) -> None:
        port = str(free_port())
        self.files = [folder / f"rank{rank}.txt" for rank in range(ranks)]
        self.start, self.processes = time.monotonic(), []
        for rank, file in enumerate(self.files):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            with open(file, "w") as output:
                process = Forked(
                    HERE / script, *words, stdout=output, stderr=output, env=environment() | place | env
                )
            self.processes.append(process)

    def wait(self, timeout: float = 400.0, but: tuple[int, ...] = ()) -> Ended:
        """Until all ranks have ended; those of `but` are killed then, and all are after `timeout` seconds."""
        seconds = [0.0] * len(self.processes)
        try:
            while pending := [r for r, process in enumerate(self.processes) if process.wait(0) is None]:
                now = time.monotonic() - self.start
                for rank in pending:
                    seconds[rank] = now
                if set(pending) <= set(but) or now > timeout:
                    break
                time.sleep(0.05)
        finally:
            for process in self.processes:
                process.send_signal(signal.SIGKILL)
        codes = [process.wait() for process in self.processes]
        return Ended(codes, [file.read_text() for file in self.files], seconds)
