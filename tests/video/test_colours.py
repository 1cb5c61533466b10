"""The decoding contract: known codes and a known number in every frame, whatever PyAV and FFmpeg take for granted."""

from pathlib import Path

import numpy as np
import pytest
from golden import GOLDEN, TAGS, number_of, patches_of, write

from megavrc.video import VideoError, read_clip, read_frames
from megavrc.video.times import frame_times, read_frames_at

DOCS = Path(__file__).parents[2] / "docs" / "tokenization.md"
COEFFICIENTS = {
    "BT.601": (0.299, 0.114),
    "BT.709": (0.2126, 0.0722),
    "BT.2020": (0.2627, 0.0593),
}  # of R, of B
QUIET = {
    "x265-params": "log-level=none:lossless=1:bframes=0"
}  # B frames of a short file have no set times in x265


def expected(tag: str) -> np.ndarray:
    return np.array([row[TAGS.index(tag)] for row in GOLDEN.values()])


def check(path: Path, tag: str) -> None:
    """Every way of reading gives the frames that were asked for, in the colours of the table, to one level."""
    clip = read_clip(path, 3, 5, stride=3, size=None)
    few = read_frames(path, [19, 0])
    timed = read_frames_at(path, frame_times(path, 0.2, 0.4).tolist())
    assert [number_of(frame) for frame in (*clip, *few, *timed)] == [3, 6, 9, 12, 15, 19, 0, 5, 6, 7, 8, 9]
    for frame in (*clip, *few, *timed):
        assert np.abs(patches_of(frame) - expected(tag)).max() <= 1


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("tag", TAGS)
def test_tagged_files(tmp_path: Path, tag: str, pixels: str) -> None:
    check(write(tmp_path / "video.mp4", tag, pixels), tag)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("vp9.webm", "libvpx-vp9", {"lossless": "1", "cpu-used": "8"}), ("hevc.mp4", "libx265", QUIET)],
)
def test_other_codecs(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    for tag in ("BT.709 limited", "BT.2020 full"):
        check(write(tmp_path / name, tag, codec=codec, options=options), tag)


def test_resized_files(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", "BT.709 full")
    half = read_clip(path, 7, 1, size=32)[0]  # the middle patch is in the middle
    assert np.abs(half[24, 16] - expected("BT.709 full")[len(GOLDEN) // 2]).max() <= 1


@pytest.mark.parametrize(
    ("size", "tag"),
    [
        ((224, 64), "BT.601 limited"),
        ((720, 576), "BT.601 limited"),
        ((1278, 576), "BT.601 limited"),
        ((224, 578), "BT.709 limited"),
        ((1280, 64), "BT.709 limited"),
    ],
)
def test_untagged_files_go_by_their_size(tmp_path: Path, size: tuple[int, int], tag: str) -> None:
    path = write(tmp_path / "video.mp4", size=size, count=1)
    assert np.abs(patches_of(read_clip(path, 0, 1, size=None)[0]) - expected(tag)).max() <= 1


@pytest.mark.parametrize(("full", "grey"), [(False, 128), (True, 126)])
def test_grey_files_have_a_range_too(tmp_path: Path, full: bool, grey: int) -> None:
    """swscale takes them as full, whatever the file says."""
    tag = "BT.709 full" if full else "BT.709 limited"
    path = write(tmp_path / "grey.mp4", tag, "gray", codec="libx265", options=QUIET, count=2)
    assert read_clip(path, 1, 1, size=None)[0, 48, 48].tolist() == [grey] * 3
    untagged = write(tmp_path / "grey.mkv", None, "gray", codec="ffv1", options={}, count=2)
    assert read_clip(untagged, 1, 1, size=None)[0, 48, 48].tolist() == [126] * 3


def test_a_matrix_without_a_formula_here_is_a_fault_of_the_video(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", colorspace=8, count=2)  # YCgCo
    with pytest.raises(VideoError, match=r"decode: frame 0: colour matrix 8 .* is not supported; convert"):
        read_clip(path, 0, 1)


def test_the_table_follows_the_standards() -> None:
    for place, tag in enumerate(TAGS):
        kr, kb = COEFFICIENTS[tag.split()[0]]
        low, luma, chroma = (0, 255, 255) if tag.endswith("full") else (16, 219, 224)
        for (y, cb, cr), row in GOLDEN.items():
            light = (y - low) / luma
            red, blue = (light + 2 * (1 - k) * (c - 128) / chroma for k, c in ((kr, cr), (kb, cb)))
            green = (light - kr * red - kb * blue) / (1 - kr - kb)
            assert row[place] == tuple(round(255 * value) for value in (red, green, blue))


def test_the_documentation_has_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for stored, row in GOLDEN.items():
        cells = (" ".join(map(str, code)) for code in (stored, *row))
        assert f"| {' | '.join(cells)} |" in text
