"""The presets, each on a generated tree of the layout of its data set, with the traps of the real one."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from trees import frames, touch

from megavrc.errors import UserError
from megavrc.tokenization.datasets import (
    faceforensics,
    framefolder,
    list_,
    msrvtt,
    skytimelapse,
    taichi,
    ucf101,
)
from megavrc.tokenization.prepare import COMMANDS
from megavrc.video.manifest import Entry, read_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[2]


def splits(entries: list[Entry]) -> dict[str, int]:
    return dict(Counter(entry["split"] for entry in entries))


# --- UCF101 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Four classes whose order in classInd.txt is not that of the alphabet; two groups, the second for tests."""
    names = ["YoYo", "HandstandPushups", "Archery", "HandstandWalking"]
    lists = tmp_path / "ucfTrainTestlist"
    touch(lists / "classInd.txt", "".join(f"{n} {name}\r\n" for n, name in enumerate(names, 1)))
    train, test = "", ""
    for number, name in enumerate(names, 1):
        for group in (1, 2):
            # As in the original: the folder HandstandPushups holds files with a capital S.
            file = f"{name}/v_{name.replace('standP', 'StandP')}_g0{group}_c01.avi"
            touch(tmp_path / "UCF-101" / file)
            if group == 1:
                train += f"{file} {number}\r\n"
            else:
                test += f"{file}\r\n"
    touch(lists / "trainlist01.txt", train)
    touch(lists / "testlist01.txt", test)
    return tmp_path


@pytest.mark.parametrize("inside", ["", "UCF-101", "."])
def test_ucf101_takes_the_class_from_the_folder_and_the_label_from_classind(
    ucf: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ucf / "UCF-101")
    entries, notes = ucf101(Path() if inside == "." else ucf / inside, ucf / "m.jsonl")
    assert {(e["class"], e["label"]) for e in entries} == {
        ("YoYo", 0),
        ("HandstandPushups", 1),
        ("Archery", 2),
        ("HandstandWalking", 3),
    }
    assert {e["id"]: e["split"] for e in entries}[
        "HandstandPushups/v_HandStandPushups_g01_c01.avi"
    ] == "train"
    assert splits(entries) == {"train": 4, "test": 4}
    assert notes == [
        "4 classes of 4 (published: 101)",
        "train: 4 videos (9537 published)",
        "test: 4 videos (3783 published)",
    ]


def test_ucf101_copies_with_other_case_and_format(ucf: Path) -> None:
    (ucf / "UCF-101" / "HandstandPushups").rename(ucf / "UCF-101" / "HandStandPushups")
    for path in (ucf / "UCF-101").rglob("*.avi"):
        path.rename(path.with_name(path.stem.replace("StandP", "standP") + ".mp4"))
    entries, _ = ucf101(ucf, ucf / "m.jsonl")
    assert splits(entries) == {"train": 4, "test": 4}
    assert ("HandstandPushups", 1) in {(e["class"], e["label"]) for e in entries}


def test_ucf101_counts_what_is_missing_and_what_is_not_listed(ucf: Path) -> None:
    (ucf / "UCF-101/YoYo/v_YoYo_g01_c01.avi").unlink()
    touch(ucf / "UCF-101/YoYo/v_YoYo_g99_c01.avi")
    entries, notes = ucf101(ucf, ucf / "m.jsonl")
    assert len(entries) == 7
    assert "1 listed videos are missing and left out, the first is YoYo/v_YoYo_g01_c01.avi" in notes
    assert "1 videos are in neither list and left out, the first is YoYo/v_YoYo_g99_c01.avi" in notes
    everything, _ = ucf101(ucf, ucf / "m.jsonl", fold="all")
    assert splits(everything) == {"train": 8}


def test_ucf101_wrong_trees(ucf: Path) -> None:
    with pytest.raises(UserError, match=r"trainlist03.txt: no such file"):
        ucf101(ucf, ucf / "m", fold="3")
    with pytest.raises(UserError, match=r"classInd.txt: no such file; it comes with"):
        ucf101(ucf / "UCF-101", ucf / "m", lists=ucf)
    touch(ucf / "ucfTrainTestlist/testlist02.txt", "YoYo/v_YoYo_g01_c01.avi\n")
    touch(ucf / "ucfTrainTestlist/trainlist02.txt", "YoYo/v_YoYo_g01_c01.avi 3\n")
    with pytest.raises(UserError, match=r"trainlist02.txt line 1: .* does not agree with classInd.txt"):
        ucf101(ucf, ucf / "m", fold="2")
    touch(ucf / "UCF-101/Sleeping/v_Sleeping_g01_c01.avi")
    with pytest.raises(UserError, match=r"Sleeping/v_Sleeping_g01_c01.avi: not in a folder of a class"):
        ucf101(ucf, ucf / "m")
    for lines in ("0 YoYo\n1 Archery\n", "1 YoYo\n2\n"):
        touch(ucf / "ucfTrainTestlist/classInd.txt", lines)
        with pytest.raises(UserError, match=r"classInd.txt: expected lines"):
            ucf101(ucf, ucf / "m")


