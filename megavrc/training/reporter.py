"""Writers of lines of metrics: metrics.jsonl, TensorBoard and the terminal."""

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from megavrc.files import append_line, read_lines_of_json, write_atomic

log = logging.getLogger("megavrc")

# The terminal's line has no metrics whose names begin or end so.
DETAIL, BOUNDS = "frame_", ("_low", "_high")


class Reporter:
    """Writes lines of metrics; on the main rank only.

    Args:
        run_dir: gets metrics.jsonl and tensorboard/.
        first_step: lines of later steps, left by a run that died after its last checkpoint, are removed.
        steps: of the whole run, for the progress line.
        start: number of this start of the run; in every line.

    Attributes:
        values: of the line after `first_step`, which an earlier start has written; empty where there is none.
    """

    def __init__(self, run_dir: Path, first_step: int, steps: int, start: int = 1) -> None:
        self._first, self._steps, self._number = first_step, steps, start
        self._path = run_dir / "metrics.jsonl"
        self._start = time.monotonic()
        self.values: dict[str, float] = {}
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
        line = {"step": step, "time": time.time(), "start": self._number, **values, **each_rank}
        try:
            append_line(self._path, json.dumps(line))
        except OSError as error:
            log.warning("%s: this line of metrics is lost (%s)", self._path, error)
        self._write_board(step, values)
        left = (time.monotonic() - self._start) / max(1, step - self._first) * (self._steps - step)
        text = "  ".join(
            f"{name} {_short(value)}"
            for name, value in values.items()
            if not name.rpartition("/")[2].startswith(DETAIL) and not name.endswith(BOUNDS)
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        else:
            with contextlib.suppress(OSError):  # a log on a full disk
                print(f"step {step}/{self._steps}  {text}  {_duration(left)} left", flush=True)

    def _remove_later_lines(self) -> None:
        """Of steps after the first one, or of a start that another one had followed already."""
        if not self._path.exists():
            return
        kept, newest = [], 0
        for line in read_lines_of_json(self._path):
            step, start = line.get("step"), line.get("start", 0)
            if isinstance(step, int) and isinstance(start, int) and step <= self._first and start >= newest:
                kept.append(json.dumps(line) + "\n")
                newest = start
                if step == self._first:
                    self.values = {
                        name: value for name, value in line.items() if type(value) is float and name != "time"
                    }
        write_atomic(self._path, "".join(kept).encode())

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
