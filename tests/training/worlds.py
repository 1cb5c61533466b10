"""Starts scripts of this folder on several gloo ranks."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def run_world(ranks: int, script: str | Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script on `ranks` ranks (1: plain python, no launcher), output captured."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    return subprocess.run(
        [sys.executable, *launcher, str(HERE / script), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
        cwd=ROOT,
    )


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
            with open(file, "w") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(HERE / script), *map(str, words)],
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment() | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | env,
                        cwd=ROOT,
                    )
                )

    def wait(self, timeout: float = 400.0, but: tuple[int, ...] = ()) -> Ended:
        """Until all ranks have ended; those of `but` are killed then, and all are after `timeout` seconds."""
        seconds = [0.0] * len(self.processes)
        try:
            while pending := [r for r, process in enumerate(self.processes) if process.poll() is None]:
                now = time.monotonic() - self.start
                for rank in pending:
                    seconds[rank] = now
                if set(pending) <= set(but) or now > timeout:
                    break
                time.sleep(0.05)
        finally:
            for process in self.processes:
                process.kill()
        codes = [process.wait() for process in self.processes]
        return Ended(codes, [file.read_text() for file in self.files], seconds)
