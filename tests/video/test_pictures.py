"""Pictures as videos of one frame, and the side data of frames: turned as they say, on white, in one line if not."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from megavrc.video import VideoError, count_frames, probe, read_clip, read_picture

Pixels = np.ndarray
CASES = Path(__file__).parents[3] / "shared" / "cases"
STORED: dict[int, Callable[[Pixels], Pixels]] = {  # how the picture lies in the file, by EXIF orientation
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
OPTIONS = {"jpg": {"quality": 100, "subsampling": 0}, "png": {}, "webp": {"lossless": True}, "tiff": {}}


def upright() -> Pixels:
    """24x40, every corner another colour."""
    frame = np.zeros((24, 40, 3), np.uint8)
    frame[:12, :20], frame[:12, 20:], frame[12:, :20] = (200, 30, 40), (30, 190, 50), (40, 50, 220)
    return frame


def save(path: Path, orientation: int, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright()))).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", OPTIONS)
def test_pictures_with_exif_are_shown_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    path = save(tmp_path / f"photo.{kind}", orientation, **OPTIONS[kind])
    unnamed = path.rename(tmp_path / "photo")  # the content decides
    for read in (read_clip(unnamed, 0, 1, size=None)[0], read_picture(unnamed.read_bytes(), size=None)):
        assert read.shape == (24, 40, 3)
        assert np.abs(read.astype(int) - upright()).max() <= (4 if kind == "jpg" else 0)
    assert probe(unnamed) == (24, 40, 0.0, 1)


@pytest.mark.parametrize("orientation", STORED)
def test_video_frames_with_exif_are_shown_upright(tmp_path: Path, orientation: int) -> None:
    """As cameras write them: every frame is a JPEG with EXIF, which PyAV 17.1 to 18.1 has no name for."""
    if not av.library_versions["libavformat"] >= (62, 12, 0):
        pytest.skip("this FFmpeg does not read the EXIF of frames")
    picture = save(tmp_path / "0.jpg", orientation, **OPTIONS["jpg"]).read_bytes()
    with av.open(str(tmp_path / "camera.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.height, stream.width = STORED[orientation](upright()).shape[:2]
        stream.pix_fmt = "yuvj444p"
        for time in range(3):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, time, time, True
            container.mux(packet)
    frames = read_clip(tmp_path / "camera.avi", 0, 3, size=None)
    assert frames.shape == (3, 24, 40, 3)
    assert np.abs(frames.astype(int) - upright()).max() <= 6


@pytest.mark.skipif(not CASES.is_dir(), reason="no cases in ../shared/cases")
def test_a_real_photo() -> None:
    assert read_clip(CASES / "photo.jpg", 0, 1, size=64).shape == (1, 64, 64, 3)
    assert probe(CASES / "photo.jpg")[:2] == (96, 128)


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1"])
def test_modes_without_alpha(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    picture = Image.fromarray(upright()).convert(mode)
    picture.save(path)
    expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(read_clip(path, 0, 1, size=None)[0], expected)


def half_transparent() -> Image.Image:
    """(200, 30, 40): opaque above; below half transparent on the left, transparent on the right."""
    pixels = np.full((16, 16, 4), (200, 30, 40, 255), np.uint8)
    pixels[8:, :8, 3], pixels[8:, 8:, 3] = 128, 0
    return Image.fromarray(pixels)


def corners(path: Path) -> list[list[int]]:
    frame = read_clip(path, 0, 1, size=None)[0]
    return [frame[2, 2].tolist(), frame[13, 2].tolist(), frame[13, 13].tolist()]


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    picture = half_transparent()
    on_white = [[200, 30, 40], [227, 142, 147], [255, 255, 255]]
    for name in ("a.png", "a.webp", "a.tiff"):
        picture.save(tmp_path / name, **OPTIONS[name[2:]])
        assert corners(tmp_path / name) == on_white
    picture.convert("LA").save(tmp_path / "la.png")
    assert corners(tmp_path / "la.png")[2] == [255, 255, 255]
    picture.quantize(8).save(tmp_path / "p.png")  # a palette with transparency
    assert corners(tmp_path / "p.png")[2] == [255, 255, 255]
    picture.save(tmp_path / "video.png", save_all=True, append_images=[picture.rotate(90)])  # animated
    assert corners(tmp_path / "video.png") == on_white and count_frames(tmp_path / "video.png") == 2


def test_an_alpha_channel_of_a_video_that_nobody_filled_is_no_alpha(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8) + np.array([200, 30, 40, 0], np.uint8)
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=5)
        stream.width = stream.height = 16
        stream.pix_fmt = "argb"
        frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="argb")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert corners(tmp_path / "a.mov") == [[200, 30, 40]] * 3


@pytest.mark.parametrize("name", ["libvpx", "libvpx-vp9"])
def test_transparent_webm_is_white_there(tmp_path: Path, name: str) -> None:
    """FFmpeg's own decoders of VP8 and VP9 know nothing of it."""
    pixels = np.zeros((64, 64, 4), np.uint8) + np.array([200, 30, 40, 0], np.uint8)
    pixels[:32, ..., 3] = 255
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream(name, rate=5, options={"auto-alt-ref": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuva420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="yuva420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_clip(tmp_path / "a.webm", 0, 3, size=None)
    assert np.abs(frames[:, 16, 32] - [200.0, 30, 40]).max() < 8
    assert (frames[:, 48, 32] == 255).all()


def test_a_picture_that_no_size_fits_is_one_line() -> None:
    file = io.BytesIO()
    Image.new("RGB", (60_000, 1)).save(file, "png")
    with pytest.raises(VideoError, match="the picture: decode"):
        read_picture(file.getvalue(), 64)


def bomb(path: Path) -> Path:
    """A PNG of 40,000 x 40,000 pixels in a few hundred bytes."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))
    return path


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "jpg", "bmp", "avif"])
def test_damaged_pictures_are_one_line(tmp_path: Path, kind: str) -> None:
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"photo.{kind}"
    exif = {} if kind == "bmp" else {"exif": Image.Exif()}
    Image.fromarray(upright()).save(path, **exif)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    reasons = set()
    for _ in range(60):
        bad = np.frombuffer(whole, np.uint8).copy()
        bad[random.integers(0, len(bad), 5)] = random.integers(0, 256, 5)
        try:
            read_picture(bad[: random.integers(len(bad) // 2, 2 * len(bad))].tobytes())
        except VideoError as error:
            reasons.add(error.stage)
    assert reasons <= {"open", "decode"} and reasons


def test_pictures_that_cannot_be_shown_right_are_one_line(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    picture = Image.fromarray(upright())
    picture.save(tmp_path / "moving.webp", save_all=True, append_images=[picture.rotate(90)])
    comment = PngImagePlugin.PngInfo()
    comment.add_text("note", "x" * 2_000_000, zip=True)  # unpacks to more than is sane
    picture.save(tmp_path / "text.png", pnginfo=comment)
    Image.new("1", (3_000_000, 16)).save(tmp_path / "wide.png")
    for path, words in {
        tmp_path / "wide.png": "3000000 x 16 pixels are too many",
        tmp_path / "deep.png": "not 8 bits a channel",
        tmp_path / "moving.webp": "animated",
        tmp_path / "text.png": "too large",
        bomb(tmp_path / "bomb.png"): "decompression bomb",
        bomb(tmp_path / "bomb"): "decompression bomb",
    }.items():
        with pytest.raises(VideoError, match=words) as error:
            read_clip(path, 0, 1)
        assert error.value.stage == "decode" and "\n" not in str(error.value)
    with pytest.raises(VideoError, match="decompression bomb"):
        read_picture((tmp_path / "bomb").read_bytes())
    for content in (b"", b"<svg></svg>", b"#EXTM3U\n/etc/passwd\n"):
        with pytest.raises(VideoError, match="not a picture"):
            read_picture(content)
