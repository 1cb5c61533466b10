from pathlib import Path

import pytest

from megavrc.config import UserError
from megavrc.tokenization.manifest import from_folder, from_list, read_manifest, write_manifest


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_folder_of_classes(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for name in ("run/b.mp4", "run/a.MOV", "jump/a.avi", "loose.webm", "notes.pdf"):
        touch(videos / name)
    touch(videos / "run/b.txt", "a dog runs\n")
    out = tmp_path / "lists" / "manifest.jsonl"
    write_manifest(out, from_folder(videos, out))
    entries = read_manifest(out)
    assert [(e["id"], e["label"], e["class"], e["caption"]) for e in entries] == [
        ("jump/a.avi", 0, "jump", None),
        ("loose.webm", None, None, None),
        ("run/a.MOV", 1, "run", None),
        ("run/b.mp4", 1, "run", "a dog runs"),
    ]
    assert all((out.parent / entry["path"]).is_file() for entry in entries)
    assert {entry["split"] for entry in entries} == {"train"}


def test_validation_videos_stay_validation(tmp_path: Path) -> None:
    for number in range(100):
        touch(tmp_path / f"{number}.mp4")
    before = {e["id"] for e in from_folder(tmp_path, tmp_path / "m", val_fraction=0.3) if e["split"] == "val"}
    assert 15 < len(before) < 45
    for number in range(100, 150):
        touch(tmp_path / f"{number}.mp4")
    after = {e["id"] for e in from_folder(tmp_path, tmp_path / "m", val_fraction=0.3) if e["split"] == "val"}
    assert before <= after


def test_a_table(tmp_path: Path) -> None:
    table = touch(
        tmp_path / "in" / "list.csv",
        'path,caption,label,licence\nx/1.mp4,"red, moving",3,CC-BY\n2.mp4,,,\n',
    )
    entries = from_list(table, tmp_path / "out" / "manifest.jsonl")
    first, second = entries
    assert first == {
        "id": "x/1.mp4",
        "path": "../in/x/1.mp4",
        "caption": "red, moving",
        "label": 3,
        "licence": "CC-BY",
        "split": "train",
    }
    assert (second["caption"], second["label"]) == (None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ('{"id": "a"}', r'line 1: expected an object with "path"'),
        ("[1]", "line 1: expected an object"),
        ('{"path": "a"}\n{"path": "b", "id": "a"}', "id 'a' stands there twice"),
        ('{"path": "a", "label": "x"}', "label must be an integer"),
        ('{"path": "a", "label": -1}', "label must be an integer from 0"),
        ('{"path": "a", "caption": 3}', "caption must be a string"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_manifest(touch(tmp_path / "manifest.jsonl", text))


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no video files"):
        from_folder(tmp_path, tmp_path / "m")
    with pytest.raises(UserError, match="no such folder"):
        from_folder(tmp_path / "none", tmp_path / "m")
    with pytest.raises(UserError, match=r"expected an existing .csv or .jsonl"):
        from_list(tmp_path / "list.txt", tmp_path / "m")
    with pytest.raises(UserError, match="line 2: label 'x' is not an integer"):
        from_list(touch(tmp_path / "l.csv", "path,label\na.mp4,x\n"), tmp_path / "m")
