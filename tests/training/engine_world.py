"""Run by test_engine.py under torchrun: what every ZeRO stage does, written as JSON by rank 0."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from toy import ToyTask

from megavrc.distributed import Rank, connect
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.training.config import OptimizerConfig, TrainConfig
from megavrc.training.engine import Engine

State = dict[str, dict[str, torch.Tensor]]


def new_engine(rank: Rank, zero: Any, precision: Any, task: ToyTask, micro: int = 2) -> Engine:
    torch.manual_seed(0)
    train = TrainConfig(global_batch=8, micro_batch=micro, zero=zero, precision=precision)
    return Engine(task.build(), task.loss, train, OptimizerConfig(), rank)


def run(engine: Engine, rank: Rank, task: ToyTask, steps: range) -> list[list[float]]:
    """[loss of this rank's last micro-batch, applied, gradient norm] of every step."""
    rows = []
    for step in steps:
        before = engine.snapshot_buffers()
        mine = 8 // rank.world_size
        for micro in range(engine.accumulation):
            size = mine // engine.accumulation
            first = step * 8 + rank.rank * mine + micro * size
            items = [task.source[i % 37] | {"position": i} for i in range(first, first + size)]
            loss, _ = engine.forward(task.collate(items), step)
            engine.backward(loss, step)
        update = engine.step(1e-2, before)
        rows.append([float(loss), update.applied, float(update.grad_norm)])
    return rows


def equal(a: State, b: State) -> bool:
    return all(torch.equal(a[group][name], b[group][name]) for group in a for name in a[group])


def finite(state: State) -> bool:
    return all(bool(tensor.isfinite().all()) for group in state.values() for tensor in group.values())


def probe(rank: Rank, zero: int, precision: str) -> dict[str, Any]:
    """Ten steps in one go, and in two with a fresh engine between; then six steps with a NaN on the last rank."""
    whole = new_engine(rank, zero, precision, ToyTask())
    losses = run(whole, rank, ToyTask(), range(10))
    part = new_engine(rank, zero, precision, ToyTask())
    run(part, rank, ToyTask(), range(6))
    saved = part.gather_state(keep=True)
    resumed = new_engine(rank, zero, precision, ToyTask())
    resumed.load_state(saved, part.updates)
    loaded_exactly = equal(saved, resumed.gather_state(keep=True))
    later = run(resumed, rank, ToyTask(), range(6, 10))
    big = new_engine(rank, zero, precision, ToyTask(), micro=8 // rank.world_size)
    faulty = ToyTask(nan_step=2)
    broken = new_engine(rank, zero, precision, faulty)
    with_nan = run(broken, rank, faulty, range(4))
    with part.whole_core(ToyTask().build) as core:
        weights = {name: p.detach() for name, p in core.named_parameters()} if rank.main else {}
        whole_core = all(
            torch.equal(w.float(), saved["model"][n].to(w.dtype).float()) for n, w in weights.items()
        )
    return {
        "losses": losses,
        "loaded_exactly": loaded_exactly,
        "resumed_exactly": later == losses[6:]
        and equal(whole.gather_state(keep=True), resumed.gather_state(keep=True)),
        "big_batch": run(big, rank, ToyTask(), range(10)),
        "with_nan": [row[1] for row in with_nan],
        "finite_after_nan": finite(broken.gather_state(keep=True)),
        "micro_batches_counted": int(broken.gather_state(keep=True)["buffers"]["seen"]),
        "whole_core": whole_core,
    }


def vrc_norms(rank: Rank, zero: Any) -> list[float]:
    """Gradient norms of three steps of the real model, whose embeddings are used outside of their modules."""
    torch.manual_seed(0)
    config = ModelConfig(layers=2, frames=2, dropout=0.0, condition=ConditionConfig(vocab=40))
    settings = TrainConfig(global_batch=2 * rank.world_size, micro_batch=2, zero=zero)
    generator = torch.Generator().manual_seed(rank.rank)
    ids = torch.randint(0, 512, (2, 3, 8, 8), generator=generator)
    text = torch.randint(0, 40, (2, 8), generator=generator)

    def loss(module: torch.nn.Module, batch: Any, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return module(*batch).loss, {}

    engine = Engine(VRC(config), loss, settings, OptimizerConfig(), rank)
    norms = []
    for step in range(3):
        engine.backward(engine.forward((ids, text), step)[0], step)
        norms.append(float(engine.step(1e-3, engine.snapshot_buffers()).grad_norm))
    return norms


def main() -> None:
    out, cases = Path(sys.argv[1]), [case.split(":") for case in sys.argv[2:]]
    with connect() as rank:
        results: dict[str, Any] = {f"{zero}:{kind}": probe(rank, int(zero), kind) for zero, kind in cases}
        results["vrc"] = {zero: vrc_norms(rank, zero) for zero in (1, 3)}
        if rank.main:
            out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
