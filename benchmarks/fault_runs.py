"""Small runs on forked ranks, for `faults.py`: their configuration and data, from a start to the end of all ranks.

Ranks are forked from this process, which has imported everything: a start costs none of the seconds that python and
torch take to load.
"""

import json
import os
import signal
import socket
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import deepspeed.ops.op_builder.all_ops
import deepspeed.runtime.zero.muon.muon_optimizer
import jsonargparse  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import yaml

from megavrc.benchmarks.faulty_task import FaultyTask
from megavrc.training.entry import pretrain
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig

assert deepspeed.ops.__compatible_ops__  # looks at compilers once, and not in every rank

STEPS, SAVE_EVERY, WATCHDOG = 24, 6, 10


@dataclass
class Attempt:
    """Ranks from a start to their end. Times are those of `time.time`."""

    run: Path
    ranks: dict[int, int]  # process: rank
    started: float
    codes: dict[int, int] = field(default_factory=dict)  # rank: exit code, negative for a signal
    ended: float = 0.0

    def wait_for_steps(self, more: int) -> None:
        first = len(metrics(self.run))
        while len(metrics(self.run)) < first + more and not self.reap():
            time.sleep(0.01)

    def reap(self) -> bool:
        """Whether all ranks have ended; kills those that are stopped and alone, as launchers do."""
        for process in self.ranks.keys() - {p for p, rank in self.ranks.items() if rank in self.codes}:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                self.codes[self.ranks[process]], self.ended = os.waitstatus_to_exitcode(status), time.time()
        left = [process for process, rank in self.ranks.items() if rank not in self.codes]
        if len(left) < len(self.ranks) and all(_stopped(process) for process in left):
            for process in left:
                os.kill(process, signal.SIGKILL)
        return not left

    def wait(self) -> "Attempt":
        while not self.reap():
            time.sleep(0.01)
        return self

    @property
    def output(self) -> str:
        return "".join((self.run / f"rank{rank}.txt").read_text() for rank in self.ranks.values())


def _stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def start(run: Path, ranks: int, fault: str, *options: str, address: str = "127.0.0.1") -> Attempt:
    """Fork the ranks of a run whose configuration lies beside its folder."""
    run.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    attempt = Attempt(run, {}, time.time())
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        process = os.fork()
        if process:
            attempt.ranks[process] = rank
            continue
        os.environ |= {"MASTER_ADDR": address, "MEGAVRC_FAULT": fault} | {k: str(v) for k, v in place.items()}
        sys.argv = ["pretrain_vrc.py", f"--config={run.parent}/config.yaml", f"--run_dir={run}", *options]
        with open(run / f"rank{rank}.txt", "w") as file, redirect_stdout(file), redirect_stderr(file):
            pretrain(RunConfig, lambda config, rank: FaultyTask(VRCTask(config)))
    return attempt


def metrics(run: Path) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_configuration(folder: Path) -> None:
    train = {"steps": STEPS, "save_every": SAVE_EVERY, "global_batch": 8, "micro_batch": 2, "log_every": 1}
    content = {
        "run_dir": str(folder / "run"),
        "stage": "video",
        "model": {"layers": 1, "heads": 2, "width": 32, "vocab": 32, "grid": 4, "frames": 1, "dropout": 0.0}
        | {"condition": {"kind": "class", "classes": 101}},
        "data": {"path": str(folder / "tokens")},
        "train": train | {"watchdog_s": WATCHDOG, "preview_every": 0},
        "optimizer": {"lr": 1e-3, "warmup": 2, "schedule": "constant"},
        "preview": {"count": 0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
