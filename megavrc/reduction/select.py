"""Stage `select`: which tokens stay, as indices. Ties go to the earlier token, so it is a function of its input."""

from collections.abc import Callable

import torch
from torch import Tensor

from .budget import shares
from .score import density_peaks, distances

Choice = Callable[[int, Tensor, int], tuple[Tensor, Tensor]]


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

    By rows of a Cholesky factor (Chen et al. 2018, 1709.05135). Once no token adds volume (less than rounding may, 1e-6
    of the largest), the first ones follow.
    """
    gain = kernel_NN.diagonal().double().clone()
    least = 1e-6 * gain.max()
    rows = kernel_NN.new_zeros(count, len(gain), dtype=torch.float64)
    chosen = torch.empty(count, dtype=torch.int64, device=gain.device)
    for step in range(count):
        best = chosen[step] = gain.argmax()
        row = kernel_NN[best].double() - rows[:step, best] @ rows[:step]
        rows[step] = row / gain[best].clamp(min=1e-12).sqrt()
        gain = gain - rows[step].square()
        gain[gain < least] = 0
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


def in_sets(set_N: Tensor, count: int, choose: Choice) -> tuple[Tensor, Tensor]:
    """([count], [N]): what `choose` takes of every set, and which of these each token goes into, or -1.

    A set's share is in proportion to its size, at least one where that is possible. `choose(number, members, share)`
    gives ([share], [members]) as `density_centres` and `alone` do.
    """
    index, assign, seen, sizes = [], torch.full_like(set_N, -1), 0, set_N.bincount().tolist()
    for number, share in enumerate(shares(count, sizes, sizes, least=1)):
        if share:
            members = (set_N == number).nonzero()[:, 0]
            chosen, group = choose(number, members, share)
            index.append(members[chosen])
            assign[members] = torch.where(group < 0, group, group + seen)
            seen += share
    return torch.cat(index), assign


def alone(score_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """([count], [N]): the highest scores; the others go nowhere, -1."""
    chosen = top(score_N, count)
    group = torch.full_like(score_N, -1, dtype=torch.int64)
    group[chosen] = torch.arange(count, device=score_N.device)
    return chosen, group


def anchors(x_TnD: Tensor, free_Tn: Tensor, run: tuple[int, int], count: int, every: int = 4) -> Tensor:
    """[count]: density peaks among the free tokens of a run's anchor frames (FastVID).

    Anchor frames are every fourth one, back from the end, with an even share each; where they have no more free
    tokens, the other frames of the run give theirs.
    """
    frames, area = range(*run), x_TnD.shape[1]
    weights = [float((run[1] - 1 - t) % every == 0) for t in frames]
    found = []
    for t, share in zip(
        frames, shares(count, weights, free_Tn[run[0] : run[1]].sum(1).tolist()), strict=True
    ):
        free = free_Tn[t].nonzero()[:, 0]
        found.append(t * area + free[top(density_peaks(x_TnD[t, free], 4), share)])
    return torch.cat(found)


def beside(index_K: Tensor, height: int, width: int) -> Tensor:
    """The tokens above, below, left and right of each, those first that come first; without `index_K` themselves."""
    row, column = index_K // width, index_K % width
    step = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]], device=index_K.device)
    place = torch.stack([row, column], 1)[:, None] + step
    inside = ((place >= 0) & (place < torch.tensor([height, width], device=index_K.device))).all(-1)
    found = (place[..., 0] * width + place[..., 1])[inside]
    fresh = found[~torch.isin(found, index_K)].tolist()
    return torch.tensor(list(dict.fromkeys(fresh)), dtype=torch.int64, device=index_K.device)
