"""Stage `assign`: which token that stays each other one goes into."""

import torch
from torch import Tensor

from .merge import average
from .score import cosine
from .segment import Runs
from .select import top


def most_similar(x_ND: Tensor, index_K: Tensor) -> Tensor:
    """[N]: the most cosine-similar of the tokens `index_K` for every token; itself for those."""
    assign = cosine(x_ND, x_ND[index_K]).argmax(1)
    assign[index_K] = torch.arange(len(index_K), device=x_ND.device)
    return assign


def to_centres(x_ND: Tensor, alone: Tensor, centre: Tensor) -> Tensor:
    """[N]: the tokens `alone` are outputs 0, 1, ..; the others go into the most similar of `centre`, which follow."""
    assign = (
        most_similar(x_ND, centre) + len(alone) if len(centre) else torch.full_like(x_ND[:, 0].long(), -1)
    )
    assign[alone] = torch.arange(len(alone), device=x_ND.device)
    return assign


def numbered(into_N: Tensor) -> tuple[Tensor, Tensor]:
    """([K], [N]): from the token that each goes into: the tokens that stay, ascending, and which of them it is."""
    stays, assign = into_N.unique(return_inverse=True)
    return stays, assign


def bipartite(keys_ND: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """Groups, as `numbered`, of which N - `merges` stay (ToMe's soft matching).

    Tokens are split alternately in two halves; each of the first has one favourite in the second, and the `merges`
    most similar pairs become one token, at the place of the second.
    """
    likeness, favourite = cosine(keys_ND[::2], keys_ND[1::2]).max(1)
    gone = top(likeness, merges)
    into = torch.arange(len(keys_ND), device=keys_ND.device)
    into[2 * gone] = 2 * favourite[gone] + 1
    return numbered(into)


def whole_groups(group_N: Tensor, order: Tensor, gone: int) -> tuple[Tensor, Tensor]:
    """Groups, as `numbered`, that become one token each, in that order, until `gone` tokens are; the last one in
    part.
    """
    into = torch.arange(len(group_N), device=group_N.device)
    for number in order.tolist():
        members = (group_N == number).nonzero()[: gone + 1, 0]
        into[members] = members[0]
        gone -= len(members) - 1
    return numbered(into)


def over_time(
    steady: Tensor, runs: Runs, threshold: float, gone: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Groups, as `numbered`, in which the tokens at a static place of a run are one token, in its first frame; then
    their sets.

    Static are the places with `steady` [runs, n] above `threshold`; the steadiest of them, if more than `gone` tokens
    would go. The sets are the other tokens of each frame, and the static ones of each run: [K] which, and [sets] bool
    whether static.
    """
    area, frames = steady.shape[1], runs[-1][1]
    length = torch.tensor([end - first for first, end in runs], device=steady.device)
    value = torch.where((steady > threshold) & (length > 1)[:, None], steady, -torch.inf).flatten()
    best = top(value, int((value > -torch.inf).sum()))
    static = torch.zeros_like(value, dtype=torch.bool)
    static[best[(length[best // area] - 1).cumsum(0) <= gone]] = True
    into = torch.arange(frames * area, device=steady.device).view(frames, area)
    sets = 2 * torch.arange(frames, device=steady.device)[:, None].repeat(1, area)
    for (first, end), still in zip(runs, static.view_as(steady), strict=True):
        into[first:end, still] = into[first, still]
        sets[first, still] += 1
    stays, assign = numbered(into.flatten())
    kinds, number = sets.flatten()[stays].unique(return_inverse=True)
    return stays, assign, number, kinds % 2 == 1


def in_runs(x_ND: Tensor, chosen: Tensor, anchors: list[Tensor], runs: Runs, area: int) -> Tensor:
    """[N]: tokens of `chosen` alone, every other into the most similar anchor of its run, or -1 if it has none.

    The outputs are `chosen`, then the anchors run by run.
    """
    assign = x_ND.new_empty(len(x_ND), dtype=torch.int64)
    seen = len(chosen)
    for anchor, (first, end) in zip(anchors, runs, strict=True):
        part = slice(first * area, end * area)
        group = to_centres(x_ND[part], anchor[:0], anchor - first * area)
        assign[part] = torch.where(group < 0, group, group + seen)
        seen += len(anchor)
    assign[chosen] = torch.arange(len(chosen), device=x_ND.device)
    return assign


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
