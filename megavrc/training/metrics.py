"""What a run reports: means over steps and ranks, to metrics.jsonl, TensorBoard and the terminal.

Notable: between two lines nothing is read back from the device and nothing is sent between ranks.
"""

import contextlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megavrc.distributed import Rank
from megavrc.files import write_atomic
from megavrc.hardware import gpu_of
from megavrc.model.compressor import BatchNorm

log = logging.getLogger("megavrc")

DETAIL = "frame_"  # metrics whose names begin so are not in the terminal's line


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

    def leave_out_meetings(self, core: nn.Module) -> None:
        """Do not count as own work what a module's BatchNorm layers take."""

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
        """What happens inside (checkpoints, previews) does not count as training time."""
        begin, own = time.perf_counter(), self.own
        yield
        self.last += time.perf_counter() - begin
        self.own = own  # the meetings of forward passes in there were subtracted from it

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
    """What the operations of one rank are in TFLOP/s, and of its GPU's dense bf16 peak (MFU).

    Args:
        flops_per_s: of the model's definition, nothing computed twice counted twice; 0: not counted.
        device_name: of the GPU, None for a CPU. Where its peak is not known there is no MFU.
    """
    if not flops_per_s:
        return {}
    gpu = gpu_of(device_name) if device_name else None
    share = {"mfu_%": 100 * flops_per_s / (gpu.tflops * 1e12)} if gpu else {}
    return {"TFLOP/s/rank": flops_per_s / 1e12, **share}


def slow_ranks(own: list[float], step_seconds: float, factor: float) -> set[int]:
    """Ranks whose own work a step takes `factor` times the median, by at least a tenth of the step."""
    median = statistics.median_low(own)
    return {
        rank
        for rank, mine in enumerate(own)
        if factor and mine > factor * median and mine - median > 0.1 * step_seconds
    }


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch of nested dictionaries and tuples of tensors (and conditions), on the device."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return tuple(to_device(value, device) for value in batch)


class Reporter:
    """Writes lines of metrics; on the main rank only.

    Args:
        run_dir: gets metrics.jsonl and tensorboard/.
        first_step: lines of later steps, left by a run that died after its last checkpoint, are removed.
        steps: of the whole run, for the progress line.
    """

    def __init__(self, run_dir: Path, first_step: int, steps: int) -> None:
        self._first, self._steps = first_step, steps
        self._path = run_dir / "metrics.jsonl"
        self._start = time.monotonic()
        try:
            self._remove_later_lines()
        except OSError as error:
            log.warning("%s: lines after step %d stay in it (%s)", self._path, first_step, error)
        self._board = _tensorboard(run_dir / "tensorboard", first_step)
        self._bar = _bar(first_step, steps)

    def write(self, step: int, values: dict[str, float], each_rank: dict[str, list[float]]) -> None:
        """One line, after `step` steps; what cannot be written is left out, for training does not need it.

        Args:
            each_rank: values of each rank; in metrics.jsonl only.
        """
        line = {"step": step, "time": time.time(), **values, **each_rank}
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("%s: this line of metrics is lost (%s)", self._path, error)
        self._write_board(step, values)
        left = (time.monotonic() - self._start) / max(1, step - self._first) * (self._steps - step)
        text = "  ".join(
            f"{name} {_short(value)}"
            for name, value in values.items()
            if not name.rpartition("/")[2].startswith(DETAIL)
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        else:
            with contextlib.suppress(OSError):  # a log on a full disk
                print(f"step {step}/{self._steps}  {text}  {_duration(left)} left", flush=True)

    def _remove_later_lines(self) -> None:
        if self._path.is_file():
            lines = [
                line for line in self._path.read_text().splitlines() if _is_step_until(line, self._first)
            ]
            write_atomic(self._path, "".join(line + "\n" for line in lines).encode())

    def _write_board(self, step: int, values: dict[str, float]) -> None:
        if self._board is None:
            return
        try:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            log.warning("no more TensorBoard (%s); training goes on", error)
            self._board = None

    def close(self) -> None:
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
        if self._bar is not None:
            self._bar.stop()


def _is_step_until(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False  # half a line of a killed run


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # optional
        return None
    try:
        return SummaryWriter(str(folder), purge_step=first_step + 1)
    except OSError as error:
        log.warning("%s: no TensorBoard (%s); training goes on", folder, error)
        return None


def _bar(first_step: int, steps: int) -> Any:
    if not sys.stdout.isatty():
        return None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    )
    bar.add_task("", total=steps, completed=first_step)
    bar.start()
    return bar


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
