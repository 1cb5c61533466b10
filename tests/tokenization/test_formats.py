"""Kinds of files that datasets hold, through the real job; and videos whose frames are known by their times."""

import json
import os
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from jobs import SMALL, samples, tokenize
from PIL import Image

from megavrc.errors import UserError
from megavrc.tokenization.cut import Cuts, cut
from megavrc.tokenization.decoders import Decoders
from megavrc.tokenization.job import plan
from megavrc.tokenization.plan import encode, load_plan
from megavrc.tokenization.result import read_failures, verify
from megavrc.tokenization.sampling import ClipSettings
from megavrc.tokenizers import OmniTokenizer
from megavrc.video import VideoError, read_clip
from megavrc.video.manifest import write_manifest
from megavrc.video.shots import read_shot, resample

COUNT, STEP = 24, 8  # frame i has brightness 16 + STEP i, and a white left half of the top
HEIGHT, WIDTH = 48, 64
QUIET = {"x265-params": "log-level=none"}
KINDS = {  # name -> encoder, pixel format, size, options
    "plain.mp4": ("libx264", "yuv420p", (WIDTH, HEIGHT), {"bf": "3"}),
    "hevc.mp4": ("libx265", "yuv420p", (WIDTH, HEIGHT), QUIET),
    "hevc10.mkv": ("libx265", "yuv420p10le", (WIDTH, HEIGHT), QUIET),
    "av1.mp4": ("libsvtav1", "yuv420p", (WIDTH, HEIGHT), {"preset": "10"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", (WIDTH, HEIGHT), {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", (WIDTH, HEIGHT), {"bf": "2", "g": "8", "qmin": "1", "qmax": "2"}),
    "ten_bits.mp4": ("libx264", "yuv420p10le", (WIDTH, HEIGHT), {}),
    "grey.mp4": ("libx264", "gray", (WIDTH, HEIGHT), {}),
    "odd.mp4": ("libx264", "yuv444p", (WIDTH - 1, HEIGHT - 1), {}),
}
UNEVEN = np.cumsum(np.random.default_rng(1).uniform(0.01, 0.1, COUNT))  # seconds


def pictures() -> np.ndarray:
    levels = 16 + STEP * np.arange(COUNT, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (COUNT, HEIGHT, WIDTH, 3)).copy()
    frames[:, :16, : WIDTH // 2] = 255
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are, by the brightness of the bottom."""
    return [round((float(frame[-8:].mean()) - 16) / STEP) for frame in frames]


def write(
    path: Path,
    encoder: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
) -> Path:
    base = Fraction(1, 30) if times is None else Fraction(1, 10_000)
    stamps = range(COUNT) if times is None else [round((time - times[0]) / base) for time in times]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=30, options={"crf": "10"} | (options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = base
        if pixels == "gray":  # what the conversion below makes
            stream.codec_context.color_range = ColorRange.JPEG
        for picture, stamp in zip(pictures(), stamps, strict=True):
            cut = np.ascontiguousarray(picture[: size[1], : size[0]])
            frame = av.VideoFrame.from_ndarray(cut, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = stamp, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    # under root it makes its caller real-time
    if encoder == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def turn(path: Path) -> None:
    """Say in the track header that the picture is to be shown turned clockwise by a quarter."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, HEIGHT * one, 0, 1 << 30)
    path.write_bytes(content)


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    for name, kind in KINDS.items():
        write(folder / name, *kind)
    write(folder / "uneven.mp4", times=UNEVEN.tolist())
    write(folder / "uneven.mkv", times=UNEVEN.tolist())
    turn(write(folder / "turned.mp4"))
    write_sound(folder / "sound.mp4")
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<html>not found</html>")
    plain = (folder / "plain.mp4").read_bytes()
    (folder / "headless.mp4").write_bytes(plain[: len(plain) // 2])  # the index is at the end
    streamed = (folder / "vp9.webm").read_bytes()
    (folder / "cut.webm").write_bytes(streamed[: len(streamed) // 2])
    return folder


def cut_of(path: Path, entry: dict[str, float] | None = None, **settings: object) -> Cuts:
    chosen = ClipSettings(**{"size": 32, "clips_per_video": 3, "images_per_video": 4, **settings})
    return cut(chosen, path, {"id": path.name, **(entry or {})})


@pytest.mark.parametrize("name", [*KINDS, "uneven.mp4", "uneven.mkv"])
def test_pictures_are_those_that_were_written(folder: Path, name: str) -> None:
    cuts = cut_of(folder / name)
    for clip in cuts.clips:
        assert numbers(cuts.frames_NHWC[clip.rows]) == list(range(clip.start, clip.start + 17))
    for image in cuts.images:
        assert numbers(cuts.frames_NHWC[image.rows]) == [image.start]


def test_every_kind_of_file_through_the_job(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    entries = [{"path": str(folder / name), "id": name, "caption": name} for name in names]
    write_manifest(tmp_path / "manifest.jsonl", entries)
    out = tokenize(tmp_path / "manifest.jsonl", tokenizer, tmp_path / "out")
    lines = [line for path in (out / "failures").iterdir() for line in path.read_text().splitlines()]
    stages = {(failure := json.loads(line))["source"]: failure["stage"] for line in lines}
    assert stages == dict.fromkeys(("cut.webm", "empty.mp4", "headless.mp4", "page.mp4", "sound.mp4"), "open")
    found = {fields["source"]: (ids, fields) for ids, fields in samples(out, "video").values()}
    assert set(found) == {*KINDS, "uneven.mp4", "uneven.mkv", "turned.mp4"}
    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    for name, (ids, fields) in found.items():
        frames = read_clip(folder / name, fields["start_frame"], 17, size=32)
        assert (ids == encode(loaded, frames[None])[0]).all()


def test_turned_videos_are_shown_upright(folder: Path) -> None:
    frames = cut_of(folder / "turned.mp4").frames_NHWC
    # Stored: white in the top left. Turned clockwise: white in the top right.
    assert frames[0, :8, -8:].mean() > 200 > 150 > frames[0, -8:, :8].mean()


def test_frames_per_second_follow_the_clock(folder: Path) -> None:
    """Frame k of the resampled video is what is on the screen at k / fps."""
    for name in ("uneven.mp4", "uneven.mkv"):
        cuts = cut_of(folder / name, fps=20.0, frames=9)
        for clip in cuts.clips:
            moments = UNEVEN[0] + (clip.start + np.arange(9)) / 20 + 1e-3
            shown = np.searchsorted(UNEVEN, moments, side="right") - 1
            assert numbers(cuts.frames_NHWC[clip.rows]) == shown.tolist()
    steady = cut_of(folder / "mpeg4.avi", fps=15.0, frames=9)  # every other frame of 30 a second
    for clip in steady.clips:
        assert numbers(steady.frames_NHWC[clip.rows]) == list(range(2 * clip.start, 2 * clip.start + 17, 2))
    slow = cut_of(folder / "plain.mp4", fps=60.0, clips_per_video=1)  # a slower video repeats frames
    first = slow.clips[0].start
    assert numbers(slow.frames_NHWC[slow.clips[0].rows]) == [(first + k) // 2 for k in range(17)]
    assert resample(np.array([0.0, 0.5, 1.0]), 4).tolist() == [0, 0, 0.5, 0.5, 1]


@pytest.mark.parametrize("name", ["plain.mp4", "hevc10.mkv", "vp9.webm", "mpeg4.avi", "av1.mp4"])
def test_a_shot_is_not_left(folder: Path, name: str) -> None:
    """Clips and images stay inside [start, end); frame 10 is shown at 1/3 s."""
    for fps in (None, 30.0):
        shot = {"start": 10 / 30, "end": 20 / 30}
        cuts = cut_of(folder / name, shot, frames=5, images_per_video=99, fps=fps)
        assert numbers(cuts.frames_NHWC) == list(range(10, 20))
        assert sorted(image.start for image in cuts.images) == list(range(10))
        for clip in cuts.clips:
            first = 10 + clip.start
            assert numbers(cuts.frames_NHWC[clip.rows]) == list(range(first, first + 5))
    assert numbers(cut_of(folder / name, {"start": 0.5}, frames=5).frames_NHWC)[0] >= 15
    assert numbers(cut_of(folder / name, {"end": 0.3}, frames=5).frames_NHWC)[-1] <= 8


@pytest.mark.parametrize("name", ["still.mp4", "still.mkv", "still.webm"])
def test_a_shot_of_a_screen_that_stands_still(tmp_path: Path, name: str) -> None:
    """Resampled, it holds what is on the screen, also what was there before it began; it ends with the video."""
    times = np.concatenate([np.arange(14) / 10, 8 + np.arange(10) / 10])  # frame 13 stays
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = write(tmp_path / name, codec, times=times.tolist())

    def frames(count: int, read: Callable[..., Any]) -> list[int]:
        return numbers(read(list(range(count)))) if count else []

    for start, end, count in ((3, 7, 32), (1, 6, 40), (3, 9, 48), (7.95, 20, 8), (9.5, 12, 0)):
        shown = read_shot(path, {"start": start, "end": end}, frames, size=32, fps=8)
        moments = start + np.arange(count) / 8 + 1e-3
        assert shown == (np.searchsorted(times, moments, side="right") - 1).tolist()


def test_a_shot_in_a_still_part_of_an_mp4(tmp_path: Path) -> None:
    """Its key frame is decoded long before it is shown: a search by times of decoding goes past what is before it."""
    times = [*np.arange(8) / 10, 2.0, 3.0, *np.arange(40, 54) / 10]
    path = write(tmp_path / "still.mp4", options={"bf": "3", "g": "10"}, times=times)
    for start, first in ((2.0, 8), (3.0, 9), (4.0, 10)):
        found = cut_of(path, {"start": start, "end": 4.45}, frames=5, images_per_video=99)
        assert numbers(found.frames_NHWC) == list(range(first, 15))


def test_shots_that_are_too_short(folder: Path) -> None:
    with pytest.raises(VideoError, match="short: 10 frames, a clip needs 17"):
        cut_of(folder / "plain.mp4", {"start": 10 / 30, "end": 20 / 30})
    for short in ("skip", "clamp"):
        with pytest.raises(VideoError, match="short: 0 frames"):
            cut_of(folder / "plain.mp4", {"start": 100.0}, short=short)


def test_shots_and_rates_are_checked(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    for shot in ({"start": 3, "end": 3}, {"start": "a"}, {"start": -1.0}):
        line = json.dumps({"path": str(folder / "plain.mp4"), **shot})
        (tmp_path / "m.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match="seconds"):
            plan(tmp_path / "m.jsonl", tmp_path / "out", tokenizer, **SMALL)
    with pytest.raises(UserError, match="fps 0: must be positive"):
        ClipSettings(fps=0)


def test_two_shots_of_a_file_through_the_job(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    shots = [{"id": f"plain/{n}", "start": n * 0.4, "end": (n + 1) * 0.4} for n in range(2)]
    write_manifest(
        tmp_path / "m.jsonl", [{"path": str(folder / "plain.mp4"), "caption": "", **shot} for shot in shots]
    )
    out = tokenize(tmp_path / "m.jsonl", tokenizer, tmp_path / "out", frames=9)
    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    clips = samples(out, "video")
    assert len(clips) == 2
    for ids, fields in clips.values():
        first = round(fields["start"] * 30) + fields["start_frame"]
        frames = read_clip(folder / "plain.mp4", first, 9, size=32)
        assert (ids == encode(loaded, frames[None])[0]).all()


def test_strange_files_are_failures_that_stay(tokenizer: Path, tmp_path: Path) -> None:
    """Files that name other files, a pipe, a photo with EXIF: none of them is a crash, which would be tried again."""
    write(tmp_path / "plain.mp4")
    texts = {
        "playlist.mp4": "ffconcat version 1.0\nfile plain.mp4\n",
        "stream.mkv": "#EXTM3U\n#EXTINF:1,\nplain.mp4\n#EXT-X-ENDLIST\n",
        "session.jpg": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    os.mkfifo(tmp_path / "pipe.mp4")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    Image.fromarray(pictures()[0]).save(tmp_path / "photo.jpg", exif=exif)
    entries = [{"path": path.name, "id": path.name} for path in sorted(tmp_path.iterdir())]
    write_manifest(tmp_path / "manifest.jsonl", entries)
    out = tokenize(tmp_path / "manifest.jsonl", tokenizer, tmp_path / "out")
    lines = [line for path in (out / "failures").iterdir() for line in path.read_text().splitlines()]
    failures = {failure["source"]: failure for failure in map(json.loads, lines)}
    assert failures.pop("photo.jpg")["stage"] == "short"
    assert {failure["stage"] for failure in failures.values()} == {"open"}
    assert set(failures) == {*texts, "pipe.mp4"}


def test_an_exception_in_cutting_is_no_crash(folder: Path) -> None:
    """An entry that does not come from a manifest: its end is a text. No other day will change that."""
    with Decoders(1, 60) as pool:
        entry = {"id": "plain.mp4", "end": "soon"}
        (result,) = pool.cut(ClipSettings(size=32), [(folder / "plain.mp4", entry)])
    assert isinstance(result, VideoError) and result.stage == "decode"
    assert result.reason.startswith("TypeError: ")


def test_ids_may_hold_any_character(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Of failures too: a line separator in an id does not end its line."""
    ids = {"good\u2028\x85": "plain.mp4", "missing\u2028\x85": "missing.mp4"}
    write_manifest(tmp_path / "m.jsonl", [{"id": i, "path": str(folder / ids[i])} for i in ids])
    out = tokenize(tmp_path / "m.jsonl", tokenizer, tmp_path / "out")
    verify(out)
    assert [failure["source"] for failure in read_failures(load_plan(out), load_plan(out).units[0])] == [
        "missing\u2028\x85"
    ]
