"""Methods that keep what attention points at: in the tower, or inside the LLM."""

import torch

from . import assign, budget, merge, order, score, select
from .method import register
from .tokens import Reduction, Tokens


@register(
    "FasterVLM", "2412.01818v1", needs=("cls",), kind="spatial", scope="frame",
)  # fmt: skip
def fastervlm(tokens: Tokens, count: int) -> Reduction:
    """The tokens that CLS attends to most."""
    return order.kept(tokens, select.top(tokens.known("cls"), count))


@register(
    "VisPruner", "2412.01818", needs=("cls or attention",), kind="spatial", scope="frame",
    follows="neither in the order in which the rest is halved: of place (code: of attention, then of similarity)",
)  # fmt: skip
def vispruner(tokens: Tokens, count: int, important: float = 0.5) -> Reduction:
    """Half of the budget by attention, the other half by dropping duplicates from the rest, eight at a time."""
    best = select.top(score.saliency(tokens), int(count * important))
    rest = select.without(len(tokens), best)
    alike = score.cosine(tokens.features[rest], tokens.features[rest])
    return order.kept(tokens, torch.cat([best, rest[select.unlike_others(alike, count - len(best))]]))


@register(
    "VisionZip", "2412.04467", needs=("cls or attention", "keys"), kind="spatial", scope="frame", rest="merged",
    follows="the code: a contextual token is its target plus the mean of its group (paper: merged by averaging); "
    "neither in where targets stand: spread to the end (code: every floor(N / count)-th, so none among the last)",
    left_out="the projector tuned for reduced inputs; the CLS token, which the code keeps; and merging before the "
    "projector: tokens are merged as they leave it",
)  # fmt: skip
def visionzip(tokens: Tokens, count: int, contextual: float = 10 / 64) -> Reduction:
    """Dominant tokens by attention; the rest go to contextual targets, spread evenly, by similarity of keys."""
    extra = max(1, round(count * contextual))
    dominant = select.top(score.saliency(tokens), count - extra)
    rest = select.without(len(tokens), dominant)
    target = rest[select.evenly(len(rest), extra, rest.device)]
    group, index = assign.to_centres(tokens.known("keys"), dominant, target), torch.cat([dominant, target])
    return order.merged(tokens, merge.with_others(tokens.features, index, group), index, group)


@register(
    "PruMerge", "2403.15388", needs=("cls", "keys"), kind="spatial", scope="frame", rest="merged in part",
    calibrated="outlier",
    follows="the code: a token plus the sum of its 32 nearest by keys, each times its attention",
    left_out="evenly spread samples (the + variant), and fine-tuning",
)  # fmt: skip
def prumerge(tokens: Tokens, count: int, outlier: float = 1.5, neighbours: int = 32) -> Reduction:
    """Tokens whose attention is an outlier, over the third quartile by `outlier` interquartile ranges."""
    attention, keys = tokens.known("cls"), tokens.known("keys")
    low, high = attention.quantile(attention.new_tensor([0.25, 0.75]))
    found = (attention > high + outlier * (high - low)).nonzero()[:, 0]
    index = found if len(found) else select.top(attention, 1)
    alike = score.cosine(keys[index], keys).scatter(1, index[:, None], -torch.inf)
    near = alike.topk(min(neighbours, len(tokens) - 1)).indices
    weight = torch.zeros_like(alike).scatter(1, near, attention[near])
    features = tokens.features[index].float() + weight @ tokens.features.float()
    return order.merged(tokens, features, index, order.kept(tokens, index).assign)


@register(
    "HiPrune", "2508.00553", needs=("middle", "attention", "grid"), kind="spatial", scope="frame",
    follows="neither in the anchors: of the tower's middle layer, of 24 the 13th (paper: the 9th of CLIP's 24; of "
    "Qwen2.5-VL's 32 the 16th, as here); their number is rounded down, at least one (code: to the nearest), and beside "
    "the end of a row lies nothing (code: the next row)",
)  # fmt: skip
def hiprune(tokens: Tokens, count: int, anchors: float = 0.1) -> Reduction:
    """Anchors by attention in a middle layer, the tokens beside them, and for the rest attention in the last layer."""
    anchor = select.top(tokens.known("middle"), max(1, int(count * anchors / 5)))
    found = torch.cat([anchor, select.beside(anchor, *tokens.shape[1:])])[:count]
    deep = tokens.known("attention").index_fill(0, found, -torch.inf)
    return order.kept(tokens, torch.cat([found, select.top(deep, count - len(found))]))


