"""The page of a folder, in a process of its own."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ports import free_port

TOOL = Path(__file__).resolve().parents[2] / "tools" / "serve.py"


@contextlib.contextmanager
def served(folder: Path, home: Path, *options: str) -> Iterator[int]:
    """The page of a folder while the block runs, at the port that this gives."""
    port = free_port()
    command = [sys.executable, TOOL, "--model", folder, "--port", str(port), *options]
    process = subprocess.Popen(command, env=os.environ | {"HF_HOME": str(home)}, cwd=TOOL.parents[1])
    try:
        for _ in range(3000):
            assert process.poll() is None
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60).read()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()
