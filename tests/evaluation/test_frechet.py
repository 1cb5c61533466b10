"""The algebra of distances against closed forms; nothing here needs a network."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from megavrc.evaluation.frechet import (
    covered,
    discrepancy,
    frechet,
    frechet_at_infinity,
    frechet_of_moments,
    kernel_distance,
    moments,
    polynomial_kernel,
    rank_warning,
)
from megavrc.evaluation.statistics import poly_distance

Array = NDArray[np.float64]


def features(n: int, d: int, seed: int = 0) -> Array:
    spectrum = 1 / np.arange(1, d + 1)
    return np.random.default_rng(seed).standard_normal((n, d)) * np.sqrt(spectrum) + 0.3


@pytest.mark.parametrize(("n", "d"), [(2, 400), (16, 400), (99, 100), (101, 100), (2048, 50), (4096, 50)])
def test_identity_symmetry_and_shift(n: int, d: int) -> None:
    x = features(n, d)
    y = features(n, d, seed=1)
    assert frechet(x, x) == 0 and frechet(x, x.copy()) == 0
    assert frechet(x, x[::-1]) == 0 and kernel_distance(x, x[::-1]) == 0  # a set has no order
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-11)
    step = np.linspace(-1, 1, d)
    assert frechet(x, x + step) == pytest.approx((step**2).sum(), rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(2, 5), (16, 40), (64, 8), (2048, 16)])
def test_closed_forms(n: int, d: int) -> None:
    x = features(n, d)
    mean, covariance = x.mean(axis=0), np.cov(x.T, ddof=0)
    for factor in (0.5, 3.0):
        expected = (factor - 1) ** 2 * (np.trace(covariance) + (mean**2).sum())
        assert frechet(x, factor * x) == pytest.approx(expected, rel=1e-10)
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((d, d)))[0]
    y = features(n + 3, d, seed=1) * 2
    assert frechet(x @ turn, y @ turn) == pytest.approx(frechet(x, y), rel=1e-9)


def test_diagonal_gaussians_and_ddof() -> None:
    """Columns that are orthogonal: the distance is the sum of (s1 - s2)^2 over them."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    a, b = np.array([3.0, 0.5]), np.array([1.0, 2.0])
    assert frechet(signs * a, signs * b) == pytest.approx(((a - b) ** 2).sum(), rel=1e-12)
    assert frechet(signs * a, signs * b, ddof=1) == pytest.approx(((a - b) ** 2).sum() * 4 / 3, rel=1e-12)


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_never_negative_and_as_from_moments(n: int, m: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d)) * 2
    found = frechet(x, y)
    assert found >= 0
    sides = [moments(z, np.ones((1, len(z)))) for z in (x, y)]
    assert frechet_of_moments(*sides[0], *sides[1]) == pytest.approx([found], abs=1e-4)


def test_weights_are_repeats() -> None:
    x, y = features(12, 5), features(9, 5, seed=1)
    weights = np.array([0, 2, 1, 3, 1, 1, 0, 1, 1, 2, 0, 1])
    (mean,), (covariance,) = moments(x, weights[None].astype(float))
    repeated = np.repeat(x, weights, axis=0)
    assert mean == pytest.approx(repeated.mean(axis=0))
    assert covariance == pytest.approx(np.cov(repeated.T, ddof=0))
    places = np.repeat(np.arange(12), weights)
    within = polynomial_kernel(repeated, repeated)[places[:, None] != places].mean()
    others = polynomial_kernel(y, y)[~np.eye(9, dtype=bool)].mean()
    expected = within + others - 2 * polynomial_kernel(repeated, y).mean()
    found = discrepancy(x, y, weights[None].astype(float), np.ones((1, 9)))
    assert found == pytest.approx([expected], rel=1e-12)


