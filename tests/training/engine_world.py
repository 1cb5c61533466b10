"""Run by test_engine.py under torchrun: what every ZeRO stage does, written as JSON by rank 0."""

import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from toy import ToyTask

from megavrc.benchmarks.faulty_task import FaultyTask
from megavrc.distributed import Rank, connect, seed_for
from megavrc.model import VRC, CompressionConfig, ConditionConfig, ModelConfig
from megavrc.training.compile_blocks import prepare_blocks
from megavrc.training.config import OptimizerConfig, TrainConfig
from megavrc.training.engine import Engine
from megavrc.training.metrics import by_rank

# A NaN in the loss, an infinite loss with finite gradients, a NaN in one element of one gradient.
FAULTS = ("loss:scale:nan", "loss:add:inf", "gradient:nan")
State = dict[str, dict[str, torch.Tensor]]


def new_engine(rank: Rank, zero: Any, precision: Any, task: ToyTask, micro: int = 2) -> Engine:
    torch.manual_seed(0)
    train = TrainConfig(global_batch=8, micro_batch=micro, zero=zero, precision=precision, ema=0.5)
    return Engine(task.build(), FaultyTask(task).loss, train, OptimizerConfig(), rank)


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
            engine.backward(loss)
        update = engine.step(1e-2, before)
        rows.append([float(loss), update.applied, float(update.grad_norm)])
    return rows


def equal(a: State, b: State) -> bool:
    return all(torch.equal(a[group][name], b[group][name]) for group in a for name in a[group])


def finite(state: State) -> bool:
    return all(bool(tensor.isfinite().all()) for group in state.values() for tensor in group.values())


def averaged(rank: Rank, engine: Engine, steps: int) -> bool:
    """Whether the average is the one that is computed by hand, beginning with the first weights; buffers included."""
    by_hand = {
        name: tensor
        for part in ("model", "buffers")
        for name, tensor in engine.gather_state(keep=True)[part].items()
    }
    for step in range(steps):
        run(engine, rank, ToyTask(), range(step, step + 1))
        state = engine.gather_state(keep=True)
        decay = min(0.5, (2 + step) / (11 + step))
        for name, tensor in (state["model"] | state["buffers"]).items():
            if tensor.is_floating_point():
                by_hand[name] = decay * by_hand[name] + (1 - decay) * tensor
    return state["ema"].keys() == by_hand.keys() - {"seen"} and all(
        torch.allclose(tensor, by_hand[name], atol=1e-6) for name, tensor in state["ema"].items()
    )


def with_fault(rank: Rank, zero: int, precision: str, fault: str) -> tuple[list[float], State]:
    """Whether each of four steps was applied, with a fault on the last rank in the third; the state after it."""
    engine = new_engine(rank, zero, precision, ToyTask())
    point, _, action = fault.partition(":")
    os.environ["MEGAVRC_FAULT"] = f"{point}:{rank.world_size - 1}:2:{action}"
    rows = run(engine, rank, ToyTask(), range(4))
    del os.environ["MEGAVRC_FAULT"]
    return [row[1] for row in rows], engine.gather_state(keep=True)


def probe(rank: Rank, zero: int, precision: str) -> dict[str, Any]:
    """Ten steps in one go, and in two with a fresh engine between; then four steps with faults on the last rank."""
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
    faults = [with_fault(rank, zero, precision, fault) for fault in FAULTS]
    with part.whole_core(ToyTask().build) as core:
        weights = {name: p.detach() for name, p in core.named_parameters()} if rank.main else {}
        whole_core = all(
            torch.equal(w.float(), saved["ema"][n].to(w.dtype).float()) for n, w in weights.items()
        )
    return {
        "losses": losses,
        "loaded_exactly": loaded_exactly,
        "resumed_exactly": later == losses[6:]
        and equal(whole.gather_state(keep=True), resumed.gather_state(keep=True)),
        "big_batch": run(big, rank, ToyTask(), range(10)),
        "with_faults": [applied for applied, _ in faults],
        "finite_after_faults": [finite(state) for _, state in faults],
        "micro_batches_counted": [int(state["buffers"]["seen"]) for _, state in faults],
        "averaged": averaged(rank, new_engine(rank, zero, precision, ToyTask()), 6),
        "whole_core": whole_core,
    }