@register(
    "FastV", "2403.06764", place="llm", layers=(2,), needs=("last_row",), kind="spatial", guided=True,
    follows="the code: attention of the last prompt token (paper: mean of all attention that a token receives)",
)  # fmt: skip
def fastv(tokens: Tokens, count: int) -> Reduction:
    """The tokens that the last prompt token attends to most, in the layer before."""
    return order.kept(tokens, select.top(tokens.known("last_row"), count))


@register(
    "PyramidDrop", "2410.17247", place="llm", layers=(8, 16, 24), needs=("own_row",),
    kind="spatial", guided=True, left_out="training with it",
)  # fmt: skip
def pyramiddrop(tokens: Tokens, count: int) -> Reduction:
    """At each of three layers the same share of what is left: by attention of the last prompt token, by that layer."""
    return order.kept(tokens, select.top(tokens.known("own_row"), count))


@register(
    "SparseVLM", "2410.04417", place="llm", layers=(2, 6, 15), needs=("rater_rows",),
    kind="spatial", guided=True, rest="merged in part",
    follows="neither in how many stay: the same share at each layer (paper: rank of attention; code: tables)",
    left_out="the rank of the attention matrix",
)  # fmt: skip
def sparsevlm(tokens: Tokens, count: int, share: float = 0.3, clusters: float = 0.1) -> Reduction:
    """What prompt tokens that look at the picture attend to; the best of the others become a few cluster means."""
    ranked = select.top(tokens.known("rater_rows").mean(0), len(tokens))
    stay, again = budget.recycled(len(tokens), count, share, clusters)
    rest = ranked[stay : stay + again]
    centre, near = select.density_centres(tokens.features[rest], count - stay, neighbours=5)
    group = torch.full_like(ranked, -1)
    group[ranked[:stay]] = torch.arange(stay, device=ranked.device)
    group[rest] = stay + near
    index = torch.cat([ranked[:stay], rest[centre]])
    return order.merged(tokens, merge.average(tokens.features, group, count), index, group)


@register(
    "DART", "2502.11494", place="llm", layers=(5,), needs=("keys", "text", "text_keys"), kind="spatial",
    guided=True,
    follows="the code: pivots by the norm of their keys",
    left_out="the layer's norm before the cosine: hidden states are compared as they are",
)  # fmt: skip
def dart(tokens: Tokens, count: int, pivots: int = 4) -> Reduction:
    """Pivots of picture and prompt by the L1 norm of their keys; then, for each in turn, what is least like it."""
    chosen = select.top(tokens.known("keys").abs().sum(-1), min(pivots, count))
    words = tokens.known("text")[select.top(tokens.known("text_keys").abs().sum(-1), pivots)]
    pivot = torch.cat([tokens.features[chosen].float(), words])
    for alike, share in zip(
        score.cosine(pivot, tokens.features), budget.even(count - len(chosen), len(pivot)), strict=True
    ):
        unlike = (-alike).index_fill(0, chosen, -torch.inf)
        chosen = torch.cat([chosen, select.top(unlike, share)])
    return order.kept(tokens, chosen)


@register(
    "HoliTom, inside the LLM", "2505.21334", place="llm", layers=(18,), depth=28, needs=("last_row",), kind="spatial",
    guided=True, rest="merged",
    follows="neither in one point: a kept token becomes the mean of its group (code: pairwise means in turn)",
    left_out="the part before the LLM: `holitom`",
)  # fmt: skip
def holitom_inner(tokens: Tokens, count: int) -> Reduction:
    """As FastV at a later layer, and every other token goes into the kept one that it is most similar to."""
    index = select.top(tokens.known("last_row"), count)
    group = assign.most_similar(tokens.features, index)
    return order.merged(tokens, merge.average(tokens.features, group, count), index, group)
