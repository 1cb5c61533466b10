"""The most memory that this process has had."""

import resource
from pathlib import Path

import torch


def reset_peak_memory(device: str | torch.device) -> int | None:
    """Forget the peak so far; returns the bytes in use now, or None where the peak cannot be forgotten."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not Linux, or not allowed
            return None
    return peak_memory(device)


def peak_memory(device: str | torch.device) -> int:
    """Bytes that this process has had at most: allocated on its GPU; resident, if it computes on the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    # Not getrusage where there is this file: that begins with the peak of the process that started this one.
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
