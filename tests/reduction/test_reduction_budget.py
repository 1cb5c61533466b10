"""The budget: one definition for methods before and inside the LLM."""

import numpy as np
import pytest
import torch

from megavrc.reduction import (
    METHODS,
    find_method,
    layer_counts,
    layer_weighted,
    schedule,
    token_count,
    tower_schedule,
)
from megavrc.reduction.budget import even, recycled, shares


def test_layer_weighted_tokens_of_a_published_setting() -> None:
    """PyramidDrop issue 4: 576 tokens in two layers and 144 in thirty are 171 a layer, not 144."""
    counts = layer_counts({2: 144}, 576, 32)
    assert sum(counts) / 32 == (2 * 576 + 30 * 144) / 32 == 171
    assert layer_weighted(counts, 576) == 171 / 576


def test_schedules_reproduce_what_papers_use() -> None:
    """FastV leaves half from layer 2 on; PyramidDrop halves at 8, 16 and 24 of 32 layers: 270 of 576 tokens a layer."""
    assert schedule(find_method("fastv"), (2 * 576 + 30 * 288) / (32 * 576), 576, 32) == {2: 288}
    assert schedule(find_method("pyramiddrop"), 270 / 576, 576, 32) == {8: 288, 16: 144, 24: 72}
    assert schedule(find_method("divprune"), 0.098, 576, 32) == {0: 56}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("total, depth", [(576, 32), (577, 28), (61, 6)])
def test_equal_budgets_are_equal(name: str, total: int, depth: int) -> None:
    """Within 1%, or one token a layer if that is more; or it is said that the budget is out of reach."""
    for keep in (0.9, 0.75, 0.5, 0.333, 0.25, 0.1):
        try:
            stages = schedule(find_method(name), keep, total, depth)
        except ValueError as error:
            assert METHODS[name].place == "llm" and "out of its reach" in str(error)
            first = METHODS[name].layers_of(depth)[0]
            assert keep <= first / depth + 0.02
            continue
        counts = layer_counts(stages, total, depth)
        assert all(1 <= count <= total for count in counts)
        assert abs(layer_weighted(counts, total) - keep) * total <= max(1, 0.01 * keep * total)


@pytest.mark.parametrize("name", METHODS)
def test_all_tokens_are_all_tokens_in_every_layer(name: str) -> None:
    assert layer_counts(schedule(find_method(name), 1, 99, 6), 99, 6) == [99] * 6


def test_layers_scale_with_the_depth_and_start_where_the_host_can() -> None:
    assert find_method("pyramiddrop").layers_of(32) == [8, 16, 24]
    assert find_method("pyramiddrop").layers_of(4) == [1, 2, 3]
    assert find_method("fastv").layers_of(4) == [1]
    assert find_method("fastv").layers_of(32, earliest=3) == [
        3
    ]  # Qwen3-VL adds features after the first layers
    with pytest.raises(ValueError, match="fastv acts inside the LLM: 3 layers leave no room from layer 3 on"):
        find_method("fastv").layers_of(3, earliest=3)


def test_counts_are_the_nearest_whole_number() -> None:
    assert [token_count(keep, 10) for keep in (0.01, 0.14, 0.15, 0.25, 1)] == [1, 1, 2, 3, 10]
    for keep in (0, -1, 1.01, float("nan"), "0.5", None, [0.5]):
        with pytest.raises(ValueError, match="keep is a share"):
            token_count(keep, 10)  # type: ignore[arg-type]
    assert token_count(torch.tensor(0.5), 10) == token_count(np.float32(0.5), 10) == 5  # type: ignore[arg-type]


def test_tower_schedule_takes_as_many_from_every_layer() -> None:
    """ToMe on 197 tokens, 8 from each of 12 layers, leaves 101; from 64 to 4 in one layer is refused."""
    counts = tower_schedule(197, 101, 12)
    assert counts == [197 - 8 * layer for layer in range(1, 13)]
    assert tower_schedule(64, 37, 4) == [58, 51, 44, 37]
    assert tower_schedule(64, 16, 2) == [32, 16]  # 24 from each would be more than half of 40
    with pytest.raises(ValueError, match="64 tokens cannot become 4 in one layer"):
        tower_schedule(64, 4, 1)


def test_shares_add_up_within_limits() -> None:
    assert shares(10, [1, 1, 2], [10, 10, 10]) == [3, 2, 5]
    assert shares(10, [1, 1, 2], [10, 10, 3]) == [4, 3, 3]
    assert shares(3, [0, 0, 0], [1, 1, 1]) == [1, 1, 1]
    assert shares(5, [100, 1, 1], [9, 9, 9], least=1) == [3, 1, 1]
    assert shares(0, [1, 1], [0, 4]) == [0, 0]
    with pytest.raises(ValueError, match="3 tokens do not fit into 2"):
        shares(3, [1, 1], [1, 1])
    assert even(7, 3) == [2, 2, 3]


def test_recycled_tokens_count_in_the_budget() -> None:
    """SparseVLM: of 576, 300 stay and 276 go: 83 of those become 9 clusters."""
    for total, count in ((576, 309), (576, 30), (20, 1), (20, 19)):
        stay, again = recycled(total, count, 0.3, 0.1)
        assert 0 <= count - stay <= again <= total - stay
    assert recycled(576, 309, 0.3, 0.1) == (300, 83)
