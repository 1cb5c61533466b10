"""The average of the weights, apart from an engine (with one: test_engine.py)."""

import torch

from megavrc.training.averaging import AVERAGE, Average


def test_it_begins_with_the_weights_whatever_memory_held() -> None:
    """Fresh memory is not zero: a NaN in it must not outlive the start."""
    weight = torch.arange(4.0)
    state = {weight: {AVERAGE: torch.full((4,), float("nan"))}}
    average = Average(0.5, state, {"mean": torch.ones(3), "seen": torch.zeros((), dtype=torch.long)})
    assert torch.equal(state[weight][AVERAGE], weight)
    average.buffers["mean"].fill_(float("inf"))  # as after loading something that has diverged
    average.restart()
    assert average.buffers.keys() == {"mean"} and torch.equal(average.buffers["mean"], torch.ones(3))
    weight += 1
    average.update(1)  # decay 2/11 in the first step
    assert torch.allclose(state[weight][AVERAGE], weight - 2 / 11)
