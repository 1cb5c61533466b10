"""Scenes: pure functions, exact odds, nothing of the future in frame 0 or in the caption unless it is told."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from megavrc.video import shapes
from megavrc.video.scenes import (
    CANVAS,
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    SHAPES,
    Background,
    HeldOut,
    Motion,
    Object,
    Scene,
    SceneSettings,
    coverage,
    from_attributes,
    heldout_scenes,
    positions,
    render_scene,
    scene,
    visibility,
)

CORNER, RANDOM = SceneSettings(kind="corner"), SceneSettings(bounce="random")
STILL = Background(waves=(), pan=None)


def of(*objects: Object, occluder: int | None = None) -> Scene:
    return Scene("scenes", objects, occluder, STILL)


def test_a_scene_depends_on_seed_and_index_only() -> None:
    assert scene(3, 17) == scene(3, 17)
    assert np.array_equal(render_scene(scene(3, 17)), render_scene(scene(3, 17)))
    assert scene(3, 17) != scene(4, 17) and scene(3, 17) != scene(3, 18)
    frames = render_scene(scene(3, 17), frames=5, size=32)
    assert frames.shape == (5, 32, 32, 3) and frames.dtype == np.uint8


@pytest.mark.parametrize("settings", [SceneSettings(), RANDOM, CORNER], ids=["scenes", "random", "corner"])
def test_another_future_of_the_same_first_frame(settings: SceneSettings) -> None:
    later_differ = 0
    for index in range(20):
        one, other = (scene(0, index, settings, draw) for draw in (0, 1))
        assert one.caption == other.caption
        assert np.array_equal(render_scene(one, frames=1), render_scene(other, frames=1))
        later_differ += not np.array_equal(render_scene(one), render_scene(other))
        for item, twin in zip(one.objects, other.objects, strict=True):
            assert not item.told or (item.direction, item.speed) == (twin.direction, twin.speed)
    assert later_differ >= 5


@pytest.mark.parametrize("settings", [SceneSettings(), CORNER], ids=["scenes", "corner"])
def test_untold_motions_are_equally_likely_whatever_frame_0_shows(settings: SceneSettings) -> None:
    """Over scenes, and over the futures of one of them; in halves by what frame 0 shows too. Chi-square, p = 1e-4."""
    limit = {8: 29.9, 2: 15.2}[len(MOTIONS[settings.kind])]

    def surprise(motions: list[Motion]) -> float:
        expected = len(motions) / len(MOTIONS[settings.kind])
        counts = Counter(motions)
        return sum((counts[motion] - expected) ** 2 / expected for motion in MOTIONS[settings.kind])

    held = SceneSettings(settings.kind, heldout=heldout_scenes(0))
    drawn = [scene(0, index, held) for index in range(3000)]
    untold = [
        (item, Motion(item.direction, item.speed)) for s in drawn for item in s.objects if not item.told
    ]
    assert {motion for _, motion in untold} == set(MOTIONS[settings.kind])
    for part in (
        [motion for item, motion in untold],
        [motion for item, motion in untold if item.x < 20],
        [motion for item, motion in untold if item.y > {"scenes": 36, "corner": 16}[settings.kind]],
        [motion for item, motion in untold if item.colour == "red" or item.shape == "ring"],
        [Motion(item.direction, item.speed) for s in drawn for item in s.objects[:1] if not item.told],
    ):
        assert len(part) > 300 and surprise(part) < limit
    first = next(index for index, s in enumerate(drawn) if not s.objects[0].told)
    assert surprise([scene(0, first, held, draw).motions[0] for draw in range(1000)]) < limit


def test_bits_are_those_of_the_futures() -> None:
    for told, bits in ((0.0, {1: 3.0, 2: 6.0}), (1.0, {1: 0.0, 2: 0.0})):
        for index in range(6):
            drawn = scene(1, index, SceneSettings(told=told))
            assert drawn.bits == bits[len(drawn.objects)]
            assert drawn.motions in drawn.futures
            looks = {render_scene(drawn.moved(future), frames=5).tobytes() for future in drawn.futures}
            assert len(looks) == len(drawn.futures)
    assert all(scene(1, index, CORNER).bits == 1 for index in range(20))


def test_all_futures_differ_within_the_first_latent_frame() -> None:
    for index in range(50):
        drawn = scene(2, index, SceneSettings(told=0))
        paths = {positions(drawn.moved(future), frames=5).tobytes() for future in drawn.futures}
        assert len(paths) == len(drawn.futures)


def test_caption() -> None:
    ball = Object("red", "square", 8, 20, 20, "left", 2, told=True)
    ring = Object("blue", "ring", 8, 40, 40, "up", 1, told=True)
    both = of(ball, ring)
    assert (
        both.caption
        == "a red square and a blue ring. the red square moves left fast. the blue ring moves up slowly"
    )
    assert of(dataclasses.replace(ball, told=False)).caption == "a red square"
    panning = dataclasses.replace(both, background=Background((), "down"))
    assert panning.caption.startswith("a red square and a blue ring. the background moves down. the red")
    captions = [scene(0, index, CORNER).caption for index in range(50)]
    assert not any(word in caption for caption in captions for word in ("moves", "and", "."))


def test_shares_of_what_scenes_show() -> None:
    drawn = [scene(5, index) for index in range(2000)]
    assert 0.36 < np.mean([len(s.objects) == 1 for s in drawn]) < 0.44
    assert 0.26 < np.mean([s.occluder is not None for s in drawn]) < 0.34
    assert 0.26 < np.mean([s.background.pan is not None for s in drawn]) < 0.34
    items = [item for s in drawn for item in s.objects]
    assert 0.46 < np.mean([item.told for item in items]) < 0.54
    assert {item.colour for item in items} == set(COLOURS) and {item.shape for item in items} == set(SHAPES)
    assert all(len({item.colour for item in s.objects}) == len(s.objects) for s in drawn)


def test_frame_0_shows_every_object_whole() -> None:
    for index in range(200):
        drawn = scene(6, index)
        for item, seen in zip(drawn.objects, visibility(drawn, frames=1)[:, 0], strict=True):
            alone = coverage(item.shape, item.radius, np.array([[item.x, item.y]], float))[0]
            assert np.array_equal(seen, alone)
            assert not seen[[0, -1]].any() and not seen[:, [0, -1]].any()


@pytest.mark.parametrize("seed", range(5))
def test_heldout_combinations_are_told_in_their_split_only(seed: int) -> None:
    heldout = heldout_scenes(seed)
    assert len(set(heldout)) == 12
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert len({tuple(combination[i] for i in pair) for combination in heldout}) == 12
    settings = SceneSettings(told=1.0, heldout=heldout)
    for index in range(300):
        for item in scene(seed, index, settings).objects:
            assert HeldOut(item.colour, item.shape, item.direction) not in heldout
    for combination in heldout:
        shown = scene(seed, 0, SceneSettings(told=0.0, heldout=heldout), shown=combination)
        first = shown.objects[0]
        assert HeldOut(first.colour, first.shape, first.direction) == combination
        assert f"the {first.colour} {first.shape} moves {first.direction}" in shown.caption
    with pytest.raises(ValueError, match="heldout 13"):
        heldout_scenes(0, 13)


def test_single() -> None:
    drawn = [scene(5, index, SceneSettings("single")) for index in range(400)]
    assert all(len(s.objects) == 1 and s.occluder is None and s.background.pan is None for s in drawn)
    assert {s.motions for s in drawn} == {(motion,) for motion in MOTIONS["scenes"]}
    assert 0.4 < np.mean([s.objects[0].told for s in drawn]) < 0.6
    assert {s.bits for s in drawn} == {0.0, 3.0}


def test_places() -> None:
    for settings in (SceneSettings(), CORNER):
        for index in range(50):
            drawn = scene(9, index, settings)
            assert {item.radius for item in drawn.objects} == {8}
            ends = positions(drawn, frames=65)[:, ::4]  # of latent frames
            assert not (ends % 4).any()
    anywhere = [scene(9, index, SceneSettings(places="any")) for index in range(50)]
    assert {item.radius for each in anywhere for item in each.objects} == {8, 9, 10}
    assert {item.x % 8 for each in anywhere for item in each.objects} == set(range(8))
    [problem] = SceneSettings(places="left").problems()
    assert problem == "places 'left': choose grid or any"


def test_backgrounds() -> None:
    plain = [scene(5, index).background for index in range(100)]
    assert {(bool(each.waves), bool(each.pan)) for each in plain} == {(True, True), (False, False)}
    waves = [scene(5, index, SceneSettings(background="waves")).background for index in range(100)]
    assert all(len(each.waves) == 2 for each in waves) and {bool(each.pan) for each in waves} == {True, False}
    [problem] = SceneSettings(background="grey").problems()
    assert problem == "background 'grey': choose plain or waves"


def test_reflection() -> None:
    right = Object("red", "circle", 8, 53, 30, "right", 2, told=False)
    up = Object("blue", "circle", 8, 30, 10, "up", 1, told=False)
    (x_right, _), (_, y_up) = (path.T for path in positions(of(right, up), frames=7))
    assert x_right.tolist() == [53, 55, 55, 53, 51, 49, 47]  # the wall is at 56: 57 becomes 55
    assert y_up.tolist() == [10, 9, 8, 9, 10, 11, 12]


def test_objects_stay_inside_at_constant_speed() -> None:
    for settings in (SceneSettings(), RANDOM, CORNER, SceneSettings(places="any")):
        for index in range(50):
            drawn = scene(7, index, settings)
            for item, path in zip(drawn.objects, positions(drawn, frames=65), strict=True):
                assert path[0].tolist() == [item.x, item.y]
                assert (path >= item.radius).all() and (path <= CANVAS - item.radius).all()
                steps = np.abs(np.diff(path, axis=0)).sum(axis=1)
                assert (steps <= item.speed).all() and np.mean(steps == item.speed) > 0.7


def test_random_bounces_lead_anywhere_but_into_the_wall() -> None:
    """Speed 1, so the wall is met exactly; the next step is one of the three other ways, equally likely."""
    after: Counter[tuple[float, float]] = Counter()
    for turns in range(900):
        path = positions(of(Object("red", "ring", 8, 10, 32, "left", 1, False, turns)), frames=4)[0]
        assert path[2].tolist() == [8, 32]
        after[tuple(path[3] - path[2])] += 1
    assert set(after) == {(1, 0), (0, -1), (0, 1)} and min(after.values()) > 240


def test_corner_clips_go_right_or_down_and_meet_no_wall() -> None:
    for index in range(200):
        drawn = scene(8, index, CORNER)
        path = positions(drawn)[0]
        way = np.array(DIRECTIONS[drawn.objects[0].direction]) * 2
        assert np.array_equal(path, path[0] + np.arange(17)[:, None] * way)
        assert drawn.occluder is None and drawn.background.pan is None


def test_what_is_in_front_hides() -> None:
    behind = Object("red", "square", 9, 14, 32, "right", 2, told=False)
    front = Object("blue", "square", 9, 50, 32, "left", 2, told=False)
    meet = of(behind, front)  # in frame 9 both are at 32
    hidden, shown = visibility(meet)[:, 9]
    assert hidden.sum() == 0 and shown.sum() == 18**2
    assert (render_scene(meet)[9, 30:34, 30:34] == COLOURS["blue"]).all()
    barred = of(behind, occluder=23)  # 18 wide: its middle is at 32
    seen = visibility(barred)[0].sum(axis=(1, 2))
    assert seen[0] == 18**2 and seen[9] == 0 and seen[16] > 0
    picture = render_scene(barred)[9].astype(int)
    assert np.ptp(picture, axis=-1).max() == 0  # grey all over


def test_a_panning_background_moves_one_pixel_a_frame() -> None:
    wave = (0.2, 0.1, 1.0), (0.05, -0.15, 2.0)
    for pan, shift in (("left", (0, -1)), ("down", (1, 0))):
        frames = render_scene(
            Scene("scenes", (Object("red", "ring", 7, 32, 32, "up", 1, False),), None, Background(wave, pan))
        )
        moved = np.roll(frames[0], shift, axis=(0, 1))
        assert np.array_equal(frames[1][1:20, 1:20], moved[1:20, 1:20])
        assert np.ptp(frames[0][:20, :20], axis=-1).max() == 0 and np.ptp(frames[0][:20, :20, 0]) > 5
        assert 20 <= frames[0][:20, :20].min() and frames[0][:20, :20].max() <= 60


def test_shapes_have_the_areas_that_their_names_say() -> None:
    areas = {"square": 4, "circle": np.pi, "triangle": 2, "plus": 2.04, "ring": np.pi * (1 - 0.55**2)}
    for shape, area in areas.items():
        drawn = coverage(shape, 20, np.array([[32.0, 32.0]]))
        assert drawn.sum() == pytest.approx(area * 400, rel=0.02)
    half = coverage("plus", 20, np.array([[32.0, 32.0]]), size=32)
    assert half.sum() == pytest.approx(2.04 * 100, rel=0.03)
    with pytest.raises(ValueError, match="'star'"):
        coverage("star", 8, np.zeros((1, 2)))


def test_a_scene_survives_its_manifest_row() -> None:
    for settings in (RANDOM, CORNER):
        for index in range(20):
            drawn = scene(9, index, settings)
            assert from_attributes(json.loads(json.dumps(dataclasses.asdict(drawn)))) == drawn


def test_colours_are_those_of_the_shapes() -> None:
    assert COLOURS == shapes.COLOURS and DIRECTIONS == shapes.DIRECTIONS
