"""Time per clip of generators: warm, sequential, median of several clips."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypedDict


class Speed(TypedDict):
    """Seconds per clip."""

    median: float
    minimum: float
    maximum: float
    seconds: list[float]


def seconds_per_clip(
    generators: Mapping[str, Callable[[int], Any]],
    repeats: int = 5,
    warmup: int = 1,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, Speed]:
    """Time generators that each make one clip from a seed.

    They take turns, so that a machine that slows down does so for all of them.

    Args:
        generators: name -> callable(seed).
        repeats: timed clips of each, at least 5.
        warmup: clips of each before that (compilation, caches, clocks).
        synchronise: waits for the device, for example `torch.cuda.synchronize`.
    """
    if repeats < 5 or warmup < 1:
        raise ValueError(f"repeats {repeats}, warmup {warmup}: at least 5 and 1")
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for seed in range(-warmup, repeats):
        for name, generate in generators.items():
            synchronise()
            start = time.perf_counter()
            generate(seed + warmup)
            synchronise()
            if seed >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: Speed(median=statistics.median(times), minimum=min(times), maximum=max(times), seconds=times)
        for name, times in seconds.items()
    }
