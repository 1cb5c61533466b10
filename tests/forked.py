"""Programs that end in their own way, each in a fork of one process that has imported what they all need."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import json, os, runpy, sys
import megavrc.training.entry

for number, words in enumerate(json.loads(sys.argv[1])):
    if (child := os.fork()) == 0:
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = words
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


def run_forked(folder: Path, *programs: Sequence[object], cwd: Path | None = None) -> list[Ended]:
    """Run programs (a script and its words) that train, one after the other.

    Args:
        folder: new, for what they print.
        cwd: their working directory.
    """
    folder.mkdir()
    words = json.dumps([list(map(str, program)) for program in programs])
    command = [sys.executable, "-c", CODE, words, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [
        Ended(int(code), *((folder / f"{number}.{name}").read_text() for name in ("out", "err")))
        for number, code in enumerate(done.stdout.split())
    ]
