"""Run by test_saving.py: worlds of two ranks that save, with a fault at every point; reported as JSON."""

import functools
import json
import logging
import resource
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forks import fork_world
from torch import Tensor

from megavrc.checkpoint import DamagedCheckpoint, newest_good, verify
from megavrc.distributed import Rank
from megavrc.errors import TransientError, UserError
from megavrc.training.saving import Saver
from megavrc.training.state import Group

POINTS = ("before_shard", "mid_shard", "after_shard")  # of every rank
COMMIT = ("before_manifest", "before_rename", "after_rename", "before_latest")  # of the main rank


@dataclass
class Numbers:
    """A state of four tensors that all have the value of the step, without an engine around it."""

    value: float = 0.0
    like: dict[str, dict[str, Tensor]] = field(
        default_factory=lambda: {
            "model": {name: torch.empty(30_000, device="meta") for name in "abcd"},
            "buffers": {"count": torch.empty((), dtype=torch.long, device="meta")},
        }
    )

    @property
    def groups(self) -> dict[str, Group]:
        return {
            name: Group(like, functools.partial(self.get, name), print) for name, like in self.like.items()
        }

    def get(self, group: str, name: str) -> Tensor:
        like = self.like[group][name]
        return torch.full(like.shape, self.value, dtype=like.dtype)


def saver(rank: Rank, store: Path, state: Any, background: bool = True, check: Any = lambda: None) -> Saver:
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("megavrc").propagate = True
    return Saver(store, state, rank, background, check, lambda final, before: None)


def save_steps(rank: Rank, store: Path, first: int, last: int, background: bool = True) -> int:
    """Save at each step and once more at the end; returns the failures."""
    state = Numbers()
    saving = saver(rank, store, state, background)
    for step in range(first, last + 1):
        state.value = float(step)
        saving.save(step, {})
        state.value = -1.0  # training goes on while the files are written
        for _ in range(3):
            saving.poll()
    state.value = float(last + 1)
    saving.save_and_wait(last + 1, {})
    return saving.failures


def found(store: Path) -> dict[str, Any]:
    """What a reader finds: the step, the values of its tensors, and what is not whole."""
    checkpoint = newest_good(store)
    assert checkpoint is not None
    values = {float(t.float().mean()) for group in checkpoint.groups.values() for t in group.values()}
    torn = []
    for folder in store.glob("step-*"):
        try:
            verify(folder)
        except DamagedCheckpoint:
            torn.append(folder.name)
    return {
        "step": checkpoint.step,
        "values": sorted(values),
        "torn": torn,
        "steps": sorted(int(folder.name[5:]) for folder in store.glob("step-*")),
        "left": [path.name for path in store.iterdir() if path.name.startswith(".")],
    }


def killed(root: Path) -> dict[str, Any]:
    """Steps 1 and 2 are saved, the save of step 3 is cut off; then the run goes on from there."""
    results = {}
    for point, rank in [(p, r) for p in POINTS for r in (0, 1)] + [(p, 0) for p in COMMIT]:
        store = root / f"{point}-{rank}"
        codes, _ = fork_world(2, save_steps, store, 1, 3, fault=f"{point}:{rank}:3:kill")
        after = found(store)
        again, _ = fork_world(2, save_steps, store, 3, 3)
        results[f"{point}:{rank}"] = {"codes": codes, "after": after, "again": again, "then": found(store)}
    return results


def full_disk(rank: Rank, store: Path) -> list[Any]:
    """The second save fails on one rank, which may not write large files for a while."""
    state, (_, hard) = Numbers(1.0), resource.getrlimit(resource.RLIMIT_FSIZE)
    saving = saver(rank, store, state, background=False)
    saving.save(1, {})
    if rank.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    saving.save(2, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    dist.barrier()
    names = sorted(path.name for path in store.iterdir())
    state.value = 3.0
    saving.save(3, {})
    return [saving.failures, names]


def small_disk(rank: Rank, store: Path) -> list[Any]:
    """A file system with room for two checkpoints: the third fails, and the fourth does not when there is more room."""
    state = Numbers()
    saving = saver(rank, store / "checkpoints", state, background=False)
    for step in (1, 2, 3):
        state.value = float(step)
        saving.save(step, {})
    names = sorted(path.name for path in (store / "checkpoints").iterdir())
    dist.barrier()
    if rank.main:
        subprocess.run(["mount", "-o", "remount,size=10m", str(store)], check=True)
    dist.barrier()
    state.value = 4.0
    saving.save_and_wait(4, {})
    return [saving.failures, names]


def on_small_disk(root: Path) -> dict[str, Any] | None:
    """None: no right to mount one."""
    store = root / "small"
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(store)]
    if subprocess.run(mount, capture_output=True).returncode:
        return None
    try:
        codes, ranks = fork_world(2, small_disk, store)
        return {"codes": codes, "ranks": ranks, "after": found(store / "checkpoints")}
    finally:
        subprocess.run(["umount", str(store)], check=True)


def slow_disk(rank: Rank, store: Path) -> dict[str, Any]:
    """The commit of step 1 hangs for a while: training goes on, and the save of step 2 waits."""
    writable, state = threading.Event(), Numbers(1.0)
    writable.set()
    saving = saver(rank, store, state, check=writable.wait)
    saving.save(1, {})
    writable.clear()
    for _ in range(20):
        time.sleep(0.01)
        saving.poll()
    during = newest_good(store)
    threading.Timer(0.3, writable.set).start()
    state.value = 2.0
    saving.save(2, {})
    after = newest_good(store)
    folders = [path.name for path in store.iterdir() if path.name.startswith(".")]
    saving.save_and_wait(3, {})
    return {"during": during and during.step, "after": after and after.step, "unfinished": len(folders)}


def never_writable(rank: Rank, store: Path) -> list[Any]:
    saving = saver(rank, store, Numbers(1.0))
    saving.save_and_wait(1, {})
    try:
        saving.save_and_wait(2, {})
    except TransientError as error:
        return [str(error), saving.failures]
    return []


def taken_over(rank: Rank, store: Path) -> str:
    lost = False

    def check() -> None:
        if lost:
            raise UserError("taken over by another job")

    saving = saver(rank, store, Numbers(1.0), check=check)
    saving.save_and_wait(1, {})
    lost = True
    try:
        saving.save_and_wait(2, {})
    except UserError as error:
        return str(error)
    return ""


def main() -> None:
    root = Path(sys.argv[1])
    results: dict[str, Any] = {"killed": killed(root), "small": on_small_disk(root)}
    for name, function, fault in (
        ("full", full_disk, ""),
        ("slow", slow_disk, ""),
        ("never", never_writable, "before_rename:0:2:full"),
        ("taken", taken_over, ""),
    ):
        store = root / name
        results[name] = dict(
            zip(("codes", "ranks"), fork_world(2, function, store, fault=fault), strict=True)
        )
        results[name]["after"] = found(store)
    for name, background, fault in (("raised", True, "mid_shard:1:2:raise"), ("foreground", False, "")):
        codes, failures = fork_world(3, save_steps, root / name, 1, 3, background, fault=fault)
        results[name] = {"codes": codes, "failures": failures, "after": found(root / name)}
    (root / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
