"""Each method on an example that was computed by hand from its paper."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megavrc.reduction import METHODS, Reduction, Tokens, reduce_tokens
from megavrc.reduction.score import raters

CHECKED: set[str] = set()


def column(*values: float) -> Tensor:
    """Tokens of width 1."""
    return torch.tensor(values, dtype=torch.float32)[:, None]


def angles(*degrees: float) -> Tensor:
    """Unit vectors of width 2."""
    turn = torch.tensor(degrees, dtype=torch.float32) * math.pi / 180
    return torch.stack([turn.cos(), turn.sin()], 1)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def run(
    name: str, features: Any, count: int, options: dict[str, float] | None = None, **known: Any
) -> Reduction:
    CHECKED.add(name)
    tokens = Tokens(torch.as_tensor(features, dtype=torch.float32), **known)
    return reduce_tokens(tokens, name, count, **(options or {}))


def check(found: Reduction, index: list[int], features: list[Any], assign: list[int] | None = None) -> None:
    assert found.index.tolist() == index
    torch.testing.assert_close(
        found.features, torch.as_tensor(features, dtype=torch.float32).view_as(found.features)
    )
    if assign is not None:
        assert found.assign.tolist() == assign


@pytest.mark.parametrize(
    "name, field", [("fastervlm", "cls"), ("fastv", "last_row"), ("pyramiddrop", "own_row")]
)
def test_the_most_attended_stay_in_order(name: str, field: str) -> None:
    found = run(name, column(10, 11, 12, 13), 2, **{field: row(0.1, 0.4, 0.2, 0.3)})
    check(found, [1, 3], [11, 13], [-1, 0, -1, 1])


def test_vispruner_drops_duplicates_from_the_rest() -> None:
    """Four by attention. Of the rest, 4 6 8 look for the nearest of 5 7 9: 4 is equal to 5, 6 is at 10 degrees of 7, 8
    at 80: two are too many, 4 and 6 go."""
    attention = torch.linspace(1, 0.1, 10)
    found = run("vispruner", angles(0, 0, 0, 0, 0, 0, 90, 100, 180, 270), 8, cls=attention)
    assert found.index.tolist() == [0, 1, 2, 3, 5, 7, 8, 9]


def test_visionzip_adds_the_mean_of_the_group_to_its_target() -> None:
    """7 and 6 dominate; of 0..5 the targets are 0 and 3; by keys 1 and 2 belong to 0, 4 and 5 to 3."""
    keys = torch.cat([angles(0, 5, 10, 90, 85, 95), angles(200, 200)])
    attention = row(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2)
    found = run("visionzip", column(1, 2, 3, 4, 5, 6, 7, 8), 4, {"contextual": 0.5}, cls=attention, keys=keys)
    check(found, [0, 3, 6, 7], [1 + 2.5, 4 + 5.5, 7, 8], [0, 0, 0, 1, 1, 1, 2, 3])


def test_prumerge_keeps_outliers_of_attention() -> None:
    """Quartiles of 0..6 and 20 are 1.75 and 5.25, so the bound is 5.25 + 1.5 * 3.5 = 10.5: only 7 is above. Its two
    nearest by keys are 3 and 5."""
    keys = angles(180, 180, 180, 10, 180, 20, 180, 0)
    attention = row(0, 1, 2, 3, 4, 5, 6, 20) / 41
    found = run("prumerge", column(*range(8)), 1, {"neighbours": 2}, cls=attention, keys=keys)
    check(found, [7], [7 + 3 * 3 / 41 + 5 * 5 / 41], [-1] * 7 + [0])
    assert (
        len(run("prumerge", column(*range(8)), 1, {"outlier": 0.0}, cls=attention, keys=keys)) == 2
    )  # 6 and 20


def test_hiprune_takes_anchors_the_tokens_beside_them_and_registers() -> None:
    """Half of ten tokens are an anchor, 12, and its four neighbours; deep attention falls along the rows."""
    middle = torch.zeros(25)
    middle[12] = 1
    found = run(
        "hiprune", torch.zeros(25, 1), 10, {"anchors": 0.5}, grid=(1, 5, 5), middle=middle,
        attention=torch.arange(25, 0, -1.0),
    )  # fmt: skip
    assert found.index.tolist() == [0, 1, 2, 3, 4, 7, 11, 12, 13, 17]


def test_sparsevlm_recycles_the_best_of_the_dropped() -> None:
    """11 stay: of the other 9, int(2.7) + 1 = 3 become int(0.3) + 1 = 1 mean at the place of their densest, 12."""
    rank = torch.arange(20, 0, -1.0)
    found = run("sparsevlm", column(*range(20)), 12, rater_rows=torch.stack([rank, rank + 1]))
    check(found, [*range(11), 12], [*range(11), 12], [*range(11), 11, 11, 11, *[-1] * 6])
    assert found.size.tolist() == [1] * 11 + [3]


def test_raters_are_the_prompt_tokens_that_look_at_the_picture() -> None:
    text = row(5, 0, 0, 5, 0, 0).view(3, 2)
    assert raters(row(1, 0, 1, 0).view(2, 2), text).tolist() == [True, False, False]


def test_dart_takes_what_is_least_like_its_pivots() -> None:
    """The picture's pivot is 2 (largest key), which is least like 3; the prompt's pivot (90 degrees) least like 4."""
    found = run(
        "dart", angles(0, 90, 0, 180, 270, 10), 3, {"pivots": 1}, keys=column(1, -2, 3, 1, 1, 1),
        text=angles(90, 0), text_keys=column(-2, 1),
    )  # fmt: skip
    assert found.index.tolist() == [2, 3, 4]


def test_holitom_inside_the_llm_merges_into_the_most_similar() -> None:
    features = [[1, 0], [0, 1], [0.9, 0.1], [0, 0.5]]
    found = run("holitom_inner", features, 2, last_row=row(0.4, 0.3, 0.2, 0.1))
    check(found, [0, 1], [[0.95, 0.05], [0, 0.75]], [0, 1, 0, 1])


def test_tome_merges_the_most_similar_pair_by_size() -> None:
    """0 and 2 look for partners among 1 and 3: 0 and 1 are the most alike. (4 * 1 + 0 * 3) / 4 = 1."""
    found = run("tome", column(4, 0, 7, 8), 3, keys=angles(0, 5, 90, 180), size=row(1, 3, 1, 1))
    check(found, [1, 2, 3], [1, 7, 8], [0, 0, 1, 2])
    assert found.size.tolist() == [4, 1, 1]


def test_mustdrop_merges_the_window_that_is_most_alike() -> None:
    """Two windows of 3 x 3 above each other; the vectors of the second share a direction."""
    second = torch.arange(1, 10.0)[:, None] * row(1, 0)
    found = run("mustdrop", torch.cat([angles(*range(0, 360, 40)), second]), 10, grid=(1, 6, 3))
    assert found.index.tolist() == [*range(9), 9]
    torch.testing.assert_close(found.features[9], row(5, 0))
    assert found.size.tolist() == [1] * 9 + [9]


def test_divprune_takes_the_farthest_from_all_chosen() -> None:
    """Farthest from its nearest is 180 (1 to 90), then 0 (2), then 90 (1, where 10 has 0.015)."""
    assert run("divprune", angles(0, 10, 90, 180), 1).index.tolist() == [3]
    assert run("divprune", angles(0, 10, 90, 180), 3).index.tolist() == [0, 2, 3]


def test_cdpruner_takes_relevant_tokens_once() -> None:
    """Relevance 1, 1, 0.875 and about 0; once 0 is chosen its duplicate 1 adds no volume, and 2 adds 0.766."""
    features = angles(0, 0, 90, 180)
    assert run("cdpruner", features, 2, text=row(0.8, 0.6)[None]).index.tolist() == [0, 2]


def test_evs_keeps_the_first_frame_and_what_changes() -> None:
    found = run("evs", angles(0, 10, 0, 90, 0, 90), 3, grid=(3, 1, 2))
    assert found.index.tolist() == [0, 1, 3]


def test_dycoke_compares_within_four_frames() -> None:
    """Frame 1 against 0: place 1 turned further. Frame 2 against 0, not 1: place 0 did. Frame 3 against 2: place 1."""
    found = run("dycoke", angles(0, 0, 90, 180, 90, 0, 90, 45), 5, grid=(4, 1, 2))
    assert found.index.tolist() == [0, 1, 3, 4, 7]


def test_vidcom2_gives_more_to_the_frame_that_is_unlike_the_clip() -> None:
    """Channels 2 and 3 vary most and are not looked at. The clip's centre is (3/4, 1/4), so frame 1, with its one token
    (0, 1), is less like it: weights are 1/2 and 3/2. In frame 1 that token is also least like its frame."""
    features = [[1, 0, 9, 0], [1, 0, -9, 9], [1, 0, 0, -9], [0, 1, 0, 0]]
    assert run("vidcom2", features, 1, grid=(2, 1, 2)).index.tolist() == [3]
    assert run("vidcom2", features, 3, grid=(2, 1, 2)).index.tolist() == [0, 2, 3]


def test_prunevid_averages_what_stands_still() -> None:
    """One scene; place 0 keeps its direction and becomes its mean, place 1 turns and stays; none is left to cluster."""
    still, turning = torch.tensor([1, 2, 3, 2.0])[:, None] * row(1, 0), angles(0, 90, 180, 270)
    found = run("prunevid", torch.stack([still, turning], 1).flatten(0, 1), 5, grid=(4, 1, 2))
    check(found, [0, 1, 3, 5, 7], [[2, 0], *turning.tolist()], [0, 1, 0, 2, 0, 3, 0, 4])


def test_holitom_merges_static_places_of_the_best_windows() -> None:
    """Places 0 and 1 stand still over all three frames: one window saves 4, two save 3. Of five tokens that are left
    one must go: the static set's two become 0.6 centre + 0.4 other."""
    features = torch.stack(
        [torch.stack([v, 2 * v, w]) for v, w in zip(angles(0, 0, 0), angles(0, 90, 180), strict=True)]
    )
    found = run("holitom", features.flatten(0, 1), 4, grid=(3, 1, 3), attention=torch.ones(9))
    check(found, [0, 2, 5, 8], [[0.6 + 0.4 * 2, 0], [1, 0], [0, 1], [-1, 0]], [0, 0, 1, 0, 0, 2, 0, 0, 3])