# --- sets of one class -------------------------------------------------------------------------------------------


def test_skytimelapse_is_nested_two_levels_deep(tmp_path: Path) -> None:
    for name, count in (("sky_train/abc/abc_1", 70), ("sky_train/abc/abc_2", 3), ("sky_test/xyz/xyz_1", 40)):
        frames(tmp_path / name, count, Path(name).name + "_frames_{:08d}.jpg")
    touch(tmp_path / "readme", "not a video")
    entries, notes = skytimelapse(tmp_path, tmp_path / "lists" / "m.jsonl", fps=25)
    assert [
        (e["id"], e["path"], e["split"], e["frames"], e["label"], e["class"], e["fps"]) for e in entries
    ] == [
        ("sky_train/abc/abc_1", "../sky_train/abc/abc_1", "train", 70, 0, "skytimelapse", 25),
        ("sky_train/abc/abc_2", "../sky_train/abc/abc_2", "train", 3, 0, "skytimelapse", 25),
        ("sky_test/xyz/xyz_1", "../sky_test/xyz/xyz_1", "test", 40, 0, "skytimelapse", 25),
    ]
    assert notes == [
        "train: 2 videos, 2 clips of 32 frames (35392 published)",
        "test: 1 videos, 1 clips of 32 frames (2815 published)",
    ]
    long, notes = skytimelapse(tmp_path, tmp_path / "m.jsonl", min_frames=17)
    assert [e["frames"] for e in long] == [70, 40]
    assert notes[0] == "1 videos of fewer than 17 frames are left out"
    with pytest.raises(UserError, match="neither sky_train nor sky_test lies there; expected sky_train/<id>"):
        skytimelapse(tmp_path / "sky_train", tmp_path / "m.jsonl")
    with pytest.raises(UserError, match="none of the 3 videos has 100 frames"):
        skytimelapse(tmp_path, tmp_path / "m.jsonl", min_frames=100)


@pytest.mark.parametrize("kind", ["videos", "pictures", "pictures named like videos"])
def test_taichi_as_videos_and_as_pictures(tmp_path: Path, kind: str) -> None:
    for video in ("train/u6rJiF-gPx8#80#300", "train/u6rJiF-gPx8#575#717", "test/NBGys-uxScs#134#312"):
        if kind == "videos":
            touch(tmp_path / f"{video}.mp4")
        elif kind == "pictures":
            frames(tmp_path / "taichi-256" / "frames" / video, 3, "{:07d}.png")
        else:
            frames(tmp_path / f"{video}.mp4", 3, "{:07d}.png")
    entries, notes = taichi(tmp_path, tmp_path / "m.jsonl")
    assert splits(entries) == {"train": 2, "test": 1}
    assert {(e["label"], e["class"], e.get("frames")) for e in entries} == {
        (0, "taichi", None if kind == "videos" else 3)
    }
    assert all((tmp_path / e["path"]).exists() for e in entries)
    assert notes == ["train: 2 videos (3049 published)", "test: 1 videos (285 published)"]
    with pytest.raises(UserError, match="neither train nor test lies there"):
        taichi(tmp_path / "test", tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (["preprocess_ffs/train/videos/a.mp4", "preprocess_ffs/val/videos/b.mp4"], {"train": 1, "val": 1}),
        (["train/a.mp4", "test/b.mp4"], {"train": 1, "test": 1}),
        (["videos/a.mp4", "images/ignored.mp4"], {"train": 1}),
        (["a.mp4", "b.mp4"], {"train": 2}),
        (
            [
                "original_sequences/youtube/c23/videos/000.mp4",
                "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4",
            ],
            {"train": 1},
        ),
    ],
)
def test_faceforensics_skips_the_first_seconds(
    tmp_path: Path, layout: list[str], expected: dict[str, int]
) -> None:
    for name in layout:
        touch(tmp_path / name)
    entries, notes = faceforensics(tmp_path, tmp_path / "m.jsonl")
    assert splits(entries) == expected
    assert {(e["label"], e["start"]) for e in entries} == {(0, 0.5)}
    assert not any("manipulated" in e["id"] for e in entries)
    assert notes[0] == f"train: {expected['train']} videos (704 published)"
    assert all("start" not in e for e in faceforensics(tmp_path, tmp_path / "m", skip_seconds=0).entries)


