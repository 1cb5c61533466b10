"""Stage `segment`: runs of frames, as [start, end) pairs that cover a clip, and windows of a frame."""

from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .select import density_centres

Runs = list[tuple[int, int]]


def cuts(frames_TD: Tensor, count: int = 7, threshold: float = 0.9) -> Runs:
    """A run ends where two frames in a row are less alike than `threshold`, or among the `count` least (FastVID)."""
    like = F.cosine_similarity(frames_TD[1:].float(), frames_TD[:-1].float(), dim=-1)
    lowest = like.argsort(stable=True)[:count].tolist()
    places = sorted({*lowest, *(like < threshold).nonzero()[:, 0].tolist()})
    return list(pairwise([0, *(place + 1 for place in places), len(frames_TD)]))


def clustered(frames_TD: Tensor, share: float = 0.25, neighbours: int = 7) -> Runs:
    """Frames clustered into `share` of their number by density peaks, each cluster then one run (PruneVid).

    A cluster's longest run is kept; every other run, shortest first, joins the longer of its neighbours.
    """
    _, label_T = density_centres(frames_TD, max(1, int(len(frames_TD) * share)), neighbours)
    runs = [[label, len(list(group))] for label, group in groupby(label_T.tolist())]
    while True:
        longest = {
            label: max((run for run in runs if run[0] == label), key=lambda run: run[1]) for label, _ in runs
        }
        extra = [i for i, run in enumerate(runs) if run is not longest[run[0]]]
        if not extra:
            ends = [0]
            for _, length in runs:
                ends.append(ends[-1] + length)
            return list(pairwise(ends))
        place = min(extra, key=lambda i: runs[i][1])
        beside = [i for i in (place - 1, place + 1) if 0 <= i < len(runs)]
        runs[place][0] = runs[max(beside, key=lambda i: runs[i][1])][0]
        merged: list[list[int]] = []
        for label, length in runs:
            if merged and merged[-1][0] == label:
                merged[-1][1] += length
            else:
                merged.append([label, length])
        runs = merged


def static_windows(similarity: Tensor, threshold: float) -> Runs:
    """The cuts that leave the fewest tokens if every static place of a window becomes one token (HoliTom).

    `similarity` [T - 1, n] is that of `score.frame_similarity`. In a window a place is static if all its steps are
    above `threshold`; the gain of a window of m frames is (static places) (m - 1). Dynamic programme over the ends.
    """
    total = len(similarity) + 1
    static = similarity > threshold
    best, start = [0.0] + [-1.0] * total, [0] * (total + 1)
    for first in range(total):
        still = torch.ones(similarity.shape[1:], dtype=torch.bool, device=similarity.device)
        for end in range(first + 1, total + 1):
            if end - first > 1:
                still = still & static[end - 2]
            gain = best[first] + int(still.sum()) * (end - first - 1)
            if gain > best[end]:
                best[end], start[end] = gain, first
    runs, end = [], total
    while end:
        runs.append((start[end], end))
        end = start[end]
    return runs[::-1]


def windows(height: int, width: int, count: int, least: int = 3) -> Tensor:
    """[H W]: square windows of side `least`, or of the smallest side with which there are at most `count` of them."""
    side = least
    while -(-height // side) * -(-width // side) > count:
        side += 1
    row = torch.arange(height)[:, None] // side
    return (row * -(-width // side) + torch.arange(width) // side).flatten()
