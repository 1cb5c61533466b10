"""Run by test_broken_runs.py in a process of its own: trainings in run folders after accidents; reported as JSON."""

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing_files import fail
from toy import ToyTask, toy_config

from megavrc.checkpoint import Lease
from megavrc.distributed import Rank, connect
from megavrc.errors import UserError
from megavrc.files import append_line, read_lines_of_json
from megavrc.training.loop import train
from megavrc.training.watchdog import exit_code_of

DRIVES = [
    (errno.EIO, "lease"),
    (errno.ESTALE, "checkpoints"),
    (errno.EACCES, "checkpoints"),
    (errno.ESTALE, "run.json"),
    (errno.EACCES, "lease"),
    (errno.EACCES, "run.json"),
]


class StolenTask(ToyTask):
    """Another job takes the run over in step 4, as if this one had been suspended for long."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir

    def loss(self, module: Any, batch: Any, step: int) -> Any:
        if step == 4 and not hasattr(self, "thief"):
            lease = max((self.run_dir / "lease").glob("*.json"))
            lease.write_text(json.dumps(json.loads(lease.read_text()) | {"machine": "elsewhere"}))
            os.utime(lease, (time.time() - 999,) * 2)
            self.thief = Lease(self.run_dir)
        return super().loss(module, batch, step)


def refused(work: Callable[[], Any]) -> list[Any]:
    """What is said, and with which exit code it ends."""
    try:
        work()
    except UserError as error:
        return [str(error), exit_code_of(error)]
    return ["", 0]


def steps(folder: Path) -> list[list[int]]:
    """Start and step of every line."""
    return [[line["start"], line["step"]] for line in read_lines_of_json(folder / "metrics.jsonl")]


def files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not {"tensorboard", "lease"} & {*path.parts}
    )


def scenarios(root: Path, rank: Rank) -> dict[str, Any]:
    def go(folder: Path, steps: int, name: str = "toy") -> None:
        train(toy_config(folder, steps=steps, save_every=2), ToyTask(name=name), rank)

    stolen = StolenTask(root / "stolen")
    said = refused(lambda: train(toy_config(root / "stolen", save_every=100), stolen, rank))
    stolen.thief.check()
    stolen.thief.release()
    results: dict[str, Any] = {"stolen": [said, steps(root / "stolen"), files(root / "stolen")]}

    run = root / "starts"
    go(run, 2)
    go(run, 4)
    append_line(run / "metrics.jsonl", json.dumps({"step": 3, "start": 1}))  # of a job that was suspended
    go(run, 5)
    results["starts"] = steps(run)

    (run / "run.json").unlink()
    before = files(run)
    other = refused(lambda: go(run, 6, "other"))
    results["identity"] = [other, files(run) == before]
    go(run, 6)
    results["without run.json"] = steps(run)[-1]

    for error, part in DRIVES:
        record = (run / "run.json").read_bytes()
        with pytest.MonkeyPatch.context() as patched:
            failed = fail(patched, error, part)
            said = refused(lambda: go(run, 7))
        untouched = (run / "run.json").read_bytes() == record
        with pytest.MonkeyPatch.context() as patched:
            fail(patched, errno.EIO, part, times=2)
            then = refused(lambda: go(run, 6))
        results[f"{error} {part}"] = [said, len(failed), untouched, then]
    results["at last"] = [line[1] for line in steps(run)]
    return results


if __name__ == "__main__":
    with connect() as rank:
        root = Path(sys.argv[1])
        (root / "results.json").write_text(json.dumps(scenarios(root, rank)))
