import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from trees import touch

from megavrc.errors import UserError
from megavrc.files import read_lines
from megavrc.video.listing import list_folder
from megavrc.video.manifest import Entry, from_list, read_captions, read_manifest, split_of, write_manifest


def test_a_folder_of_classes(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for name in ("run/b.mp4", "run/a.MOV", "jump/a.avi", "loose.webm", "notes.pdf", "run/._b.mp4"):
        touch(videos / name)
    touch(videos / "run/b.txt", "a dog runs\n")
    out = tmp_path / "lists" / "manifest.jsonl"
    write_manifest(out, list_folder(videos, out).entries)
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
    before = {
        e["id"]
        for e in list_folder(tmp_path, tmp_path / "m", val_fraction=0.3).entries
        if e["split"] == "val"
    }
    assert 15 < len(before) < 45
    for number in range(100, 150):
        touch(tmp_path / f"{number}.mp4")
    after = {
        e["id"]
        for e in list_folder(tmp_path, tmp_path / "m", val_fraction=0.3).entries
        if e["split"] == "val"
    }
    assert before <= after


@pytest.mark.parametrize("share", [-0.1, 1.5, 5, float("nan")])
def test_a_share_is_one(tmp_path: Path, share: float) -> None:
    touch(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=rf"--val_fraction {share}: a share from 0 to 1, such as 0.05"):
        list_folder(tmp_path, tmp_path / "m", val_fraction=share)


def test_captions_beside_videos(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    for text in ("a red\nsquare\n", "a red\r\nsquare\r\n", "a red\rsquare\r"):
        touch(tmp_path / "a.txt", text)
        assert list_folder(tmp_path, tmp_path / "m").entries[0]["caption"] == "a red\nsquare"
    for make in (Path.mkdir, os.mkfifo):
        (tmp_path / "a.txt").unlink()
        make(tmp_path / "a.txt")
        with pytest.raises(UserError, match=r"a\.txt: not a regular file"):
            list_folder(tmp_path, tmp_path / "m")
        if make is Path.mkdir:
            (tmp_path / "a.txt").rmdir()
            touch(tmp_path / "a.txt")


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


def test_parts_of_one_video(tmp_path: Path) -> None:
    table = touch(
        tmp_path / "list.csv",
        "\ufeffpath,start,end,fps\nv.mp4,,1.5,\nv.mp4,1.5,,\nv.mp4,,,\npictures,0,2,12.5\n",
    )
    entries = from_list(table, tmp_path / "manifest.jsonl")
    assert [(e["id"], e.get("start"), e.get("end"), e.get("fps")) for e in entries] == [
        ("v.mp4#-1.5", None, 1.5, None),
        ("v.mp4#1.5-", 1.5, None, None),
        ("v.mp4", None, None, None),
        ("pictures#0.0-2.0", 0.0, 2.0, 12.5),
    ]


def test_null_is_an_absent_value(tmp_path: Path) -> None:
    absent = dict.fromkeys(("id", "caption", "label", "split", "start", "end", "fps", "class"))
    (tmp_path / "m.jsonl").write_text(json.dumps({"path": "a.mp4", **absent}))
    [entry] = read_manifest(tmp_path / "m.jsonl")
    assert (entry["id"], entry["split"], entry["caption"]) == ("a.mp4", "train", None)


def test_all_spellings_of_a_path_are_in_one_split(tmp_path: Path) -> None:
    spelled = [f"{dots}{name}.mp4" for name in "abcdefgh" for dots in ("", "./")]
    rows = [{"path": path, "id": str(number)} for number, path in enumerate(spelled)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entries = from_list(tmp_path / "t.jsonl", tmp_path / "m.jsonl", None, 0.5)
    splits = [entry["split"] for entry in entries]
    assert splits[::2] == splits[1::2] and len(set(splits)) == 2


def test_an_absolute_path_is_the_video_of_a_relative_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"{folder}{name}.mp4" for name in "abcdefgh" for folder in ("", "x/")]
    spelled = [path for name in names for path in (name, str(tmp_path / name), f"./{name}")]
    rows = [{"path": path, "id": str(number)} for number, path in enumerate(spelled)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for folder in (Path(), tmp_path, None):
        splits = [entry["split"] for entry in from_list(Path("t.jsonl"), Path("m.jsonl"), folder, 0.5)]
        assert splits[::3] == splits[1::3] == splits[2::3] == [split_of(name, 0.5) for name in names]
        table = touch(tmp_path / "t.csv", f"path,start,end\na.mp4,0,1\n{tmp_path}/a.mp4,0,1\n")
        with pytest.raises(UserError, match=r"a.mp4#0.0-1.0' stands there twice, also as 'a.mp4#0.0-1.0'"):
            from_list(table, tmp_path / "m.jsonl", folder)


def test_any_text_survives_writing_and_reading(tmp_path: Path) -> None:
    text = "line separator \u2028, next line \x85, tab \t, break \n, \N{SNOWMAN}"
    entries: list[Entry] = [
        {"id": "a", "path": "a.mp4", "caption": text, "label": None, "split": "train"},
        {"id": "b", "path": "b.mp4", "caption": None, "label": 0, "split": "val", "start": 1, "end": None},
    ]
    write_manifest(tmp_path / "m.jsonl", entries)
    assert read_manifest(tmp_path / "m.jsonl") == entries
    with pytest.raises(UserError, match="id 'a' stands there twice"):
        write_manifest(tmp_path / "other.jsonl", [entries[0], entries[0]])
    assert not (tmp_path / "other.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ('{"id": "a"}', r'line 1: expected an object with "path"'),
        ("[1]", "line 1: expected an object"),
        ("[" * 100_000, "line 1: not valid JSON"),
        ('{"path": "a", "n": ' + "1" * 5000 + "}", "line 1: not valid JSON"),
        ('{"path": "a"}\n{"path": "b", "caption": "\\ud83d \u00e9"}', r"line 2: \\ud83d is half a character"),
        ('{"path": "a", "x": {"y": ["\\udc00"]}}', r"line 1: \\udc00 is half a character"),
        ('{"path": "a"}\n{"path": "b", "id": "a"}', "id 'a' stands there twice"),
        ('{"path": "a"}\n{"path": "./a"}', r"id '\./a' stands there twice, also as 'a'"),
        (
            '{"path": "b/a", "end": 2}\n{"path": "b/../b//a", "start": 0, "end": 2.0}',
            r"id 'b/\.\./b//a#0-2\.0' stands there twice, also as 'b/a#-2'",
        ),
        ('{"path": "a", "label": "x"}', "label must be an integer"),
        ('{"path": "a", "label": -1}', "label must be an integer from 0"),
        ('{"path": "a", "label": true}', "label must be an integer from 0"),
        ('{"path": "a", "label": 1000000000}', "label must be an integer from 0 to 999999"),
        ('{"path": "a", "split": "../x"}', "split '../x' becomes part of a file's name"),
        ('{"path": "a", "split": "a/b"}', "split 'a/b' becomes part of a file's name"),
        ('{"path": "a", "split": "a\\u0000"}', "must not hold a NUL"),
        ('{"path": "a", "split": "a\\nb"}', r"split 'a\\nb' becomes part of a file's name"),
        (f'{{"path": "a", "split": "{"a" * 300}"}}', "becomes part of a file's name: .* not long"),
        ('{"path": "a", "split": ""}', "split '' becomes part of a file's name"),
        ('{"path": "a", "id": "b\\u0000"}', "must not hold a NUL"),
        ('{"path": "a", "caption": 3}', "caption must be a string"),
        ('{"path": 3}', 'expected an object with "path", a string'),
        ('{"path": ""}', 'expected an object with "path", a string that names a file'),
        ('{"path": " "}', 'expected an object with "path", a string that names a file'),
        ('{"path": "a", "start": ' + "9" * 400 + "}", r"start must be a number from 0 to 1e\+09"),
        ('{"path": "a", "end": 1e300}', r"end must be a number from 0 to 1e\+09"),
        ('{"path": "a", "id": 3}', "id and split must be strings"),
        ('{"path": "a", "start": "2"}', r"start must be a number from 0 to 1e\+09 \(seconds\), got '2'"),
        ('{"path": "a", "start": -1}', "start must be a number from 0"),
        ('{"path": "a", "end": true}', "end must be a number from 0"),
        ('{"path": "a"}\n{"path": "b", "end": NaN}', r"line 2: not valid JSON \(NaN is no finite number\)"),
        (
            '{"path": "a", "x": {"y": [-Infinity]}}',
            r"line 1: not valid JSON \(-Infinity is no finite number\)",
        ),
        ('{"path": "a", "x": 1e999}', r"line 1: not valid JSON \(1e999 is no finite number\)"),
        ('{"path": "a", "start": 2, "end": 2}', "end 2 is not after start 2"),
        ('{"path": "a", "end": 0}', "end 0 is not after start 0"),
        ('{"path": "a", "fps": 0}', "fps must be above 0"),
        (
            '{"path": "a", "start": 1, "end": 2}\n{"path": "a", "start": 1, "end": 2}',
            "id 'a#1-2' stands there twice",
        ),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_manifest(touch(tmp_path / "manifest.jsonl", text))


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no video files"):
        list_folder(tmp_path, tmp_path / "m")
    with pytest.raises(UserError, match="no such folder"):
        list_folder(tmp_path / "none", tmp_path / "m")
    with pytest.raises(UserError, match=r"expected an existing .csv or .jsonl"):
        from_list(tmp_path / "list.txt", tmp_path / "m")
    with pytest.raises(UserError, match=r"line 3: start '1:30' is not a number"):
        from_list(touch(tmp_path / "l.csv", "path,start\na.mp4,1\na.mp4,1:30\n"), tmp_path / "m")
    with pytest.raises(UserError, match="line 2: label 'x' is not an integer"):
        from_list(touch(tmp_path / "l.csv", "path,label\na.mp4,x\n"), tmp_path / "m")


@pytest.mark.parametrize("number", ["1_0", "\u0661\u0660", "\uff11"])
def test_numbers_of_a_table_are_plain_digits(tmp_path: Path, number: str) -> None:
    kinds = {"label": r"an integer \(a name goes into a column class\)", "start": "a number"}
    for key, what in (kinds | dict.fromkeys(("end", "fps"), "a number")).items():
        table = touch(tmp_path / "t.csv", f"path,{key}\na.mp4,10\nb.mp4,{number}\n")
        with pytest.raises(UserError, match=rf"t.csv line 3: {key} '{number}' is not {what}$"):
            from_list(table, tmp_path / "m.jsonl")


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\x85d", "e\x0b\x0cf\x1c", "", "g\rh", "end"]
    touch(tmp_path / "lines.txt", "\ufeff" + "\n".join(texts))
    assert list(read_lines(tmp_path / "lines.txt")) == list(enumerate(texts, 1))
    touch(tmp_path / "windows.txt", "a\r\nb\r\n")
    assert [line for _, line in read_lines(tmp_path / "windows.txt")] == ["a", "b"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_other_encodings_are_refused_with_file_and_line(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("plain\ncaf\u00e9\n".encode(encoding))
    line = 2 if encoding == "cp1252" else 1
    with pytest.raises(
        UserError, match=rf"list.txt line {line}: byte 0x.. is no UTF-8; save the file as UTF-8"
    ):
        list(read_lines(path))
    touch(tmp_path / "videos" / "a.mp4")
    path.rename(tmp_path / "videos" / "a.txt")
    with pytest.raises(UserError, match=rf"a.txt line {line}: byte"):
        list_folder(tmp_path / "videos", tmp_path / "m")
    (tmp_path / "table.csv").write_bytes("path,caption\na.mp4,caf\u00e9\n".encode(encoding))
    with pytest.raises(UserError, match=rf"table.csv line {line}: byte"):
        from_list(tmp_path / "table.csv", tmp_path / "m")


def test_a_table_may_have_line_ends_in_its_cells(tmp_path: Path) -> None:
    table = touch(tmp_path / "list.csv", '\ufeffpath,caption\r\na.mp4,"two\r\nlines"\r\nb.mp4,x\u2028y\r\n')
    entries = from_list(table, tmp_path / "manifest.jsonl")
    assert [entry["caption"] for entry in entries] == ["two\nlines", "x\u2028y"]


def test_names_that_are_no_utf8_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    with pytest.raises(UserError, match=r"m.jsonl: cannot hold id 'caf\\udce9.mp4'; rename it"):
        write_manifest(tmp_path / "m.jsonl", list_folder(tmp_path, tmp_path / "m.jsonl").entries)
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(
    "name", ["path", "Path", "file_name", "filename", "File Name", "file", "video", "video_path"]
)
def test_usual_names_of_columns(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "t.csv", f"{name}, Text,Label,Class,views\na.mp4, a red square,3,toy,7\n")
    others = '"text": "a red square", "label": 3, "CLASS": "toy", "views": "7"'
    touch(tmp_path / "t.jsonl", f'{{"{name}": "a.mp4", {others}}}\n')
    for table in ("t.csv", "t.jsonl"):
        (entry,) = from_list(tmp_path / table, tmp_path / "m.jsonl")
        assert entry == {
            "id": "a.mp4",
            "path": "a.mp4",
            "caption": "a red square",
            "label": 3,
            "class": "toy",
            "split": "train",
            "views": "7",
        }
        assert read_captions(tmp_path / table) == ["a red square"]


def test_a_path_is_taken_before_other_names_of_it(tmp_path: Path) -> None:
    table = touch(tmp_path / "t.csv", "video,path,text,caption\nv7,a.mp4,old,new\n")
    (entry,) = from_list(table, tmp_path / "m.jsonl")
    assert (entry["path"], entry["video"], entry["caption"], entry["text"]) == ("a.mp4", "v7", "new", "old")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "clip,caption\na.mp4,x\n", "line 2: no column of paths .*; found: clip, caption"),
        (
            "t.csv",
            "path;caption\na.mp4;x\n",
            "line 2: no column of paths .*; found: path;caption; commas stand",
        ),
        (
            "t.csv",
            "a.mp4,a red square\nb.mp4,x\n",
            "line 2: no column of paths .*; found: a.mp4, a red square",
        ),
        ("t.jsonl", '{"clip": "a.mp4"}\n', "line 1: no column of paths .*; found: clip"),
        ("t.csv", "path,caption\n,x\n", "line 2: expected an object with .path., a string"),
        ("t.csv", "path,caption\na.mp4,a, red, square\n", "line 2: 4 cells"),
        ("t.csv", "path,caption\n", "holds no videos"),
        ("t.csv", "", "holds no videos"),
    ],
)
def test_tables_without_what_is_needed(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{name}:? {message}"):
        from_list(touch(tmp_path / name, text), tmp_path / "m.jsonl")


def test_two_columns_that_are_one_name(tmp_path: Path) -> None:
    for one, other in (
        ("path", "Path"),
        ("Caption", "caption"),
        ("File Name", "file_name"),
        ("Start", "START"),
    ):
        touch(tmp_path / "t.csv", f"video,{one},{other}\na.mp4,1,2\n")
        touch(tmp_path / "t.jsonl", f'{{"video": "a.mp4", "{one}": "1", "{other}": "2"}}\n')
        for name, read in itertools.product(("t.csv", "t.jsonl"), (read_captions, from_list)):
            with pytest.raises(
                UserError, match=rf"{name} line .: '{one}' and '{other}' are one name here; rename"
            ):
                read(tmp_path / name, *[tmp_path / "m.jsonl"] * (read is from_list))


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    for wrong, said in (
        ({"start": -0.5}, "start must be"),
        ({"fps": -25.0}, "fps must be"),
        ({"label": -1}, "label"),
    ):
        with pytest.raises(UserError, match=f"m.jsonl line 1: {said}"):
            write_manifest(tmp_path / "m.jsonl", [{"path": "a.mp4", **wrong}])
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize("value", [float("nan"), {"y": [-float("inf")]}])
def test_what_is_no_number_of_json_is_not_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(
        UserError, match=r"m.jsonl: cannot hold x .*; NaN and infinities are no numbers of JSON"
    ):
        write_manifest(tmp_path / "m.jsonl", [{"id": "a", "path": "a.mp4", "x": value}])
    assert not (tmp_path / "m.jsonl").exists()


def test_half_a_character_is_named_with_its_key(tmp_path: Path) -> None:
    entry: Entry = {"id": "a", "path": "a.mp4", "captions": ["whole", "half \ud83d"]}
    with pytest.raises(
        UserError, match=r"m.jsonl: cannot hold captions \['whole', 'half .ud83d'\]; it holds half"
    ):
        write_manifest(tmp_path / "m.jsonl", [entry])


def test_captions_of_a_file(tmp_path: Path) -> None:
    manifest = touch(
        tmp_path / "m.jsonl",
        '{"caption": "a\u2028b"}\n\n{"caption": "v", "split": "val"}\n{"caption": null}\n{"path": "x"}\n',
    )
    assert read_captions(manifest, "train") == ["a\u2028b", "", ""]
    assert read_captions(manifest) == ["a\u2028b", "v", "", ""]
    assert read_captions(touch(tmp_path / "c.txt", "a\u2028b\nc\n")) == ["a\u2028b", "c"]
    table = touch(tmp_path / "c.CSV", 'path,caption,split\na.mp4,"a, b",\nb.mp4,,train\nc.mp4,v,val\n')
    assert read_captions(table, "train") == ["a, b", ""]
    with pytest.raises(UserError, match=r"c.json: captions are read from .jsonl, .csv and .txt"):
        read_captions(touch(tmp_path / "c.json", '["a"]'))
    with pytest.raises(
        UserError, match=r"d.csv: holds no captions: no column is one of caption, .*; found: path, words"
    ):
        read_captions(touch(tmp_path / "d.csv", "path,words\na.mp4,x\n"))
    with pytest.raises(UserError, match=r"m.jsonl: holds no captions of split 'test'"):
        read_captions(manifest, "test")
    for text, message in (
        ('{"caption": 3}', "m.jsonl line 1: caption must be a string"),
        ("{}", "no captions"),
    ):
        with pytest.raises(UserError, match=message):
            read_captions(touch(manifest, text))
