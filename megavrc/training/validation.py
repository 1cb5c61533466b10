"""The loss on samples that are never trained on: the same samples, without dropout, whatever the number of ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megavrc.data.stream import evaluation_batches
from megavrc.distributed import Rank
from megavrc.training.tasks import Task
from megavrc.training.tasks.base import Samples, to_device


@torch.no_grad()
def validate(module: nn.Module, task: Task[Any], micro_batch: int, rank: Rank, step: int) -> dict[str, float]:
    """Mean loss and metrics over every validation set, as {"val/<set>/<metric>": mean} (collective).

    Args:
        module: in eval mode.
        micro_batch: samples of one forward pass of one rank.
    """
    return {
        f"val/{name}/{metric}": mean
        for name, samples in task.validation.items()
        for metric, mean in _means(module, task, samples, micro_batch, rank, step).items()
    }


def _means(
    module: nn.Module, task: Task[Any], samples: Samples, micro_batch: int, rank: Rank, step: int
) -> dict[str, float]:
    batches = evaluation_batches(
        samples.source,
        samples.order,
        count=samples.count,
        micro_batch=micro_batch,
        rank=rank.rank,
        world_size=rank.world_size,
        collate=task.collate,
        replace=task.max_damaged > 0,
    )
    sums: dict[str, Tensor] = {}
    for batch, counted in batches:
        loss, metrics = task.loss(module, to_device(batch, rank.device), step)
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value * counted
    packed = torch.stack(list(sums.values())).float()
    dist.all_reduce(packed)
    return dict(zip(sums, (packed / samples.count).tolist(), strict=True))
