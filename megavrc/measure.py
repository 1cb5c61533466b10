"""Time on a CPU or a GPU: cases in turn, so that a machine that slows down does so for all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from megavrc.progress import progress

Clock = Callable[[], float]


def clock(device: str | torch.device = "cpu") -> Clock:
    """Seconds, read when the device has done all that it was asked for."""
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


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
        warmup: rounds before those (compilation, caches, clocks of the machine).
        clock: see `clock`; `time.process_time` for CPU seconds.
        label: of the progress line.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    turns = [(turn, name) for turn in range(-warmup, rounds) for name in cases]
    for turn, name in progress(turns, label):
        start = clock()
        cases[name]()
        if turn >= 0:
            seconds[name].append(clock() - start)
    return seconds
