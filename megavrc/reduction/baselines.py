"""Baselines, which published methods have to beat: content plays no part in them."""

import torch

from . import assign, merge, order, select
from .method import register
from .tokens import Reduction, Tokens


@register("random", "baseline", kind="both", causal=True)
def random(tokens: Tokens, count: int, seed: int = 0) -> Reduction:
    """Tokens drawn at random, the same ones for the same seed, on every device. Report at least three seeds."""
    drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:count]
    return order.kept(tokens, drawn.to(tokens.features.device))


@register("average pooling", "baseline", needs=("grid",), kind="spatial", scope="frame", rest="merged")
def pool(tokens: Tokens, count: int) -> Reduction:
    """The mean of each of `count` rectangles that tile the frame (`assign.tiles`)."""
    tile = assign.tiles(*tokens.shape[1:], count).to(tokens.features.device)
    place = assign.cells(assign.tile_centres(tile, tokens.shape[2], count), tokens.shape[2])
    return order.merged(tokens, merge.average(tokens.features, tile, count), place, tile)


@register("strided", "baseline", needs=("grid",), kind="spatial", scope="frame")
def strided(tokens: Tokens, count: int) -> Reduction:
    """The first token of each rectangle of `pool`."""
    tile = assign.tiles(*tokens.shape[1:], count)
    first = (tile == torch.arange(count)[:, None]).int().argmax(1)
    return order.kept(tokens, first.to(tokens.features.device))


@register("bilinear", "baseline", needs=("grid",), kind="spatial", scope="frame", rest="merged")
def bilinear(tokens: Tokens, count: int) -> Reduction:
    """The frame sampled at the centre of each rectangle of `pool`, between its four nearest tokens.

    Where rectangles are 2 x 2 it equals `pool`, as resizing a picture to its half does.
    """
    width, device = tokens.shape[2], tokens.features.device
    tile = assign.tiles(*tokens.shape[1:], count).to(device)
    centre = assign.tile_centres(tile, width, count)
    cell = torch.arange(len(tokens), device=device)
    apart = (torch.stack([cell // width, cell % width], 1) - centre[:, None]).abs()  # [K, N, 2]
    weight = (1 - apart).clamp(min=0).prod(-1)
    return order.merged(tokens, weight @ tokens.features.float(), assign.cells(centre, width), tile)


@register("copy of the frame before", "baseline", needs=("grid",), kind="temporal", causal=True)
def copy(tokens: Tokens, count: int) -> Reduction:
    """Whole frames at an even stride, the first one always; the others count as copies of the frame before.

    What is left of the budget is spread evenly over the last of them; under one frame, over the first.
    """
    area = tokens.shape[1] * tokens.shape[2]
    frames = select.evenly(tokens.shape[0], -(-count // area))
    place = (frames[:, None] * area + torch.arange(area)).flatten()
    whole, part = place[: count // area * area], place[count // area * area :]
    index = torch.cat([whole, part[select.evenly(len(part), count - len(whole))]])
    return order.kept(tokens, index.to(tokens.features.device))
