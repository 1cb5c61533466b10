"""Stage `select`: which tokens stay, as indices. Ties go to the earlier token, so it is a function of its input."""

import torch
from torch import Tensor

from .score import density_peaks, distances


def top(score_N: Tensor, count: int) -> Tensor:
    """[count]: the highest scores, best first."""
    return score_N.float().argsort(descending=True, stable=True)[:count]


def without(count: int, *chosen: Tensor) -> Tensor:
    """Ascending: the tokens of `count` that are not among `chosen`."""
    left = torch.ones(count, dtype=torch.bool, device=chosen[0].device)
    for index in chosen:
        left[index] = False
    return left.nonzero()[:, 0]


def evenly(total: int, count: int, device: torch.device | None = None) -> Tensor:
    """[count]: every (total / count)-th token, from the first."""
    return torch.arange(count, device=device) * total // max(1, count)


def max_min(distance_NN: Tensor, count: int) -> Tensor:
    """[count]: greedy max-min diversity (DivPrune).

    First the token that is farthest from its nearest other, then whichever is farthest from all chosen.
    """
    alone = distance_NN.clone().fill_diagonal_(torch.inf)
    chosen = [int(alone.amin(1).argmax())] if len(alone) > 1 else [0]
    nearest = distance_NN[chosen[0]].clone()
    while len(chosen) < count:
        nearest[chosen[-1]] = -torch.inf
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance_NN[chosen[-1]])
    return torch.tensor(chosen, device=distance_NN.device)


def most_volume(kernel_NN: Tensor, count: int) -> Tensor:
    """[count]: greedy most likely set of a determinantal point process: the largest determinant, token by token.

    By rows of a Cholesky factor (Chen et al. 2018, 1709.05135). Once no token adds volume, the first ones follow.
    """
    gain = kernel_NN.diagonal().double().clone()
    rows = kernel_NN.new_zeros(count, len(gain), dtype=torch.float64)
    chosen = torch.empty(count, dtype=torch.int64, device=gain.device)
    for step in range(count):
        best = chosen[step] = gain.argmax()
        row = kernel_NN[best].double() - rows[:step, best] @ rows[:step]
        rows[step] = row / gain[best].clamp(min=1e-12).sqrt()
        gain = (gain - rows[step].square()).clamp(min=0)
        gain[chosen[: step + 1]] = -torch.inf
    return chosen


def unlike_others(similarity_NN: Tensor, count: int, step: int = 8) -> Tensor:
    """[count] ascending: what is left after dropping duplicates (VisPruner).

    Again and again tokens are split alternately in two halves, and the `step` of the first that are most similar to
    one of the second go.
    """
    left = torch.arange(len(similarity_NN), device=similarity_NN.device)
    while len(left) > count:
        if len(left) == 1:
            return left[:0]
        first, second = left[::2], left[1::2]
        closest = similarity_NN[first[:, None], second].amax(1)
        gone = first[top(closest, min(step, len(left) - count))]
        left = left[~torch.isin(left, gone)]
    return left


def density_centres(x_ND: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """([count], [N]): the highest density peaks, and the nearest of them for every token (DPC-KNN)."""
    chosen = top(density_peaks(x_ND, neighbours), count)
    group = distances(x_ND)[:, chosen].argmin(1)
    group[chosen] = torch.arange(count, device=x_ND.device)
    return chosen, group
