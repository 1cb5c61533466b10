"""Stage `assign`: which kept token each other one goes into."""

import torch
from torch import Tensor

from .merge import average
from .score import cosine
from .select import top


def most_similar(x_ND: Tensor, index_K: Tensor) -> Tensor:
    """[N]: the most cosine-similar of the tokens `index_K` for every token; itself for those."""
    assign = cosine(x_ND, x_ND[index_K]).argmax(1)
    assign[index_K] = torch.arange(len(index_K), device=x_ND.device)
    return assign


def bipartite(keys_ND: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """([N - merges], [N]): the tokens that stay, ascending, and which of them each goes into (ToMe's soft matching).

    Tokens are split alternately in two halves; each of the first has one favourite in the second, and the `merges`
    most similar pairs become one token, at the place of the second.
    """
    likeness, favourite = cosine(keys_ND[::2], keys_ND[1::2]).max(1)
    gone = top(likeness, merges)
    into = torch.arange(len(keys_ND), device=keys_ND.device)
    into[2 * gone] = 2 * favourite[gone] + 1
    stays, assign = into.unique(return_inverse=True)
    return stays, assign


def tiles(height: int, width: int, count: int) -> Tensor:
    """[H W]: one of `count` rectangles for every cell, by halving the longer side again and again.

    Any count from 1 to H W is met exactly; with a count of H W / 4^n and sides that halve n times, it is the usual
    pooling grid.
    """
    assign = torch.empty(height, width, dtype=torch.int64)

    def cut(region: Tensor, first: int, parts: int) -> None:
        if parts == 1:
            region.fill_(first)
            return
        turned = region if region.shape[0] >= region.shape[1] else region.T
        half = len(turned) // 2
        share = min(parts - 1, max(1, round(parts * half / len(turned))))
        cut(turned[:half], first, share)
        cut(turned[half:], first + share, parts - share)

    cut(assign, 0, count)
    return assign.flatten()


def tile_centres(tile_N: Tensor, width: int, count: int) -> Tensor:
    """[count, 2] fp32: row and column of the middle of each tile of a frame of that width."""
    cell = torch.arange(len(tile_N), device=tile_N.device)
    return average(torch.stack([cell // width, cell % width], 1), tile_N, count)


def cells(place_K2: Tensor, width: int) -> Tensor:
    """[K]: the token at or above and left of each (row, column)."""
    return place_K2[:, 0].long() * width + place_K2[:, 1].long()
