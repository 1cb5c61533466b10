"""What other suites read is what was there; no prompt or key gets out of its folder."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from clip_sets import shapes
from PIL import Image
from scripts import evaluate

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import ArrayClips, open_clips
from megavrc.evaluation.clip_source import PlannedClip, read_whole
from megavrc.evaluation.export_clips import export_clips

CLIPS = shapes(3)


def named(*clips: tuple[str, str | None]) -> ArrayClips:
    return ArrayClips("named", [PlannedClip(*clip) for clip in clips], [CLIPS.arrays[0]] * len(clips))


@pytest.mark.parametrize("layout", ["frames", "npz"])
def test_there_and_back(layout: str, tmp_path: Path) -> None:
    out = tmp_path / ("clips.npz" if layout == "npz" else "clips")
    assert export_clips(CLIPS, layout, out) == 3  # type: ignore[arg-type]
    back = open_clips(out)
    assert [clip.key for clip in back.clips] == [clip.key for clip in CLIPS.clips]
    for index in range(3):
        assert np.array_equal(read_whole(back, index), CLIPS.arrays[index])
    if layout == "npz":
        assert back.clips == CLIPS.clips
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_vbench_finds_its_videos_and_reads_their_prompts(tmp_path: Path) -> None:
    """It looks for {prompt}-{0..4}.mp4; of other prompts it takes the name without the ending and -NUMBER."""
    source = named(("a", "a dog."), ("b", "top-10"), ("c", "a dog."))
    export_clips(source, "vbench", tmp_path / "v")
    found = sorted(path.name for path in (tmp_path / "v").iterdir())
    assert found == ["a dog.-0.mp4", "a dog.-1.mp4", "top-10-0.mp4"]
    read = [re.sub(r"-\d+$", "", Path(name).stem) for name in found]
    assert read == ["a dog.", "a dog.", "top-10"]


def test_stylegan_v_and_fvmd_find_every_clip(tmp_path: Path) -> None:
    """They list one level of folders, and sort the names of frames as texts."""
    clips = [clip._replace(key=f"videos/{clip.key}.avi") for clip in CLIPS.clips]
    export_clips(ArrayClips("nested", clips, CLIPS.arrays), "frames", tmp_path / "f")
    folders = sorted(os.listdir(tmp_path / "f"))
    assert folders == ["videos_0000.avi", "videos_0001.avi", "videos_0002.avi"]
    for name, frames in zip(folders, CLIPS.arrays, strict=True):
        files = sorted(os.listdir(tmp_path / "f" / name))
        read = [np.asarray(Image.open(tmp_path / "f" / name / file).convert("RGB")) for file in files]
        assert np.array_equal(read, frames)


def test_numpy_reads_an_npz_without_pickle(tmp_path: Path) -> None:
    export_clips(CLIPS, "npz", tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz", allow_pickle=False) as content:
        arrays = [content[name] for name in content.files if name.startswith("clip_")]
        assert content["prompts"].tolist() == [clip.prompt for clip in CLIPS.clips]
    assert np.array_equal(arrays, CLIPS.arrays)


@pytest.mark.parametrize(
    ("layout", "clips", "words"),
    [
        ("vbench", [("a", "../x")], "cannot be files"),
        ("vbench", [("a", "/etc/x")], "cannot be files"),
        ("vbench", [("a", "é" * 150)], "cannot be files"),
        ("vbench", [("a", "x\ny")], "cannot be files"),
        ("vbench", [("a", None)], "no prompt"),
        ("vbench", [("a", "A dog"), ("b", "a dog")], "would have one file"),
        ("frames", [("../x", None)], "cannot be files"),
        ("frames", [("a/../../x", None)], "cannot be files"),
        ("frames", [(".hidden", None)], "cannot be files"),
        ("frames", [("A", None), ("a", None)], "would have one file"),
        ("frames", [("a/b", None), ("a_b", None)], "would have one file"),
        ("frames", [("a/" + "b" * 254, None)], "cannot be files"),
        ("vbench", [("a", "x/y")], "cannot be files"),
    ],
)
def test_names_that_are_none(
    layout: str, clips: list[tuple[str, str | None]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        export_clips(named(*clips), layout, tmp_path / "deep" / "out")  # type: ignore[arg-type]
    assert list(tmp_path.rglob("*")) == []


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    export_clips(CLIPS, "frames", tmp_path / "there")
    with pytest.raises(UserError, match="is there already"):
        export_clips(CLIPS, "frames", tmp_path / "there")
    (tmp_path / "there" / "0002" / "00003.png").write_bytes(b"no picture")
    for layout, out in (("frames", "f"), ("npz", "v.npz")):
        with pytest.raises(UserError, match="clip 0002 cannot be read"):
            export_clips(open_clips(tmp_path / "there"), layout, tmp_path / out)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_export_command(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", clips=np.stack(CLIPS.arrays))
    for out, code in (("a.mp4s", 0), ("a.mp4s", 2)):
        words = ["export", tmp_path / "a.npz", tmp_path / out, "--layout", "frames"]
        assert evaluate(*words) == code
