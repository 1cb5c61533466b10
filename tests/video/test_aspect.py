"""Pixels that are not square: what is stored 128 wide and shown 171 wide comes out 171 wide."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from golden import COUNT, HEIGHT, WIDTH, write

from megavrc.video import probe, read_clip, write_png
from megavrc.video.times import frame_times, read_frames_at

CASES = Path(__file__).parents[3] / "shared" / "cases"


def shape(path: Path) -> tuple[int, int]:
    """Height and width of the pictures, which the header's must equal."""
    height, width = read_clip(path, 0, 1, size=None)[0].shape[:2]
    assert probe(path)[:2] == (height, width)
    return height, width


def state(path: Path, aspect: tuple[int, int]) -> Path:
    """Let the container of an mp4 state another aspect than the codec."""
    content = bytearray(path.read_bytes())
    place = content.index(b"pasp") + 4
    content[place : place + 8] = struct.pack(">2I", *aspect)
    path.write_bytes(content)
    return path


def turn(path: Path) -> Path:
    """Say in the track header that the picture is to be shown turned clockwise by a quarter."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, HEIGHT * one, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.ts", "video.avi"])
@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(8, 9), Fraction(1)])
def test_the_width_is_that_on_the_screen(tmp_path: Path, name: str, aspect: Fraction) -> None:
    path = write(tmp_path / name, sample_aspect_ratio=aspect, count=2)
    assert shape(path) == (HEIGHT, round(WIDTH * aspect))


def test_resizing_and_cutting_start_from_the_shape_on_the_screen(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", sample_aspect_ratio=Fraction(4, 3), size=(96, 64), count=1)
    whole, cut, squashed = (
        read_clip(path, 0, 1, size=size, crop=crop)[0].astype(int)
        for size, crop in ((None, "center"), (64, "center"), (64, "squash"))
    )
    assert whole.shape == (64, 128, 3) and cut.shape == squashed.shape == (64, 64, 3)
    assert np.abs(whole[:, 32:96] - cut).max() <= 2  # the centre of what is shown
    assert np.abs(whole[48, [20, 64, 108]] - squashed[48, [10, 32, 54]]).max() <= 2


def test_pixels_are_made_square_before_the_picture_is_turned(tmp_path: Path) -> None:
    plain = write(tmp_path / "video.mp4", sample_aspect_ratio=Fraction(4, 3), count=1)
    upright = read_clip(plain, 0, 1, size=None)[0]
    turned = read_clip(turn(plain), 0, 1, size=None)[0]
    assert shape(plain) == (round(WIDTH * 4 / 3), HEIGHT)
    assert np.array_equal(turned, np.rot90(upright, -1))


def test_shots_are_shown_so_too(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", sample_aspect_ratio=Fraction(2))
    frames = read_frames_at(path, frame_times(path, 0.2, 0.4).tolist())
    assert frames.shape[1:3] == (HEIGHT, 2 * WIDTH)


def test_the_container_wins_over_the_codec(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", sample_aspect_ratio=Fraction(4, 3), count=1)
    assert shape(state(path, (3, 2))) == (HEIGHT, round(WIDTH * 1.5))


@pytest.mark.parametrize("absurd", [(1, 1000), (65535, 1), (5, 1), (0, 1), (1, 0)])
def test_absurd_shapes_are_ignored(tmp_path: Path, absurd: tuple[int, int]) -> None:
    path = write(tmp_path / "video.mp4", sample_aspect_ratio=Fraction(4, 3), count=1)
    assert shape(state(path, absurd)) == (HEIGHT, round(WIDTH * 4 / 3))  # what the codec says is left
    codec = write(tmp_path / "codec.ts", sample_aspect_ratio=Fraction(1, 1000), count=1)
    assert shape(codec) == (HEIGHT, WIDTH)


def test_a_broadcast_may_change_it(tmp_path: Path) -> None:
    """As between a film and an advertisement: every frame in its own shape, one size asked for."""
    narrow = write(tmp_path / "a.ts", sample_aspect_ratio=Fraction(1), size=(96, 64))
    wide = write(tmp_path / "b.ts", sample_aspect_ratio=Fraction(2), size=(96, 64))
    both = tmp_path / "both.ts"
    both.write_bytes(narrow.read_bytes() + wide.read_bytes())
    for start, part in ((0, narrow), (COUNT, wide)):
        assert np.array_equal(read_clip(both, start, COUNT, size=32), read_clip(part, 0, COUNT, size=32))


def test_folders_of_pictures_have_square_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_png(folder / "1.png", np.zeros((48, 64, 3), np.uint8))
    assert shape(folder) == (48, 64)


@pytest.mark.skipif(not CASES.is_dir(), reason="no cases in ../shared/cases")
def test_a_real_file() -> None:
    with av.open(str(CASES / "sar43.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    assert shape(CASES / "sar43.mp4") == (96, 171)
