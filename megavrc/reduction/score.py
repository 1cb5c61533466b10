"""Stage `score`: what a token is worth. All in fp32, higher is kept first."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .merge import total
from .tokens import Tokens


def saliency(tokens: Tokens) -> Tensor:
    """[N]: attention of the tower's CLS token, or where it has none, attention received."""
    return tokens.known("attention" if tokens.cls is None else "cls")


def cosine(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """[N, M]: cosine similarities; a vector of zeros is like none."""
    return F.normalize(x_ND.float(), dim=-1) @ F.normalize(y_MD.float(), dim=-1).T


def frame_similarity(tokens: Tokens) -> Tensor:
    """[T - 1, n]: cosine of every token with the one at its place in the frame before."""
    x_TnD = F.normalize(tokens.features.float().unflatten(0, (tokens.shape[0], -1)), dim=-1)
    return (x_TnD[1:] * x_TnD[:-1]).sum(-1)


def group_similarity(x_ND: Tensor, group_N: Tensor) -> Tensor:
    """[groups]: mean cosine of all pairs in each group, 0 for a group of one."""
    unit, count = F.normalize(x_ND.float(), dim=-1), group_N.bincount()
    square = total(unit, group_N, len(count)).square().sum(-1)
    return (square - count) / (count * (count - 1)).clamp(min=1)


def steadiness(tokens: Tokens, runs: list[tuple[int, int]]) -> Tensor:
    """[runs, n]: mean cosine, over all pairs of frames of a run, of the tokens at one place (PruneVid)."""
    area = len(tokens) // tokens.shape[0]
    place = torch.arange(area, device=tokens.features.device)
    parts = [tokens.features[first * area : end * area] for first, end in runs]
    return torch.stack([group_similarity(part, place.repeat(len(part) // area)) for part in parts])


def lowest_in(similarity: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """[runs, n]: the lowest of `frame_similarity` inside each run, -inf in a run of one frame (HoliTom)."""
    alone = similarity.new_full(similarity.shape[1:], -torch.inf)
    return torch.stack(
        [similarity[first : end - 1].amin(0) if end - first > 1 else alone for first, end in runs]
    )


def frame_means(tokens: Tokens) -> Tensor:
    """[T, D]: mean token of every frame."""
    return tokens.features.float().unflatten(0, (tokens.shape[0], -1)).mean(1)


def raters(visual_ND: Tensor, text_SD: Tensor) -> Tensor:
    """[S] bool: prompt tokens that look at the picture (SparseVLM).

    On the LLM's input: the softmax over the prompt of its products with a visual token, mean over visual tokens, above
    the mean of all prompt tokens. Where none is above, all are raters.
    """
    weight_S = (visual_ND.float() @ text_SD.float().T).softmax(-1).mean(0)
    chosen = weight_S > weight_S.mean()
    return chosen if chosen.any() else torch.ones_like(chosen)


def euclidean(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """[N, M]: Euclidean distances."""
    x_ND, y_MD = x_ND.float(), y_MD.float()
    # Near the origin, since `cdist` multiplies matrices and loses small distances far from it.
    middle = y_MD.mean(-2, keepdim=True)
    return torch.cdist(x_ND - middle, y_MD - middle)


def distances(x_ND: Tensor) -> Tensor:
    """[N, N]: Euclidean distances, divided by the root of D."""
    return euclidean(x_ND, x_ND) / x_ND.shape[-1] ** 0.5


def density_peaks(x_ND: Tensor, neighbours: int) -> Tensor:
    """[N]: density times distance to the nearest denser token (density peaks with k neighbours, Du et al. 2016).

    Density is exp(-mean of squared distances to the k nearest others); ties go to the earlier token; the densest has
    the largest distance.
    """
    d_NN, count = distances(x_ND), len(x_ND)
    if count < 2:
        return d_NN.new_ones(count)
    near = d_NN.topk(min(neighbours, count - 1) + 1, largest=False).values[:, 1:]
    density = (-near.square().mean(-1)).exp()
    place = torch.arange(count, device=x_ND.device)
    denser = (density > density[:, None]) | ((density == density[:, None]) & (place < place[:, None]))
    apart = d_NN.masked_fill(~denser, torch.inf).amin(-1)
    return density * torch.where(denser.any(-1), apart, d_NN.amax())


def relevance(features_ND: Tensor, text_SD: Tensor) -> Tensor:
    """[N] in (0, 1]: mean cosine with the prompt's tokens, scaled to its range (CDPruner)."""
    score = cosine(features_ND, text_SD).mean(-1)
    return (score - score.min() + 1e-6) / (score.max() - score.min() + 1e-6)


def quiet_channels(x_ND: Tensor, share: float = 0.5) -> Tensor:
    """[N, D share]: the channels that vary least over the tokens (VidCom2)."""
    variance = x_ND.float().var(0, unbiased=False)
    return x_ND.float()[:, variance.argsort(stable=True)[: max(1, int(len(variance) * share))]]


def gaussian_similarity(x: Tensor, centre: Tensor) -> Tensor:
    """[..]: sum of Gaussian kernels of the distance, 2 sigma^2 = 1/4, 1/2, 1, 2, 4 (VidCom2)."""
    square = (x - centre).square().sum(-1)
    return torch.stack([(-square / (2 * width)).exp() for width in (0.125, 0.25, 0.5, 1, 2)]).sum(0)
