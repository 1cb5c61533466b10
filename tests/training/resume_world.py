"""Run by test_resume.py: the toy task on changing numbers of ranks and ZeRO stages, reported as JSON."""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

# What every rank would spend seconds on is imported before ranks are forked.
import deepspeed.ops.op_builder.all_ops
import deepspeed.runtime.zero.muon.muon_optimizer
import torch
import torch.distributed as dist
import torch.utils.tensorboard
import yaml  # noqa: F401
from forks import fork_world
from toy import ToyTask, toy_config

from megavrc.checkpoint import newest_good, read
from megavrc.distributed import Rank
from megavrc.errors import UserError
from megavrc.training.import_deepspeed import import_run
from megavrc.training.loop import train
from megavrc.training.run_folder import RunFolder
from megavrc.training.trainer import Trainer
from megavrc.training.watchdog import Watchdog

assert deepspeed.ops.__compatible_ops__  # looks at compilers, once

BATCH = 12  # divisible by 1, 2, 3 and 4 ranks
CHAIN = [  # ranks, ZeRO stage, samples of a micro-batch, up to which step
    (2, 1, 2, 2),
    (1, 3, 4, 4),
    (4, 0, 1, 6),
    (3, 1, 2, 8),
    (2, 2, 3, 10),
    (3, 3, 1, 12),
]


def steps(
    rank: Rank, folder: Path, until: int, zero: int, micro: int, dropout: float = 0.0, batch: int = BATCH
) -> dict[str, Any]:
    """Train up to a step and save there: what was resumed, and what each step saw and said."""
    config = toy_config(
        folder, 99, zero=zero, micro_batch=micro, global_batch=batch, save_every=100, async_save=zero != 2
    )
    task = ToyTask(dropout)
    run = RunFolder(config, task.identity, task.facts, rank)
    trainer = Trainer(config, task, run, rank, Watchdog(run.path, rank, 0))
    mine = trainer.engine.gather_state(keep=True)
    stored = run.checkpoint.groups if run.checkpoint else mine
    exact = all(torch.equal(mine[group][name], stored[group][name]) for group in mine for name in mine[group])
    said, samples = [], []
    while trainer.step < until:
        task.delivered.clear()
        said.append(trainer.report(trainer.train_step(), 1, {}))
        parts: list[Any] = [None] * rank.world_size
        dist.all_gather_object(parts, task.delivered)
        samples.append(sorted(sample for part in parts for micro_batch in part for sample in micro_batch))
    trainer.save(wait=True, validation={})
    trainer.close()
    run.close()
    losses = [[line["loss"], line["grad_norm"]] for line in said]
    return {"exact": exact, "groups": sorted(mine), "lines": losses, "samples": samples}


def chain(root: Path) -> list[dict[str, Any]]:
    """One run, resumed by other numbers of ranks and ZeRO stages."""
    parts = []
    for ranks, zero, micro, until in CHAIN:
        codes, results = fork_world(ranks, steps, root / "chain", until, zero, micro)
        assert codes == [0] * ranks, codes
        parts.append({**results[0], "exact": [result["exact"] for result in results]})
    return parts


def same(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    ours, theirs = read(a).groups, read(b).groups
    pairs = [(ours[group][name], theirs[group][name]) for group in ours for name in ours[group]]
    return ours.keys() == theirs.keys() and all(torch.equal(x, y) for x, y in pairs)


def five_resumes(root: Path) -> dict[str, Any]:
    """Six parts of one epoch (nine steps of four samples) against the epoch in one go, with dropout."""
    whole = fork_world(2, steps, root / "epoch", 9, 1, 1, 0.1, 4)[1][0]
    parts = [
        fork_world(2, steps, root / "parts", until, 1, 1, 0.1, 4)[1][0]["samples"]
        for until in (1, 2, 4, 5, 8, 9)
    ]
    return {
        "samples": [step for part in parts for step in part] == whole["samples"],
        "distinct": len({sample % 1000 for step in whole["samples"] for sample in step}),
        "same": same(*(root / name / "checkpoints" / "step-00000009" for name in ("epoch", "parts"))),
    }


def training(rank: Rank, folder: Path) -> None:
    train(toy_config(folder, 10), ToyTask(dropout=0.1), rank)


def killed(root: Path) -> dict[str, Any]:
    """Rank 1 is killed while the checkpoint of step 6 is written, rank 0 when that of step 9 is renamed."""
    fork_world(2, training, root / "unhurt")
    faults = ("mid_shard:1:6:kill", "before_rename:0:9:kill", "")
    codes, found = [], []
    for fault in faults:
        codes.append(fork_world(2, training, root / "hurt", fault=fault)[0])
        checkpoint = newest_good(root / "hurt" / "checkpoints")
        found.append(checkpoint and checkpoint.step)
    end = Path("checkpoints") / "step-00000010"
    unhurt, hurt = (lines(root / name) for name in ("unhurt", "hurt"))
    return {
        "codes": codes,
        "found": found,
        "same": same(root / "unhurt" / end, root / "hurt" / end),
        "steps": [line["step"] for line in hurt],
        "stalls": [line["step"] for line in unhurt if line.get("checkpoint_stall_s", 0) > 0],
    }


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saves_natively(rank: Rank, folder: Path, zero: int) -> None:
    """Four steps, then DeepSpeed's own checkpoint, then ours."""
    task = ToyTask()
    config = toy_config(folder, 99, zero=zero, global_batch=BATCH, micro_batch=3)
    run = RunFolder(config, task.identity, task.facts, rank)
    trainer = Trainer(config, task, run, rank, Watchdog(run.path, rank, 0))
    while trainer.step < 4:
        trainer.train_step()
    engine: Any = trainer.engine._engine
    engine.save_checkpoint(str(folder / "native"), tag="four")
    trainer.save(wait=True, validation={})
    trainer.close()


def native(root: Path) -> dict[str, Any]:
    """What DeepSpeed wrote at each stage, imported, is what we wrote."""
    found = {}
    for zero in (0, 1, 2, 3):
        folder = root / f"native{zero}"
        codes, _ = fork_world(2, saves_natively, folder, zero)
        config = toy_config(root / f"imported{zero}", 99)
        ours = import_run(folder / "native", "", config, ToyTask())
        theirs = folder / "checkpoints" / "step-00000004"
        state = {key: read(ours).state[key] for key in ("step", "updates", "skipped")}
        again = "not refused"
        try:
            import_run(folder / "native", "", config, ToyTask())
        except UserError as error:
            again = str(error)
        found[str(zero)] = {
            "again": again,
            "codes": codes,
            "same": same(ours, theirs),
            "state": state,
            "name": ours.name,
        }
    continued = fork_world(1, steps, root / "imported3", 6, 1, 12)[1][0]
    expected = fork_world(1, steps, root / "native3", 6, 1, 12)[1][0]
    return {
        "stages": found,
        "resumed": continued == expected and continued["exact"],
        "lines": len(continued["lines"]),
    }


def resumed(root: Path) -> dict[str, Any]:
    whole = fork_world(2, steps, root / "whole", CHAIN[-1][3], 1, 2)[1][0]
    return {"whole": whole, "chain": chain(root)}


def often(root: Path) -> dict[str, Any]:
    return {"five": five_resumes(root), "killed": killed(root)}


PARTS = {"resumed": resumed, "often": often, "native": native}


def main() -> None:
    part, root = sys.argv[1], Path(sys.argv[2])
    (root / "results.json").write_text(json.dumps(PARTS[part](root)))


if __name__ == "__main__":
    main()
