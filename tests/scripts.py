"""A script of the repository in the process of a test."""

import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_script(script: str, *words: object) -> int:
    """Run `script`, named from the root, with these words: its exit code.

    Any exception but the end of the process is the traceback that a user must not see, and passes.
    """
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [script, *map(str, words)])
        patch.setattr(os, "_exit", sys.exit)  # how pretraining ends
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return int(end.value.code or 0)


def evaluate(*words: object) -> int:
    """Run `tools/evaluate.py`: its exit code."""
    return run_script("tools/evaluate.py", *words)
