"""The fault injector: acts at its point, rank and step, and nowhere else."""

import os
import signal
import subprocess
import sys

import pytest

from megavrc.distributed import fault
from megavrc.errors import UserError


def passing(fault: str, rank: int, point: str, step: int) -> int:
    """Exit code of a process that passes a point."""
    program = f"from megavrc.distributed import fault; fault.point({point!r}, {step})"
    env = {**os.environ, "MEGAVRC_FAULT": fault, "RANK": str(rank)}
    return subprocess.run([sys.executable, "-c", program], env=env).returncode


def test_faults_kill_the_process_they_name() -> None:
    assert passing("save:1:5:kill", 1, "save", 5) == -signal.SIGKILL
    assert passing("other:*:*:kill,save:*:5:exit:7", 3, "save", 5) == 7


def test_a_fault_acts_at_its_point_rank_and_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAVRC_FAULT", "save:1:5:raise, disk:*:*:full, grad:*:2:nan")
    monkeypatch.setenv("RANK", "1")
    for name, step in (("save", 4), ("load", 5)):
        assert fault.point(name, step) == ""
    with pytest.raises(fault.FaultError, match="injected at save, step 5"):
        fault.point("save", 5)
    with pytest.raises(OSError, match="No space left on device"):
        fault.point("disk", 9)
    assert fault.point("grad", 2) == "nan", "the caller's business"
    monkeypatch.setenv("RANK", "0")
    assert fault.point("save", 5) == ""


@pytest.mark.parametrize("text", ["save", "save:1:kill", "save:one:5:kill", "save:1:5:"])
def test_a_mistyped_fault_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAVRC_FAULT", text)
    with pytest.raises(UserError, match="not point:rank:step:action"):
        fault.point("save", 5)
