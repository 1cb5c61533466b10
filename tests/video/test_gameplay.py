"""Clips of ViZDoom: what holds of them by construction."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from megavrc.errors import UserError
from megavrc.video import gameplay
from megavrc.video.gameplay import (
    ACTIONS,
    HOLD,
    SCENARIOS,
    gameplay_caption,
    gameplay_clip,
    opened,
    static_share,
)

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("vizdoom") is None, reason='needs vizdoom (39 MB): pip install -e ".[study]"'
)
SEED = 3


def same(a: gameplay.GameplayClip, b: gameplay.GameplayClip) -> bool:
    return (
        a.frames.tobytes() == b.frames.tobytes()
        and a.actions == b.actions
        and np.array_equal(a.places, b.places)
    )


@needs_engine
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_clip_depends_on_scenario_seed_and_index_only(scenario: str) -> None:
    with opened(scenario) as game:
        first, second = gameplay_clip(game, scenario, SEED, 0), gameplay_clip(game, scenario, SEED, 1)
        again = gameplay_clip(game, scenario, SEED, 0)
    with opened(scenario) as game:
        anew, other = gameplay_clip(game, scenario, SEED, 1), gameplay_clip(game, scenario, SEED + 1, 1)
    assert same(first, again) and same(second, anew)
    assert not same(first, second) and not same(second, other)
    assert first.frames.shape == (17, 64, 64, 3) and first.frames.dtype == np.uint8
    assert len(first.actions) == 16 and set(first.actions) <= set(ACTIONS) and first.places.shape == (17, 3)


@needs_engine
def test_buttons_do_what_the_manifest_says() -> None:
    """Yaw grows to the left; a button pushes into its direction, seen from where the player looks."""
    directions = {"MOVE_FORWARD": 0, "MOVE_LEFT": 90, "MOVE_BACKWARD": 180, "MOVE_RIGHT": 270}
    friction = 0.90625**gameplay.TICS  # share of its speed that the player keeps from frame to frame
    off = []  # degrees between a push and its button
    with opened("health_gathering_supreme") as game:
        for index in range(6):
            found = gameplay_clip(game, "health_gathering_supreme", SEED, index, frames=33)
            steps = np.diff(found.places, axis=0)
            turns = (steps[:, 2] + 180) % 360 - 180
            wanted = [("TURN_LEFT" in held) - ("TURN_RIGHT" in held) for held in found.actions]
            assert np.sign(turns.round(3)).tolist() == wanted
            for step in range(1, 32):
                x, y = steps[step, :2] - friction * steps[step - 1, :2]
                for button in set(found.actions[step]) & set(directions):
                    way = np.degrees(np.arctan2(y, x)) - found.places[step + 1, 2]
                    off.append(abs((way - directions[button] + 180) % 360 - 180))
    assert len(off) > 100 and np.quantile(off, 0.9) < 20  # walls push too


@needs_engine
def test_buttons_are_held() -> None:
    with opened("basic") as game:
        actions = gameplay_clip(game, "basic", SEED, 0, frames=65).actions
    changes = [step for step in range(1, 64) if actions[step] != actions[step - 1]]
    assert len(changes) > 4 and np.diff(changes).min() >= HOLD[0]


@needs_engine
def test_a_clip_ends_before_its_episode_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who walks about in the corridor soon dies: then another episode is played, and at last the clip is refused."""
    died = 0
    with opened("deadly_corridor") as game:
        for index in range(8):
            monkeypatch.setattr(gameplay, "ATTEMPTS", 20)
            gameplay_clip(game, "deadly_corridor", SEED, index)
            assert not game.is_episode_finished()
            monkeypatch.setattr(gameplay, "ATTEMPTS", 1)
            try:
                gameplay_clip(game, "deadly_corridor", SEED, index)
            except UserError:
                died += 1
        assert 0 < died < 8
        with pytest.raises(UserError, match="clip of 3000 frames"):
            gameplay_clip(game, "deadly_corridor", SEED, 0, frames=3000)


@needs_engine
def test_the_weapon_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("basic") as game:
        hidden = gameplay_clip(game, "basic", SEED, 0).frames
    monkeypatch.setattr(gameplay, "HIDDEN", tuple(part for part in gameplay.HIDDEN if part != "weapon"))
    with opened("basic") as game:
        shown = gameplay_clip(game, "basic", SEED, 0).frames
    rows, columns = np.nonzero((hidden != shown).any((0, 3)))
    assert rows.size and rows.min() > 32 and 12 < columns.min() and columns.max() < 52


@needs_engine
def test_the_engine_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with pytest.raises(KeyError), opened("basic") as game:
        gameplay_clip(game, "basic", SEED, 0)
        raise KeyError
    assert list(tmp_path.iterdir()) == [temporary] and not list(temporary.iterdir())
    assert not game.is_running()


def test_captions_say_what_is_done_longest() -> None:
    both, forward = ("TURN_LEFT", "MOVE_FORWARD"), ("MOVE_FORWARD",)
    assert gameplay_caption([both] * 9 + [forward] * 7) == "the player turns left and moves forward"
    assert gameplay_caption([both] * 4 + [forward] * 6 + [both]) == "the player moves forward"
    assert (
        gameplay_caption([both] * 8 + [forward] * 8) == "the player turns left and moves forward"
    )  # the earlier
    assert len({gameplay_caption([action]) for action in ACTIONS}) == len(ACTIONS) == 14


def test_static_share() -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1:, :2, :, 1] = 200  # half of the picture changes once
    frames[2, 3] = gameplay.STILL
    assert static_share(frames) == 0.75


def test_without_the_engine_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(UserError, match="study"), opened("basic"):
        pass
