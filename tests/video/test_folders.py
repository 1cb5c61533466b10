"""A folder of pictures is a video."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from megavrc.video import VideoError, count_frames, probe, read_clip, read_frames
from megavrc.video.pictures import pictures


def save(path: Path, frame_HWC: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame_HWC).save(path, **options)  # type: ignore[arg-type]


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """12 frames of 24x32 called frame_0 .. frame_11: frame i is grey 20 i. The folder is called like a file."""
    folder = tmp_path / "video#0#12.mp4"
    for number in range(12):
        save(folder / f"take2_frame_{number}.png", np.full((24, 32, 3), 20 * number, np.uint8))
    (folder / "Thumbs.db").write_text("not a picture")
    (folder / "._take2_frame_0.png").write_text("not a picture either")
    return folder


def test_pictures_are_ordered_by_their_last_number(numbered: Path) -> None:
    assert [path.name for path in pictures(numbered)][8:] == [f"take2_frame_{n}.png" for n in range(8, 12)]
    assert probe(numbered) == (24, 32, 0.0, 12)
    assert count_frames(numbered) == 12
    assert (read_clip(numbered, 1, 4, stride=3, size=None)[:, 0, 0, 0] // 20).tolist() == [1, 4, 7, 10]
    assert (read_frames(numbered, [11, 2, 11])[:, 0, 0, 0] // 20).tolist() == [11, 2, 11]


def test_too_few_pictures(numbered: Path) -> None:
    with pytest.raises(VideoError) as error:
        read_clip(numbered, 0, 17)
    assert error.value.stage == "short" and error.value.reason == "12 frames, frame 16 is needed"
    clamped = read_clip(numbered, 9, 5, size=None, short="clamp")
    assert (clamped[:, 0, 0, 0] // 20).tolist() == [9, 10, 11, 11, 11]


def test_pixels_are_those_of_a_lossless_video(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 64, 3), np.uint8)
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 40, "bgr0"
        for index, frame in enumerate(frames):
            save(tmp_path / "v" / f"{index}.png", frame)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert np.array_equal(read_clip(tmp_path / "v", 0, 3, size=None), frames)
    for crop in ("center", "squash"):
        of_pictures, of_video = (
            read_clip(tmp_path / name, 0, 3, size=16, crop=crop) for name in ("v", "v.mkv")
        )
        assert of_pictures.shape == (3, 16, 16, 3)
        assert np.abs(of_pictures.astype(int) - of_video.astype(int)).max() <= 1


def test_grey_palette_alpha_and_rotated_pictures(tmp_path: Path) -> None:
    colours = np.zeros((16, 24, 3), np.uint8)
    colours[:, :8] = 255, 0, 0
    picture = Image.fromarray(colours)
    for number, mode in enumerate(("L", "P", "RGBA")):
        (tmp_path / "v").mkdir(exist_ok=True)
        picture.convert(mode).save(tmp_path / "v" / f"{number}.png")
    frames = read_clip(tmp_path / "v", 0, 3, size=None)
    assert np.array_equal(frames[1], colours) and np.array_equal(frames[2], colours)
    assert frames[0, 0, 0].tolist() == [76, 76, 76]
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    save(tmp_path / "turned" / "1.jpg", colours, exif=exif, quality=95)
    assert probe(tmp_path / "turned")[:2] == (24, 16)


def test_a_damaged_picture_is_an_error_only_where_it_is_wanted(numbered: Path) -> None:
    file = numbered / "take2_frame_5.png"
    file.write_bytes(file.read_bytes()[:60])
    assert len(read_clip(numbered, 0, 3, stride=2, size=None)) == 3
    for read in (lambda: read_frames(numbered, [5]), lambda: count_frames(numbered)):
        with pytest.raises(VideoError, match=r"frame 5: take2_frame_5\.png: ") as error:
            read()
        assert error.value.stage == "decode" and error.value.path == numbered


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_no_damage_ends_in_another_error(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(0)
    file = tmp_path / "v" / f"0.{suffix}"
    save(file, random.integers(0, 256, (16, 16, 3), np.uint8))
    whole = file.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole[: int(random.integers(0, len(whole) + 1))])
        for place in random.integers(0, len(whole), 3):
            damaged[place : place + 1] = random.bytes(1) if place < len(damaged) else b""
        file.write_bytes(damaged)
        try:
            read_clip(tmp_path / "v", 0, 1)
        except VideoError as error:
            assert error.stage == "decode"


def test_folders_without_a_usable_picture(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="open: no pictures in the folder"):
        probe(tmp_path)
    save(tmp_path / "0.png", np.zeros((8, 8), np.uint16))
    with pytest.raises(VideoError, match=r"decode: frame 0: 0\.png: not 8 bits a channel"):
        probe(tmp_path)
