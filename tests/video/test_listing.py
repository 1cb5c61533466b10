"""Lists of folders: what is found, what is left out and said, links."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from trees import frames, touch

from megavrc.errors import UserError
from megavrc.video import read_clip
from megavrc.video.listing import files_below, from_frames, list_folder
from megavrc.video.manifest import from_list


def found(folder: Path) -> list[str]:
    return [entry["id"] for entry in list_folder(folder, folder / "m.jsonl").entries]


KINDS = [  # name, container, codec
    ("a.3gp", "3gp", "mpeg4"),
    ("a.MTS", "mpegts", "libx264"),
    ("a.m2ts", "mpegts", "libx264"),
    ("a.ogv", "ogg", "libvpx"),
    ("a.VOB", "vob", "mpeg2video"),
    ("a.asf", "asf", "wmv2"),
    ("a.mxf", "mxf", "mpeg2video"),
    ("a.rm", "rm", "rv10"),
    ("a.f4v", "f4v", "libx264"),
    ("a.qt", "mov", "mpeg4"),
    ("a.m2v", "mpeg2video", "mpeg2video"),
    ("a.h264", "h264", "libx264"),
]


@pytest.mark.parametrize(("name", "container", "codec"), KINDS)
def test_files_of_cameras_discs_and_broadcast_are_listed_and_read(
    tmp_path: Path, name: str, container: str, codec: str
) -> None:
    with av.open(tmp_path / name, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for number in range(6):
            grey = np.full((144, 176, 3), 40 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode())
    assert found(tmp_path) == [name]
    levels = read_clip(tmp_path / name, 0, 5, size=16).mean((1, 2, 3))
    assert np.abs(levels - 40 * np.arange(5)).max() < 8


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    for name in (
        "a.mp4",
        "b/c.MP4",
        "b/c.srt",
        "b/d.srt",
        "b/e.JPG",
        "README",
        "b/._c.mp4",
        ".DS_Store",
        "no.txt",
    ):
        touch(tmp_path / name)
    touch(tmp_path / "a.txt", "a caption, which is used")
    listing = list_folder(tmp_path, tmp_path / "m.jsonl")
    assert len(listing.entries) == 2
    assert listing.notes == ["7 files are left out: 2 .srt, 2 hidden, 1 .jpg, 1 .txt, 1 without suffix"]
    with pytest.raises(
        UserError, match=r"no video files below it \(known: .*\); 1 files are left out: 1 .xyz"
    ):
        found(touch(tmp_path / "none" / "a.xyz").parent)


def test_what_a_list_of_picture_folders_leaves_out(tmp_path: Path) -> None:
    frames(tmp_path / "v", 2, "{}.png")
    touch(tmp_path / "v.TXT", "a caption")
    touch(tmp_path / "v" / "times.csv")
    touch(tmp_path / "w.mp4")
    listing = from_frames(tmp_path, tmp_path / "m.jsonl")
    assert [(entry["id"], entry["frames"], entry["caption"]) for entry in listing.entries] == [
        ("v", 2, "a caption")
    ]
    assert listing.notes == ["2 files are left out: 1 .csv, 1 .mp4"]


def test_a_folder_of_pictures_that_is_named_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames(tmp_path / "v", 2, "{}.png")
    (tmp_path / "v/inner").mkdir()
    touch(tmp_path / "v.txt", "a caption")
    outside = from_frames(tmp_path / "v", tmp_path / "m.jsonl").entries
    for inside, name in (("v", "."), ("v/inner", "..")):
        monkeypatch.chdir(tmp_path / inside)
        assert from_frames(Path(name), tmp_path / "m.jsonl").entries == outside


def test_captions_in_files_of_any_case(tmp_path: Path) -> None:
    for name, text in (
        ("a.TXT", "upper"),
        ("b.Txt", "mixed"),
        ("c.txt", "lower"),
        ("c.TXT", "not this"),
        ("d.txt", " \n"),
    ):
        touch(tmp_path / f"{name[0]}.mp4")
        touch(tmp_path / name, text)
    entries = list_folder(tmp_path, tmp_path / "m.jsonl").entries
    assert [entry["caption"] for entry in entries] == ["upper", "mixed", "lower", None]


def test_linked_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "clips"
    touch(elsewhere / "a.mp4")
    touch(elsewhere / "deep" / "b.mp4")
    root = tmp_path / "root"
    touch(root / "own" / "c.mp4")
    (root / "far").symlink_to(elsewhere)
    (elsewhere / "home").symlink_to(root)  # a circle through both
    (root / "own" / "itself").symlink_to(".")
    (root / "again").symlink_to(elsewhere / "deep")  # already below `far`
    (root / "own" / "z.mp4").symlink_to(elsewhere / "a.mp4")  # of a file, which counts as a file
    assert found(root) == ["again/b.mp4", "far/a.mp4", "own/c.mp4", "own/z.mp4"]
    entries = list_folder(root, root / "m.jsonl").entries
    assert [entry["class"] for entry in entries] == ["again", "far", "own", "own"]
    assert all((root / entry["path"]).is_file() for entry in entries)


def test_a_list_in_a_linked_folder_finds_its_videos(tmp_path: Path) -> None:
    for name in ("videos/run/a.mp4", "disk/deep/data/own/b.mp4", "frames/v/1.png"):
        touch(tmp_path / name)
    (tmp_path / "data").symlink_to("disk/deep/data")
    out = tmp_path / "data" / "manifest.jsonl"
    table = touch(tmp_path / "table.csv", "path\nvideos/run/a.mp4\n")
    for entries in (
        list_folder(tmp_path / "videos", out).entries,
        list_folder(tmp_path / "data", out).entries,
        from_frames(tmp_path / "frames", out).entries,
        from_list(table, out),
    ):
        assert len(entries) == 1
        assert (out.parent / entries[0]["path"]).exists(), entries[0]["path"]
    assert entries[0]["path"] == "../../../videos/run/a.mp4"
    assert list_folder(tmp_path / "data", out).entries[0]["path"] == "own/b.mp4"


def test_a_folder_below_the_root_has_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path / "run" / "a.mp4")
    (tmp_path / "alias").symlink_to("run")  # sorts before
    assert found(tmp_path) == ["run/a.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "shut" / "a.mp4")
    (tmp_path / "shut").chmod(0)
    with pytest.raises(UserError, match="shut: Permission denied; make it readable"):
        files_below(tmp_path)
    (tmp_path / "shut").chmod(0o700)


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("0.00", "0.04", "0.96", "1.00"), ("1.00", "0.04")),
        (("00-00-58", "00-00-59", "00-01-04"), ("00-01-04", "00-00-58")),
        (("0-v2", "2-v2", "10-v2"), ("10-v2", "2-v2")),
        (("take2_9", "take2_10"), None),
        (("b_1", "a_2", "cover"), None),
    ],
)
def test_pictures_whose_names_may_mean_another_order_are_named(
    tmp_path: Path, names: tuple[str, ...], pair: tuple[str, str] | None
) -> None:
    for name in names:
        touch(tmp_path / "in/a" / f"{name}.png")
    touch(tmp_path / "in/b" / "0.png")
    _, notes = from_frames(tmp_path / "in", tmp_path / "m.jsonl")
    assert len(notes) == bool(pair)
    if pair:
        start = "1 folders play by the last number in their pictures' names"
        assert notes[0].startswith(start)
        assert f"{tmp_path / 'in/a'} plays {pair[0]}.png before {pair[1]}.png; if that is wrong" in notes[0]
