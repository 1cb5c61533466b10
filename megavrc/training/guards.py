"""Guards end or correct a run that goes wrong: steps without finite gradients, spikes of the loss; and their record.

All ranks decide alike, because they decide from the same numbers.
"""

import json
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megavrc.distributed import Rank
from megavrc.files import append_line
from megavrc.training.config import TrainConfig
from megavrc.training.metrics import by_rank

log = logging.getLogger("megavrc")

MAX_SKIPPED = 50  # steps in a row; then the run has diverged and more steps would only burn time


class Diverged(Exception):
    """Training cannot go on by itself; the message says what to change."""


@dataclass(frozen=True)
class BadStep:
    """A step that was skipped, or whose loss is a spike: far above those before it.

    Attributes:
        step: which.
        reason: what is wrong with it.
        losses: of the step's micro-batches, by rank.
        samples: of the step, on this rank.
    """

    step: int
    reason: str
    losses: list[list[float]]
    samples: list[int]


class Guards:
    """Judges every step of a run, on every rank alike, and keeps the record.

    Args:
        train: `spike_threshold`, `spike_window`, `spike_rollbacks`.
        run_dir: gets audit.jsonl.
        rank: of this process.
        start: number of this start of the run; in every line of audit.jsonl.

    Attributes:
        rollbacks: how often the run has gone back to a checkpoint.
        skipped_in_a_row: steps before this one that were skipped, since the last that was not.
    """

    def __init__(self, train: TrainConfig, run_dir: Path, rank: Rank, start: int = 1) -> None:
        self._train, self._run_dir, self._rank, self._start = train, run_dir, rank, start
        self.rollbacks = self.skipped_in_a_row = 0
        self._losses: deque[float] = deque(maxlen=train.spike_window)  # of applied steps, means over samples

    @property
    def recent_losses(self) -> list[float]:
        """The losses that the next one is compared with: part of a run's state."""
        return list(self._losses)

    def restore(self, recent_losses: Iterable[float], skipped_in_a_row: int = 0) -> None:
        self._losses.clear()
        self._losses.extend(recent_losses)
        self.skipped_in_a_row = skipped_in_a_row

    def judge(self, step: int, applied: bool, losses: list[Tensor], samples: list[int]) -> BadStep | None:
        """Judge a step (collective, unless all is well and spikes are not looked for).

        Args:
            step: that was done.
            applied: False if it was skipped, because a loss or gradient was not finite.
            losses, samples: of this rank's micro-batches.

        Returns:
            A spike: go back to a checkpoint. None: go on.

        Raises:
            Diverged: too many steps were skipped in a row, or the run has gone back too often.
        """
        if applied:
            self.skipped_in_a_row = 0
            if not self._train.spike_threshold:
                return None
        everyones = by_rank(torch.stack(losses).tolist(), self._rank)
        if not applied:
            self._count_skipped(step, everyones, samples)
            return None
        reason = self._why_spike(statistics.fmean(loss for each in everyones for loss in each))
        if not reason:
            return None
        spike = BadStep(step, reason, everyones, samples)
        if self.rollbacks >= self._train.spike_rollbacks:  # more: it was lowered since
            self._audit(spike, "stopped")
            raise Diverged(
                f"step {step}: {reason}; the run has gone back {self.rollbacks} times, as often as "
                "train.spike_rollbacks allows; audit.jsonl names the samples; lower optimizer.lr, or raise "
                "train.spike_rollbacks or train.spike_threshold, and resume"
            )
        return spike

    def record_rollback(self, spike: BadStep, **more: Any) -> None:
        """The run goes back from a spike (collective); `more` is for audit.jsonl: where to, what is left out."""
        self._audit(spike, "went back", **more)
        self.rollbacks += 1

    def _why_spike(self, loss: float) -> str:
        """Why `loss` is a spike, or "" and it is taken into the statistics."""
        if len(self._losses) == self._losses.maxlen:
            mean, deviation = statistics.fmean(self._losses), statistics.pstdev(self._losses)
            if loss > mean + self._train.spike_threshold * deviation:
                return (
                    f"loss {loss:.4g}, mean {mean:.4g} and standard deviation {deviation:.2g} "
                    f"of the last {len(self._losses)}"
                )
        self._losses.append(loss)
        return ""

    def _count_skipped(self, step: int, losses: list[list[float]], samples: list[int]) -> None:
        ranks = [rank for rank, each in enumerate(losses) if not all(map(math.isfinite, each))]
        reason = f"non-finite loss on ranks {ranks}" if ranks else "non-finite gradient"
        self._audit(BadStep(step, reason, losses, samples), "skipped")
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise Diverged(
                f"{MAX_SKIPPED} steps in a row had non-finite losses or gradients; audit.jsonl names their samples; "
                "resume with a lower optimizer.lr"
            )

    def _audit(self, found: BadStep, event: str, **more: Any) -> None:
        """Log and record what was done about a step and why, with the samples of all ranks (collective)."""
        log.warning("step %d %s: %s", found.step, event, found.reason)
        samples: list[list[int]] = [[]] * self._rank.world_size
        dist.all_gather_object(samples, found.samples)
        if not self._rank.main:
            return
        ranks = [
            {"rank": rank, "losses": mine, "samples": theirs}
            for rank, (mine, theirs) in enumerate(zip(found.losses, samples, strict=True))
        ]
        line = {"step": found.step, "event": event, "reason": found.reason, **more, "ranks": ranks}
        line |= {"time": time.time(), "start": self._start}
        try:
            append_line(self._run_dir / "audit.jsonl", json.dumps(line))
        except OSError as error:
            log.warning("audit.jsonl cannot be written (%s): %s", error, json.dumps(line))
