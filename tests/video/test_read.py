import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from golden import remux, write
from PIL import Image

from megavrc.evaluation.quality import psnr
from megavrc.video import VideoError, count_frames, probe, read_clip, read_frames, write_mp4
from megavrc.video.shapes import clip

CLIPS = Path(__file__).parents[3] / "shared" / "clips"
real_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="no real clips in ../shared/clips")


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """20 frames of 48x64; frame i is grey 10 i, with a white top left corner."""
    frames = np.zeros((20, 48, 64, 3), np.uint8) + (10 * np.arange(20, dtype=np.uint8))[:, None, None, None]
    frames[:, :16, :16] = 255
    write_mp4(tmp_path / "numbered.mp4", frames, fps=25)
    return tmp_path / "numbered.mp4"


def numbers(frames: np.ndarray) -> list[int]:
    return [round(float(frame[-8:, -8:].mean()) / 10) for frame in frames]


def test_lost_packets_and_a_cut_end_are_damage(tmp_path: Path) -> None:
    """Decoders make pictures of what is left, and call them whole; the container says that something is missing."""
    whole = write(tmp_path / "v.ts", count=48, codec="mpeg4", options={"b": "400k"}).read_bytes()
    parts = [whole[at : at + 188] for at in range(0, len(whole), 188)]
    mine = [number for number, part in enumerate(parts) if int.from_bytes(part[1:3], "big") & 0x1FFF == 256]
    assert count_frames(tmp_path / "v.ts") == 48
    lost = mine[len(mine) // 2]
    (tmp_path / "v.ts").write_bytes(b"".join(part for number, part in enumerate(parts) if number != lost))
    with pytest.raises(VideoError, match="damaged"):
        count_frames(tmp_path / "v.ts")
    write(tmp_path / "v.mp4", count=48, codec="libvpx-vp9", options={"b": "400k"})
    front = remux(tmp_path / "v.mp4", tmp_path / "front.mp4", {"movflags": "faststart"})
    content = front.read_bytes()
    (tmp_path / "front.mp4").write_bytes(content[: len(content) * 7 // 10])
    with pytest.raises(VideoError):
        count_frames(tmp_path / "front.mp4")


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_a_matroska_file_that_ends_before_it_says_is_cut_short(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "v.mp4", count=48, codec="libvpx-vp9", options={"b": "400k"})
    whole = remux(tmp_path / "v.mp4", tmp_path / f"whole.{suffix}").read_bytes()
    assert count_frames(tmp_path / f"whole.{suffix}") == 48
    cut = tmp_path / f"cut.{suffix}"
    for size in (20, 42, 50, 60, 300, *(len(whole) * part // 10 for part in range(1, 10)), len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(VideoError, match=rf"cut short: {size} of \d+ bytes$") as error:
            read_clip(cut, 0, 1)
        assert error.value.stage == "open"
    cut.write_bytes(whole + bytes(100))  # what follows is not of the video
    assert count_frames(cut) == 48
    live = remux(tmp_path / "v.mp4", tmp_path / f"live.{suffix}", {"live": "1"}).read_bytes()
    cut.write_bytes(live[: len(live) * 9 // 10])  # says no size: whatever was recorded
    assert 0 < count_frames(cut) < 48


def test_a_gif_that_ends_inside_a_picture_is_cut_short(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8)
    first, *others = map(Image.fromarray, noise)
    first.save(tmp_path / "v.gif", save_all=True, append_images=others)
    whole = (tmp_path / "v.gif").read_bytes()
    assert count_frames(tmp_path / "v.gif") == 4
    for size in (len(whole) // 2, len(whole) * 9 // 10, len(whole) - 2):
        (tmp_path / "v.gif").write_bytes(whole[:size])
        with pytest.raises(VideoError, match=rf"cut short: {size} bytes, inside a picture"):
            read_clip(tmp_path / "v.gif", 0, 1)
    (tmp_path / "v.gif").write_bytes(whole[:-1])  # its trailer
    assert count_frames(tmp_path / "v.gif") == 4


def test_a_unit_that_hevc_drops_is_damage(tmp_path: Path) -> None:
    """Its decoder says nothing, and goes on behind the next key frame."""
    options = {"x265-params": "log-level=none:keyint=12:bframes=0"}
    path = write(tmp_path / "v.mp4", count=36, codec="libx265", options=options)
    assert count_frames(path) == 36
    with av.open(str(path)) as container:
        [place] = [packet.pos for number, packet in enumerate(container.demux(video=0)) if number == 15]
    content = bytearray(path.read_bytes())
    content[place + 5] ^= 0xFF
    path.write_bytes(content)
    assert numbers(read_frames(path, [3]))
    with pytest.raises(VideoError, match=r"decode: frame 1[45]: Invalid data"):
        count_frames(path)


@pytest.mark.parametrize("number", [0, 3, 15, 35])
def test_a_picture_that_hevc_takes_for_another_layers_is_damage(tmp_path: Path, number: int) -> None:
    """Explode does not help: for its decoder nothing is wrong with such a unit."""
    options = {"x265-params": "log-level=none:keyint=12:bframes=2:b-adapt=0:open-gop=0:info=0"}
    path = write(tmp_path / "v.mp4", count=36, codec="libx265", options=options)
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(video=0)][number]
    content = bytearray(path.read_bytes())
    content[place + 5] ^= 8  # a bit of nuh_layer_id, behind 4 bytes of length and one of the kind
    path.write_bytes(content)
    with pytest.raises(VideoError, match="decode: frame"):
        count_frames(path)


def test_an_hevc_recording_may_begin_inside_an_open_group(tmp_path: Path) -> None:
    """Pictures shown before its first key frame lack those that they refer to, and are left out."""
    options = {"x265-params": "log-level=none:keyint=12:bframes=3:b-adapt=0:open-gop=1:scenecut=0"}
    whole = write(tmp_path / "v.mp4", count=36, codec="libx265", options=options)
    with av.open(str(whole)) as container:
        keys = [index for index, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    for first in (keys[1], keys[1] - 2):
        found = read_frames(remux(whole, tmp_path / "cut.mkv", first=first), list(range(36 - 12)), size=None)
        assert np.array_equal(found, read_clip(whole, 12, 24, size=None))


def test_a_clock_that_starts_again_loses_no_picture_of_hevc(tmp_path: Path) -> None:
    """Two recordings in one transport stream, whose counters go on."""
    options = {"x265-params": "log-level=none:keyint=12:bframes=3"}
    remux(write(tmp_path / "v.mp4", count=36, codec="libx265", options=options), tmp_path / "v.ts")
    content, counters = bytearray((tmp_path / "v.ts").read_bytes() * 2), dict[int, int]()
    for at in range(0, len(content), 188):
        pid = int.from_bytes(content[at + 1 : at + 3]) & 0x1FFF
        counters[pid] = (counters.get(pid, -1) + bool(content[at + 3] & 0x10)) % 16
        content[at + 3] = content[at + 3] & 0xF0 | counters[pid]
    (tmp_path / "v.ts").write_bytes(content)
    assert count_frames(tmp_path / "v.ts") == 72


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", "mp4"), ("msmpeg4", "avi"), ("wmv2", "asf")])
def test_pictures_before_the_first_whole_one_are_left_out(tmp_path: Path, codec: str, suffix: str) -> None:
    """What is cut between key frames begins with pictures that nothing was there to predict from."""
    whole = write(tmp_path / f"v.{suffix}", count=30, codec=codec, options={"g": "10"})
    cut = remux(whole, tmp_path / f"cut.{suffix}", first=4)
    found, true = read_clip(cut, 0, count_frames(cut), size=None), read_clip(whole, 10, 20, size=None)
    assert np.array_equal(found, true)


def test_clips_are_cut_by_decoded_frame(numbered: Path) -> None:
    assert count_frames(numbered) == 20
    assert probe(numbered) == (48, 64, 25.0, 20)
    assert numbers(read_clip(numbered, 3, 5, stride=3)) == [3, 6, 9, 12, 15]
    assert numbers(read_frames(numbered, [7, 2, 7, 19])) == [7, 2, 7, 19]


def test_sizes(numbered: Path) -> None:
    assert read_clip(numbered, 0, 1, size=None).shape == (1, 48, 64, 3)
    cut, squashed = read_clip(numbered, 0, 1, size=24), read_clip(numbered, 0, 1, size=24, crop="squash")
    assert cut.shape == squashed.shape == (1, 24, 24, 3)
    # The white corner is 16 of 64 columns: 4 of them are cut off on the left at half size, 6 remain when squashed.
    assert (cut[0, 0, :, 0] > 128).sum() == 4 and (squashed[0, 0, :, 0] > 128).sum() == 6
    with pytest.raises(ValueError, match="crop 'middle'"):
        read_clip(numbered, 0, 1, crop="middle")  # type: ignore[arg-type]


def test_downscaling_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 200
    write_mp4(tmp_path / "stripes.mp4", stripes, crf=1)
    assert np.ptp(read_clip(tmp_path / "stripes.mp4", 0, 1, size=16)[:, 2:-2, 2:-2].astype(int)) < 20


def test_too_short(numbered: Path) -> None:
    with pytest.raises(VideoError) as error:
        read_clip(numbered, 10, 17)
    assert error.value.stage == "short" and error.value.reason == "20 frames, frame 26 is needed"
    assert numbers(read_clip(numbered, 10, 6, stride=4, short="clamp")) == [10, 14, 18, 19, 19, 19]
    with pytest.raises(VideoError, match="short"):
        read_clip(numbered, 20, 1, short="clamp")
    with pytest.raises(VideoError, match="short"):
        read_frames(numbered, [0, 20])


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_text("<html>not found</html>")
    (tmp_path / "empty.mp4").touch()
    for name in ("page.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match=name) as error:
            read_clip(tmp_path / name, 0, 1)
        assert error.value.stage == ("io" if name == "missing.mp4" else "open") and error.value.reason


def test_a_truncated_file_gives_its_whole_frames_and_then_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    write_mp4(tmp_path / "whole.mp4", noise)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    whole = read_clip(tmp_path / "whole.mp4", 0, 5)
    assert np.array_equal(read_clip(tmp_path / "cut.mp4", 0, 5), whole)
    for read in (
        lambda: read_clip(tmp_path / "cut.mp4", 0, 20, short="clamp"),
        lambda: count_frames(tmp_path / "cut.mp4"),
    ):
        with pytest.raises(VideoError) as error:
            read()
        assert error.value.stage == "decode"


def test_overwritten_bytes_are_noticed(tmp_path: Path) -> None:
    """A decoder conceals such damage: pictures that look fine and are wrong."""
    write_mp4(tmp_path / "whole.mp4", clip(0, 0, size=256)[1], crf=1)
    content = (tmp_path / "whole.mp4").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(10):
        damaged = bytearray(content)
        place = int(random.integers(content.index(b"mdat") + 1000, len(content) - 100))
        damaged[place : place + 100] = random.bytes(100)
        (tmp_path / "damaged.mp4").write_bytes(damaged)
        with pytest.raises(VideoError, match="decode: frame"):
            read_clip(tmp_path / "damaged.mp4", 0, 17)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "timeout", "60 s")))
    assert (error.stage, error.reason, str(error)) == ("timeout", "60 s", "a.mp4: timeout: 60 s")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.avi"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="no video stream"):
        read_clip(tmp_path / "sound.avi", 0, 1)


@real_clips
def test_rotation_is_applied() -> None:
    upright = read_clip(CLIPS / "rotated_90.mov", 0, 1, size=None)[0]
    assert upright.shape == (568, 320, 3) and probe(CLIPS / "rotated_90.mov")[:2] == (568, 320)
    with av.open(str(CLIPS / "rotated_90.mov")) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    # The display matrix turns clockwise: the stored bottom left corner is shown at the top left.
    assert psnr(upright, np.ascontiguousarray(np.rot90(stored, -1))) > 35
    small = read_clip(CLIPS / "rotated_90.mov", 0, 1, size=32)[0]
    assert small.shape == (32, 32, 3)


@real_clips
def test_damage_is_reported_with_stage_and_reason() -> None:
    with pytest.raises(VideoError) as error:
        count_frames(CLIPS / "corrupted.mp4")
    assert error.value.stage == "decode" and error.value.reason.startswith("frame ")


@real_clips
@pytest.mark.parametrize(("name", "count"), [("bikes.mp4", 250), ("nasa_13013.mp4", 390)])
def test_real_videos(name: str, count: int) -> None:
    assert count_frames(CLIPS / name) == count
    end = read_clip(CLIPS / name, count - 17, 17, size=64)
    assert end.shape == (17, 64, 64, 3)
    assert np.array_equal(end, read_frames(CLIPS / name, list(range(count - 17, count)), size=64))
