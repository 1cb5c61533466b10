"""Scores of scenes: real clips reach all of them, and every planted fault is found by its score and by no other."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scene_faults as faults

from megavrc.errors import UserError
from megavrc.evaluation.scene_detector import detect_scene
from megavrc.evaluation.scene_modes import (
    excess_variation,
    expected_excess,
    expected_variation,
    score_modes,
    variation,
)
from megavrc.evaluation.scene_motion import fit_motion, folded
from megavrc.evaluation.scene_scores import SHARES as ALL_SHARES
from megavrc.evaluation.scene_scores import SceneScore, match, score_scenes
from megavrc.evaluation.scene_tracks import kept_area
from megavrc.evaluation.statistics import share_metric
from megavrc.video import read_clip, write_mp4
from megavrc.video.scenes import COLOURS, Scene, SceneSettings, positions, render_scene, scene

SHARES = ("count", "colour", "shape", "direction", "speed", "whole", "permanence", "all")
LARGEST = {"flight": 1.0, "bounce": 1.0, "jitter": 0.4, "flicker": 1.0, "frozen": 0.0}  # of one real clip
KEPT = 0.95, 1.05  # area that one real clip keeps


def wrong(scores: dict[str, SceneScore], motion: float) -> set[str]:
    """Scores that are not those of real clips; `motion` is that of real ones."""
    found = {name for name in SHARES if scores[name].mean < 1}
    found |= {name for name, bound in LARGEST.items() if scores[name].mean > bound}
    if not np.isnan(scores["area"].mean) and not KEPT[0] < scores["area"].mean < KEPT[1]:
        found.add("area")
    if not 0.4 < scores["motion"].mean / motion < 2.5:
        found.add("motion")
    return found


def assert_real(clips: Sequence[np.ndarray], shown: Sequence[Scene]) -> None:
    """Every clip for itself. Errors in canvas units may be as large as pixels are."""
    pixel = max(1.0, 64 / clips[0].shape[1])
    scores = score_scenes(clips, shown)
    for name in SHARES:
        assert scores[name].mean == 1 or scores[name].n == 0, name
    for name, bound in LARGEST.items():
        assert np.nanmax(scores[name].values, initial=0) <= bound * pixel, name
    kept = scores["area"].values[~np.isnan(scores["area"].values)]
    assert kept.min() > KEPT[0] and kept.max() < KEPT[1]
    assert scores["whole_by_latent"].mean.tolist() == [1, 1, 1, 1, 1]
    assert scores["overlap_by_latent"].mean.min() > 0.85


def through_h264(frames: np.ndarray, folder: Path) -> np.ndarray:
    write_mp4(folder / "a.mp4", frames, crf=4)
    return read_clip(folder / "a.mp4", 0, len(frames), size=None)


def sample(kind: str, count: int, start: int = 0) -> list[Scene]:
    """Scenes of both kinds of places in turn."""
    settings = SceneSettings(kind), SceneSettings(kind, places="any")
    return [scene(3, start + index, settings[index % 2]) for index in range(count)]


def test_real_clips_reach_every_score(tmp_path: Path) -> None:
    shown = sample("scenes", 28) + sample("corner", 8)
    assert_real([render_scene(each) for each in shown[::3]], shown[::3])
    assert_real([through_h264(render_scene(each), tmp_path) for each in shown], shown)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("scenes", 512), ("corner", 128)])
def test_many_real_clips_reach_every_score(kind: str, count: int, tmp_path: Path) -> None:
    shown = sample(kind, count, start=1000)
    assert_real([render_scene(each) for each in shown], shown)
    assert_real([through_h264(render_scene(each), tmp_path) for each in shown], shown)


@pytest.mark.slow
def test_every_object_that_passes_the_bar_is_asked_for(tmp_path: Path) -> None:
    shown = faults.scenes_that(faults.passes_the_bar, 12)
    scores = score_scenes([through_h264(render_scene(each), tmp_path) for each in shown], shown)
    assert scores["permanence"].n == 12 and scores["permanence"].mean == 1


@pytest.mark.parametrize("size", [32, 128])
def test_other_sizes(size: int) -> None:
    shown = sample("scenes", 8)
    assert_real([render_scene(each, size=size) for each in shown], shown)


def test_random_bounces_have_no_path() -> None:
    shown = [scene(3, index, SceneSettings(bounce="random")) for index in range(8)]
    scores = score_scenes([render_scene(each) for each in shown], shown)
    assert scores["all"].mean == 1 and scores["bounce"].n == 0 and scores["flight"].mean < 0.5


FAULTS: list[tuple[Callable[[Scene], np.ndarray], Callable[[Scene], bool], set[str]]] = [
    (faults.torn, faults.meets_no_wall, {"whole"}),
    (faults.torn, faults.bounces_late, {"whole"}),
    (faults.doubled, faults.meets_no_wall, {"whole"}),
    (faults.doubled, faults.bounces_late, {"whole"}),
    (faults.frozen, faults.meets_no_wall, {"frozen", "motion"}),
    (faults.frozen, faults.passes_the_bar, {"frozen", "motion"}),
    (faults.fading, faults.meets_no_wall, {"area"}),
    (faults.shrinking, faults.meets_no_wall, {"area"}),
    (faults.vanishing, faults.meets_no_wall, {"area", "whole"}),  # what is gone is not whole either
    (faults.through_a_wall, faults.bounces_late, {"bounce"}),
    (faults.turned, faults.meets_no_wall, {"flight"}),
    (faults.teleported, faults.passes_the_bar, {"permanence"}),
    (faults.trembling, faults.meets_no_wall, {"jitter"}),
    (faults.shuffled, faults.meets_no_wall, {"jitter", "flight"}),  # out of order is off the path
    (faults.flickering, faults.meets_no_wall, {"flicker"}),
    (faults.recoloured, faults.meets_no_wall, {"colour"}),
    (faults.reshaped, faults.meets_no_wall, {"shape"}),
    (faults.misdirected, faults.meets_no_wall, {"direction"}),
    (faults.wrong_speed, faults.meets_no_wall, {"speed"}),
    (faults.extra, faults.meets_no_wall, {"count"}),
]


@pytest.mark.parametrize(
    ("fault", "fit", "expected"), FAULTS, ids=[f"{fault.__name__}-{fit.__name__}" for fault, fit, _ in FAULTS]
)
def test_a_planted_fault_is_found_by_its_score_and_no_other(
    fault: Callable[[Scene], np.ndarray], fit: Callable[[Scene], bool], expected: set[str]
) -> None:
    shown = faults.scenes_that(fit, 4)
    real = score_scenes([render_scene(each) for each in shown], shown)
    motion = float(real["motion"].mean)
    assert wrong(real, motion) == set()
    scores = score_scenes([fault(each) for each in shown], shown)
    assert wrong(scores, motion) - {"all"} == expected
    assert (scores["all"].mean < 1) == bool(expected & {*SHARES, "frozen"} - {"permanence"})


def test_other_captions_are_wrong_in_what_they_say() -> None:
    shown = faults.scenes_that(faults.meets_no_wall, 6)
    scores = score_scenes([render_scene(each) for each in shown], shown[1:] + shown[:1])
    assert wrong(scores, float(scores["motion"].mean)) - {"all"} == {"colour", "shape", "direction", "speed"}


def test_whole_by_latent_tells_when() -> None:
    shown = faults.scenes_that(faults.meets_no_wall, 2)
    scores = score_scenes([faults.torn(each) for each in shown], shown)
    assert scores["whole_by_latent"].mean.tolist() == [1, 1, 0, 0, 0]  # from frame 5 on


def test_nothing_and_noise_are_scored() -> None:
    shown = sample("scenes", 2)
    noise = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    scores = score_scenes([np.full((17, 64, 64, 3), 40, np.uint8), noise], shown)
    assert scores["whole"].mean == scores["all"].mean == 0 and scores["count"].values[0] == 0
    with pytest.raises(ValueError, match="no clips"):
        score_scenes([], [])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 64, 48, 3), "clip 1: 48 x 64 pixels; clips of scenes are square"),
        ((4, 64, 64, 3), "clip 1: 4 frames, the first clip has 5: cut"),
        ((2, 64, 64, 3), "clip 1: 2 frames; a path needs at least 3"),
    ],
)
def test_clips_that_scenes_cannot_be_scored_on_are_named(shape: tuple[int, ...], message: str) -> None:
    shown = sample("scenes", 2)
    clips = [render_scene(shown[0])[:5], np.zeros(shape, np.uint8)]
    with pytest.raises(UserError, match=message):
        score_scenes(clips, shown)


def test_three_frames_are_enough() -> None:
    shown = sample("scenes", 2)
    assert score_scenes([render_scene(each)[:3] for each in shown], shown)["whole"].mean == 1


def test_objects_are_matched_by_colour_then_shape() -> None:
    shown = next(each for each in sample("scenes", 50) if len({item.shape for item in each.objects}) == 2)
    others = iter(colour for colour in COLOURS if colour not in {item.colour for item in shown.objects})
    objects = tuple(dataclasses.replace(item, colour=next(others)) for item in shown.objects)
    tracks = detect_scene(render_scene(dataclasses.replace(shown, objects=objects))).tracks
    for order in (tracks, tracks[::-1]):
        assert all(item.shape == track.shape for item, track in match(shown, order))


def test_fit_through_reflections() -> None:
    times = np.arange(1, 9)
    noise = np.random.default_rng(0).normal(0, 0.1, (8, 2))
    for start, way in (([10.0, 30.0], [-2.0, 0.0]), ([50.0, 12.5], [1.3, -1.7]), ([8.0, 8.0], [-1.0, 0.5])):
        path = folded(np.array(start) + np.array(way) * times[:, None], 8) + noise
        motion = fit_motion(path, times, np.ones(8), 8)
        late = np.arange(9, 17)
        true = folded(np.array(start) + np.array(way) * late[:, None], 8)
        assert np.linalg.norm(motion.at(late, 8) - true, axis=1).max() < 0.6


def test_the_paths_are_the_simulators() -> None:
    for each in sample("scenes", 20):
        for item, path in zip(each.objects, positions(each), strict=True):
            times = np.arange(17)
            way = (path[1] - path[0]) if (path[2] - path[1] == path[1] - path[0]).all() else None
            if way is not None:
                assert np.allclose(folded(path[0] + way * times[:, None], item.radius), path)


# --- modes --------------------------------------------------------------------------------------------------------


def draws(
    index: int, count: int, kind: str = "corner", only: int | None = None
) -> tuple[Scene, list[np.ndarray]]:
    """A first frame and clips drawn from it; `only`: the same one each time."""
    settings = SceneSettings(kind, told=0)
    numbers = range(count) if only is None else [only] * count
    return scene(5, index, settings), [render_scene(scene(5, index, settings, draw=draw)) for draw in numbers]


def test_true_draws_have_no_excess_and_one_mode_has() -> None:
    true = score_modes([draws(0, 32), draws(1, 32)])
    assert abs(true["modes"].mean) < 0.2 and true["modes_whole"].mean == 1 and true["modes_other"].mean == 0
    shown, clips = draws(0, 8, only=0)
    one = score_modes([(shown, clips)])
    assert one["modes"].mean == pytest.approx(0.5 - expected_variation(8, 2))
    assert wrong(score_scenes(clips, [shown] * 8), 2.0) - {"motion"} == set()  # each clip by itself is right


def test_every_future_once_is_even_and_one_that_is_lost_is_not() -> None:
    shown, _ = draws(0, 0)
    clips = [render_scene(shown.moved(motions)) for motions in shown.futures]
    scores = score_modes([(shown, clips)], each_once=True)
    assert len(clips) == 2 and scores["modes"].mean == 0 and scores["modes_whole"].mean == 1
    lost = score_modes([(shown, [clips[0], faults.torn(shown.moved(shown.futures[1]))])], each_once=True)
    assert lost["modes"].mean == 0.5 and lost["modes_whole"].mean == 0.5
    beside = score_modes([(shown, clips)], each_once=True, beside=32)
    assert beside["modes_perfect"].mean == pytest.approx(0) and "modes_perfect" not in scores


def test_few_whole_clips_hide_that_futures_are_missing() -> None:
    """So draws are compared with what as many draws of a perfect model get, not with what is left of the futures."""
    counts = np.random.default_rng(0).multinomial(40, [1 / 5] * 5 + [0] * 3, size=4000)
    mean = np.mean([excess_variation(row) for row in counts])
    assert mean == pytest.approx(expected_excess([1] * 5 + [0] * 3, 40), abs=0.005)
    assert mean < variation([1] * 5 + [0] * 3) - 0.1
    assert excess_variation([1] + [0] * 7) == pytest.approx(0), "of one clip, whatever it does"


def test_modes_do_not_see_other_faults() -> None:
    """Half of the clips of each mode are broken: they are counted apart and change nothing else."""
    shown, clips = draws(0, 16)
    futures = [scene(5, 0, SceneSettings("corner"), draw=draw) for draw in range(16)]
    order = np.argsort([each.objects[0].direction for each in futures], kind="stable")
    whole = score_modes([(shown, [clips[i] for i in order[::2]])])
    mixed = [clips[i] if n % 2 == 0 else faults.torn(futures[i]) for n, i in enumerate(order)]
    broken = score_modes([(shown, mixed)])
    assert broken["modes"].mean == whole["modes"].mean and broken["modes_whole"].mean == 0.5


def test_clips_none_of_which_is_whole_have_no_modes() -> None:
    shown, clips = draws(0, 2)
    scores = score_modes([(shown, [np.zeros_like(clip) for clip in clips])])
    assert scores["modes_whole"].mean == 0 and np.isnan(scores["modes"].mean)


def test_frozen_clips_do_none_of_the_modes() -> None:
    shown, clips = draws(0, 4)
    scores = score_modes([(shown, [np.repeat(clip[:1], 17, axis=0) for clip in clips])])
    assert scores["modes_other"].mean == 1 and np.isnan(scores["modes"].mean)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["corner", "scenes"])
def test_modes_of_the_goals_size(kind: str) -> None:
    scores = score_modes(draws(index, 256, kind) for index in range(8))
    assert scores["modes_whole"].mean == 1 and scores["modes_other"].mean == 0
    assert abs(scores["modes"].mean) < 0.02
    low, high = scores["modes"].interval()
    assert low < 0 < high or abs(low) < 0.01


@pytest.mark.parametrize(("n", "k"), [(256, 8), (20, 8), (7, 2)])
def test_expected_variation_is_that_of_draws(n: int, k: int) -> None:
    counts = np.random.default_rng(0).multinomial(n, [1 / k] * k, size=20000)
    assert np.mean(np.abs(counts / n - 1 / k).sum(axis=1) / 2) == pytest.approx(
        expected_variation(n, k), rel=0.02
    )
    assert np.mean([excess_variation(row) for row in counts[:4000]]) == pytest.approx(0, abs=0.005)


def test_intervals() -> None:
    values = np.array([0.0, 1.0] * 50 + [np.nan] * 10)
    score = SceneScore(values)
    low, high = score.interval()
    assert score.n == 100 and score.mean == 0.5 and 0.35 < low < 0.45 and 0.55 < high < 0.65
    assert SceneScore(np.array([np.nan])).to_dict() == {"value": None, "low": None, "high": None, "n": 0}
    assert SceneScore(np.array([[1.0, np.nan], [3.0, np.nan]])).to_dict()["value"] == [2.0, None]
    one = SceneScore(np.array([1.7, np.nan])).to_dict()
    assert one == {"value": 1.7, "low": None, "high": None, "n": 1}, "one clip says nothing of others"
    curve = SceneScore(np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])).to_dict()
    assert curve["low"][1:] == [None, None] and curve["low"][0] is not None
    halves = SceneScore(np.full(3, 0.5), share=True).to_dict()
    assert halves["low"] < 0.5 < halves["high"]


def test_shares_of_no_or_all_clips_are_not_known_to_a_digit() -> None:
    values = np.array([[0, 1, 0.5], [0, 1, 1], [0, np.nan, 0]])
    low, high = SceneScore(values, share=True).interval()
    none, both = share_metric([0, 0, 0]), share_metric([1, 1])
    assert high[:2] == pytest.approx([none["high"], 1]) and low[:2] == pytest.approx([0, both["low"]])
    assert 0 <= low[2] < 0.5 < high[2] <= 1
    assert SceneScore(np.zeros(3)).interval() == (0, 0), "pixels are no share"
    shown = sample("corner", 2)
    scores = score_scenes([render_scene(scene) for scene in shown], shown)
    assert scores["all"].to_dict()["low"] == pytest.approx(both["low"]) and scores["all"].mean == 1
    assert scores["frozen"].to_dict()["high"] == pytest.approx(share_metric([0, 0])["high"])
    modes = score_modes([(scene, [render_scene(scene)]) for scene in shown])
    assert ALL_SHARES == {name for name, score in (scores | modes).items() if score.share}


def test_an_object_that_is_not_there_at_first_has_no_area_to_keep() -> None:
    [shown] = sample("corner", 1)
    [track] = detect_scene(render_scene(shown)).tracks
    assert kept_area(track) == pytest.approx(1, abs=0.05)
    late = np.where(
        np.arange(len(track.ink)) < 8, 0.0, track.ink
    )  # no ink, as where a generated frame lacks it
    assert np.isnan(kept_area(dataclasses.replace(track, ink=late)))
    gone = np.where(np.arange(len(track.ink)) < 8, track.ink, 0.0)
    assert kept_area(dataclasses.replace(track, ink=gone)) == 0
