"""A command in the process of a test."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *options: str) -> int:
    """A command in this process: its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [script, *options])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return int(end.value.code or 0)
