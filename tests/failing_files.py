"""A file system that fails on request, for this process: what a network drive or a bad disk does to its readers."""

import builtins
import io
import math
import os
from collections.abc import Callable
from typing import Any

import pytest

CALLS = ((os, "open"), (os, "listdir"), (os, "scandir"), (os, "link"), (builtins, "open"), (io, "open"))


def fail(monkeypatch: pytest.MonkeyPatch, error: int, part: str, times: float = math.inf) -> list[str]:
    """Let every call that opens or lists a path with `part` in it fail, `times` times; returns the paths that did."""
    failed: list[str] = []

    def broken(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *more: Any, **options: Any) -> Any:
            if not isinstance(path, int) and part in os.fsdecode(path) and len(failed) < times:
                failed.append(os.fsdecode(path))
                raise OSError(error, os.strerror(error), os.fsdecode(path))
            return call(path, *more, **options)

        return wrapped

    for module, name in CALLS:
        monkeypatch.setattr(module, name, broken(getattr(module, name)))
    monkeypatch.setattr("megavrc.files.PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr("megavrc.checkpoint.store.PAUSES", (0.01, 0.01, 0.01))
    return failed
