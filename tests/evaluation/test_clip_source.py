"""The same clips from every kind of source; exactly the planned ones, or a refusal that names the odd one."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clip_sets import shapes
from PIL import Image

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import ArrayClips, open_clips
from megavrc.evaluation.clip_source import PlannedClip, pairs, read_whole, source_facts, wholes
from megavrc.video import write_gif, write_mp4

CLIPS = shapes(4)
KEYS = [clip.key for clip in CLIPS.clips]


def save_frames(folder: Path) -> Path:
    for clip, frames in zip(CLIPS.clips, CLIPS.arrays, strict=True):
        (folder / clip.key).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / clip.key / f"{number:03d}.png")
    return folder


def save_videos(folder: Path) -> Path:
    folder.mkdir()
    for clip, frames in zip(CLIPS.clips, CLIPS.arrays, strict=True):
        write_mp4(folder / f"{clip.key}.mp4", frames)
    return folder


def save_arrays(path: Path) -> Path:
    prompts = np.array([clip.prompt for clip in CLIPS.clips])
    np.savez(path, clips=np.stack(CLIPS.arrays), keys=np.array(KEYS), prompts=prompts)
    return path


def save_list(path: Path, keys: list[str] = KEYS, **fields: object) -> Path:
    rows = [{"id": key, "path": f"{key}.mp4", "caption": f"clip {key}", **fields} for key in keys]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_result_knows_the_content_of_its_clips(tmp_path: Path) -> None:
    """Wherever they lie: a folder that is made anew under its name is another one."""
    known = source_facts(open_clips(save_videos(tmp_path / "videos")))
    (tmp_path / "videos").rename(tmp_path / "moved")
    assert source_facts(open_clips(tmp_path / "moved"))["sha256"] == known["sha256"]
    write_mp4(tmp_path / "moved" / f"{KEYS[2]}.mp4", CLIPS.arrays[2][::-1])
    other = source_facts(open_clips(tmp_path / "moved"))
    assert other["sha256"] != known["sha256"]
    assert known["n"] == 4 and known["storage"] == "mp4"


def test_every_kind_of_source_gives_the_same_clips(tmp_path: Path) -> None:
    videos = save_videos(tmp_path / "videos")
    manifest = save_list(videos.parent / "manifest.jsonl")
    text = manifest.read_text().replace('"path": "', '"path": "videos/')
    (tmp_path / "by_split.jsonl").write_text(text)
    sources = [
        open_clips(save_frames(tmp_path / "frames")),
        open_clips(save_arrays(tmp_path / "clips.npz")),
        open_clips(videos),
        open_clips(f"{tmp_path}/by_split.jsonl:train"),
    ]
    assert [source.storage for source in sources] == ["png", "npz", "mp4", "mp4"]
    assert [source.split for source in sources] == [None, None, None, "train"]
    assert open_clips(tmp_path / "by_split.jsonl").split == "train", "the only one that it has"
    for source in sources:
        assert [clip.key for clip in source.clips] == KEYS
        for index, frames in enumerate(CLIPS.arrays):
            assert source.length(index) == len(frames)
            exact = source.storage != "mp4"
            difference = read_whole(source, index).astype(int) - frames
            assert np.abs(difference).mean() <= (0 if exact else 4)
            small = source.read(index, [0, 3], size=16)
            assert small.shape == (2, 16, 16, 3)
    assert [clip.prompt for clip in sources[1].clips] == [clip.prompt for clip in CLIPS.clips]
    assert [clip.prompt for clip in sources[3].clips] == [f"clip {key}" for key in KEYS]


def test_identity_follows_the_content(tmp_path: Path) -> None:
    source = open_clips(save_frames(tmp_path / "frames"))
    before = [source.identity(index) for index in range(4)]
    assert len(set(before)) == 4
    Image.fromarray(CLIPS.arrays[0][5]).save(tmp_path / "frames" / KEYS[1] / "003.png")
    after = [open_clips(tmp_path / "frames").identity(index) for index in range(4)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]
    moved = shutil.copytree(tmp_path / "frames", tmp_path / "copy")
    assert open_clips(moved).identity(1) == after[1]


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    """The captions of a video share its hash: bytes that change behind the same size and time are not read again."""
    video = save_videos(tmp_path / "made") / "0000.mp4"
    rows = [{"path": "made/0000.mp4", "id": f"a#{number}"} for number in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, known = open_clips(tmp_path / "list.jsonl"), video.stat()
    first = source.identity(0)
    video.write_bytes(video.read_bytes()[::-1])
    os.utime(video, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert [source.identity(index) for index in range(3)] == [first] * 3
    os.utime(video, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
    assert source.identity(1) == source.identity(2) != first


def test_a_video_is_decoded_once_for_the_length_of_all_its_captions(tmp_path: Path) -> None:
    video = save_videos(tmp_path / "made") / "0000.mp4"
    shown = [{"start": 0, "end": 0.5}, {"start": 0, "end": 1}]
    rows = [{"path": "made/0000.mp4", "id": f"a#{number}"} for number in range(3)]
    rows += [{"path": "made/0000.mp4", "id": f"s#{number}"} | part for number, part in enumerate(shown)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_clips(tmp_path / "list.jsonl")
    lengths = [source.length(index) for index in (0, 3, 4)]
    assert lengths[1] < lengths[2] <= lengths[0] == len(CLIPS.arrays[0])
    video.unlink()
    assert [source.length(index) for index in range(5)] == [lengths[0]] * 3 + lengths[1:]


def test_identity_tells_the_shots_of_a_video_apart(tmp_path: Path) -> None:
    save_videos(tmp_path / "made")
    shots = [{"path": "made/0000.mp4", "start": start, "end": start + 0.5} for start in (0, 1)]
    rows = [*shots, {"path": "made/0000.mp4"}, {"path": "made/0000.mp4", "id": "again"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_clips(tmp_path / "list.jsonl")
    names = [source.identity(index) for index in range(4)]
    assert len(set(names)) == 3 and names[2] == names[3]


def test_shots_with_too_few_frames_are_refused_by_name(tmp_path: Path) -> None:
    """One that lies behind the end of its video has none; another has 4."""
    save_videos(tmp_path / "made")
    rows = [
        {"id": f"from {start}", "path": "made/0000.mp4", "start": start, "end": start + 0.5}
        for start in (0, 9)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_clips(tmp_path / "list.jsonl")
    assert source.length(0) == len(read_whole(source, 0)) == 4
    with pytest.raises(
        UserError, match=r"clip from 0 cannot be read: .* 4 frames in its shot, frame 4 is needed"
    ):
        source.read(0, range(5))
    with pytest.raises(UserError, match=r"clip from 9 cannot be read: .* no frame lies in its shot"):
        read_whole(source, 1)


def test_a_generated_folder_is_its_list(tmp_path: Path) -> None:
    folder = save_videos(tmp_path / "made")
    save_list(folder / "prompts.jsonl")
    for clip, frames in zip(CLIPS.clips, CLIPS.arrays, strict=True):
        write_gif(folder / f"{clip.key}.gif", frames)
    Image.fromarray(CLIPS.arrays[0][0]).save(folder / "sheet.png")
    assert [clip.prompt for clip in open_clips(folder).clips] == [f"clip {key}" for key in KEYS]


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {  # of the folder with prompts.jsonl -> the words
    "missing": (lambda folder: (folder / "0002.mp4").unlink(), "1 missing (0002)"),
    "stale": (lambda folder: shutil.copy(folder / "0000.mp4", folder / "old.mp4"), "stale, not in prompts"),
    "unreadable": (
        lambda folder: (folder / "0001.mp4").write_bytes(b"no video" * 9),
        "clip 0001 cannot be read",
    ),
    "cut": (lambda folder: os.truncate(folder / "0001.mp4", 900), "clip 0001 cannot be read"),
    "empty": (lambda folder: (folder / "0003.mp4").write_bytes(b""), "clip 0003 cannot be read"),
    "twice in the list": (
        lambda folder: save_list(folder / "prompts.jsonl", KEYS + KEYS[:1]),
        "'0000' stands",
    ),
    "a folder of frames": (lambda folder: save_frames(folder / "old"), "4 stale, not in prompts"),
    "several splits": (
        lambda folder: (folder / "prompts.jsonl").write_text(
            (folder / "prompts.jsonl").read_text() + '{"path": "0000.mp4", "id": "x", "split": "val"}'
        ),
        "of several splits",
    ),
    "no list": (lambda folder: (folder / "prompts.jsonl").write_text(""), "names no clips"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_not_the_planned_set(how: str, tmp_path: Path) -> None:
    folder = save_videos(tmp_path / "made")
    save_list(folder / "prompts.jsonl")
    damage, words = BREAKS[how]
    damage(folder)
    with pytest.raises(UserError) as error:
        source = open_clips(folder)
        [read_whole(source, index) for index in range(len(source.clips))]
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_another_program_against_a_plan(tmp_path: Path) -> None:
    folder = save_videos(tmp_path / "made")
    plan = save_list(tmp_path / "plan.jsonl")
    assert [clip.prompt for clip in open_clips(folder, plan).clips] == [f"clip {key}" for key in KEYS]
    for keys, words in (
        (KEYS + ["0009", "0010"], "2 missing (0009, 0010)"),
        (KEYS[1:], "1 stale, in no plan (0000)"),
        (KEYS + KEYS[:1], "1 doubled (0000)"),
    ):
        with pytest.raises(UserError, match="not the planned clips") as error:
            open_clips(folder, save_list(plan, keys))
        assert words in str(error.value)
    for line in ('{"id": 3}', '{"id": "a", "caption": 4}', '{"id": "a", "label": "b"}', "[]", ""):
        plan.write_text(line)
        with pytest.raises(UserError):
            open_clips(folder, plan)


def test_doubled_and_mixed_folders(tmp_path: Path) -> None:
    folder = save_videos(tmp_path / "made")
    shutil.copy(folder / "0001.mp4", folder / "0001.avi")
    with pytest.raises(UserError, match=r"1 doubled \(0001\)"):
        open_clips(folder)
    (folder / "0001.avi").unlink()
    save_frames(folder / "more")
    with pytest.raises(UserError, match="both videos and folders"):
        open_clips(folder)
    with pytest.raises(UserError, match="name the folder above"):
        open_clips(folder / "more" / "0000")
    (tmp_path / "nothing").mkdir()
    for nothing in ("nothing", "none", "none.npz", "none.jsonl"):
        with pytest.raises(UserError, match="no"):
            open_clips(tmp_path / nothing)


def test_arrays_that_are_no_clips(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    good = np.stack(CLIPS.arrays)
    for arrays, words in (
        ({"clips": good.astype(np.float32)}, "expected uint8"),
        ({"clips": good[..., :2]}, "expected uint8"),
        ({"a": good[0], "b": good}, "b: expected uint8"),
        ({"clips": good, "keys": np.array(["a"] * 4)}, "1 doubled"),
        ({"clips": good, "labels": np.array(["a"] * 4)}, "labels: expected 4 integers"),
        ({"clips": good, "prompts": np.array(["a"])}, "prompts: expected 4 texts"),
        ({"clips": np.array([{}])}, "not an .npz"),
    ):
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=words):
            open_clips(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"not an \.npz"):
        open_clips(path)


def test_files_of_arrays_that_are_damaged_or_hold_more(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for name in ("readme.txt", "keys"):
        np.savez(path, clips=np.stack(CLIPS.arrays))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, "four clips")
        with pytest.raises(UserError, match=f"{name}: not an array; leave it out"):
            open_clips(path)
    np.savez_compressed(path, clips=np.stack(CLIPS.arrays))
    whole = path.read_bytes()
    compressed, method = 30 + whole[26] + whole[28], whole.index(b"PK\x01\x02") + 10  # of the zip format
    for place in (compressed, method):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with pytest.raises(UserError, match=r"not an \.npz file that can be read"):
            open_clips(path)


def test_keys_of_arrays_keep_their_folders(tmp_path: Path) -> None:
    clips = dict(zip(("a/clip", "b/clip", "c.d"), CLIPS.arrays, strict=False))
    np.savez(tmp_path / "x.npz", **clips)
    source = open_clips(tmp_path / "x.npz")
    assert [clip.key for clip in source.clips] == list(clips)
    assert np.array_equal(read_whole(source, 1), CLIPS.arrays[1])


def test_splits(tmp_path: Path) -> None:
    folder = save_videos(tmp_path / "made")
    rows = [{"path": f"made/{key}.mp4", "split": split} for key, split in zip(KEYS, "abab", strict=True)]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(open_clips(f"{manifest}:a").clips) == 2
    assert len(open_clips(f"{manifest}:a+b").clips) == 4
    for given, words in (
        (manifest, "which split"),
        (f"{manifest}:c", "no clips of the split c"),
        (f"{manifest}:a+c", "no clips of the split c"),
    ):
        with pytest.raises(UserError, match=words):
            open_clips(given)
    assert folder


@pytest.mark.parametrize(
    ("keys", "prompts", "drawn"),
    [
        ("a#0 a#1 b#0", "p q p", "a a b"),  # captions, or shots, of videos
        ("a b c", "p q p", "p q p"),
        ("a b c", "p - p", "p b p"),
        ("a.mp4#0.0-1.5 a.mp4#1.5- b.mp4#-2", "p q p", "a.mp4 a.mp4 b.mp4"),  # as a manifest calls shots
        ("C#/a.mp4 C#/b.mp4 D/a.mp4", "p q r", "C#/a.mp4 C#/b.mp4 D/a.mp4"),  # a name of the user's
        ("C#/a.mp4#0 C#/a.mp4#1 D/a#1.mp4", "p q r", "C#/a.mp4 C#/a.mp4 D/a#1.mp4"),
        ("a b c", "p p p", "a b c"),  # one prompt: the value is that prompt's
        ("a#0 a#1 a#2", "p q r", "a#0 a#1 a#2"),
        ("a#0 b#1 c#2", "p q r", "a#0 b#1 c#2"),
        ("a b c", "- - -", "a b c"),
    ],
)
def test_a_bootstrap_draws_videos_and_prompts(keys: str, prompts: str, drawn: str) -> None:
    rows = zip(keys.split(), prompts.split(), strict=True)
    clips = [PlannedClip(key, None if prompt == "-" else prompt) for key, prompt in rows]
    assert wholes(ArrayClips("clips", clips, [])) == drawn.split()


def test_clips_of_the_same_prompts_are_paired() -> None:
    other = shapes(4)
    backwards = type(other)("b", other.clips[::-1], other.arrays[::-1])
    assert pairs(CLIPS, backwards) == [3, 2, 1, 0]
    renamed = type(other)("c", [clip._replace(key=f"x{clip.key}") for clip in other.clips], other.arrays)
    assert pairs(CLIPS, renamed) == [0, 1, 2, 3]
    silent = type(other)("d", [clip._replace(prompt=None) for clip in other.clips], other.arrays)
    assert pairs(CLIPS, silent) == [0, 1, 2, 3]  # what it does not say can be the same
    with pytest.raises(UserError, match="not clips of the same prompts"):
        pairs(CLIPS, shapes(3))
    moved = [clip._replace(prompt=prompt) for clip, prompt in zip(other.clips, "abcd", strict=True)]
    with pytest.raises(
        UserError, match=r"have other prompts or labels for 4 clips \(0000, 0001, 0002, \.\.\)"
    ):
        pairs(CLIPS, type(other)("e", moved, other.arrays))
