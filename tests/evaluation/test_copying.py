"""Made predictors: one that knows the truth, one that copies the frame before, one that ignores its history."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from clip_sets import Frames, changed, fading, shapes
from numpy.typing import NDArray

from megavrc.evaluation.copying import changed_cells, clip_copying, measure_copying

CODES = 64
CLIPS = shapes(10).arrays
Ids = NDArray[np.int64]


def encode(frames: Frames) -> Ids:
    """Tokens of 8x8 pixels: the mean grey of the last frame of each latent frame."""
    grey = frames[::4].mean(axis=-1)
    cells = grey.reshape(len(grey), 4, 8, 4, 8).mean(axis=(2, 4))
    return (cells / 256 * CODES).astype(np.int64)


def sure_of(guess: Ids, target: Ids) -> NDArray[np.float64]:
    """Bits of a target for a model that gives its guess 0.9."""
    return np.where(guess == target, -np.log2(0.9), -np.log2(0.1 / (CODES - 1)))


def knows(index: int, history: Ids, target: Ids) -> NDArray[np.float64]:
    """Predicts what the clip shows if its history is right, and what the history goes on to show if it is not."""
    true = encode(CLIPS[index])
    follows = np.array_equal(history, true)
    return sure_of((true if follows else history)[1:], target[1:])


def copies(index: int, history: Ids, target: Ids) -> NDArray[np.float64]:
    return sure_of(history[:-1], target[1:])


def ignores(index: int, history: Ids, target: Ids) -> NDArray[np.float64]:
    """Knows the clip by its caption alone."""
    return sure_of(encode(CLIPS[index])[1:], target[1:])


def scores(bits: Callable[[int, Ids, Ids], NDArray[np.float64]]) -> dict[str, float]:
    report = measure_copying(CLIPS, encode, bits, "made", draws=50)
    assert report.cases[0]["facts"]["clips"] == len(CLIPS)
    return {name: found["value"] for name, found in report.cases[0]["metrics"].items()}


def test_copying_is_told_from_knowing() -> None:
    right, copy, deaf = scores(knows), scores(copies), scores(ignores)
    cheap = -np.log2(0.9)
    assert right["bits_changed"] == pytest.approx(cheap) and abs(right["excess_on_changed"]) < 1e-9
    assert copy["bits_unchanged"] == pytest.approx(cheap, abs=0.2) and copy["excess_on_changed"] > 2
    assert copy["still_copied"] == pytest.approx(cheap)
    assert right["still_history"] > 1 and abs(deaf["still_history"]) < 1e-9
    assert deaf["still_copied"] > 1 > right["still_copied"]


def test_changed_cells() -> None:
    frames = np.zeros((9, 8, 8, 3), np.uint8)
    frames[3, 5, 1] = 90  # for one frame only, within the first later latent frame
    frames[5:, 0, 7] = 90
    found = changed_cells(frames, (2, 2), 4)
    assert found.tolist() == [[[False, False], [True, False]], [[False, True], [False, False]]]
    frames[5:, 0, 7] = 12  # what a codec does
    assert not changed_cells(frames, (2, 2), 4)[1].any()


def test_clips_without_cells_of_both_kinds_are_counted() -> None:
    still = np.repeat(CLIPS[0][:1], 17, axis=0)
    report = measure_copying([still, CLIPS[0]], encode, copies, "made", draws=50)
    assert report.cases[0]["facts"] == {"clips": 1, "without_both_kinds": 1}
    assert "1 clips change nowhere" in report.lines[0]
    assert np.isnan(clip_copying(0, still, encode, copies).changed)
    none = measure_copying([still], encode, copies, "made")
    assert none.cases[0]["metrics"] == {}


def test_clips_of_one_prompt_are_drawn_together() -> None:
    """Five prompts of two clips each, alike: the interval is that of five clips. One prompt has none."""
    twice, order = [frames for frames in CLIPS[:5] for _ in range(2)], np.repeat(np.arange(5), 2)

    def metrics(clips: list[Frames], places: NDArray[np.int64], groups: list[str] | None) -> dict[str, Any]:
        def bits(index: int, history: Ids, target: Ids) -> NDArray[np.float64]:
            return copies(index, history, target) * (1 + places[index])

        return measure_copying(clips, encode, bits, "made", groups=groups).cases[0]["metrics"]

    alone = metrics(CLIPS[:5], np.arange(5), None)
    found = metrics(twice, order, [str(place) for place in order])
    for name, one in alone.items():
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((one["low"], one["high"]))
    assert "low" not in metrics(twice, order, ["a"] * 10)["excess_on_changed"]


def test_other_faults_do_not_move_it() -> None:
    """A fading clip is told to nobody here: the predictor of the faded clip pays as before."""
    faded = changed(shapes(10), fading).arrays

    def knows_faded(index: int, history: Ids, target: Ids) -> NDArray[np.float64]:
        true = encode(faded[index])
        return sure_of((true if np.array_equal(history, true) else history)[1:], target[1:])

    report = measure_copying(faded, encode, knows_faded, "made", draws=50)
    assert abs(report.cases[0]["metrics"]["excess_on_changed"]["value"]) < 1e-9
