"""The interface between the loop and a task, and how the loop moves a task's batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from megavrc.data.order import SampleOrder
from megavrc.data.stream import Source


@dataclass(frozen=True)
class Samples:
    """A set to measure the loss on: the samples at the first `count` positions of an order.

    Attributes:
        identity: JSON that says which these are; losses on other ones are not compared.
    """

    source: Source
    order: SampleOrder
    count: int
    identity: Any = None


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch of nested dictionaries and tuples of tensors (and conditions), on the device."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return tuple(to_device(value, device) for value in batch)


M = TypeVar("M", bound=nn.Module)


class Task(Protocol[M]):
    """One kind of training: a module of type M, its data and its loss.

    Attributes:
        source: samples by index.
        order: which of them stands at a position of the training.
        max_damaged: how many different damaged samples others may replace.
        tokens: of one sample, for tokens per second; a metric `tokens` of the loss, their mean, takes its place.
        flops: of training on one sample, forward and backward; 0 if they are not counted.
        identity: JSON that a run folder is bound to; another identity is another run.
        facts: JSON about data and tokenizers, kept in every checkpoint.
        validation: sets of samples by name that the loss is measured on (maybe none).
    """

    max_damaged: int
    tokens: int
    flops: int
    identity: dict[str, Any]
    facts: dict[str, Any]
    validation: dict[str, Samples]

    @property
    def source(self) -> Source: ...

    @property
    def order(self) -> SampleOrder: ...

    def build(self) -> M:
        """The module with random weights, on the CPU."""

    def initialise(self, module: M) -> None:
        """Called once, before step 0 of a run: take weights from elsewhere. The same result on every rank."""

    def blocks(self, module: M) -> list[nn.Module]:
        """The module's repeated layers, for activation checkpointing and compilation; none of them with a BatchNorm."""

    def collate(self, items: list[dict[str, Any]]) -> Any:
        """A batch (tensors in dictionaries and tuples) of items, which have their "position"; picklable."""

    def loss(self, module: M, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and detached scalar metrics of a batch on the module's device, at optimiser step `step`.

        For validation the module is in eval mode; then nothing is dropped.
        """

    def preview(self, module: M, folder: Path, step: int) -> None:
        """Write pictures of what the module (in eval mode) does now; on the main rank alone, so nothing collective."""

    def finish(self, module: M, run_dir: Path) -> dict[str, Any]:
        """After the last step, on the main rank: export what others use. Returns what complete.json should say."""


@runtime_checkable
class Evaluated(Protocol):
    """A task that also has metrics of what the module makes.

    Attributes:
        evaluate_every: steps between measurements; 0: never.
    """

    evaluate_every: int

    def evaluate(self, module: Any, step: int) -> dict[str, float]:
        """Metrics by name of the module (in eval mode); on the main rank alone, so nothing collective."""
