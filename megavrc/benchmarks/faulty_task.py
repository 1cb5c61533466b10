"""A task whose loss or gradients break on demand, to see what training makes of it."""

from typing import Any

from torch import Tensor, nn

from megavrc.distributed import fault
from megavrc.training.tasks import Task


class FaultyTask:
    """Another task, with two more points for MEGAVRC_FAULT (see `megavrc.distributed.fault`) while it is trained.

    `loss`: `scale:FACTOR` multiplies the loss, `add:VALUE` adds to it, as in `loss:1:5:scale:nan`.
    `gradient`: `nan` makes one element of the first parameter's gradient NaN.
    """

    def __init__(self, task: Task[Any]) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self._task.loss(module, batch, step)
        if not module.training:
            return loss, metrics
        match fault.point("loss", step).split(":"):
            case ["scale", factor]:
                loss = loss * float(factor)
            case ["add", value]:
                loss = loss + float(value)
        if fault.point("gradient", step) == "nan":
            _poison_next_gradient(next(p for p in module.parameters() if p.requires_grad))
        return loss, metrics


def _poison_next_gradient(parameter: nn.Parameter) -> None:
    def poison(gradient: Tensor) -> Tensor:
        handle.remove()
        poisoned = gradient.clone()
        poisoned.view(-1)[0] = float("nan")
        return poisoned

    handle = parameter.register_hook(poison)
