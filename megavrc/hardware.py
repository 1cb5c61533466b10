"""Devices, their peaks and memory as their makers state them, the most memory that a process has had; what numbers are
measured on and with."""

import difflib
import functools
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavrc.errors import UserError

if TYPE_CHECKING:  # imported where it is used: showing a result needs none of it
    import torch


def check_device(device: "str | torch.device") -> "torch.device":
    """The device, if this machine has it; else UserError. "auto" is a GPU where torch finds one, else the CPU."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        has = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu"
        raise UserError(f"device {device}: not on this machine; choose {has}") from None
    return wanted


@dataclass(frozen=True)
class GPU:
    """One type of GPU.

    Attributes:
        name: as options write it. match: what its CUDA device name contains, as whole words.
        tflops: dense bf16 matrix products with fp32 accumulation, in 10^12 operations a second (half of what data
            sheets state "with sparsity"). gib: memory.
    """

    name: str
    match: str
    tflops: float
    gib: float


# Makers' data sheets; where only the sparse peak is stated, its half. Longer matches first.
GPUS = (
    GPU("b200", "B200", 2250, 180),  # NVIDIA DGX B200, an eighth
    GPU("h200-nvl", "H200 NVL", 835.5, 141e9 / 2**30),  # NVIDIA H200 NVL
    GPU("h200", "H200", 989.5, 141e9 / 2**30),  # NVIDIA H200 SXM
    GPU("h100-nvl", "H100 NVL", 835.5, 94e9 / 2**30),  # NVIDIA H100 NVL
    GPU("h100-pcie", "H100 PCIe", 756.5, 80),  # NVIDIA H100 PCIe
    GPU("h100", "H100", 989.5, 80),  # NVIDIA H100 SXM5
    GPU("a100-40", "A100-SXM4-40GB", 312, 40),  # NVIDIA A100
    GPU("a100", "A100", 312, 80),
    GPU("a40", "A40", 149.7, 48),  # NVIDIA A40
    GPU("a10", "A10", 125, 24),  # NVIDIA A10
    GPU("l40s", "L40S", 362, 48),  # NVIDIA L40S
    GPU("l4", "L4", 121, 24),  # NVIDIA L4
    GPU("rtx-4090", "RTX 4090", 165.2, 24),  # NVIDIA Ada architecture whitepaper, appendix A
    GPU("rtx-3090", "RTX 3090", 71, 24),  # NVIDIA Ampere GA102 whitepaper, appendix A
)
# Slower or faster ones of the same name, parts of a GPU.
OTHERS = re.compile(r"\b(MIG|Laptop|D|Ti|\d+[ABCQ])\b")


def gpu_named(name: str) -> GPU:
    """A GPU by the name that options use, however it is spelled: rtx-4090, RTX4090, NVIDIA RTX 4090.

    Raises:
        UserError: it is not in the table.
    """

    def plain(name: str) -> str:
        return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())

    known = {plain(gpu.name): gpu for gpu in GPUS}
    if plain(name) in known:
        return known[plain(name)]
    near = difflib.get_close_matches(plain(name), known, n=1)
    meant = f", did you mean {known[near[0]].name}?" if near else ""
    raise UserError(
        f"--gpu: {name!r} is not known{meant} ({', '.join(gpu.name for gpu in GPUS)}); for another one give --tflops "
        "and --gib_memory"
    )


def gpu_of(device_name: str) -> GPU | None:
    """The GPU that `torch.cuda.get_device_name` names; None if it is not in the table."""
    if OTHERS.search(device_name):
        return None
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu.match}\b", device_name)), None)


def reset_peak_memory(device: "str | torch.device") -> int | None:
    """Forget the peak so far; returns the bytes in use now, or None where the peak cannot be forgotten."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not Linux, or not allowed
            return None
    return peak_memory(device)


def peak_memory(device: "str | torch.device") -> int:
    """Bytes that this process has had at most: allocated on its GPU; resident, if it computes on the CPU."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    # Not getrusage where there is this file: that begins with the peak of the process that started this one.
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


def machine(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """The machine that a result was measured on; the versions of packages are apart, in `versions`."""
    import torch

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads() if threads is None else threads,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "av",
    "deepspeed",
    "transformers",
    "webdataset",
    "triton",
    "torchao",
    "vizdoom",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that this process has loaded and that change numbers."""
    loaded = [name for name in PACKAGES if name in sys.modules]
    return {"python": platform.python_version()} | {name: _version(name) for name in loaded}


_version = functools.cache(importlib.metadata.version)  # it looks through all that is installed


@functools.cache
def revision() -> str | None:
    """The git revision of this code, with "-dirty" after it where files differ from it; None outside a repository."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
