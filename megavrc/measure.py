"""Time on a CPU or a GPU: cases in turn, so that a machine that slows down does so for all of them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from megavrc.progress import progress

T = TypeVar("T")
Clock = Callable[[], float]
Work = Callable[[], object]

AHEAD = 4_000_000  # clock cycles that the GPU waits, so that it never waits for the launches that are timed


def clock(device: str | torch.device = "cpu") -> Clock:
    """Seconds, read when the device has done all that it was asked for."""
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def turns(
    cases: Iterable[T], rounds: int, warmup: int = 0, label: str = "measure"
) -> Iterator[tuple[int, T]]:
    """(round, case) with the cases taking turns; rounds below 0 are the warm-up (compilation, caches, clocks)."""
    cases = list(cases)
    yield from progress([(turn, case) for turn in range(-warmup, rounds) for case in cases], label)


def in_turn(
    cases: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
    label: str = "measure",
) -> dict[str, list[float]]:
    """Run every case once a round; the seconds of each case, one for each round.

    Args:
        cases: name -> what to time.
        rounds: that are timed.
        warmup: rounds before those.
        clock: see `clock`; `time.process_time` for CPU seconds.
        label: of the progress line.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn, name in turns(cases, rounds, warmup, label):
        (spent,) = lap_times(clock, cases[name])
        if turn >= 0:
            seconds[name].append(spent)
    return seconds


def lap_times(clock: Clock, *work: Work) -> list[float]:
    """Seconds of one piece of work after the other."""
    marks = [clock()]
    for part in work:
        part()
        marks.append(clock())
    return [later - earlier for earlier, later in zip(marks, marks[1:], strict=False)]


def cuda_lap_times(*work: Work) -> list[float]:
    """The same by the GPU's own events; it starts late, so that it always has the next launch at hand."""
    torch.cuda.synchronize()
    torch.cuda._sleep(AHEAD)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(work) + 1)]
    marks[0].record()
    for part, mark in zip(work, marks[1:], strict=True):
        part()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:], strict=False)]
