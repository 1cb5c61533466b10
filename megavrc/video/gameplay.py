"""Clips of six scenarios of ViZDoom, played with random buttons that are held for a while (docs/gameplay.md).

A clip is a function of (scenario, seed, clip index): the engine and everything that is drawn here get their seeds from
these alone, so neither the clips before nor the number of processes matter. Another version of the engine, or another
machine, may draw other pixels.
"""

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from megavrc.errors import UserError

SCENARIOS = (  # the position of a scenario is its class label
    "basic",
    "my_way_home",
    "health_gathering_supreme",
    "take_cover",
    "defend_the_center",
    "deadly_corridor",
)
WORDS = {
    "TURN_LEFT": "turns left",
    "TURN_RIGHT": "turns right",
    "MOVE_FORWARD": "moves forward",
    "MOVE_BACKWARD": "moves backward",
    "MOVE_LEFT": "strafes left",
    "MOVE_RIGHT": "strafes right",
}
TURNS = (None, "TURN_LEFT", "TURN_RIGHT")
MOVES = (None, "MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT")
# Nobody stands still: the clips are about what moves. Nobody shoots: without a weapon on screen, nothing would show it.
ACTIONS = tuple(tuple(b for b in (turn, move) if b) for turn in TURNS for move in MOVES if turn or move)
HOLD = (4, 8)  # frames, both included, that buttons are held

SIDE = 240  # pixels of the middle square of the screen
TICS = 2  # of the engine from frame to frame
FPS = 35 / TICS
LEAD = (8, 60)  # frames, both included, that are played before a clip: some scenarios have one start only
ATTEMPTS = 300  # episodes for one clip
HIDDEN = (  # what a player's screen shows beside the world
    "hud",
    "weapon",
    "crosshair",
    "messages",
    "screen_flashes",
    "particles",
    "decals",
    "effects_sprites",
)
STILL = 2  # levels of 255: a pixel that changes by no more, in no channel, is static

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB
Action = tuple[str, ...]  # the buttons that are held together


class GameplayClip(NamedTuple):
    """A clip, and what the engine knows about it."""

    frames: Frames  # [T, size, size, 3]
    actions: list[Action]  # [T - 1]: what is held from frame k to frame k + 1
    places: NDArray[np.float64]  # [T, 3]: x and y in units of the map, yaw in degrees, counter-clockwise


def engine() -> Any:
    """Return the module vizdoom; UserError if it is not installed."""
    try:
        import vizdoom
    except ImportError:
        raise UserError('vizdoom is not installed: pip install "megavrc[study]"') from None
    return vizdoom


@contextlib.contextmanager
def opened(scenario: str) -> Iterator[Any]:
    """Start the engine for one of SCENARIOS, hand it out, and stop it in the end."""
    vizdoom = engine()
    game = vizdoom.DoomGame()
    game.load_config(os.path.join(vizdoom.scenarios_path, f"{scenario}.cfg"))
    # Without a path the engine prefers the pictures of a bought game, if it finds one.
    game.set_doom_game_path(os.path.join(vizdoom.root_path, "freedoom2.wad"))
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_window_visible(False)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    for part in HIDDEN:
        getattr(game, f"set_render_{part}")(False)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in WORDS])
    place = ("POSITION_X", "POSITION_Y", "ANGLE")
    game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in place])
    game.set_episode_timeout(0)  # none: an episode ends by death or at the goal
    # The engine writes its settings, and a folder of its own, where it is started.
    with tempfile.TemporaryDirectory() as folder:
        game.set_doom_config_path(os.path.join(folder, "settings.ini"))
        with contextlib.chdir(folder):
            game.init()
        try:
            yield game
        finally:
            game.close()


def gameplay_clip(
    game: Any, scenario: str, seed: int, index: int, frames: int = 17, size: int = 64
) -> GameplayClip:
    """Play clip `index` of the endless set named by `seed`, in an episode of its own.

    An episode that ends before the clip does is thrown away, and another one is played.

    Args:
        game: of `opened(scenario)`.
        scenario: one of SCENARIOS.
        seed: at least 0.
        index: at least 0.
        frames: T.
        size: side in pixels, to which the middle square of the screen is scaled, at most SIDE.

    Raises:
        UserError: no episode was long enough.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((seed, SCENARIOS.index(scenario), index, attempt))
        if (found := _play(game, rng, frames, size)) is not None:
            return found
    raise UserError(f"{scenario}: none of {ATTEMPTS} episodes is long enough for a clip of {frames} frames")


def _play(game: Any, rng: np.random.Generator, frames: int, size: int) -> GameplayClip | None:
    """Play an episode and return its clip, or None if the episode ended too early."""
    game.set_seed(int(rng.integers(2**31)))
    game.new_episode()
    pictures, places, actions = [], [], []
    last = int(rng.integers(*LEAD, endpoint=True)) + frames - 1
    held = 0
    for now in range(last + 1):
        if game.is_episode_finished():
            return None
        if now > last - frames:
            state = game.get_state()
            pictures.append(_square(state.screen_buffer, size))
            places.append(state.game_variables)
        if not held:
            held = int(rng.integers(*HOLD, endpoint=True))
            action = ACTIONS[rng.integers(len(ACTIONS))]
        held -= 1
        if now < last:
            game.make_action([button in action for button in WORDS], TICS)
            actions.append(action)
    return GameplayClip(np.stack(pictures), actions[len(actions) - frames + 1 :], np.stack(places))


def _square(screen: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cut the middle square and scale it by area: the engine does not smooth what is small."""
    height, width = screen.shape[:2]
    left = (width - height) // 2
    image = Image.fromarray(np.ascontiguousarray(screen[:, left : left + height]))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def gameplay_caption(actions: list[Action]) -> str:
    """Say what is done longest, for example "the player turns left and moves forward"."""
    (most, _), *_ = Counter(actions).most_common(1)  # of equals the earliest
    return f"the player {' and '.join(WORDS[button] for button in most)}"


def static_share(frames: Frames) -> float:
    """Share of pixels that do not change from a frame to the next (by more than STILL levels)."""
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).max(-1)
    return float((change <= STILL).mean())
