"""Stage `order`: kept tokens in the order of the places that they take, with the book-keeping that hosts need."""

import torch
from torch import Tensor

from .merge import total
from .tokens import Reduction, Tokens


def kept(tokens: Tokens, index_K: Tensor) -> Reduction:
    """The tokens at `index_K` (in any order) as they are; the others are dropped."""
    index = index_K.sort().values
    assign = torch.full((len(tokens),), -1, device=index.device)
    assign[index] = torch.arange(len(index), device=index.device)
    return Reduction(tokens.features[index], index, assign, tokens.sizes[index])


def merged(tokens: Tokens, features_KD: Tensor, index_K: Tensor, assign_N: Tensor) -> Reduction:
    """New tokens, each at the place of the token `index_K`; `assign_N` says which each token went into."""
    index, old = index_K.sort()
    assign = torch.where(assign_N < 0, assign_N, old.argsort()[assign_N])
    return Reduction(
        features_KD[old].to(tokens.features.dtype), index, assign, total(tokens.sizes, assign, len(index))
    )
