"""Tables of a person's videos, by `megavrc prepare_dataset list`, and odd ones of data sets."""

import json
from pathlib import Path

import pytest
from trees import touch

from megavrc.errors import UserError
from megavrc.tokenization.datasets import list_, msrvtt
from megavrc.tokenization.prepare import COMMANDS
from megavrc.video.manifest import Entry


def test_the_folder_of_the_manifest_need_not_be_there_yet(tmp_path: Path) -> None:
    table = touch(tmp_path / "t.csv", "file\na.mp4\n")
    touch(tmp_path / "a.mp4")
    [entry], _ = list_(table, tmp_path / "data" / "new" / "m.jsonl")
    assert entry["path"] == "../../a.mp4"


def test_a_row_without_a_class_has_no_label(tmp_path: Path) -> None:
    """Though a class may have that name."""
    for name in "abc":
        touch(tmp_path / f"{name}.mp4")
    table = touch(tmp_path / "t.csv", "file,class\na.mp4,None\nb.mp4,\nc.mp4,cat\n")
    entries, _ = list_(table, tmp_path / "m.jsonl")
    assert [entry["label"] for entry in entries] == [0, None, 1]


def test_a_table_away_from_its_videos(tmp_path: Path) -> None:
    """Its paths are relative to --folder; what it does not name is counted, and a video's shots share its split."""
    for name in "abcdefgh":
        touch(tmp_path / "videos" / f"{name}.mp4")
    rows = [f"{name}.mp4,{start},{start + 1}" for name in "abcdefg" for start in (0, 1)]
    table = touch(tmp_path / "t.csv", "file,start,end\n" + "\n".join(rows))
    with pytest.raises(UserError, match=r"none of the 7 listed videos exists, .* is --folder right"):
        list_(table, tmp_path / "m.jsonl")
    entries, notes = list_(table, tmp_path / "m.jsonl", tmp_path / "videos", val_fraction=0.3)
    assert [entry["path"] for entry in entries][:2] == ["videos/a.mp4"] * 2
    assert f"1 videos of {tmp_path / 'videos'} are in no row, the first is h.mp4" in notes
    found = {(entry["path"], entry["split"]) for entry in entries}
    assert len(found) == 7 and {split for _, split in found} == {"train", "val"}
    touch(table, "file,split\na.mp4,test\nb.mp4,\n")
    kept, _ = list_(table, tmp_path / "m.jsonl", tmp_path / "videos", val_fraction=1.0)
    assert [entry["split"] for entry in kept] == ["test", "val"]


def test_a_list_of_nothing_is_not_written(tmp_path: Path) -> None:
    lists = tmp_path / "ucfTrainTestlist"
    touch(lists / "classInd.txt", "1 YoYo\n")
    for name in ("trainlist01.txt", "testlist01.txt"):
        touch(lists / name, "\n")
    touch(tmp_path / "UCF-101" / "YoYo" / "v_YoYo_g01_c01.avi")
    with pytest.raises(UserError, match=r"m\.jsonl is not written: .*1 videos are in neither list"):
        COMMANDS["ucf101"](folder=tmp_path, out=tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


VIDEO, SENTENCE = {"video_id": "v", "split": "train"}, {"video_id": "v", "sen_id": 1, "caption": "a dog"}


@pytest.mark.parametrize(
    ("video", "sentence", "said"),
    [
        ({"split": ["a"]}, {}, r"videos\[0\]: split is \['a'\], expected str"),
        ({"video_id": ["v"]}, {}, r"videos\[0\]: video_id is \['v'\], expected str"),
        ({}, {"sen_id": None}, r"sentences\[0\]: sen_id is None, expected int \| str"),
        ({}, {"video_id": {}}, r"sentences\[0\]: video_id is {}, expected str"),
        ({}, {"caption": 3}, r"sentences\[0\]: caption is 3, expected str"),
    ],
)
def test_an_odd_record_of_msrvtt_is_one_line(
    tmp_path: Path, video: Entry, sentence: Entry, said: str
) -> None:
    content = {"videos": [VIDEO | video], "sentences": [SENTENCE | sentence]}
    touch(tmp_path / "MSRVTT_data.json", json.dumps(content))
    touch(tmp_path / "v.mp4")
    with pytest.raises(UserError, match=rf"MSRVTT_data.json: {said}") as error:
        msrvtt(tmp_path, tmp_path / "m.jsonl")
    assert "\n" not in str(error.value)


def test_sentences_of_msrvtt_may_be_named_by_numbers_and_texts(tmp_path: Path) -> None:
    sentences = [SENTENCE | {"sen_id": key, "caption": str(key)} for key in ("x", 10, 2)]
    touch(tmp_path / "MSRVTT_data.json", json.dumps({"videos": [VIDEO], "sentences": sentences}))
    touch(tmp_path / "v.mp4")
    [entry], _ = msrvtt(tmp_path, tmp_path / "m.jsonl")
    assert entry["captions"] == ["2", "10", "x"]
