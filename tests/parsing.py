"""What the parser of a command makes of a command line, which is not run."""

import argparse
import contextlib
import io
import os
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from megavrc.command_line import Options

ROOT = Path(__file__).resolve().parents[1]


class Parsed(BaseException):
    """A command line was understood; nothing else is to happen."""


def parsed(script: str, words: list[str]) -> dict[str, Any]:
    """What the command's own parser makes of the words, without running it; the test fails where it refuses them."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(output):
        patch.setattr(Options, "parse", stopping(Options.parse))
        patch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
        patch.setattr(sys, "argv", [script, *words])
        patch.setattr(os, "_exit", sys.exit)  # how pretraining ends
        patch.syspath_prepend((ROOT / script).parent)
        patch.chdir(ROOT)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except Parsed as result:
            content = result.args[0]
            content = content[0] if isinstance(content, tuple) else content  # beside the rest of the words
            return dict(flat(vars(content), ""))
        except SystemExit:
            pass
    pytest.fail(f"{script} {shlex.join(words)}: {output.getvalue()}")


def stopping(parse: Any) -> Any:
    """`parse`, which then ends the command."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Parsed(parse(*args, **kwargs))

    return stop


def flat(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, jsonargparse.Namespace):
            yield from flat(vars(value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
