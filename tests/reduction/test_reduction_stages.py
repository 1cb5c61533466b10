"""Stages against brute force, and on planted content."""

from itertools import combinations, pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megavrc.reduction import Tokens, assign, reduce_tokens, score, segment, select


def random_tokens(count: int, seed: int = 0, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_max_min_is_the_greedy_choice_and_near_the_best(seed: int) -> None:
    """Against a search over all tokens in every step; and in a metric, the greedy set is at least half as far apart as
    the best of all sets (Gonzalez 1985, from any first token)."""
    x = random_tokens(9, seed)
    distance = torch.cdist(x, x)
    chosen = [max(range(9), key=lambda i: min(float(distance[i, j]) for j in range(9) if j != i))]
    while len(chosen) < 4:
        left = [i for i in range(9) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(float(distance[i, j]) for j in chosen)))
    assert select.max_min(distance, 4).tolist() == chosen

    def apart(group: tuple[int, ...]) -> float:
        return min(float(distance[i, j]) for i, j in combinations(group, 2))

    assert apart(tuple(chosen)) >= max(map(apart, combinations(range(9), 4))) / 2


@pytest.mark.parametrize("seed", range(3))
def test_most_volume_takes_the_largest_determinant_in_every_step(seed: int) -> None:
    x = random_tokens(8, seed)
    kernel = (x @ x.T).double()
    chosen: list[int] = []
    while len(chosen) < 5:
        left = [i for i in range(8) if i not in chosen]
        chosen.append(max(left, key=lambda i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
    assert select.most_volume(kernel.float(), 5).tolist() == chosen


def test_most_volume_does_not_choose_by_rounding() -> None:
    """In three dimensions no fourth token adds volume: the first ones follow, whatever rounding left of them."""
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    alike = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    chosen = select.most_volume(alike, 8).tolist()
    assert chosen[3:] == [place for place in range(12) if place not in chosen[:3]][:5]


def all_cuts(frames: int) -> list[list[tuple[int, int]]]:
    places = [
        [place for place, cut in enumerate(cuts, 1) if cut] for cuts in product((0, 1), repeat=frames - 1)
    ]
    return [list(pairwise([0, *place, frames])) for place in places]


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 7])
def test_static_windows_save_most_of_all_windows(frames: int) -> None:
    """HoliTom's dynamic programme against every way to cut a clip."""
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        similarity = torch.rand(frames - 1, 10, generator=draw) ** 0.3

        def saved(runs: list[tuple[int, int]], similarity: Tensor = similarity) -> int:
            still = [(similarity[a : b - 1] > 0.7).all(0).sum() if b - a > 1 else 0 for a, b in runs]
            return sum(int(count) * (b - a - 1) for count, (a, b) in zip(still, runs, strict=True))

        found = segment.static_windows(similarity, 0.7)
        assert [end for _, end in found[:-1]] == [first for first, _ in found[1:]]
        assert found[0][0] == 0 and found[-1][1] == frames
        assert saved(found) == max(map(saved, all_cuts(frames)))


def test_cuts_where_a_scene_ends() -> None:
    """FastVID: three scenes of slowly turning frames; a threshold finds both ends, and so do the two lowest."""
    scenes = F.one_hot(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), 3).float()
    frames = scenes + 0.05 * random_tokens(8, width=3)
    assert segment.cuts(frames, 0) == [(0, 3), (3, 5), (5, 8)]
    assert segment.cuts(frames, 2, threshold=-1) == [(0, 3), (3, 5), (5, 8)]
    assert segment.cuts(frames[:1], 7) == [(0, 1)]


def test_clusters_become_runs() -> None:
    """PruneVid: A A A B A B B. The single B joins A A A, the longer of its neighbours, and so the single A is in it."""
    frames = F.one_hot(torch.tensor([0, 0, 0, 1, 0, 1, 1]), 2).float() + 0.01 * random_tokens(7, width=2)
    assert segment.clustered(frames, share=0.3, neighbours=2) == [(0, 5), (5, 7)]


def test_density_peaks_are_the_middles_of_clusters() -> None:
    """Two clusters on a line, 0 1 2 and 10 11 12.5: their middles, then members by the nearest."""
    x = torch.tensor([0, 1, 2, 10, 11, 12.5])[:, None]
    centre, group = select.density_centres(x, 2, neighbours=2)
    assert sorted(centre.tolist()) == [1, 4]
    assert group.tolist() == [0, 0, 0, 1, 1, 1] if centre[0] == 1 else [1, 1, 1, 0, 0, 0]


