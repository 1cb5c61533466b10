"""Distances between two sets of features, float [N, d] each.

The Frechet distance of Gaussians (Dowson and Landau 1982; Heusel et al. 2017), without a matrix square root: for
centred A and B with A'A and B'B the covariances, tr sqrt(S1 S2) is the sum of the singular values of A B'. A set has
the distance exactly 0 from itself, and nothing turns complex where N <= d.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # [N, d]
Array = NDArray[np.float64]

NEIGHBOURS = 3  # of precision and recall
FRACTIONS = np.linspace(0.25, 1.0, 8)  # of N, between which the distance is extrapolated
REPEATS = 4  # subsets of each of these sizes
PAIRS = 2**21  # of two sets, that are compared at once: memory is a multiple of these, not of N^2


def checked(x_ND: Features, y_ND: Features) -> tuple[Array, Array]:
    """Both in float64; ValueError for what has no distance."""
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_ND, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features {list(x.shape)} and {list(y.shape)}: [N, d] and [M, d] are needed")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{len(x)} and {len(y)} features: at least 2 of each")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features that are not finite")
    return x, y


def _same(x_ND: Array, y_ND: Array) -> bool:
    """Whether two sets hold the same features, in any order."""
    if x_ND.shape != y_ND.shape or not np.array_equal(np.sort(x_ND[:, 0]), np.sort(y_ND[:, 0])):
        return False
    return np.array_equal(x_ND[np.lexsort(x_ND.T)], y_ND[np.lexsort(y_ND.T)])


def frechet(x_ND: Features, y_ND: Features, ddof: int = 0) -> float:
    """The Frechet distance of the Gaussians with the means and covariances of two sets.

    Args:
        ddof: covariances are sums over N - ddof (StyleGAN-V: 0).
    """
    x, y = checked(x_ND, y_ND)
    if _same(x, y):
        return 0.0
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    a, b = ((z - m) / math.sqrt(len(z) - ddof) for z, m in ((x, mean_x), (y, mean_y)))
    spread = float((a**2).sum() + (b**2).sum())
    # R of QR has the covariance of its matrix, in at most d rows.
    a, b = (np.asarray(np.linalg.qr(z, mode="r")) if len(z) > z.shape[1] else z for z in (a, b))
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(((mean_x - mean_y) ** 2).sum()) + spread - 2 * float(shared))


def moments(x_ND: Array, weights_RN: Array, ddof: int = 0) -> tuple[Array, Array]:
    """Means [R, d] and covariances [R, d, d] of a set, each feature counted as often as a row of weights says."""
    total = weights_RN.sum(axis=-1)
    mean = weights_RN @ x_ND / total[..., None]
    centred = x_ND - mean[..., None, :]
    covariance = (centred * weights_RN[..., None]).swapaxes(-1, -2) @ centred
    return mean, covariance / (total - ddof)[..., None, None]


def square_root(covariance_RDD: Array) -> Array:
    """Square roots of symmetric matrices without negative eigenvalues."""
    values, vectors = np.linalg.eigh(covariance_RDD)
    root: Array = (vectors * np.sqrt(values.clip(min=0))[..., None, :]) @ vectors.swapaxes(-1, -2)
    return root


def frechet_of_moments(mean_x: Array, covariance_x: Array, mean_y: Array, covariance_y: Array) -> Array:
    """The same as `frechet`, from means [R, d] and covariances [R, d, d]: [R], to about 1e-4 where N <= d."""
    root = square_root(covariance_y)
    inner = root @ covariance_x @ root
    shared = np.sqrt(np.linalg.eigvalsh((inner + inner.swapaxes(-1, -2)) / 2).clip(min=0)).sum(axis=-1)
    spread = np.trace(covariance_x + covariance_y, axis1=-2, axis2=-1)
    distance: Array = ((mean_x - mean_y) ** 2).sum(axis=-1) + spread - 2 * shared
    return distance


def frechet_at_infinity(x_ND: Features, y_ND: Features, ddof: int = 0, seed: int = 0) -> float:
    """The limit of the distance for N to infinity: the intercept of a line in 1/N (after Chong and Forsyth 2020).

    Equal shares of both sets are drawn, from a quarter to all.
    """
    x, y = checked(x_ND, y_ND)
    rng = np.random.default_rng(seed)
    inverse, found = [], []
    for share in FRACTIONS:
        sizes = [max(2, round(share * len(z))) for z in (x, y)]
        for _ in range(REPEATS if share < 1 else 1):
            some, others = (z[rng.permutation(len(z))[:size]] for z, size in zip((x, y), sizes, strict=True))
            inverse.append(sum(1 / size for size in sizes))
            found.append(frechet(some, others, ddof))
    if len(set(inverse)) < 2:
        return found[-1]
    return float(np.polynomial.polynomial.polyfit(inverse, found, 1)[0])


# --- kernel distance -------------------------------------------------------------------------------------------


def polynomial_kernel(x_ND: Array, y_MD: Array) -> Array:
    """(x.y / d + 1)^3, [N, M] (Binkowski et al. 2018)."""
    kernel: Array = (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3
    return kernel


Groups = Sequence[str] | None
"""Of each sample its prompt or video, samples of which are no independent pair; None: each sample is one."""


def kernel_distance(x_ND: Features, y_ND: Features, of_x: Groups = None, of_y: Groups = None) -> float:
    """Squared maximum mean discrepancy with the polynomial kernel, unbiased: its mean is 0 for equal distributions.

    nan where a side has one group alone, which has no pair.
    """
    x, y = checked(x_ND, y_ND)
    if _same(x, y):
        return 0.0
    return float(discrepancy(x, y, np.ones((1, len(x))), np.ones((1, len(y))), of_x, of_y)[0])


def discrepancy(
    x_ND: Array,
    y_MD: Array,
    weights_RN: Array,
    weights_RM: Array,
    of_x: Groups = None,
    of_y: Groups = None,
) -> Array:
    """The unbiased estimate, [R], each sample counted as often as a row of weights says; never a pair within a group;
    nan where a row counts one group alone, which has no pair."""
    within: Array = np.zeros(len(weights_RN))
    for z, weights, groups in ((x_ND, weights_RN, of_x), (y_MD, weights_RM, of_y)):
        pairs, total = weights.sum(axis=1) ** 2, _kernel_sum(z, z, weights, weights)
        if groups is None:
            pairs = pairs - (weights**2).sum(axis=1)
            total = total - weights**2 @ ((z**2).sum(axis=1) / z.shape[1] + 1) ** 3
        else:
            names = np.asarray(groups)
            for rows in (names == name for name in dict.fromkeys(groups)):
                pairs = pairs - weights[:, rows].sum(axis=1) ** 2
                total = total - _kernel_sum(z[rows], z[rows], weights[:, rows], weights[:, rows])
        within = within + np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0)
    across = _kernel_sum(x_ND, y_MD, weights_RN, weights_RM)
    return within - 2 * across / (weights_RN.sum(axis=1) * weights_RM.sum(axis=1))


def _kernel_sum(x_ND: Array, y_MD: Array, weights_RN: Array, weights_RM: Array) -> Array:
    """The kernel summed over all pairs of both sets, each counted as often as both weights say, [R]."""
    total: Array = np.zeros(len(weights_RN))
    for rows in _blocks(x_ND, y_MD):
        kernel = polynomial_kernel(x_ND[rows], y_MD)
        total += ((weights_RN[:, rows] @ kernel) * weights_RM).sum(axis=1)
    return total


def _blocks(x_ND: Array, y_MD: Array) -> Iterator[slice]:
    """Rows of x whose pairs with all of y are in memory at once."""
    step = max(1, PAIRS // len(y_MD))
    return (slice(start, start + step) for start in range(0, len(x_ND), step))


# --- precision and recall --------------------------------------------------------------------------------------


def covered(points_ND: Features, support_MD: Features, neighbours: int = NEIGHBOURS) -> NDArray[np.bool_]:
    """The points, bool [N], that lie in the support of a set: within the distance of some member to its k-th neighbour
    there.

    The mean over generated points in the real support is precision, over real points in the generated support recall
    (Kynkaanniemi et al. 2019).
    """
    points, support = checked(points_ND, support_MD)
    k = min(neighbours, len(support) - 1)  # the 0-th is the member itself
    radii, within = np.empty(len(support)), np.empty(len(points), bool)
    for rows in _blocks(support, support):
        radii[rows] = np.partition(_squared(support[rows], support), k)[:, k]
    for rows in _blocks(points, support):
        within[rows] = (_squared(points[rows], support) <= radii).any(axis=1)
    return within


def _squared(x_ND: Array, y_MD: Array) -> Array:
    squares = (x_ND**2).sum(axis=1)[:, None] + (y_MD**2).sum(axis=1) - 2 * x_ND @ y_MD.T
    return squares.clip(min=0)


def rank_warning(counts: Sequence[int], dims: int) -> str | None:
    """The warning that must stand beside a Frechet distance of few samples."""
    fewest = min(counts)
    if fewest > dims:
        return None
    return (
        f"N {fewest} <= {dims} dimensions: most of a Frechet distance is then bias; compare it with the floor"
    )
