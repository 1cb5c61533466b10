"""Run by test_loop.py on two ranks and on one: runs of the toy task, reported as JSON by rank 0."""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from toy import ToyTask, toy_config

from megavrc.checkpoint import read
from megavrc.distributed import Rank, StopSignal, connect
from megavrc.errors import UserError
from megavrc.training.guards import BadStep
from megavrc.training.loop import take_steps, train
from megavrc.training.run_folder import RunFolder
from megavrc.training.trainer import Trainer
from megavrc.training.watchdog import Watchdog


def everyones(task: ToyTask, rank: Rank) -> list[list[list[int]]]:
    """Samples that each rank got, micro-batch by micro-batch."""
    parts: list[Any] = [None] * rank.world_size
    dist.all_gather_object(parts, task.delivered)
    return parts


def same(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    names = ("model", "exp_avg", "exp_avg_sq", "buffers")
    pairs = [(read(a).tensors(name), read(b).tensors(name)) for name in names]
    return all(torch.equal(x[key], y[key]) for x, y in pairs for key in x)


def copy(source: Path, target: Path, rank: Rank) -> None:
    if rank.main:
        shutil.copytree(source, target)
    dist.barrier()


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(folder: Path, rank: Rank, steps: int = 10, task: ToyTask | None = None) -> list[list[list[int]]]:
    task = task or ToyTask(dropout=0.1)
    train(toy_config(folder, steps), task, rank)
    return everyones(task, rank)


def two_ranks(root: Path, rank: Rank) -> dict[str, Any]:
    whole = run(root / "whole", rank)
    first = run(root / "parts", rank, task=ToyTask(dropout=0.1, stop_step=5))
    stopped = {
        "checkpoints": sorted(path.name for path in (root / "parts" / "checkpoints").glob("step-*")),
        "complete": (root / "parts" / "complete.json").exists(),
    }
    copy(root / "parts", root / "damaged", rank)
    then = run(root / "parts", rank)
    again = run(root / "parts", rank)
    if rank.main:
        weights = root / "damaged" / "checkpoints" / "step-00000006" / "model-00001.safetensors"
        content = bytearray(weights.read_bytes())
        content[-3] ^= 1
        weights.write_bytes(content)
    fallen_back = run(root / "damaged", rank)
    refused = ""
    try:
        run(root / "whole", rank, task=ToyTask(name="another"))
    except UserError as error:
        refused = str(error)
    run(root / "nan", rank, task=ToyTask(nan_step=2))
    run(root / "plain", rank, steps=6, task=ToyTask())
    more = run(root / "plain", rank, task=ToyTask(stop_step=7))
    stopped["complete_when_continued"] = (root / "plain" / "complete.json").exists()
    more = [a + b for a, b in zip(more, run(root / "plain", rank, task=ToyTask()), strict=True)]
    if rank.main:
        (root / "whole" / "complete.json").unlink()
    run(root / "whole", rank)
    end = "checkpoints/step-00000010"
    return {
        "same_after_stop": same(root / "whole" / end, root / "parts" / end),
        "same_after_damage": same(root / "whole" / end, root / "damaged" / end),
        "samples_after_stop": [a + b for a, b in zip(first, then, strict=True)] == whole,
        "samples_after_damage": [len(part) for part in fallen_back],
        "stopped": stopped,
        "again": again,
        "refused": refused,
        "whole": metrics(root / "whole"),
        "parts": metrics(root / "parts"),
        "nan": metrics(root / "nan"),
        "plain": metrics(root / "plain"),
        "samples": [sample for parts in zip(*more, strict=True) for part in parts for sample in part],
    }


def one_rank(root: Path, rank: Rank) -> dict[str, Any]:
    """Go on from step 6 of the two ranks' run without dropout, alone."""
    shutil.copytree(root / "plain", root / "alone")
    for name in ("complete.json", "checkpoints/latest"):
        (root / "alone" / name).unlink()
    for name in ("step-00000008", "step-00000009", "step-00000010"):
        shutil.rmtree(root / "alone" / "checkpoints" / name)
    [delivered] = run(root / "alone", rank, task=ToyTask())
    (root / "alone" / "complete.json").unlink()
    run(root / "alone", rank, steps=5, task=ToyTask())
    return {
        "refused_to_go_on": refused_to_go_on(root / "alone", rank),
        "samples": [sample for part in delivered for sample in part],
        "alone": metrics(root / "alone"),
        "skipped_in_a_row": skipped_in_a_row(root / "nan", rank),
        "after_rollback": after_rollback(root / "rollback", rank),
        "after_a_slow_start": after_a_slow_start(root / "slow", rank),
    }


def refused_to_go_on(folder: Path, rank: Rank) -> list[str]:
    """Why a finished run is not continued by starts with a mistake that building the engine finds."""
    found, config = [], toy_config(folder, 12)
    for section, content in (
        ("zero_optimization", {"no_such_key": 1}),
        ("sparse_attention", {}),
        ("zero_optimisation", {"stage": 1}),
    ):
        config.deepspeed = {section: content}
        try:
            train(config, ToyTask(), rank)
        except UserError as error:
            found.append(str(error))
    return found


def skipped_in_a_row(folder: Path, rank: Rank) -> dict[int, int]:
    """As starts count them that go on from step 6, and from step 3, which was skipped."""
    found, config, task = {}, toy_config(folder), ToyTask()
    for step, later in ((6, (9, 10)), (3, (6,))):
        for number in later:
            shutil.rmtree(folder / "checkpoints" / f"step-{number:08d}")
        with contextlib.closing(RunFolder(config, task.identity, task.facts, rank)) as run:
            with contextlib.closing(Trainer(config, task, run, rank, Watchdog(folder, rank, 0))) as trainer:
                found[step] = trainer.guards.skipped_in_a_row
    return found


def after_rollback(folder: Path, rank: Rank) -> dict[str, float]:
    """The first line after a rollback of a step that took 1000 s, half of them for data."""
    config, task = toy_config(folder), ToyTask()
    with contextlib.closing(RunFolder(config, task.identity, task.facts, rank)) as run:
        with contextlib.closing(Trainer(config, task, run, rank, Watchdog(folder, rank, 0))) as trainer:
            trainer.save(wait=True, validation={})
            trainer.train_step()
            trainer.clock.last -= 1000
            trainer.clock.waiting += 500
            trainer.go_back(BadStep(0, "a spike", [[9.0]], [0]))
            return trainer.report(trainer.train_step(), 1, {})


def after_a_slow_start(folder: Path, rank: Rank) -> dict[str, float]:
    """The first line of a run whose ranks took 1000 s to come."""
    config, task = toy_config(folder, 1), ToyTask()
    with contextlib.closing(RunFolder(config, task.identity, task.facts, rank)) as run:
        with contextlib.closing(Trainer(config, task, run, rank, Watchdog(folder, rank, 0))) as trainer:
            trainer.clock.last -= 1000
            take_steps(trainer, StopSignal())
    return metrics(folder)[0]


if __name__ == "__main__":
    with connect() as rank:
        root = Path(sys.argv[1])
        result = (two_ranks if rank.world_size == 2 else one_rank)(root, rank)
        if rank.main:
            (root / f"result{rank.world_size}.json").write_text(json.dumps(result))
