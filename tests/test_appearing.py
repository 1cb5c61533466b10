"""What is written out of sight until it is whole (megavrc.processes.appearing)."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from failing_files import fail

from megavrc.processes import appearing

WRITER = """
import sys, time
from pathlib import Path
from megavrc.processes import appearing
with appearing(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "half").write_text("half")
    print(partial.name, flush=True)
    time.sleep(999)
"""


def start(out: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that is half done, and what it writes."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, out.with_name(process.stdout.readline().strip())


def test_what_killed_processes_left_goes_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    out = tmp_path / "a+b [1]"
    living, writes = start(out)
    killed, left = start(out)
    killed.kill()
    killed.wait()
    others = [
        out.with_name(f"{writes.name}c"),
        out.with_name(".unfinished-0123abcd-1-1-a+b [1]"),
        left.with_name("x"),
    ]
    long_ago = out.with_name(".unfinished-4567cdef-1-1-a+b [1]")
    for path in (*others, long_ago):  # of another name, of other machines
        path.mkdir()
    os.utime(long_ago, (0, 0))
    try:
        with appearing(out) as partial:
            assert not left.exists() and not long_ago.exists()
            partial.write_text("whole")
            assert not out.exists()
    finally:
        living.kill()
        living.wait()
    assert out.read_text() == "whole"
    assert {*tmp_path.iterdir()} == {out, writes, *others}


@pytest.mark.parametrize("folder", [False, True])
def test_nothing_is_left_after_an_error(tmp_path: Path, folder: bool) -> None:
    with pytest.raises(KeyboardInterrupt), appearing(tmp_path / "new" / "out") as partial:
        partial.mkdir() if folder else partial.write_text("half")
        raise KeyboardInterrupt
    assert not [*(tmp_path / "new").iterdir()]


def test_a_folder_that_cannot_be_listed_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = fail(monkeypatch, errno.EACCES, tmp_path.name)
    with appearing(tmp_path / "out") as partial:
        partial.mkdir()
    assert failed and (tmp_path / "out").is_dir()
