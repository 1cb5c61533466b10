"""Methods that look at how tokens resemble each other, over a frame or a whole clip at once."""

import torch

from . import assign, merge, order, score, segment, select
from .method import register
from .tokens import Reduction, Tokens


@register(
    "ToMe", "2210.09461", place="tower", needs=("keys",), kind="spatial", scope="frame", rest="merged",
    follows="the paper: token sizes weigh the means (much code drops them); proportional attention is the host's",
)  # fmt: skip
def tome(tokens: Tokens, count: int) -> Reduction:
    """Pairs with the most similar keys become one, weighted by size; several rounds where count asks for them."""
    x, keys, sizes = tokens.features.float(), tokens.known("keys"), tokens.sizes
    index = group = torch.arange(len(tokens), device=x.device)
    while len(index) > count:
        stays, into = assign.bipartite(keys, min(len(index) - count, len(index) // 2))
        x, keys = (merge.average(old, into, len(stays), sizes) for old in (x, keys))
        sizes, index, group = merge.total(sizes, into, len(stays)), index[stays], into[group]
    return order.merged(tokens, x, index, group)


@register(
    "MustDrop", "2411.10803", place="tower", needs=("grid",), kind="spatial", scope="frame", rest="merged",
    follows="neither where a budget asks for less than a token a window: windows then grow",
    left_out="the filters by the prompt at prefill and of the cache at decoding",
)  # fmt: skip
def mustdrop(tokens: Tokens, count: int, side: int = 3) -> Reduction:
    """Windows of 3 x 3 with the most similar tokens become one token each."""
    window = segment.windows(*tokens.shape[1:], count, side).to(tokens.features.device)
    ranked = select.top(score.group_similarity(tokens.features, window), len(tokens))
    index, group = assign.whole_groups(window, ranked, len(tokens) - count)
    return order.merged(tokens, merge.average(tokens.features, group, count), index, group)


@register("DivPrune", "2503.02175", kind="spatial")
def divprune(tokens: Tokens, count: int) -> Reduction:
    """The set whose two most similar tokens are as unlike as possible, greedily."""
    return order.kept(tokens, select.max_min(1 - score.cosine(tokens.features, tokens.features), count))


@register(
    "CDPruner", "2506.10967", needs=("text",), kind="spatial", guided=True,
    follows="the paper: relevance grows with the cosine to the prompt (code for CLIP: with its negative)",
    left_out="CLIP's text encoder: the prompt is its embeddings in the LLM",
)  # fmt: skip
def cdpruner(tokens: Tokens, count: int) -> Reduction:
    """The most likely set of a determinantal point process: unlike each other and relevant to the prompt, greedily."""
    relevance = score.relevance(tokens.features, tokens.known("text"))
    alike = score.cosine(tokens.features, tokens.features)
    return order.kept(tokens, select.most_volume(relevance[:, None] * alike * relevance, count))
