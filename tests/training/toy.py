"""A small task for tests of the engine and the loop: regression with dropout, a buffer, and faults on request."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megavrc.data.mirror import NetworkError
from megavrc.data.order import InOrder, Order
from megavrc.data.shards import DataError
from megavrc.training.config import BaseRunConfig
from megavrc.training.tasks.base import Samples


class ToyNet(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 13), nn.Linear(13, 5)  # odd sizes: shards need padding
        self.scale = nn.Parameter(torch.ones(13))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(7))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.mean.lerp_(x.mean(0), 0.1)
        return self.last(self.dropout(torch.tanh(self.first(x.to(self.scale.dtype))) * self.scale)).float()


class ToySource:
    def __init__(self, damaged: int = -1) -> None:
        self.damaged = damaged

    def __len__(self) -> int:
        return 37

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.damaged:
            raise DataError(f"sample {index} is damaged")
        generator = torch.Generator().manual_seed(index)
        return {
            "index": index,
            "x": torch.randn(7, generator=generator),
            "y": torch.randn(5, generator=generator),
        }


class ToyTask:
    """Args: dropout; at `nan_step` the last rank gets a NaN, at `stop_step` it gets SIGTERM; `bad_steps` have data with
    losses far too high; the last rank has no network when it is to "make" the task, or to "read" the data of step 3;
    others take the place of the sample `damaged`."""

    tokens, flops = 1, 0

    def __init__(
        self,
        dropout: float = 0.0,
        nan_step: int = -1,
        stop_step: int = -1,
        name: str = "toy",
        validation: bool = False,
        bad_steps: tuple[int, ...] = (),
        no_network: str = "",
        damaged: int = -1,
    ) -> None:
        self.source, self.order, self.max_damaged = ToySource(damaged), Order(37, 5), 1
        self.identity, self.facts = {"name": name}, {}
        self.validation = {"toys": Samples(self.source, InOrder(37), 21)} if validation else {}
        self.bad_steps = bad_steps
        self.dropout, self.nan_step, self.stop_step = dropout, nan_step, stop_step
        self.last_rank = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        self.delivered: list[list[int]] = []
        self.no_network = no_network if self.last_rank else ""
        if self.no_network == "make":
            raise NetworkError("http://far/away: Connection reset")

    def build(self) -> nn.Module:
        return ToyNet(self.dropout)

    def initialise(self, module: nn.Module) -> None: ...

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        if self.no_network == "read" and items[0]["position"] >= 24:
            raise NetworkError("http://far/away: Connection reset")
        self.delivered.append([item["position"] * 1000 + item["index"] for item in items])
        batch = {name: torch.stack([item[name] for item in items]) for name in ("x", "y")}
        batch["y"] *= 30.0 if items[0]["position"] // 8 in self.bad_steps else 1.0
        return batch

    def loss(
        self, module: nn.Module, batch: dict[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x"]
        if self.last_rank and step == self.nan_step:
            x = x * float("nan")
        if self.last_rank and step == self.stop_step:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = (module(x) - batch["y"]).square().mean()
        return loss, {"error": loss.detach().sqrt()}

    def preview(self, module: nn.Module, folder: Path, step: int) -> None:
        assert not module.training
        folder.mkdir(exist_ok=True)
        (folder / f"{step}.txt").write_text(str(float(module(torch.ones(1, 7)).sum())))

    def finish(self, module: nn.Module, run_dir: Path) -> dict[str, Any]:
        return {"exported": True}


def toy_config(run_dir: Path, steps: int = 10, **train: Any) -> BaseRunConfig:
    """Global batch 8 in micro-batches of 2; no warm-up, so that ten steps move the weights."""
    config = BaseRunConfig(run_dir=str(run_dir))
    settings = {
        "global_batch": 8,
        "micro_batch": 2,
        "steps": steps,
        "log_every": 1,
        "save_every": 3,
        "keep": 9,
    } | train
    for name, value in settings.items():
        setattr(config.train, name, value)
    config.optimizer.lr, config.optimizer.warmup = 1e-2, 2
    return config
