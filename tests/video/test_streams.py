"""Which stream, which field, which transfer function: what players show, or a failure by its name."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from golden import write
from PIL import Image

from megavrc.video import VideoError, count_frames, probe, read_clip
from megavrc.video.times import frame_times, read_frames_at

CASES = Path(__file__).parents[3] / "shared" / "cases"
RATE = 25


def write_streams(path: Path, *streams: tuple[int, int, Disposition], still: int = 0) -> Path:
    """Grey videos of (width, grey level, disposition) in one file, half as high as wide; that of width `still` has one
    frame."""
    with av.open(str(path), "w") as container:
        made = []
        for width, level, disposition in streams:
            codec = "png" if disposition & Disposition.attached_pic else "libx264"
            stream = container.add_stream(codec, rate=RATE)
            stream.width, stream.height = width, width // 2
            stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
            stream.disposition = disposition
            made.append((stream, np.full((width // 2, width, 3), level, np.uint8)))
        for stream, picture in made:
            for index in range(1 if stream.name == "png" or stream.width == still else 3):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


NONE, DEFAULT, COVER = Disposition(0), Disposition.default, Disposition.attached_pic


@pytest.mark.parametrize(
    ("streams", "shown"),
    [
        ([(64, 50, NONE), (32, 200, DEFAULT)], 32),  # the default one, though it is smaller
        ([(32, 50, DEFAULT), (64, 200, DEFAULT)], 64),  # the largest
        ([(32, 50, NONE), (64, 200, NONE), (32, 100, NONE)], 64),
        ([(64, 50, NONE), (64, 200, NONE)], 64),  # the first, in level 50
        ([(96, 50, COVER), (32, 200, NONE)], 32),
        ([(32, 200, NONE), (96, 50, COVER)], 32),
    ],
)
def test_the_stream_that_players_show(
    tmp_path: Path, streams: list[tuple[int, int, Disposition]], shown: int
) -> None:
    name = "video.mp4" if any(kind == COVER for _, _, kind in streams) else "video.mkv"
    path = write_streams(tmp_path / name, *streams)
    level = next(level for width, level, kind in streams if width == shown and kind != COVER)
    clip = read_clip(path, 0, 3, size=None)
    assert clip.shape == (3, shown // 2, shown, 3) and abs(int(clip[0, 4, 4, 0]) - level) <= 3
    assert probe(path)[:2] == (shown // 2, shown) and count_frames(path) == 3
    assert len(frame_times(path)) == 3
    assert np.array_equal(read_frames_at(path, frame_times(path).tolist()), clip)


def test_a_picture_that_no_flag_calls_a_cover_is_not_the_video(tmp_path: Path) -> None:
    """Put first into an mp4, as the picture of a song or a title is, it is the default stream, and larger."""
    path = write_streams(tmp_path / "video.mp4", (96, 50, DEFAULT), (32, 200, NONE), still=96)
    assert probe(path)[:2] == (16, 32) and count_frames(path) == 3
    alone = write_streams(tmp_path / "still.mp4", (96, 50, DEFAULT), still=96)
    assert probe(alone)[:2] == (48, 96) and count_frames(alone) == 1


def test_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "song.mp4", (64, 50, COVER))
    with pytest.raises(VideoError, match="no video stream") as error:
        read_clip(path, 0, 1)
    assert error.value.stage == "open"


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize("name", ["cover_first.mp4", "two_streams.mkv"])
def test_the_stream_of_the_cases(name: str) -> None:
    assert probe(CASES / name)[:2] == (96, 128)


@pytest.mark.parametrize(("code", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_a_failure_by_name(tmp_path: Path, code: int, name: str) -> None:
    path = write(tmp_path / "video.mp4", "BT.2020 limited", "yuv420p10le", count=2, color_trc=code)
    with pytest.raises(VideoError, match=rf"frame 0: HDR \({name}\)") as error:
        read_clip(path, 0, 1)
    assert error.value.stage == "decode"
    read_clip(write(tmp_path / "sdr.mp4", "BT.2020 limited", "yuv420p10le", count=2, color_trc=14), 0, 1)


@pytest.mark.parametrize(("code", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_that_the_container_alone_knows_of(tmp_path: Path, code: int, name: str) -> None:
    """ProRes whose frames do not say it."""
    with av.open(str(tmp_path / "video.mov"), "w") as container:
        stream = container.add_stream("prores_ks", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv422p10le"
        codec = stream.codec_context
        codec.color_trc, codec.color_primaries, codec.colorspace = code, 9, 9  # BT.2020
        grey = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
        container.mux(stream.encode(grey.reformat(format="yuv422p10le")))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=rf"frame 0: HDR \({name}\)"):
        read_clip(tmp_path / "video.mov", 0, 1)


def write_interlaced(path: Path, codec: str, pixels: str) -> Path:
    """A bright bar that moves by 4 pixels a field."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options={"flags": "+ilme+ildct"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 96, pixels, 8_000_000
        for index in range(6):
            picture = np.full((96, 128, 3), 40, np.uint8)
            for field in (0, 1):
                left = 4 * (2 * index + field)
                picture[field::2, left : left + 24] = 220
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("video.mpg", "mpeg2video", "yuv420p"),
        ("video.mp4", "libx264", "yuv420p"),
        ("video.mkv", "libx264", "yuv422p10le"),
    ],
)
def test_interlaced_frames_show_one_moment(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    """Between the lines of the first field lie lines like them, not those of a moment later."""
    path = write_interlaced(tmp_path / name, codec, pixels)
    clip = read_clip(path, 0, 6, size=None)[..., 1].astype(int)
    for index, picture in enumerate(clip[:, 8:-8]):
        assert np.abs(np.diff(picture, axis=0)).max() < 40
        left = 8 * index
        assert picture[:, left + 4 : left + 20].min() > 180 and picture[:, left + 28 :].max() < 80
    later = read_frames_at(path, frame_times(path)[3:].tolist())  # after a jump, in files with an index
    assert np.array_equal(later, read_clip(path, 3, 3, size=None))


def write_with_gaps(path: Path, frames: int, shown: set[int]) -> Path:
    """An AVI in which the pictures that are not shown are empty packets: the one before stays."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            if index not in shown:
                continue
            picture = np.full((48, 64, 3), 4 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_shots_of_an_avi_with_empty_packets_stay_in_their_range(tmp_path: Path) -> None:
    shown = [index for index in range(50) if index % 5 != 4]
    path = write_with_gaps(tmp_path / "video.avi", 50, set(shown))
    times = frame_times(path, 1.0, 1.4)
    assert times.tolist() == pytest.approx([i / RATE for i in shown if 25 <= i < 35])
    levels = read_frames_at(path, times.tolist())[:, 20, 20, 1]
    assert levels.astype(int).tolist() == pytest.approx([4 * i for i in shown if 25 <= i < 35], abs=4)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
def test_times_of_the_case_with_empty_packets() -> None:
    times = frame_times(CASES / "empty_packets.avi")
    assert times.tolist() == pytest.approx([i / RATE for i in range(49) if i % 5 != 4])


def test_avif_is_read_whole_and_upright(tmp_path: Path) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 48:], picture[32:] = (200, 30, 40), (30, 40, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(picture).copy()).save(
        tmp_path / "photo.avif", quality=95, subsampling="4:4:4", exif=exif
    )
    read = read_clip(tmp_path / "photo.avif", 0, 1, size=None)[0]
    assert read.shape == picture.shape and np.abs(read.astype(int) - picture)[4:-4:9, 4:-4:9].max() < 12


def test_moving_avif_is_a_video(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 48), (level, level, level)) for level in (40, 120, 200)]
    frames[0].save(tmp_path / "video.avif", save_all=True, append_images=frames[1:], duration=40)
    clip = read_clip(tmp_path / "video.avif", 0, 3, size=None)
    assert [int(level) for level in clip[:, 20, 20, 1]] == pytest.approx([40, 120, 200], abs=4)


def test_heic_is_refused_by_name(tmp_path: Path) -> None:
    """Its pictures are grids: FFmpeg would give the first tile."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(VideoError, match="HEIC") as error:
        read_clip(path, 0, 1)
    assert error.value.stage == "open"
