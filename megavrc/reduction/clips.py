"""Methods that see a clip as frames: what stands still, what changes, where a scene ends."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import assign, budget, merge, order, score, segment, select
from .method import register
from .tokens import Reduction, Tokens


@register(
    "EVS", "2510.14624", needs=("grid",), kind="temporal",
    follows="the code of vLLM: cosine of tokens (paper: L1 distance of pixels)",
    left_out="training with it",
)  # fmt: skip
def evs(tokens: Tokens, count: int) -> Reduction:
    """The first frame, and the tokens that differ most from the one at their place in the frame before."""
    area = tokens.shape[1] * tokens.shape[2]
    budget.in_reach(count, area, "EVS keeps the first frame whole")
    change = F.pad(1 - score.frame_similarity(tokens), (0, 0, 1, 0), value=torch.inf)
    return order.kept(tokens, select.top(change.flatten(), count))


@register(
    "DyCoke", "2411.15024", needs=("grid",), kind="temporal", causal=True,
    follows="neither for the last frames, which are pruned as the others (code: less, and an odd last one goes)",
    left_out="pruning of the cache while decoding",
)  # fmt: skip
def dycoke(tokens: Tokens, count: int) -> Reduction:
    """Of four frames the first stays; the third is pruned against it, the second and fourth against the one before."""
    frames, area = tokens.shape[0], tokens.shape[1] * tokens.shape[2]
    whole, later = [t for t in range(frames) if t % 4 == 0], [t for t in range(frames) if t % 4]
    budget.in_reach(count, len(whole) * area, "DyCoke keeps one frame of four whole")
    x_TnD = tokens.features.float().unflatten(0, (frames, area))
    before = [t - 1 if t % 2 else t - 2 for t in later]
    change = 1 - F.cosine_similarity(x_TnD[later], x_TnD[before], dim=-1)
    stay = [t * area + torch.arange(area, device=change.device) for t in whole]
    for t, row, share in zip(later, change, budget.even(count - len(whole) * area, len(later)), strict=True):
        stay.append(t * area + select.top(row, share))
    return order.kept(tokens, torch.cat(stay))


@register(
    "VidCom2", "2505.14454", needs=("grid",), kind="both",
    follows="the code: five widths of the Gaussian, the quieter half of the channels, temperature 0.01",
)  # fmt: skip
def vidcom2(tokens: Tokens, count: int, temperature: float = 0.01) -> Reduction:
    """Frames unlike the whole clip get more; in each, the tokens that are least like their frame and the clip."""
    frames, area = tokens.shape[0], tokens.shape[1] * tokens.shape[2]
    x_TnC = F.normalize(score.quiet_channels(tokens.features), dim=-1).unflatten(0, (frames, area))
    clip = score.gaussian_similarity(x_TnC, x_TnC.mean((0, 1)))
    frame = score.gaussian_similarity(x_TnC, x_TnC.mean(1, keepdim=True))
    unlike = (-clip.mean(1) / temperature).softmax(0)
    parts = budget.shares(count, (1 + unlike - 1 / frames).tolist(), [area] * frames)
    found = [t * area + select.top(-(clip + frame)[t], share) for t, share in enumerate(parts)]
    return order.kept(tokens, torch.cat(found))


@register(
    "PruneVid", "2412.16117", needs=("grid",), kind="both", rest="merged in part",
    follows="neither in how many stay: the budget says (paper: half of each set of more than 14 tokens)",
    left_out="pruning inside the LLM by the question's attention, and of the cache",
)  # fmt: skip
def prunevid(tokens: Tokens, count: int, threshold: float = 0.8, clusters: float = 0.25) -> Reduction:
    """Scenes by clustering frames; in each, places that stand still become one token; then spatial clusters."""
    runs = segment.clustered(score.frame_means(tokens), clusters)
    steady = score.steadiness(tokens, runs)
    stays, still, sets, _ = assign.over_time(steady, runs, threshold, len(tokens) - count)
    x = merge.average(tokens.features, still, len(stays))
    index, group = select.in_sets(sets, count, lambda _, m, share: select.density_centres(x[m], share, 7))
    return order.merged(tokens, merge.average(x, group, count), stays[index], group[still])


@register(
    "HoliTom", "2505.21334", needs=("attention", "grid"), kind="both", rest="merged in part",
    left_out="merging inside the LLM: `holitom_inner`",
)  # fmt: skip
def holitom(tokens: Tokens, count: int, threshold: float = 0.8, least: float = 0.6) -> Reduction:
    """Windows that save most tokens; static places become one; then clusters of those, and attention for the others."""
    like = score.frame_similarity(tokens)
    runs = segment.static_windows(like, threshold)
    steady = score.lowest_in(like, runs)
    stays, still, sets, static = assign.over_time(steady, runs, threshold, len(tokens) - count)
    x, value = merge.average(tokens.features, still, len(stays)), tokens.known("attention")[stays]

    def choose(number: int, members: Tensor, share: int) -> tuple[Tensor, Tensor]:
        if static[number]:
            return select.density_centres(x[members], share, 7)
        return select.alone(value[members], share)

    index, group = select.in_sets(sets, count, choose)
    return order.merged(tokens, merge.blend(x, index, group, least), stays[index], group[still])


@register(
    "FastVID", "2503.11187", needs=("attention", "grid"), kind="both", rest="merged in part",
    follows="neither in one point: a token goes into one anchor of its scene (code: one in each anchor frame)",
    left_out="the tower's pooled output: a frame is the mean of its tokens; clips under 32 frames have fewer cuts",
)  # fmt: skip
def fastvid(tokens: Tokens, count: int, salient: float = 0.6, least: float = 0.6) -> Reduction:
    """Salient tokens of every frame by attention; the others go into density peaks of anchor frames of their scene."""
    frames, area = tokens.shape[0], tokens.shape[1] * tokens.shape[2]
    value, x_TnD = tokens.known("attention").view(frames, area), tokens.features.reshape(frames, area, -1)
    runs = segment.cuts(score.frame_means(tokens), min(7, max(0, frames // 4 - 1)))
    parts = budget.even(round(count * salient), frames)
    chosen = torch.cat([t * area + select.top(value[t], share) for t, share in enumerate(parts)])
    free = torch.ones_like(value, dtype=torch.bool).flatten().index_fill(0, chosen, False).view(frames, area)
    room = [int(free[first:end].sum()) for first, end in runs]
    deal = budget.shares(count - len(chosen), [end - first for first, end in runs], room)
    anchors = [select.anchors(x_TnD, free, run, share) for run, share in zip(runs, deal, strict=True)]
    group, index = assign.in_runs(tokens.features, chosen, anchors, runs, area), torch.cat([chosen, *anchors])
    return order.merged(tokens, merge.blend(tokens.features, index, group, least), index, group)
