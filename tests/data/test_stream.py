from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megavrc.config import UserError
from megavrc.data.order import Order
from megavrc.data.stream import Stream


class Squares:
    """A source whose item tells its index."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "square": torch.tensor(index**2)}


def pairs(items: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """A collate function that keeps (position, index)."""
    return [(item["position"], item["index"]) for item in items]


def read(
    n: int, steps: int, world_size: int, accumulation: int, start: int = 0, **options: Any
) -> list[set[Any]]:
    """The samples of every forward pass over all ranks."""
    global_batch = options["global_batch"]
    micro = global_batch // world_size // accumulation
    passes: list[set[Any]] = [set() for _ in range(steps * accumulation)]
    for rank in range(world_size):
        stream = Stream(
            Squares(n),
            Order(n, seed=5),
            micro_batch=micro,
            rank=rank,
            world_size=world_size,
            collate=pairs,
            start_step=start,
            **options,
        )
        for samples, batch in zip(passes, islice(iter(stream), steps * accumulation), strict=True):
            assert len(batch) == micro
            samples.update(batch)
    return passes


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60),
    world_size=st.sampled_from([1, 2, 3, 4]),
    accumulation=st.sampled_from([1, 2, 4]),
    start=st.integers(0, 9),
)
def test_global_batches_depend_on_nothing_but_the_step(
    n: int, world_size: int, accumulation: int, start: int
) -> None:
    steps, batch = 3, 48
    passes = read(n, steps, world_size, accumulation, start, global_batch=batch)
    order = Order(n, seed=5)
    for step in range(steps):
        found = sorted(set.union(*passes[step * accumulation : (step + 1) * accumulation]))
        first = (start + step) * batch
        assert found == [(p, order.sample(p)) for p in range(first, first + batch)]


def test_a_forward_pass_holds_the_same_samples_while_ranks_times_micro_batch_does() -> None:
    """BatchNorm sees the same samples on 1, 2 and 4 ranks."""
    one, two, four = (read(50, 3, world_size, 2, global_batch=16) for world_size in (1, 2, 4))
    assert one == two == four


def test_resuming_continues_exactly() -> None:
    assert read(30, 10, 2, 2, global_batch=8)[12:] == read(30, 4, 2, 2, start=6, global_batch=8)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int) -> None:
    assert read(30, 5, 2, 2, global_batch=8, workers=workers) == read(30, 5, 2, 2, global_batch=8)


def test_sample_ids_name_the_global_batch() -> None:
    stream = Stream(Squares(20), Order(20, 1), global_batch=8, micro_batch=8, collate=pairs)
    for step, batch in enumerate(islice(iter(stream), 6)):
        assert stream.sample_ids(step) == [index for _, index in batch]


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="global_batch 10 is not a multiple of 2 ranks x micro_batch 3"):
        Stream(Squares(9), Order(9, 0), global_batch=10, micro_batch=3, world_size=2, collate=pairs)
