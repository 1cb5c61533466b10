"""Devices; peak memory: of this process and no other."""

import inspect
import subprocess
import sys

import pytest
import torch

from megavrc.__main__ import COMMANDS
from megavrc.config import load
from megavrc.errors import UserError
from megavrc.hardware import check_device


def test_peak_memory_is_that_of_this_process_alone() -> None:
    """A process that had much memory starts one that needs little; the peak stays when memory is freed."""
    script = (
        "import subprocess, sys, torch\n"
        "from megavrc.hardware import peak_memory\n"
        "if len(sys.argv) == 1:\n"
        "    torch.ones(2**28).sum()\n"
        "    subprocess.run([sys.executable, '-c', sys.orig_argv[2], 'child'], check=True)\n"
        "print(peak_memory(torch.device('cpu')))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    child, parent = map(int, run.stdout.split())
    assert parent > 2**30 > child > 2**26


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert check_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="device tpu: not on this machine; choose auto"):
        check_device("tpu")


def test_commands_that_run_a_model_take_the_gpu_by_themselves() -> None:
    entries = [group["evaluate"] for group in COMMANDS.values() if "evaluate" in group]
    entries += [COMMANDS["Models and clips"][name] for name in ("generate", "serve")]
    targets = [
        one
        for run in (entry.run for entry in entries)
        for one in ([run] if isinstance(run, str) else run.values())
    ]
    devices = {
        target: function_parameters["device"].default
        for target in targets
        if "device" in (function_parameters := inspect.signature(load(target)).parameters)
    }
    assert len(devices) > 8 and set(devices.values()) == {"auto"}
