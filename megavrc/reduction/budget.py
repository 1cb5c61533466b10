"""The number of tokens that are left, and where.

One word, `keep`, and one definition: **layer-weighted visual tokens**. Of an LLM with L layers that sees n_l visual
tokens in layer l, of N unreduced ones, keep = sum(n_l) / (L N). A method before the LLM that leaves K tokens has
keep = K / N; FastV at layer 2 of 32 has keep = (2 N + 30 K) / (32 N).
"""

import math
from collections.abc import Sequence
from typing import SupportsFloat


def layer_weighted(counts: Sequence[int], total: int) -> float:
    """The share of visual tokens: `counts` [L] enter the layers of an LLM, of `total` unreduced ones."""
    return sum(counts) / (len(counts) * total)


def token_count(keep: float, total: int) -> int:
    """Tokens that `keep` of `total` is: the nearest whole number, at least 1."""
    if not isinstance(keep, SupportsFloat) or not 0 < keep <= 1:
        raise ValueError(f"keep is a share above 0 and at most 1, not {keep!r:.60}")
    return min(total, max(1, math.floor(keep * total + 0.5)))


def layer_counts(stages: dict[int, int], total: int, depth: int) -> list[int]:
    """[L]: visual tokens that enter each layer of the LLM, from a `schedule`."""
    counts, now = [], total
    for layer in range(depth):
        now = stages.get(layer, now)
        counts.append(now)
    return counts


def tower_schedule(total: int, count: int, layers: int) -> list[int]:
    """[layers]: tokens after each layer of a tower that loses the same number everywhere, `count` in the end (ToMe).

    A token merges with one other, so a layer loses at most half. Where the same number is more than that, each layer
    loses the same share; ValueError where that is too much too.
    """
    counts = [total - (total - count) * (layer + 1) // layers for layer in range(layers)]
    if any(after < before - before // 2 for before, after in zip([total, *counts], counts, strict=False)):
        counts = [
            math.floor(total * (count / total) ** ((layer + 1) / layers) + 0.5) for layer in range(layers)
        ]
    for before, after in zip([total, *counts], counts, strict=False):
        if after < before - before // 2:
            raise ValueError(
                f"{before} tokens cannot become {after} in one layer: a token merges with one other"
            )
    return counts


def shares(total: int, weights: Sequence[float], limits: Sequence[int], least: int = 0) -> list[int]:
    """`total` dealt out in proportion to `weights`, none above its limit: largest remainders, ties to the earlier.

    Each gets at least `least`, where `total` is enough for that.
    """
    counts = [least if least * len(weights) <= total else 0] * len(weights)
    if total > sum(limits):
        raise ValueError(f"{total} tokens do not fit into {sum(limits)}")
    while left := total - sum(counts):
        room = {i: limit - counts[i] for i, limit in enumerate(limits) if counts[i] < limit}
        mass = sum(weights[i] for i in room)
        wish = {i: left * (weights[i] / mass if mass > 0 else 1 / len(room)) for i in room}
        full = [i for i in room if wish[i] >= room[i]]
        for i in full:
            counts[i] = limits[i]
        if not full:
            whole = {i: math.floor(wish[i] + 1e-9) for i in room}
            extra = sorted(room, key=lambda i: whole[i] - wish[i])[: left - sum(whole.values())]
            for i in room:
                counts[i] += whole[i] + (i in extra)
    return counts


def recycled(total: int, count: int, share: float, clusters: float) -> tuple[int, int]:
    """(how many stay, how many of the others are clustered): stay plus clusters is `count` (SparseVLM).

    Of the others `share` is clustered, into `clusters` times as many, each rounded down plus one.
    """
    again = [int((total - stay) * share) + 1 for stay in range(count)]
    stay = max((s for s, n in enumerate(again) if s + int(n * clusters) + 1 <= count), default=0)
    return stay, max(again[stay], count - stay)


def in_reach(count: int, least: int, why: str) -> None:
    """ValueError where a method cannot leave as few tokens as `count`."""
    if count < least:
        raise ValueError(f"{why}: it leaves at least {least} tokens, not {count}")


def even(total: int, parts: int) -> list[int]:
    """`total` in `parts` that differ by at most one, the larger ones spread evenly."""
    return [(part + 1) * total // parts - part * total // parts for part in range(parts)]
