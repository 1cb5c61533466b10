"""`megavrc doctor`: what this machine and this installation can do.

What is imported at the top needs the standard library only: the doctor has to speak where a requirement is missing or
broken.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megavrc.user_files import I3D_SHA256, USER_FILES, UserFile, place

FORMAT = 1  # of what --json writes
DESCRIPTION = (
    "Report what this machine and installation can do, and which of your files are missing or damaged. "
    "Exit code 0: the CPU demo can run, and the folders that you name are complete."
)
State = Literal["ok", "note", "warn", "FAIL"]  # note: absent and not required

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
# Where the module is not named like the package.
MODULES = {"pillow": "PIL", "protobuf": "google.protobuf", "pyyaml": "yaml"}
OPTIONAL = {
    "triton": "fused kernels on NVIDIA GPUs",
    "flash_attn": "the flash attention backend",
    "apex": "apex FusedAdam, used when asked for",
    "mpi4py": "launching under mpirun",
    "peft": "LoRA fine-tuning of a converted folder",
    "gradio": "the web page, megavrc serve",
    "fastapi": "the page of a blind study, megavrc user_study serve",
    "torchao": "weights as int8, fp8 or int4",
    "bitsandbytes": "weights as nf4",
    "lmms_eval": "LLMC+ under lmms-eval's tasks",
    "vizdoom": "gameplay clips, megavrc make_gameplay",
}
MEMORY_GIB, DISK_GIB = 4.0, 2.0  # what the CPU demo should find free
LOCK_MINUTES = 10  # a build of one extension takes two


@dataclass(frozen=True)
class Finding:
    """One line of the table; only `FAIL` keeps the CPU demo from running."""

    group: str
    name: str
    found: str
    state: State = "ok"
    advice: str = ""


def examine(files: dict[str, str | None]) -> list[Finding]:
    """Look at everything. `files` maps a key of USER_FILES to a path, or None to ask the environment."""
    return [
        *machine_lines(),
        *requirements(),
        *abilities(),
        *optional_packages(),
        *user_files(files),
        *build_locks(),
    ]


def able(findings: list[Finding]) -> bool:
    """Whether the CPU demo can run here."""
    return all(finding.state != "FAIL" for finding in findings)


# --- the command ---------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """The command. Exit code 0: the CPU demo can run, and the folders given are whole."""
    # The standard library's parser, not megavrc.config.command: jsonargparse may be what is missing.
    parser = argparse.ArgumentParser(prog="megavrc doctor", description=DESCRIPTION)
    for name, (variable, purpose) in USER_FILES.items():
        parser.add_argument(f"--{name}", metavar="PATH", help=f"{purpose}; default: ${variable}")
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        help="also check these: runs, datasets, models; folders, tables (.csv, .jsonl) and manifests of videos",
    )
    parser.add_argument("--folder", metavar="DIR", help="folder that the paths in a table are relative to")
    parser.add_argument("--json", metavar="FILE", help="write the findings there too")
    spelled = [re.sub(r"^--[\w-]+", lambda name: f"--{name[0][2:].replace('-', '_')}", word) for word in argv]
    options = vars(parser.parse_args(spelled))
    report, folders, base = options.pop("json"), options.pop("folders"), options.pop("folder")
    findings = examine(options)
    for path in folders:
        findings += folder_lines(path, base)
    for line in doctor_table(findings):
        print(line)
    if report:
        content = {
            "format": FORMAT,
            "able": able(findings),
            "findings": [vars(finding) for finding in findings],
        }
        try:
            Path(report).write_text(json.dumps(content, indent=1) + "\n")
        except OSError as error:
            print(f"error: --json {report}: {error.strerror}", file=sys.stderr)
            return 2
    named = {"folders", "videos"}  # what was asked for; a damaged video of many is only a note
    return int(not able(findings) or any(each.group in named and each.state == "warn" for each in findings))


def doctor_table(findings: list[Finding]) -> list[str]:
    widths = [max(len(getattr(finding, field)) for finding in findings) for field in ("name", "found")]
    lines, group = [], ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        cells = f"  {finding.state:4}  {finding.name:{widths[0]}}  {finding.found:{min(widths[1], 44)}}"
        lines.append(f"{cells}  {finding.advice}".rstrip())
    failures = sum(finding.state == "FAIL" for finding in findings)
    verdict = (
        "The CPU demo can run here: make demo"
        if not failures
        else f"The CPU demo cannot run here: {failures} FAIL"
    )
    return [*lines[1:], "", verdict]


# --- machine ------------------------------------------------------------------------------------------------------


def machine_lines() -> Iterator[Finding]:
    version = platform.python_version()
    if _numbers(version) < (3, 11):
        yield Finding("machine", "python", version, "FAIL", "megavrc needs 3.11 or newer")
    else:
        yield Finding("machine", "python", version)
    yield Finding("machine", "system", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Finding("machine", "cores", str(_cores()))
    free = _memory_free_gib()
    if free is not None:
        yield _at_least("memory free", free, MEMORY_GIB)
    yield _at_least("disk free here", shutil.disk_usage(".").free / 2**30, DISK_GIB)
    yield from _gpus()
    slurm = shutil.which("sbatch")
    yield Finding("machine", "slurm", slurm or "no sbatch", "ok" if slurm else "note")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_free_gib() -> float | None:
    try:
        kib = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(kib[1]) / 2**20 if kib else None


def _at_least(name: str, gib: float, needed: float) -> Finding:
    if gib >= needed:
        return Finding("machine", name, f"{gib:.1f} GiB")
    return Finding("machine", name, f"{gib:.1f} GiB", "warn", f"the demo wants about {needed:.0f} GiB")


def _gpus() -> Iterator[Finding]:
    torch = _import("torch")
    if isinstance(torch, str) or not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            advice = f"nvidia-smi is here, torch {_version('torch')} finds no GPU: see the PyTorch site"
            yield Finding("machine", "gpu", "not usable", "warn", advice)
        else:
            yield Finding("machine", "gpu", "none that torch can use", "note")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or importing deepspeed warns that it found none
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding("machine", f"gpu {index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {bf16}")


# --- installation -------------------------------------------------------------------------------------------------


def _import(module: str) -> Any:
    """The module, or why it cannot be imported."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken binary package raises anything
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required() -> list[str]:
    if not REQUIREMENTS.is_file():  # installed without the repository
        return [line for line in importlib.metadata.requires("megavrc") or [] if "extra ==" not in line]
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [line for line in lines if line]