def test_pairs_of_one_prompt_are_none() -> None:
    """Equal distributions, twelve prompts of five clips that are much alike: with pairs of one prompt it is above 0."""
    alone, grouped = [], []
    names = [str(number // 5) for number in range(60)]
    for seed in range(12):
        sides = [
            np.repeat(features(12, 6, seed + at), 5, 0) + 0.1 * features(60, 6, seed + at + 50)
            for at in (0, 200)
        ]
        alone.append(kernel_distance(*sides))
        grouped.append(kernel_distance(*sides, names, names))
    assert min(alone) > 0 and abs(np.mean(grouped)) < 0.3 * np.mean(alone)
    x, y = features(6, 3), features(5, 3, seed=1)
    each = [[str(number) for number in range(n)] for n in (6, 5)]
    assert kernel_distance(x, y, *each) == pytest.approx(kernel_distance(x, y), rel=1e-12)


def test_bias_of_the_frechet_distance_and_none_of_the_kernel_distance() -> None:
    """Equal distributions: the first falls with N and extrapolates to about 0, the second is about 0 throughout."""
    means, kernels, limits = [], [], []
    for n in (16, 64, 256):
        rounds = [(features(n, 24, seed), features(n, 24, seed + 100)) for seed in range(6)]
        means.append(np.mean([frechet(*pair) for pair in rounds]))
        kernels.append(np.mean([kernel_distance(*pair) for pair in rounds]))
        limits.append(np.mean([frechet_at_infinity(*pair) for pair in rounds]))
    assert means[0] > 2 * means[1] > 4 * means[2]
    assert abs(limits[2]) < 0.25 * means[2]
    assert max(map(abs, kernels)) < 0.05
    assert kernel_distance(features(64, 24), features(64, 24) + 0.5) > 0.5
    x = features(8, 3)
    assert kernel_distance(x, x) == 0


def test_the_kernel_distance_is_its_definition() -> None:
    """KID's kernel, summed pair by pair; never a pair of a sample with itself."""
    x, y = features(7, 3), features(5, 3, seed=1) + 0.2

    def kernel(a: Array, b: Array) -> float:
        return float((sum(a * b) / 3 + 1) ** 3)

    def within(z: Array) -> float:
        return float(np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]))

    across = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within(x) + within(y) - 2 * across, rel=1e-12)


def test_the_support_of_points_on_a_line() -> None:
    support, points = np.array([[0.0], [1.0], [2.0], [10.0]]), np.array([[-0.5], [3.5], [-1.5]])
    assert covered(points, support, 1).tolist() == [True, True, False]  # within 1, 1, 1 and 8
    assert covered(points, support, 2).tolist() == [True, True, True]  # within 2, 1, 2 and 9


def test_many_clips_take_less_memory_than_a_matrix_of_their_pairs() -> None:
    """In blocks of rows, whose values are those of the whole matrix."""
    x, y = features(3000, 3), features(3000, 3, seed=1) * 1.5
    tracemalloc.start()
    draw = poly_distance(x, y).draw(np.ones((2, 3000)), np.ones((2, 3000)))
    found = covered(x, y)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 * 3000**2
    kernels = polynomial_kernel(x, x), polynomial_kernel(y, y)
    within = sum((kernel.sum() - kernel.trace()) / (3000 * 2999) for kernel in kernels)
    assert draw == pytest.approx([within - 2 * polynomial_kernel(x, y).mean()] * 2, rel=1e-9)
    radii = np.array([np.sort(((y - member) ** 2).sum(axis=1))[3] for member in y])
    inside = [bool((((y - point) ** 2).sum(axis=1) <= radii).any()) for point in x[::30]]
    assert found[::30].tolist() == inside and 0 < sum(inside) < 100


def test_precision_and_recall_tell_bad_clips_from_few_modes() -> None:
    rng = np.random.default_rng(0)
    real = rng.standard_normal((300, 4)) + np.repeat([[0.0] * 4, [20.0] * 4], 150, axis=0)
    same = rng.standard_normal((300, 4)) + np.repeat([[0.0] * 4, [20.0] * 4], 150, axis=0)
    one_mode, noise = same[:150], same + rng.standard_normal((300, 4)) * 30

    def both(fake: Array) -> tuple[float, float]:
        return float(covered(fake, real).mean()), float(covered(real, fake).mean())

    assert min(both(same)) > 0.75
    precision, recall = both(one_mode)
    assert precision > 0.75 and 0.3 < recall < 0.5
    assert both(noise)[0] < 0.05
    assert both(real) == (1, 1)


def test_what_has_no_distance_is_refused() -> None:
    x = features(4, 3)
    for bad, words in ((x[:1], "at least 2"), (x[:, :2], "are needed"), (x * np.nan, "not finite")):
        with pytest.raises(ValueError, match=words):
            frechet(x, bad)
    assert rank_warning([401, 500], 400) is None
    assert "N 16 <= 400" in str(rank_warning([16, 500], 400))
    assert "N 400 <= 400" in str(rank_warning([500, 400], 400))
