from collections import Counter

import numpy as np
import pytest

from megavrc.video.shapes import (
    BACKGROUND,
    COLOURS,
    COMBINATIONS,
    DIRECTIONS,
    SHAPES,
    caption,
    clip,
    combination_of,
    heldout_combinations,
    render,
    training_combinations,
)


def test_a_clip_depends_on_seed_and_index_only() -> None:
    combination, frames = clip(3, 17)
    again, same = clip(3, 17)
    assert combination == again and np.array_equal(frames, same)
    assert frames.shape == (17, 64, 64, 3) and frames.dtype == np.uint8
    assert not np.array_equal(frames, clip(4, 17)[1])
    assert not np.array_equal(frames, clip(3, 17 + len(COMBINATIONS))[1])


def test_every_round_holds_every_combination_once() -> None:
    training = training_combinations(heldout_combinations(0))
    first = [combination_of(0, index, training) for index in range(66)]
    second = [combination_of(0, index, training) for index in range(66, 132)]
    assert set(first) == set(second) == set(training) and first != second


@pytest.mark.parametrize("seed", range(20))
def test_heldout_combinations_leave_every_value_frequent(seed: int) -> None:
    heldout = heldout_combinations(seed)
    by_attribute = [Counter(values) for values in zip(*heldout, strict=True)]
    assert by_attribute[0] == Counter(list(COLOURS))
    assert sorted(by_attribute[1].values()) == [2, 2, 2]
    assert set(by_attribute[2]) == set(DIRECTIONS) and max(by_attribute[2].values()) == 2
    training = training_combinations(heldout)
    assert len(training) == 66 and not set(training) & set(heldout)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert {(c[i], c[j]) for c in training} == {(c[i], c[j]) for c in COMBINATIONS}


def test_too_many_heldout_combinations() -> None:
    with pytest.raises(ValueError, match="heldout 19"):
        heldout_combinations(0, 19)


@pytest.mark.parametrize("frames", [17, 33])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_stays_inside_and_moves_as_its_caption_says(shape: str, frames: int) -> None:
    for direction, (dx, dy) in DIRECTIONS.items():
        for seed in range(5):
            pixels = render("red", shape, direction, np.random.default_rng(seed), frames=frames)
            assert (pixels[:, [0, -1]] == BACKGROUND).all() and (pixels[:, :, [0, -1]] == BACKGROUND).all()
            drawn = pixels[..., 0] > 128
            y, x = (np.argwhere(drawn[-1]).mean(axis=0) - np.argwhere(drawn[0]).mean(axis=0)).round()
            distance = 24 if frames == 17 else 36
            assert abs(x - dx * distance) <= 1 and abs(y - dy * distance) <= 1


def test_captions_are_distinct() -> None:
    assert caption(COMBINATIONS[0]) == "a red square moves left"
    assert len({caption(combination) for combination in COMBINATIONS}) == 72


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="'ring'"):
        render("red", "ring", "left", np.random.default_rng(0))
