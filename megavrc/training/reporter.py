"""Where lines of metrics go: metrics.jsonl, TensorBoard and the terminal."""

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from megavrc.files import write_atomic

log = logging.getLogger("megavrc")

DETAIL = "frame_"  # metrics whose names begin so are not in the terminal's line


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