def test_faceforensics_wrong_trees(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of pictures"):
        faceforensics(tmp_path, tmp_path / "m")
    frames(tmp_path / "train/aS62_1", 3, "{:06d}.jpg")
    with pytest.raises(UserError, match="pictures do not say their rate: give --fps, or --skip_seconds 0"):
        faceforensics(tmp_path, tmp_path / "m")
    assert faceforensics(tmp_path, tmp_path / "m", fps=25).entries[0]["fps"] == 25
    for quality in ("c23", "c40"):
        touch(tmp_path / f"original_sequences/youtube/{quality}/videos/0.mp4")
    with pytest.raises(UserError, match=r"expected one folder \*/videos, found c23, c40"):
        faceforensics(tmp_path, tmp_path / "m")


# --- MSR-VTT -----------------------------------------------------------------------------------------------------


@pytest.fixture
def msr(tmp_path: Path) -> Path:
    """Two annotation files as published, and the videos in two folders."""

    def annotations(name: str, videos: dict[int, str]) -> None:
        content = {
            "info": {"year": "2016"},
            "videos": [
                {
                    "video_id": f"video{number}",
                    "split": split,
                    "category": 9,
                    "url": f"https://www.youtube.com/watch?v={number}",
                    "start time": 137.72,
                    "end time": 149.44,
                    "id": number,
                }
                for number, split in videos.items()
            ],
            "sentences": [
                {
                    "video_id": f"video{number}",
                    "caption": f"caption {sentence} of {number}",
                    "sen_id": sentence,
                }
                for sentence in reversed(range(20))
                for number in videos
            ],
        }
        touch(tmp_path / name, json.dumps(content))

    annotations("train_val_annotation/train_val_videodatainfo.json", {0: "train", 6513: "validate"})
    annotations("test_videodatainfo.json", {7010: "test"})
    for name in ("TrainValVideo/video0.mp4", "TrainValVideo/video6513.mp4", "TestVideo/video7010.mp4"):
        touch(tmp_path / name)
    return tmp_path


def test_msrvtt_draws_one_caption_and_keeps_all(msr: Path) -> None:
    entries, notes = msrvtt(msr, msr / "m.jsonl")
    assert {e["id"]: (e["split"], e["path"]) for e in entries} == {
        "video0": ("train", "TrainValVideo/video0.mp4"),
        "video6513": ("val", "TrainValVideo/video6513.mp4"),
        "video7010": ("test", "TestVideo/video7010.mp4"),
    }
    for entry in entries:
        number = entry["id"][5:]
        assert entry["captions"] == [f"caption {sentence} of {number}" for sentence in range(20)]
        assert entry["caption"] in entry["captions"]
        # The files are cut already: the times of the YouTube video are not ours.
        assert "start" not in entry and "end" not in entry
        assert (entry["source_start"], entry["source_end"], entry["category"]) == (137.72, 149.44, 9)
    assert sorted(notes) == [
        "test: 1 videos (2990 published)",
        "train: 1 videos (6513 published)",
        "val: 1 videos (497 published)",
    ]
    drawn = {tuple(e["caption"] for e in msrvtt(msr, msr / "m", seed=seed).entries) for seed in range(8)}
    assert len(drawn) > 4
    assert msrvtt(msr, msr / "m", seed=3) == msrvtt(msr, msr / "m", seed=3)


def test_msrvtt_all_captions(msr: Path) -> None:
    entries, notes = msrvtt(msr, msr / "m.jsonl", captions="all")
    captions = {entry["id"]: entry["caption"] for entry in entries}
    assert len(captions) == 60 and captions["video0#3"] == "caption 3 of 0"
    assert "train: 1 videos (6513 published)" in notes
    write_manifest(msr / "m.jsonl", entries)
    assert len(read_manifest(msr / "m.jsonl")) == 60


def test_msrvtt_missing_files(msr: Path) -> None:
    (msr / "TestVideo/video7010.mp4").unlink()
    entries, notes = msrvtt(msr, msr / "m.jsonl")
    assert len(entries) == 2
    assert notes[0] == "1 listed videos are missing and left out, the first is video7010.mp4"
    with pytest.raises(UserError, match=r"neither MSRVTT_data.json nor \*videodatainfo.json below it"):
        msrvtt(msr / "TrainValVideo", msr / "m")
    touch(msr / "empty" / "x")
    with pytest.raises(
        UserError, match=r"none of the 3 listed videos exists, the first is empty/video0\.mp4"
    ):
        msrvtt(msr / "empty", msr / "m", annotations=msr)
    touch(msr / "empty/MSRVTT_data.json", '{"videos": [{"id": 3}], "sentences": []}')
    with pytest.raises(UserError, match=r"MSRVTT_data.json: videos\[0\]: video_id is missing"):
        msrvtt(msr / "empty", msr / "m")


# --- generic -----------------------------------------------------------------------------------------------------


def test_framefolder(tmp_path: Path) -> None:
    for name, count in (("run/a", 3), ("run/b", 12), ("jump/c.d", 5), ("loose", 4)):
        frames(tmp_path / "in" / name, count, "{}.png")
    touch(tmp_path / "in/jump/c.d.txt", "a dog jumps\n")
    entries, notes = framefolder(tmp_path / "in", tmp_path / "m.jsonl", fps=8, min_frames=4)
    assert [(e["id"], e["class"], e["label"], e["caption"], e["frames"], e["fps"]) for e in entries] == [
        ("jump/c.d", "jump", 0, "a dog jumps", 5, 8),
        ("loose", None, None, None, 4, 8),
        ("run/b", "run", 1, None, 12, 8),
    ]
    assert notes == ["1 videos of fewer than 4 frames are left out"]
    one, _ = framefolder(tmp_path / "in/run/b", tmp_path / "m.jsonl")
    assert [(e["id"], e["path"], e["class"]) for e in one] == [("b", "in/run/b", None)]


def test_list_leaves_out_what_is_missing(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    table = touch(tmp_path / "list.csv", "path,start,end\na.mp4,0,2.5\na.mp4,2.5,4\ngone.mp4,,\n")
    entries, notes = list_(table, tmp_path / "m.jsonl")
    assert [(e["id"], e["start"], e["end"]) for e in entries] == [
        ("a.mp4#0.0-2.5", 0.0, 2.5),
        ("a.mp4#2.5-4.0", 2.5, 4.0),
    ]
    assert notes == ["1 listed videos are missing and left out, the first is gone.mp4"]
    touch(table, f"path\na.mp4\n{'a caption in the column of paths ' * 20}\n")
    assert list_(table, tmp_path / "m.jsonl").notes[0].startswith("1 listed videos are missing and left out")
    touch(table, "path\nx/gone.mp4\n")
    with pytest.raises(UserError, match=r"none of the 1 listed videos exists, the first is x/gone\.mp4"):
        list_(table, tmp_path / "m.jsonl")


# --- the command -------------------------------------------------------------------------------------------------


def prepare(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools/prepare_dataset.py", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_writes_the_manifest_and_prints_the_counts(ucf: Path) -> None:
    done = prepare("ucf101", "--folder", ucf, "--out", ucf / "lists/m.jsonl", "--fold", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "4 classes of 4 (published: 101)",
        "train: 4 videos (9537 published)",
        "test: 4 videos (3783 published)",
        f"{ucf}/lists/m.jsonl: 8 videos (4 test, 4 train), 0 with a caption, 4 classes",
    ]
    assert all((ucf / "lists" / entry["path"]).is_file() for entry in read_manifest(ucf / "lists/m.jsonl"))


def test_a_wrong_tree_is_one_line(tmp_path: Path) -> None:
    done = prepare("skytimelapse", "--folder", tmp_path, "--out", tmp_path / "m.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}: neither sky_train") and done.stderr.count("\n") == 1
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "a.mp4", "."])
def test_a_manifest_never_replaces_another_file(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "table.csv", "path\na.mp4\n")
    touch(tmp_path / "table.jsonl", '{"path": "a.mp4"}\n')
    touch(tmp_path / "a.mp4", "a video")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    table = tmp_path / ("table.csv" if name == "table.csv" else "table.jsonl")
    with pytest.raises(UserError, match=r"--out: .*: give (the manifest another|it such a) name"):
        COMMANDS["list"](table=table, out=tmp_path / "." / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_manifest_never_replaces_another_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.jsonl"
    touch(tmp_path / "videos" / "a.mp4")
    for _ in range(2):  # the same list again is no loss
        COMMANDS["videofolder"](folder=tmp_path / "videos", out=out)
    before = out.read_bytes()
    touch(tmp_path / "videos" / "b.mp4")
    with pytest.raises(
        UserError, match=r"m.jsonl: is there and lists something else; choose another name, or delete"
    ):
        COMMANDS["videofolder"](folder=tmp_path / "videos", out=out)
    assert out.read_bytes() == before


def test_captions_that_say_nothing_are_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        touch(tmp_path / f"{name}.mp4")
    table = touch(
        tmp_path / "t.jsonl", '{"path": "a.mp4", "caption": " "}\n{"path": "b.mp4", "caption": ""}\n'
    )
    table.write_text(table.read_text() + '{"path": "c.mp4", "caption": "a red square"}\n')
    COMMANDS["list"](table=table, out=tmp_path / "m.jsonl")
    assert capsys.readouterr().out.endswith("3 videos (3 train), 1 with a caption, 0 classes\n")
