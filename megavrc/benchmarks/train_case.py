"""One case of `megavrc benchmark train`, in its own process (or one a rank): train, measure, write JSON, end.

python -m megavrc.benchmarks.train_case RESULT.json WARMUP SAVES --config=RUN.yaml
"""

import contextlib
import os
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from megavrc.config import load_config
from megavrc.distributed import Rank, connect
from megavrc.errors import EXIT_USER, UserError
from megavrc.files import write_json
from megavrc.hardware import peak_memory
from megavrc.model.attention import BackendError
from megavrc.training.run_folder import RunFolder
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.training.trainer import Trainer
from megavrc.training.watchdog import Watchdog


def measure(config: RunConfig, warmup: int, saves: int, rank: Rank) -> dict[str, Any]:
    """Train `warmup` + train.steps steps with a line of metrics for each of the latter, then save in the background.

    Returns:
        Medians of the metrics over the timed steps, clips a second of CPU time, memory, seconds that each save stalls.
    """
    before = peak_memory(rank.device)
    task: Any = VRCTask(config)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(contextlib.closing(RunFolder(config, task.identity, task.facts, rank)))
        watchdog = stack.enter_context(Watchdog(run.path, rank, config.train.watchdog_s))
        trainer = stack.enter_context(contextlib.closing(Trainer(config, task, run, rank, watchdog)))
        for _ in range(warmup):
            update = trainer.train_step()
        trainer.report(update, warmup, {})
        lines, cpu = [], time.process_time()
        for _ in range(config.train.steps):
            lines.append(trainer.report(trainer.train_step(), 1, {}))
        cpu = time.process_time() - cpu
        result: dict[str, Any] = {name: statistics.median(line[name] for line in lines) for name in lines[0]}
        if rank.device.type == "cuda":
            result["reserved_GiB"] = torch.cuda.max_memory_reserved() / 2**30
        result["before_GiB"] = before / 2**30
        result["clips_per_cpu_s"] = config.train.steps * config.train.global_batch / rank.world_size / cpu
        result["checkpoint_stalls_s"] = [_stall(trainer) for _ in range(saves)]
    return result


def _stall(trainer: Trainer) -> float:
    """Seconds that training waits for a checkpoint that is written in the background, all of it."""
    trainer.saver.stalled = 0.0
    trainer.save(wait=False, validation={})
    stall = trainer.saver.stalled
    trainer.saver.finish()
    return stall


def main(out: Path, warmup: int, saves: int, options: list[str]) -> int:
    """Measure and write; the exit code."""
    try:
        config = load_config(RunConfig, options)
        with connect() as rank:
            result = measure(config, warmup, saves, rank)
            if rank.main:
                write_json(out, result)
    except (UserError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as the training command ends
