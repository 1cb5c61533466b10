from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_folders import make_dataset

from megavrc.data.blend import BlendOrder, TokenBlend
from megavrc.data.dataset import TokenDataset
from megavrc.data.order import InOrder, Order, WindowOrder
from megavrc.data.stream import Stream, evaluation_batches
from megavrc.errors import UserError


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


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int) -> None:
    assert read(30, 5, 2, 2, global_batch=8, workers=workers) == read(30, 5, 2, 2, global_batch=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_samples_of_the_last_batch_are_known(workers: int) -> None:
    stream = Stream(Squares(20), Order(20, 1), global_batch=8, micro_batch=4, collate=pairs, workers=workers)
    for batch in islice(iter(stream), 6):
        assert stream.samples == [index for _, index in batch]


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="global_batch 10 is not a multiple of 2 ranks x micro_batch 3"):
        Stream(Squares(9), Order(9, 0), global_batch=10, micro_batch=3, world_size=2, collate=pairs)


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> TokenBlend:
    folder = tmp_path_factory.mktemp("tokens")
    make_dataset(folder / "a", (9, 7, 0, 6))
    make_dataset(folder / "b", (5, 6), first=100)
    return TokenBlend([TokenDataset(folder / "a"), TokenDataset(folder / "b")])


def keys(items: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(item["position"], item["key"]) for item in items]


def train(blend: TokenBlend, start: int, steps: int, world_size: int, micro: int, workers: int) -> list[Any]:
    """What all ranks together get in these steps, by position."""
    found = []
    for rank in range(world_size):
        stream = Stream(
            blend,
            BlendOrder([WindowOrder([9, 7, 0, 6], 1, window=2), Order(11, 2)], [0.7, 0.3]),
            global_batch=12,
            micro_batch=micro,
            rank=rank,
            world_size=world_size,
            collate=keys,
            start_step=start,
            workers=workers,
        )
        passes = steps * 12 // (micro * world_size)
        found += [pair for batch in islice(iter(stream), passes) for pair in batch]
    return sorted(found)


def test_five_resumes_in_one_epoch_are_exact(blend: TokenBlend) -> None:
    """Each time on other ranks, micro-batches and workers."""
    whole = train(blend, 0, 8, world_size=1, micro=12, workers=0)
    assert [position for position, _ in whole] == list(range(96))
    stops = [
        (0, 1, 2, 3, 0),
        (1, 1, 1, 12, 1),
        (2, 2, 4, 1, 2),
        (4, 1, 3, 2, 0),
        (5, 2, 6, 1, 0),
        (7, 1, 1, 4, 2),
    ]
    resumed = []
    for start, steps, world_size, micro, workers in stops:
        resumed += train(blend, start, steps, world_size, micro, workers)
    assert resumed == whole


@pytest.mark.parametrize("count", [1, 7, 12, 20])
def test_an_evaluation_counts_every_sample_once_on_any_number_of_ranks(count: int) -> None:
    for world_size in (1, 2, 3, 4):
        each: list[list[tuple[list[tuple[int, int]], int]]] = []
        for rank in range(world_size):
            each.append(
                list(
                    evaluation_batches(
                        Squares(20),
                        InOrder(20),
                        count=count,
                        micro_batch=3,
                        rank=rank,
                        world_size=world_size,
                        collate=pairs,
                    )
                )
            )
        assert len({len(batches) for batches in each}) == 1, "forward passes stay in step"
        assert all(batch for batches in each for batch, _ in batches)
        counted = [pair for batches in each for batch, real in batches for pair in batch[:real]]
        assert sorted(counted) == [(index, index) for index in range(count)]
        assert all(real in (0, len(batch)) for batches in each for batch, real in batches)