def test_an_offset_of_all_tokens_changes_no_distance() -> None:
    """Four tight clusters of 16, far from the origin in one channel, as towers have them."""
    group = torch.arange(64) // 16
    middles = 2 * random_tokens(4, seed=1, width=64)
    x = middles[group] + 0.01 * random_tokens(64, width=64)
    far = x + 1000 * F.one_hot(torch.tensor(0), 64)
    exact = torch.cdist(far.double(), far.double()) / 8
    assert torch.allclose(score.distances(far).double(), exact, rtol=0.02, atol=2e-3)
    centre, found = select.density_centres(far, 4, 7)
    assert torch.equal(group[centre][found], group)


def test_tiles_are_rectangles_of_any_number() -> None:
    for height, width in ((1, 1), (1, 7), (4, 4), (5, 7), (16, 9)):
        for count in range(1, height * width + 1):
            tile = assign.tiles(height, width, count).view(height, width)
            assert sorted(set(tile.flatten().tolist())) == list(range(count))
            for number in range(count):
                rows, columns = (tile == number).nonzero(as_tuple=True)
                area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
                assert area == len(rows), f"tile {number} of {count} on {height} x {width} is no rectangle"
    assert torch.equal(assign.tiles(8, 8, 16).view(8, 8)[::2, ::2].flatten().sort().values, torch.arange(16))


@pytest.mark.parametrize("name", ["divprune", "cdpruner", "tome"])
def test_planted_duplicates_go_first(name: str) -> None:
    """Eight vectors, four times each: with eight tokens each is left once, as it was."""
    distinct = 3 * torch.eye(8)
    x = distinct.repeat_interleave(4, 0)
    tokens = Tokens(x, (1, 4, 8), keys=x, text=torch.linspace(0.5, 1.5, 8)[None])
    left = reduce_tokens(tokens, name, 8)
    assert torch.equal(left.features, distinct)


def mover(frames: int = 8, side: int = 4) -> tuple[Tokens, Tensor]:
    """A static background of unlike tokens, over whose diagonal one more wanders; [N] bool: where it is or just was."""
    x = random_tokens(side * side, width=32).repeat(frames, 1).view(frames, side * side, 32)
    moving = torch.zeros(frames, side * side, dtype=torch.bool)
    thing = 3 * random_tokens(1, seed=9, width=32)[0]
    for t in range(frames):
        now, before = ((t + back) % side * (side + 1) for back in (0, side - 1))
        x[t, now] = thing
        moving[t, [now, before]] = True
    flat = x.flatten(0, 1)
    return Tokens(flat, (frames, side, side), attention=torch.ones(len(flat))), moving.flatten()


def test_a_static_background_goes_and_the_mover_stays() -> None:
    """EVS keeps what moved and nothing else after the first frame; DyCoke, with room for it, keeps all that moved."""
    tokens, moving = mover()
    moving[:16] = True  # the first frame
    left = reduce_tokens(tokens, "evs", int(moving.sum()))
    assert left.index.tolist() == moving.nonzero()[:, 0].tolist()
    left = reduce_tokens(tokens, "dycoke", 2 * 16 + 6 * 4)
    now = [t * 16 + t % 4 * 5 for t in range(8)]
    assert set(now) <= set(left.index.tolist())


@pytest.mark.parametrize("name, options", [("prunevid", {"clusters": 0.125}), ("holitom", {})])
def test_a_static_background_becomes_one_frame(name: str, options: dict[str, float]) -> None:
    """12 places of 16 never change: over eight frames they are 96 tokens; where there is room, 12 are left of them."""
    tokens, _ = mover()
    still = [place for place in range(16) if place % 5]
    left = reduce_tokens(tokens, name, 12 + 8 * 4, **options)
    for place in still:
        into = left.assign[place::16]
        assert (into == into[0]).all() and left.size[into[0]] == 8
    torch.testing.assert_close(left.features[left.assign[still]], tokens.features[still])


def test_quiet_channels_and_frame_scores() -> None:
    x = torch.tensor([[1.0, 5, 2, 0], [1, -5, 2.1, 0], [1, 5, 1.9, 9]])
    assert torch.equal(score.quiet_channels(x), x[:, [0, 2]])
    tokens = Tokens(x[:2].repeat(2, 1), (2, 1, 2))
    torch.testing.assert_close(score.frame_similarity(tokens), torch.ones(1, 2))
