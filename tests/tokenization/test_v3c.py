"""V3C on a generated tree: shots of long videos, text of the whole video, the selection of clips."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trees import touch

from megavrc.errors import UserError
from megavrc.tokenization.v3c import make_caption, v3c
from megavrc.video.manifest import Entry, read_manifest, write_manifest

FPS = 25


def shots(path: Path, *frames: int) -> None:
    """Shot boundaries of a video whose shots have so many frames."""
    lines, first = ["startframe\tstarttime\tendframe\tendtime"], 0
    for count in frames:
        last = first + count - 1
        lines.append(f"{first}\t{first / FPS}\t{last}\t{(last + 1) / FPS}")
        first = last + 1
    touch(path, "\r\n".join(lines) + "\r\n")


def info(path: Path, **fields: Any) -> None:
    touch(path, json.dumps(fields))


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Two parts; metadata as a download program (first part) and as Vimeo itself (second) write it."""
    for part, name in (("V3C1", "00001"), ("V3C1", "00002"), ("V3C2", "07476")):
        touch(tmp_path / part / "videos" / name / f"{name}.mp4")
    shots(tmp_path / "V3C1/msb/00001.tsv", 50, 5, 100, 250)
    shots(tmp_path / "V3C1/msb/00002.tsv", *[30] * 40)
    shots(tmp_path / "V3C2/msb/07476.tsv", 75, 75)
    info(
        tmp_path / "V3C1/info/00001.info.json",
        title="A day at the lake",
        description="Shot in <b>spring</b> &amp; autumn\u2028see https://example.org/x?y=1 or www.example.org",
        tags=["lake", "timelapse"],
        license="by-nc",
        language="en-US",
        width=1280,
        height=720,
        uploader="someone",
    )
    info(tmp_path / "V3C1/info/00002.info.json", title="Ein Tag am See", language="de", width=320, height=240)
    info(
        tmp_path / "V3C2/videos/07476/07476.json",
        name="Waves",
        description=None,
        tags=[{"name": "sea", "uri": "/tags/sea"}],
        license="by",
        language=None,
        user={"name": "someone else"},
    )
    return tmp_path


def of(entries: list[Entry], video: str) -> list[Entry]:
    return [entry for entry in entries if entry["id"].startswith(video)]


def test_shots_carry_the_text_of_their_video(collection: Path) -> None:
    entries, notes = v3c(collection, collection / "m.jsonl")
    first = of(entries, "00001")
    assert [(e["id"], e["start"], e["end"]) for e in first] == [
        ("00001_1", 0.0, 2.0),  # numbered from 1; shot 2 has only 5 frames
        ("00001_3", 2.2, 6.2),
        ("00001_4", 6.2, 16.2),
    ]
    assert {e["path"] for e in first} == {"V3C1/videos/00001/00001.mp4"}
    assert {e["caption"] for e in first} == {"A day at the lake. Shot in spring & autumn see or"}
    assert {e["caption_of"] for e in entries} == {"video"}
    about = {key: first[0][key] for key in ("title", "tags", "licence", "language", "creator", "width")}
    assert about == {
        "title": "A day at the lake",
        "tags": ["lake", "timelapse"],
        "licence": "by-nc",
        "language": "en-US",
        "creator": "someone",
        "width": 1280,
    }
    assert "https://example.org" in first[0]["description"]  # raw, as it came
    waves = of(entries, "07476")[0]
    assert (waves["caption"], waves["tags"], waves["creator"]) == ("Waves.", ["sea"], "someone else")
    assert notes[:2] == ["V3C1: 2 videos (7475 published)", "V3C1: metadata of 2 videos"]
    assert "1 shots too short or too long are left out" in notes
    write_manifest(collection / "m.jsonl", entries)  # the description holds a line separator
    assert [e["id"] for e in read_manifest(collection / "m.jsonl")] == [e["id"] for e in entries]


