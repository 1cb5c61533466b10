import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_folders import key_of, make_dataset

from megavrc.data.blend import BlendOrder, TokenBlend, other_class, pattern, quotas
from megavrc.data.dataset import TokenDataset
from megavrc.data.order import Order, WindowOrder
from megavrc.errors import UserError

weights = st.lists(st.floats(0.05, 100), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(quotas=st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_every_prefix_holds_each_share_to_less_than_one_sample(quotas: list[int]) -> None:
    total = sum(quotas)
    chosen = pattern(quotas)
    assert np.bincount(chosen, minlength=len(quotas)).tolist() == quotas
    for source, quota in enumerate(quotas):
        taken = np.cumsum(chosen == source)
        owed = np.arange(1, total + 1) * quota
        assert (np.abs(taken * total - owed) < total).all()


@settings(max_examples=60, deadline=None)
@given(weights=weights)
def test_quotas_are_the_weights_to_four_digits(weights: list[float]) -> None:
    found = quotas(weights)
    for quota, weight in zip(found, weights, strict=True):
        assert abs(quota / sum(found) - weight / sum(weights)) < 1 / 10_000


def test_quotas_of_round_weights_are_exact() -> None:
    assert quotas([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert quotas([35, 10, 5]) == [7, 2, 1]
    assert quotas([1, 1, 1]) == [3334, 3333, 3333]
    assert quotas([2.5]) == [1]


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [float("nan"), 1], [1, float("inf")], [1e6, 1]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"data.blend: weights"):
        quotas(weights)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 2**63),
    data=st.data(),
)
def test_each_source_has_epochs_of_its_own(sizes: list[int], seed: int, data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    order = BlendOrder([Order(n, seed + i) for i, n in enumerate(sizes)], shares)
    assert order.n == sum(sizes)
    delivered = [order.sample(position) for position in range(400)]
    first = 0
    for n, share in zip(sizes, shares, strict=True):
        own = [sample - first for sample in delivered if first <= sample < first + n]
        assert abs(len(own) - 400 * share / sum(shares)) < 1
        whole = len(own) // n * n
        for start in range(0, whole, n):
            assert sorted(own[start : start + n]) == list(range(n))
        assert set(Counter(own[whole:]).values()) <= {1}
        first += n


def test_a_blend_of_one_is_that_order() -> None:
    one, alone = BlendOrder([Order(20, 4)], [3.0]), Order(20, 4)
    assert [one.sample(p) for p in range(60)] == [alone.sample(p) for p in range(60)]


def test_a_blend_can_be_asked_anywhere_and_mixes_orders() -> None:
    def blend() -> BlendOrder:
        return BlendOrder([Order(11, 1), WindowOrder([5, 5, 5], 2, 1)], [0.3, 0.7])

    forward = blend()
    expected = [forward.sample(p) for p in range(300)]
    assert [blend().sample(p) for p in (299, 17, 150, 0)] == [expected[p] for p in (299, 17, 150, 0)]


def test_substitutes_come_from_the_same_source() -> None:
    order = BlendOrder([Order(10, 1), Order(10, 2)], [1, 1])
    for position in range(40):
        source = order.sample(position) // 10
        assert {order.substitute(position, attempt) // 10 for attempt in range(10)} == {source}


def test_a_blend_reads_its_parts(tmp_path: Path) -> None:
    parts = [
        TokenDataset(make_dataset(tmp_path / "a", (3, 2))),
        TokenDataset(make_dataset(tmp_path / "b", (4,), first=100)),
    ]
    blend = TokenBlend(parts)
    assert len(blend) == 9
    assert [blend[index]["key"] for index in range(9)] == [
        key_of(n) for n in (0, 1, 2, 3, 4, 100, 101, 102, 103)
    ]
    for outside in (-1, 9):
        with pytest.raises(IndexError):
            blend[outside]
    assert blend.identity["1"]["manifest"] == parts[1].manifest_id
    assert blend.identity["0"]["samples"] == 5


def test_all_parts_together_hold_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part alone may hold all of them, when the others have not been read yet."""
    monkeypatch.setattr("megavrc.data.dataset.MAX_OPEN", 6)
    blend = TokenBlend([TokenDataset(make_dataset(tmp_path / name, (1,) * 7)) for name in "abc"])
    for index in (*range(len(blend)), *range(0, len(blend), 7)):
        assert blend[index]["key"] == key_of(index % 7)
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    held = [link for link in links if tmp_path in Path(os.path.realpath(link)).parents]
    assert 3 <= len(held) <= 6


@pytest.mark.parametrize(
    ("info", "named"),
    [
        ({"tokenizer": {"name": "tiny", "sha256": "b" * 64}}, "tokenizer is 'aaaa"),
        ({"kind": "image"}, "kind is 'video' in .*one and 'image' in .*two"),
        ({"image_source": "clip"}, "image_source"),
        ({"classes": ["x"]}, "classes"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path: Path, info: dict[str, Any], named: str) -> None:
    one = TokenDataset(make_dataset(tmp_path / "one"))
    with pytest.raises(UserError, match=rf"data.blend: {named}"):
        TokenBlend([one, TokenDataset(make_dataset(tmp_path / "two", **info))], classes=True)


def test_classes_that_are_numbered_in_another_way_are_named() -> None:
    assert other_class(["blue", "red"], ["red", "blue"]) == "class 0 is 'blue' and 'red'"
    assert other_class(["blue", "red"], ["blue", "red", "cyan"]) == "", "more of them"
    assert other_class(["blue", "1"], ["blue", "red"]) == "" == other_class(None, ["red"]), "no name"
