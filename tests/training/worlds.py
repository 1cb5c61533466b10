"""Starts scripts of this folder on several gloo ranks."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment() -> dict[str, str]:
    """One thread a rank, and the repository importable; no launcher's variables."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}


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
