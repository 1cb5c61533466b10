"""What ends or corrects a run that goes wrong: steps without finite gradients, spikes of the loss; and their record.

All ranks decide alike, because they decide from the same numbers.
"""

import json
import logging
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

from megavrc.training.config import TrainConfig

log = logging.getLogger("megavrc")

MAX_SKIPPED = 50  # steps in a row; then the run has diverged and more steps would only burn time


class Diverged(Exception):
    """Training cannot go on by itself; the message says what to change."""


class SpikeGuard:
    """Tells whether a loss lies far above those before it.

    Attributes:
        losses: the last applied steps' losses, means over the global batch; part of a run's state.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.threshold = config.spike_threshold
        self.losses: deque[float] = deque(maxlen=config.spike_window)

    def spikes(self, loss: float) -> str:
        """Why `loss` is a spike, or "" and it is taken into the statistics."""
        if len(self.losses) == self.losses.maxlen:
            mean, deviation = statistics.fmean(self.losses), statistics.pstdev(self.losses)
            if loss > mean + self.threshold * deviation:
                return (
                    f"loss {loss:.4g}, mean {mean:.4g} and standard deviation {deviation:.2g} "
                    f"of the last {len(self.losses)}"
                )
        self.losses.append(loss)
        return ""


class SkipGuard:
    """Counts steps that were skipped one after another. Raises Diverged when they are too many."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def count(self, applied: bool) -> None:
        self._in_a_row = 0 if applied else self._in_a_row + 1
        if self._in_a_row == MAX_SKIPPED:
            raise Diverged(
                f"{MAX_SKIPPED} steps in a row had non-finite losses or gradients; audit.jsonl names their samples; "
                "resume with a lower optimizer.lr"
            )


def write_audit(run_dir: Path, step: int, event: str, reason: str, **more: Any) -> None:
    """One line of audit.jsonl: what was done at a step and why."""
    line = {"step": step, "event": event, "reason": reason, **more, "time": time.time()}
    try:
        with open(run_dir / "audit.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        log.warning("audit.jsonl cannot be written (%s): %s", error, json.dumps(line))
