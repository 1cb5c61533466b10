"""How long training waits for a checkpoint, in the background and in the foreground: `python benchmarks/checkpoint.py`.

A model of the given preset on this machine's device, one rank, fp32. Of each mode two saves are timed: the first one
allocates the host's copy, the second is what every later one costs.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from megavrc.config import command
from megavrc.distributed import connect
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.results import case, metric, publish_tables, result
from megavrc.training.config import OptimizerConfig, TrainConfig
from megavrc.training.engine import Engine
from megavrc.training.saving import Saver


def main(preset: str = "l", folder: Path | None = None, zero: int = 0, json: Path | None = None) -> None:
    """Time two checkpoints in each mode.

    Args:
        preset: of the model.
        folder: on the disk to write to (default: a temporary one).
        zero: ZeRO stage.
        json: file that gets what is printed.
    """
    config = ModelConfig(preset=preset, condition=ConditionConfig(kind="class", classes=101))
    rows = []
    with connect() as rank, tempfile.TemporaryDirectory(dir=folder) as store:
        train: Any = TrainConfig(global_batch=1, micro_batch=1, zero=zero)  # type: ignore[arg-type]
        engine = Engine(VRC(config), lambda core, batch, step: core(batch), train, OptimizerConfig(), rank)  # type: ignore[arg-type]
        for background in (False, True):
            saver = Saver(
                Path(store) / str(background),
                engine.state,
                rank,
                background,
                lambda: None,
                lambda final, before: None,
            )
            for step in (1, 2):
                begin, waited = time.perf_counter(), saver.stalled
                saver.save(step, {})
                stall = saver.stalled - waited
                saver.finish()
                total = time.perf_counter() - begin
                rows.append(
                    case(
                        f"{'background' if background else 'foreground'}, save {step}",
                        {"stall": metric(stall, "s"), "total": metric(total, "s")},
                    )
                )
            saver.close()
    size = sum(tensor.nbytes for group in engine.state.like.values() for tensor in group.values())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"preset": preset, "zero": zero}
    publish_tables(
        result("benchmarks/checkpoint.py", options, rows, {"checkpoint": metric(size, "B")}, {}, device), json
    )


if __name__ == "__main__":
    command(main)
