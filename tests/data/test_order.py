import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavrc.data.order import InOrder, Order, WindowOrder

GOLDEN = [8, 4, 1, 6, 3, 2, 7, 5, 9, 0, 3, 9, 1, 6, 2, 5, 4, 8, 0, 7]
GOLDEN_LARGE = 443575


def test_the_order_is_frozen() -> None:
    """Runs resume under newer versions of this code and of numpy only while these values stay."""
    order = Order(10, seed=7)
    assert [order.sample(p) for p in range(20)] == GOLDEN
    assert Order(1_000_003, seed=2**64 - 1).sample(5_000_000) == GOLDEN_LARGE


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 300), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000))
def test_every_epoch_visits_every_sample_once(n: int, seed: int, epoch: int) -> None:
    order = Order(n, seed)
    assert sorted(order.sample(epoch * n + place) for place in range(n)) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        order = Order(100, seed)
        return [order.sample(number * 100 + place) for place in range(100)]

    assert epoch(0, 0) != epoch(0, 1) != epoch(1, 1) != epoch(1, 0)


def test_positions_can_be_asked_in_any_order() -> None:
    forward = Order(17, seed=3)
    expected = [forward.sample(p) for p in range(100)]
    jumping = Order(17, seed=3)
    assert [jumping.sample(p) for p in reversed(range(100))] == expected[::-1]


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (5, -1), (5, 2**64)])
def test_wrong_arguments_are_refused(n: int, seed: int) -> None:
    with pytest.raises(ValueError, match=r"sample|seed"):
        Order(n, seed)


WINDOW_GOLDEN = [9, 8, 7, 1, 2, 0, 6, 5, 4, 3, 9, 7, 8, 0, 4, 6, 5, 2, 1, 3]

shard_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(sum)


def test_the_windowed_order_is_frozen() -> None:
    order = WindowOrder([3, 0, 4, 3], seed=7, window=2)
    assert [order.sample(p) for p in range(20)] == WINDOW_GOLDEN


@settings(max_examples=50, deadline=None)
@given(
    counts=shard_sizes,
    window=st.integers(1, 25),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 1000),
)
def test_windows_visit_every_sample_once_an_epoch_and_few_shards_at_a_time(
    counts: list[int], window: int, seed: int, epoch: int
) -> None:
    order = WindowOrder(counts, seed, window)
    n = sum(counts)
    samples = [order.sample(epoch * n + place) for place in range(n)]
    assert sorted(samples) == list(range(n))
    shard_of = [shard for shard, count in enumerate(counts) for _ in range(count)]
    visited = [shard_of[sample] for sample in samples]
    first = {shard: visited.index(shard) for shard in set(visited)}
    last = {shard: n - 1 - visited[::-1].index(shard) for shard in set(visited)}
    for place in range(n):
        assert sum(first[shard] <= place <= last[shard] for shard in first) <= window


@settings(max_examples=30, deadline=None)
@given(counts=shard_sizes, window=st.integers(1, 5), places=st.lists(st.integers(0, 10**6), max_size=20))
def test_windowed_positions_can_be_asked_in_any_order(
    counts: list[int], window: int, places: list[int]
) -> None:
    jumping = WindowOrder(counts, 3, window)
    for place in places:
        assert jumping.sample(place) == WindowOrder(counts, 3, window).sample(place)


def test_windows_are_shuffled_anew_every_epoch() -> None:
    order = WindowOrder([10] * 10, 0, window=3)
    epochs = [[order.sample(epoch * 100 + place) for place in range(100)] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    shards = [[sample // 10 for sample in epoch] for epoch in epochs]
    assert len({tuple(sorted(set(epoch[:30]))) for epoch in shards}) > 1, "other shards come first"


@pytest.mark.parametrize("order", [InOrder(50), Order(50, 9), WindowOrder([20, 30], 9, 1)])
def test_substitutes_are_a_function_of_position_and_attempt(order: InOrder) -> None:
    drawn = [order.substitute(position, attempt) for position in range(40) for attempt in range(5)]
    assert drawn == [order.substitute(position, attempt) for position in range(40) for attempt in range(5)]
    assert set(drawn) <= set(range(50)) and len(set(drawn)) > 40


def test_in_order_means_in_order() -> None:
    assert [InOrder(3).sample(position) for position in range(7)] == [0, 1, 2, 0, 1, 2, 0]