def requirements() -> Iterator[Finding]:
    for line in _required():
        package, extras, wanted = re.fullmatch(r"([\w.-]+)(\[.*?\])?\s*(.*)", line).groups()  # type: ignore[union-attr]
        version = _version(package)
        if version is None:
            yield Finding(
                "required", package, "not installed", "FAIL", f"pip install '{package}{extras or ''}{wanted}'"
            )
            continue
        module = _import(MODULES.get(package, package))
        if isinstance(module, str):
            yield Finding("required", package, f"{version}, does not import", "FAIL", module)
        elif not _in_range(version, wanted):
            yield Finding("required", package, version, "warn", f"tested range {wanted}")
        else:
            yield Finding("required", package, version)


def _in_range(version: str, wanted: str) -> bool:
    """Whether `1.2.3+local` satisfies a list of `>=1.2` and `<2` bounds."""
    parts = _numbers(version)
    for operator, bound in re.findall(r"(>=|<)\s*([\d.]+)", wanted):
        if (parts >= _numbers(bound)) != (operator == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()


def optional_packages() -> Iterator[Finding]:
    for module, purpose in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            yield Finding("optional", module, "not installed", "note", purpose)
        else:
            yield Finding("optional", module, _version(module.replace("_", "-")) or "installed")


def abilities() -> Iterator[Finding]:
    """Things that are tried, since a version number does not promise them."""
    trials: dict[str, Callable[[], str]] = {"H.264 video": _try_video, "gloo (several processes)": _try_gloo}
    for name, trial in trials.items():
        try:
            yield Finding("tried", name, trial())
        except Exception as error:
            yield Finding(
                "tried", name, "does not work", "FAIL", f"{type(error).__name__}: {error}".splitlines()[0]
            )


def _try_video() -> str:
    import numpy as np

    from megavrc.video import count_frames, write_mp4

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.mp4"
        write_mp4(path, np.zeros((4, 64, 64, 3), np.uint8))
        frames = count_frames(path)
    if frames != 4:
        raise RuntimeError(f"wrote 4 frames, read {frames}")
    return "writes and reads"


def _try_gloo() -> str:
    import torch.distributed

    if not torch.distributed.is_gloo_available():
        raise RuntimeError("this build of torch has no gloo")
    return "available"


# --- files that users bring ------------------------------------------------------------------------------------------


def user_files(files: dict[str, str | None]) -> Iterator[Finding]:
    for name, (variable, purpose) in USER_FILES.items():
        path = place(name, files.get(name))
        if path is None:
            trained = "; or train one: megavrc pretrain_tokenizer" if name == "omnitokenizer" else ""
            advice = f"{purpose}: --{name} PATH or {variable}{trained}"
            yield Finding("your files", name, "not given", "note", advice)
            continue
        problem = damage(path)
        if not problem and name == "omnitokenizer":
            problem = _does_not_load(path)
        if problem:
            yield Finding("your files", name, str(path), "warn", problem)
        elif name == "i3d" and UserFile(path).sha256 != I3D_SHA256:
            advice = "but not the published file (values are then not called FVD)"
            yield Finding("your files", name, f"{path}, whole", "note", advice)
        else:
            yield Finding("your files", name, f"{path}, whole")


def _does_not_load(path: Path) -> str:
    try:
        from megavrc.tokenizers import OmniTokenizer

        OmniTokenizer.from_checkpoint(path)
    except Exception as error:  # a requirement may be missing too
        return str(error)
    return ""


def damage(path: Path) -> str:
    """Why a weights file, or a folder of them, cannot be whole; empty when nothing is wrong."""
    if path.is_dir():
        weights = [
            file for file in sorted(path.iterdir()) if file.suffix in {".safetensors", ".bin", ".pt", ".ckpt"}
        ]
        if not weights:
            return "no weights in this folder"
        if not (path / "config.json").is_file():
            return "no config.json in this folder"
        return next(filter(None, map(damage, weights)), "")
    if not path.is_file():
        return "no such file"
    if path.suffix == ".safetensors":
        return _safetensors_damage(path)
    if not zipfile.is_zipfile(path):
        return "not a PyTorch file (a download that was cut off, or a page in its place)"
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    return f"damaged inside: {bad}" if bad else ""


def _safetensors_damage(path: Path) -> str:
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if not 2 <= header_size <= path.stat().st_size - 8:
            return "cut off in its header"
        try:
            header = json.loads(file.read(header_size))
        except ValueError:
            return "its header is damaged"
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    missing = 8 + header_size + max(ends, default=0) - path.stat().st_size
    return f"{missing} bytes are missing at its end" if missing > 0 else ""


def folder_lines(path: str, base: str | None = None) -> list[Finding]:
    """The kind of a folder of ours, and whether it is whole; what is to be known of videos, in several lines."""
    try:
        from megavrc.launch.folders import describe_folder, is_ours

        if Path(path).exists() and not is_ours(Path(path)):
            from megavrc.launch.videos import video_lines

            lines = video_lines(Path(path), Path(base) if base else None)
            return [Finding("videos", *line) for line in lines]
        return [Finding("folders", path, "whole", advice=describe_folder(Path(path)))]
    except Exception as error:  # a requirement may be missing too
        return [Finding("folders", path, "not whole", "warn", " ".join(str(error).split()))]


# --- DeepSpeed's compiled extensions ------------------------------------------------------------------------------


def build_locks() -> Iterator[Finding]:
    """A killed build leaves `lock` behind, and every later process that wants the extension waits for it in silence."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions")
    locks = [*root.glob("*/lock"), *root.glob("*/*/lock")] if root.is_dir() else []
    for lock in locks:
        minutes = (time.time() - lock.stat().st_mtime) / 60
        if minutes > LOCK_MINUTES:
            yield Finding(
                "builds",
                lock.parent.name,
                f"lock {minutes:.0f} min old",
                "warn",
                f"no build running? rm {lock}",
            )
    if not locks:
        yield Finding("builds", "stale locks", "none")
