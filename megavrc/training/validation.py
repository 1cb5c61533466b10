"""The loss on samples that are never trained on: the same samples, without dropout, whatever the number of ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megavrc.data.stream import Source
from megavrc.distributed import Rank
from megavrc.training.metrics import to_device
from megavrc.training.tasks import Task


@torch.no_grad()
def validate(module: nn.Module, task: Task, micro_batch: int, rank: Rank, step: int) -> dict[str, float]:
    """Mean loss and metrics over every validation set, as {"val/<set>/<metric>": mean} (collective).

    Args:
        module: in eval mode and whole on every rank, so that ranks may have different numbers of batches.
        micro_batch: samples of one forward pass; the last may have fewer.
    """
    return {
        f"val/{name}/{metric}": mean
        for name, source in task.validation.items()
        for metric, mean in _means(module, task, source, micro_batch, rank, step).items()
    }


def _means(
    module: nn.Module, task: Task, source: Source, micro_batch: int, rank: Rank, step: int
) -> dict[str, float]:
    sums: dict[str, Any] = {}
    starts = range(rank.rank * micro_batch, len(source), rank.world_size * micro_batch)
    for start in starts:
        items = [source[index] for index in range(start, min(start + micro_batch, len(source)))]
        loss, metrics = task.loss(module, to_device(task.collate(items), rank.device), step)
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.float() * len(items)
    everyones: list[Any] = [None] * rank.world_size
    dist.all_gather_object(everyones, {name: float(value) for name, value in sums.items()})
    names = next(part for part in everyones if part)  # a small set has no batch for the last ranks
    return {name: sum(part.get(name, 0.0) for part in everyones) / len(source) for name in names}
