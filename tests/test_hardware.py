"""Peak memory: of this process and no other."""

import subprocess
import sys


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