def test_filters_exclude_only_what_the_metadata_contradicts(collection: Path) -> None:
    def left(**filters: Any) -> set[str]:
        return {e["id"][:5] for e in v3c(collection, collection / "m", **filters).entries}

    assert left() == {"00001", "00002", "07476"}
    assert left(languages=["en"]) == {"00001", "07476"}
    assert left(licences=["by"]) == {"00002", "07476"}
    assert left(min_side=256) == {"00001", "07476"}
    assert left(min_words=3) == {"00001", "00002"}
    assert left(min_seconds=5) == {"00001"}
    assert left(max_seconds=1.5) == {"00002"}
    assert left(min_frames=60) == {"00001", "07476"}
    with pytest.raises(UserError, match=r"no shot is left .*46 shots too short or too long"):
        v3c(collection, collection / "m", min_frames=1000)


@pytest.mark.parametrize(
    ("name", "value", "least"), [("max_words", 0, 1), ("shots_per_video", -1, 0), ("clips", -3, 0)]
)
def test_counts_that_would_drop_the_last(collection: Path, name: str, value: int, least: int) -> None:
    with pytest.raises(UserError, match=f"--{name} {value}: at least {least}"):
        v3c(collection, collection / "m", **{name: value})


def test_the_selection_depends_on_the_seed_and_the_ids_alone(collection: Path) -> None:
    def ids(**options: Any) -> list[str]:
        return [e["id"] for e in v3c(collection, collection / "m", **options).entries]

    capped = ids(shots_per_video=2)
    assert [sum(key.startswith(video) for key in capped) for video in ("00001", "00002", "07476")] == [
        2,
        2,
        2,
    ]
    drawn = ids(clips=10)
    assert len(drawn) == 10 and drawn == ids(clips=10) and drawn != ids(clips=10, seed=1)
    assert set(ids(clips=5)) < set(drawn)
    shots(collection / "V3C2/msb/07477.tsv", 75)
    touch(collection / "V3C2/videos/07477/07477.mp4")
    assert len(set(ids(clips=11)) & set(drawn)) >= 9  # more data changes no more than it must
    _, notes = v3c(collection, collection / "m", clips=300000, shots_per_video=20)
    assert notes[-1] == "26 shots of at most 20 a video to choose from, 300000 asked for"


def test_shots_of_a_video_stay_in_one_split(collection: Path) -> None:
    for number in range(100, 140):
        touch(collection / f"V3C1/videos/{number}.mp4")
        shots(collection / f"V3C1/msb/{number}.tsv", 30, 30, 30)
    entries, _ = v3c(collection, collection / "m", val_fraction=0.3)
    split_of: dict[str, set[str]] = {}
    for entry in entries:
        split_of.setdefault(entry["path"], set()).add(entry["split"])
    assert all(len(found) == 1 for found in split_of.values())
    assert {"train", "val"} == set().union(*split_of.values())


def test_captions_and_metadata_of_ones_own(collection: Path) -> None:
    captions = touch(collection / "c.jsonl", '{"id": "00001_3", "caption": "a boat crosses the lake"}\n')
    table = touch(
        collection / "meta.csv",
        '\ufeffid,title,tags,width,height\n00002,Drei,"a, b",640,480\n00001,Eins,,,\n',
    )
    entries, notes = v3c(
        collection, collection / "m", metadata=table, captions=captions, template="{title}: {tags}"
    )
    of_id = {e["id"]: (e["caption"], e["caption_of"]) for e in entries}
    assert of_id["00001_3"] == ("a boat crosses the lake", "shot")
    assert of_id["00001_1"] == ("Eins", "video")
    assert of_id["00002_1"] == ("Drei: a, b", "video")
    assert of_id["07476_1"] == (None, "video")
    assert "V3C2: metadata of 0 videos" in notes


