"""Measurements of a run: means over steps and ranks, times, utilisation.

Notable: between two lines of metrics nothing is read back from the device and nothing is sent between ranks.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megavrc.distributed import Rank
from megavrc.hardware import gpu_of
from megavrc.model.compressor import BatchNorm

SLOW = 1.5  # times the median rank's work


class Meter:
    """Sums of losses and metrics since the last line; skipped steps are left out.

    Steps may differ in their metrics (all ranks alike); each mean is over the steps that have it.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[tuple[str, ...], Tensor]] = []
        self._sums: dict[tuple[str, ...], Tensor] = {}  # by names; the last element counts micro-batches

    def add(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Values of one micro-batch."""
        values = [loss.float(), *(value.float() for value in metrics.values())]
        self._pending.append((("loss", *metrics), torch.stack([*values, torch.ones_like(values[0])])))

    def commit(self, applied: bool) -> None:
        """End of a step: keep its values if the step was applied."""
        if applied:
            for names, values in self._pending:
                self._sums[names] = self._sums[names] + values if names in self._sums else values
        self._pending = []

    def means(self) -> dict[str, float]:
        """Means over all ranks since the last call (collective); empty when every step was skipped."""
        totals: dict[str, float] = {}
        counts: dict[str, float] = {}
        for names, packed in self._sums.items():  # the same on all ranks, which skip steps together
            dist.all_reduce(packed)
            *sums, count = packed.tolist()
            for name, value in zip(names, sums, strict=True):
                totals[name] = totals.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + count
        self._sums = {}
        return {name: total / counts[name] for name, total in totals.items()}


class Clock:
    """Time since the last line: how much of it this rank waited for data, and how much was its own work.

    Own work is what comes before a rank meets the others: waiting for data and the forward pass, without what
    BatchNorm, which sums over ranks, takes of it. The rest of a step lasts as long as the slowest rank's.
    """

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.waiting = self.own = 0.0

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Count what happens inside as waiting for data."""
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self.waiting += seconds
        self.own += seconds

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Count what happens inside as own work."""
        self.own -= time.perf_counter()
        yield
        self.own += time.perf_counter()

    def exclude_collectives(self, core: nn.Module) -> None:
        """Do not count the collectives in a module's BatchNorm layers as own work."""

        def begin(*_: Any) -> None:
            self.own += time.perf_counter()

        def end(*_: Any) -> None:
            self.own -= time.perf_counter()

        for module in core.modules():
            if isinstance(module, BatchNorm):
                module.register_forward_pre_hook(begin)
                module.register_forward_hook(end)

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Time inside (checkpoints, previews) does not count as training time."""
        begin, own = time.perf_counter(), self.own
        yield
        self.last += time.perf_counter() - begin
        self.own = own  # the collectives of forward passes in there were subtracted from it

    def lap(self) -> tuple[float, float, float]:
        """Seconds since the last lap, the share of them spent waiting for data, and seconds of own work."""
        now = time.perf_counter()
        seconds, waiting, own = now - self.last, self.waiting, self.own
        self.last, self.waiting, self.own = now, 0.0, 0.0
        return seconds, waiting / seconds, own


def by_rank(values: list[float], rank: Rank) -> list[list[float]]:
    """Each rank's values, in order of rank (collective)."""
    table = torch.zeros(rank.world_size, len(values), dtype=torch.float64)
    table[rank.rank] = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(table)
    return table.tolist()


def utilisation(flops_per_s: float, device_name: str | None) -> dict[str, float]:
    """The operations of one rank in TFLOP/s, and as a share of its GPU's dense bf16 peak (MFU).

    Args:
        flops_per_s: of the model's definition, nothing computed twice counted twice; 0: not counted.
        device_name: of the GPU, None for a CPU. Where its peak is not known there is no MFU.
    """
    if not flops_per_s:
        return {}
    gpu = gpu_of(device_name) if device_name else None
    share = {"mfu_%": 100 * flops_per_s / (gpu.tflops * 1e12)} if gpu else {}
    return {"TFLOP/s/rank": flops_per_s / 1e12, **share}


def slow_ranks(own: list[float], step_seconds: float) -> set[int]:
    """Ranks whose own work a step takes SLOW times the median, by at least a tenth of the step."""
    median = statistics.median_low(own)
    return {
        rank for rank, mine in enumerate(own) if mine > SLOW * median and mine - median > 0.1 * step_seconds
    }
