"""Classes of a list of videos: their names, their labels, and entries that have none."""

import json
from pathlib import Path

import pytest
from trees import touch

from megavrc.errors import UserError
from megavrc.video.manifest import Entry, from_list, read_manifest, write_manifest


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([(0, "ball"), (0, "bike")], r"label 0 has class 'ball' \(0\) and 'bike' \(1\)"),
        ([(0, "ball"), (1, "bike"), (2, "ball")], r"class ball has label 0 \(0\) and 2 \(2\)"),
    ],
)
def test_a_label_has_one_name_and_a_name_one_label(
    tmp_path: Path, classes: list[tuple[int, str]], message: str
) -> None:
    entries = [
        {"id": f"{i}", "path": "a", "label": label, "class": name} for i, (label, name) in enumerate(classes)
    ]
    touch(tmp_path / "m.jsonl", "".join(f"{json.dumps(entry)}\n" for entry in entries))
    table = "".join(f"a,{i},{label},{name}\n" for i, (label, name) in enumerate(classes))
    touch(tmp_path / "t.csv", f"path,id,label,class\n{table}")
    for read in (
        lambda: read_manifest(tmp_path / "m.jsonl"),
        lambda: from_list(tmp_path / "t.csv", tmp_path / "o.jsonl"),
        lambda: write_manifest(tmp_path / "o.jsonl", entries),
    ):
        with pytest.raises(UserError, match=message):
            read()
    assert not (tmp_path / "o.jsonl").exists()


def test_classes_of_a_table_are_numbered_where_it_has_no_labels(tmp_path: Path) -> None:
    table = touch(tmp_path / "t.csv", "path,class\na.mp4,bike\nb.mp4,ball\nc.mp4,\nd.mp4,bike\n")
    assert [entry["label"] for entry in from_list(table, tmp_path / "o.jsonl")] == [1, 0, None, 1]
    rows = [
        {"path": f"{name}.mp4", "class": kind} for name, kind in (("a", "bike"), ("b", ""), ("c", "ball"))
    ]
    lines = touch(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert [entry["label"] for entry in from_list(lines, tmp_path / "o.jsonl")] == [1, None, 0]
    touch(table, "path,label,class\na.mp4,5,bike\nb.mp4,,ball\n")
    assert [entry["label"] for entry in from_list(table, tmp_path / "o.jsonl")] == [5, None]


def test_an_empty_class_is_none(tmp_path: Path) -> None:
    entries: list[Entry] = [
        {"id": str(label), "path": f"{label}.mp4", "label": label, "class": ""} for label in (0, 1)
    ]
    write_manifest(tmp_path / "m.jsonl", entries)
    assert [entry["class"] for entry in read_manifest(tmp_path / "m.jsonl")] == [None, None]