def train_vrc(
    rank: Rank, steps: int, micro: int = 2, model: dict[str, Any] | None = None, **train: Any
) -> Any:
    """[loss of the global batch, gradient norm] of steps of the real model, and its state.

    Its embeddings are used outside of their modules, which matters at ZeRO stage 3.
    """
    torch.manual_seed(0)
    settings = {"layers": 2, "frames": 2, "dropout": 0.0, "condition": ConditionConfig(vocab=40)} | (
        model or {}
    )
    core = VRC(ModelConfig(**settings))
    config = TrainConfig(global_batch=8, micro_batch=micro, **train)
    prepare_blocks(core.trunk.layers, config)

    def loss(module: torch.nn.Module, batch: Any, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return module(*batch).loss, {}

    engine = Engine(core, loss, config, OptimizerConfig(), rank)
    rows = []
    for step in range(steps):
        torch.manual_seed(seed_for(0, step, rank.rank))
        before, losses = engine.snapshot_buffers(), []
        for micro_step in range(engine.accumulation):
            first = step * 8 + (micro_step * rank.world_size + rank.rank) * micro
            each, _ = engine.forward(clips(range(first, first + micro)), step)
            engine.backward(each)
            losses.append(float(each.detach()))
        mean = statistics.fmean(each for mine in by_rank(losses, rank) for each in mine)
        rows.append([mean, float(engine.step(1e-3, before).grad_norm)])
    return rows, engine.gather_state(keep=True)


def clips(positions: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Random clips and captions, of 16 different ones."""
    generators = [torch.Generator().manual_seed(position % 16) for position in positions]
    return (
        torch.stack([torch.randint(0, 512, (3, 8, 8), generator=g) for g in generators]),
        torch.stack([torch.randint(0, 40, (8,), generator=g) for g in generators]),
    )


def real_model(rank: Rank, everything: bool) -> dict[str, Any]:
    """What must not change the training of the real model, and what bf16 does to its BatchNorm."""
    group = {"compression": CompressionConfig(norm="group")}
    stages = range(4) if everything else (0, 3)
    plain, state = train_vrc(rank, 3, zero=1)
    found: dict[str, Any] = {
        "plain": plain,
        "zero": {zero: train_vrc(rank, 20, zero=zero)[0] for zero in stages},
        "accumulation": [train_vrc(rank, 3, micro, group, zero=1)[0] for micro in (4, 2, 1)],
    }
    kinds = ("none", "layers")
    for zero in (1, 2, 3) if everything else (3,):
        settings = {"model": {"dropout": 0.2}, "zero": zero}
        pair = [train_vrc(rank, 2, **settings, activation_checkpointing=kind) for kind in kinds]
        found[f"checkpointing_{zero}"] = pair[0][0] == pair[1][0] and equal(pair[0][1], pair[1][1])
    found["bf16"], low = train_vrc(rank, 3, zero=1, precision="bf16")
    running = {name: buffer for name, buffer in low["buffers"].items() if "running" in name}
    found["bf16_buffers"] = sorted({str(buffer.dtype) for buffer in running.values()})
    found["bf16_apart"] = max(
        float((buffer - state["buffers"][name]).norm() / state["buffers"][name].norm())
        for name, buffer in running.items()
    )
    sums = by_rank([float(buffer.double().sum()) for buffer in running.values()], rank)
    found["bf16_same_on_all_ranks"] = all(mine == sums[0] for mine in sums)
    if everything and shutil.which("g++"):
        found["compiled"] = train_vrc(rank, 3, zero=1, compile=True)[0]
        found["graph_breaks"] = len(torch._dynamo.utils.counters["graph_break"])
        found["compiled_checkpointed"] = train_vrc(
            rank, 3, zero=2, compile=True, activation_checkpointing="layers"
        )[0]
    return found


def main() -> None:
    out, cases = Path(sys.argv[1]), [case.split(":") for case in sys.argv[2:]]
    with connect() as rank:
        results: dict[str, Any] = {f"{zero}:{kind}": probe(rank, int(zero), kind) for zero, kind in cases}
        results["vrc"] = real_model(rank, everything=len(cases) > 2)
        if rank.main:
            out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