def test_fastvid_blends_the_rest_into_anchors_of_the_last_frame() -> None:
    """One scene of two frames, three salient tokens (0, 4 and 5); the other two of frame 1, 6 and 7, are the anchors,
    and 0.6 of each stays: 2 and 3 of frame 0 join 7, 1 joins 6."""
    a, b, scene = row(1, 0, 0), row(0, 1, 0), row(0, 0, 100)
    features = torch.stack([scene, 2 * a, 3 * b, 5 * b, scene, scene, a, b])
    salient = row(0.9, 0.1, 0.1, 0.1, 0.9, 0.8, 0.1, 0.1)
    found = run("fastvid", features, 5, grid=(2, 2, 2), attention=salient)
    blended = [(0.6 + 0.4 * 2) * a, (0.6 + 0.4 * 4) * b]
    check(
        found,
        [0, 4, 5, 6, 7],
        torch.stack([scene, scene, scene, *blended]).tolist(),
        [0, 3, 4, 4, 1, 2, 3, 4],
    )


SQUARES = column(*(n * n for n in range(16)))


def test_baselines_of_a_picture() -> None:
    """4 x 4 squares of numbers: blocks of two by two, their first tokens; one token is the mean or the middle."""
    grid = (1, 4, 4)
    blocks = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    means = [sum(n * n for n in block) / 4 for block in blocks]
    assign = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    check(run("pool", SQUARES, 4, grid=grid), [0, 2, 8, 10], means, assign)
    check(run("bilinear", SQUARES, 4, grid=grid), [0, 2, 8, 10], means, assign)
    check(run("strided", SQUARES, 4, grid=grid), [0, 2, 8, 10], [0, 4, 64, 100])
    check(run("pool", SQUARES, 1, grid=grid), [5], [sum(n * n for n in range(16)) / 16])
    check(run("bilinear", SQUARES, 1, grid=grid), [5], [(25 + 36 + 81 + 100) / 4])


def test_baselines_of_a_clip() -> None:
    """Every second frame, and in one token more half of the frame that comes next."""
    clip = column(*range(8))
    assert run("copy", clip, 4, grid=(4, 1, 2)).index.tolist() == [0, 1, 4, 5]
    assert run("copy", clip, 5, grid=(4, 1, 2)).index.tolist() == [0, 1, 2, 3, 4]
    drawn = [run("random", clip, 4, {"seed": seed}).index.tolist() for seed in (0, 0, 1)]
    expected = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:4].sort().values.tolist()
    assert drawn[0] == drawn[1] == expected != drawn[2]


def test_every_method_has_an_example() -> None:
    if len(CHECKED) > 1:  # the file ran as a whole
        assert set(METHODS) == CHECKED
