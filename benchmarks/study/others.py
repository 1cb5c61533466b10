"""Tests and benchmarks of this project that run on this machine: the study stands still for them. Linux only."""

import os
from collections.abc import Iterator
from pathlib import Path
from re import search


def others_at_work(session: int, pause: Path) -> str:
    """Why to stand still: a file that says so, tests or a benchmark; "" when nothing does."""
    return f"{pause} is there" if pause.exists() else next(tests_and_benchmarks(session), "")


def tests_and_benchmarks(session: int) -> Iterator[str]:
    """Those that run on this machine and are not suspended themselves, without this session and what has started us."""
    mine = set(_ancestors(os.getpid()))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state, _, _, its_session = _status(int(folder.name))
        except OSError:  # ended
            continue
        apart = int(folder.name) not in mine and its_session != session
        if apart and state not in "TtZX" and is_test_or_benchmark(words):
            yield f"process {folder.name}: {' '.join(words)[:100].strip()}"


def is_test_or_benchmark(words: list[str]) -> bool:
    """Whether a command line is pytest or one of this project's benchmarks; those of the study are not."""
    if Path(words[0]).name in ("pytest", "py.test"):
        return True
    if not Path(words[0]).name.startswith("python"):
        return False
    rest = [word for word in words[1:] if word == "-m" or not word.startswith("-")]
    module = rest[:1] == ["-m"]
    name, *more = [*rest[module:], "", ""]
    if name == "megavrc" if module else Path(name).name == "megavrc":
        return more[0] == "benchmark"
    if module:
        return name == "pytest" or name.startswith("megavrc.benchmarks")
    benchmark = search(r"(^|/)(tools/benchmark|benchmarks/[^/]+)\.py$", name)
    return bool(benchmark) or Path(name).name in ("pytest", "py.test")


def _ancestors(process: int) -> Iterator[int]:
    while process > 0:
        yield process
        process = _status(process)[1]


def _status(process: int) -> tuple[str, int, int, int]:
    """(state, parent, process group, session) of a process; OSError if there is none."""
    state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:4]
    parent, group, session = map(int, numbers)
    return state, parent, group, session