def test_a_part_that_is_named_from_inside_keeps_its_name(
    collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(collection / "V3C2")
    assert "V3C2: 1 videos (9760 published)" in v3c(Path(), collection / "m").notes


def test_what_is_missing_is_counted(collection: Path) -> None:
    (collection / "V3C1/videos/00002/00002.mp4").unlink()
    (collection / "V3C2/msb/07476.tsv").unlink()
    entries, notes = v3c(collection, collection / "m")
    assert {e["id"][:5] for e in entries} == {"00001"}
    assert "V3C1: 1 videos with shots are missing, the first is 00002" in notes
    assert "V3C2: 1 videos without shots are left out, the first is 07476" in notes


def test_wrong_trees_and_files(collection: Path) -> None:
    with pytest.raises(UserError, match="no folder `msb` of shot boundaries"):
        v3c(collection / "V3C1/videos", collection / "m")
    with pytest.raises(UserError, match=r"template '\{titel\}': the fields are title, description, tags"):
        v3c(collection, collection / "m", template="{titel}")
    with pytest.raises(UserError, match=r"template '\{title': expected"):
        v3c(collection, collection / "m", template="{title")
    with pytest.raises(UserError, match=r'c.jsonl line 1: expected an object with "id" and "caption"'):
        v3c(collection, collection / "m", captions=touch(collection / "c.jsonl", '{"id": "00001_3"}'))
    touch(collection / "V3C1/info/00001.info.json", "[]")
    with pytest.raises(UserError, match="metadata of 00001: expected an object, got list"):
        v3c(collection, collection / "m")
    info(collection / "V3C1/info/00001.info.json", width="wide")
    with pytest.raises(UserError, match="metadata of 00001: width 'wide' is not a number of pixels"):
        v3c(collection, collection / "m")
    with pytest.raises(UserError, match="no such file or folder of metadata"):
        v3c(collection, collection / "m", metadata=collection / "none.csv")
    (collection / "V3C1/info/00001.info.json").unlink()
    touch(collection / "V3C1/msb/00001.tsv", "start\tend\n0\t50\n")
    with pytest.raises(UserError, match=r"00001.tsv line 2: expected numbers startframe, starttime"):
        v3c(collection / "V3C1", collection / "m")


@pytest.mark.parametrize("odd", ["nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize("column", range(4))
def test_shots_that_are_no_numbers(collection: Path, odd: str, column: int) -> None:
    cells = ["0", "0", "49", "2"]
    cells[column] = odd
    row = "\t".join(cells)
    touch(collection / "V3C1/msb/00001.tsv", f"startframe\tstarttime\tendframe\tendtime\n{row}\n")
    with pytest.raises(UserError, match=r"00001.tsv line 2: expected numbers startframe, starttime"):
        v3c(collection, collection / "m")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": "00001_3", "caption": 3}, "caption is 3, expected"),
        ({"id": ["x"], "caption": "a boat"}, r"id is \['x'\], expected str"),
    ],
)
def test_captions_that_are_no_text(collection: Path, line: Entry, said: str) -> None:
    captions = touch(collection / "c.jsonl", json.dumps(line))
    with pytest.raises(UserError, match=rf"c.jsonl line 1: {said}"):
        v3c(collection, collection / "m", captions=captions)


@pytest.mark.parametrize("width", ["\u00b2", "9" * 5000, -1])
def test_widths_that_are_no_numbers(collection: Path, width: Any) -> None:
    info(collection / "V3C1/info/00001.info.json", width=width)
    with pytest.raises(UserError, match=r"metadata of 00001: width .* is not a number of pixels"):
        v3c(collection, collection / "m")


@pytest.mark.parametrize(
    ("template", "about", "caption"),
    [
        ("{title}. {description}", {}, None),
        ("{title}. {description}", {"title": "Why?", "description": "Because."}, "Why? Because."),
        ("{title}. {description}", {"description": "only text"}, "only text"),
        ("{title}. {description}", {"title": "A &lt;3", "description": "me@x.org <br/>b"}, "A <3. b"),
        ("{tags}", {"tags": ["one", "two"]}, "one, two"),
        ("{title}", {"title": "one two three four five"}, "one two three four"),
    ],
)
def test_captions(template: str, about: Entry, caption: str | None) -> None:
    assert make_caption(template, about, max_words=4) == caption


def test_the_documented_selection_runs(collection: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs/datasets.md").read_text()
    block = re.search(r"^    megavrc (prepare_dataset v3c .*?--clips 300000.*?)$\n\n", page, re.M | re.S)
    assert block
    options = shlex.split(block[1].replace("\\\n", " "))
    places = {"V3C": str(collection), "v3c_300k.jsonl": str(collection / "m.jsonl")}
    command = [sys.executable, "-m", "megavrc", *(places.get(option, option) for option in options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # Of the three videos one is German, one has a caption of one word; of the other, one shot has five frames.
    assert [e["id"] for e in read_manifest(collection / "m.jsonl")] == ["00001_1", "00001_3", "00001_4"]
    assert "3 shots of at most 20 a video to choose from, 300000 asked for" in done.stdout
