"""What other suites read is what was there; no prompt or key gets out of its folder."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from clip_sets import shapes

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import ArrayClips, open_clips
from megavrc.evaluation.clip_source import PlannedClip, read_whole
from megavrc.evaluation.export_clips import export_clips

ROOT = Path(__file__).resolve().parents[2]
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


def test_names_of_vbench(tmp_path: Path) -> None:
    source = named(("a", "a dog."), ("b", "a cat"), ("c", "a dog."))
    export_clips(source, "vbench", tmp_path / "v")
    found = sorted(path.name for path in (tmp_path / "v").iterdir())
    assert found == ["a cat-0.mp4", "a dog.-0.mp4", "a dog.-1.mp4"]


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


def test_export_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", clips=np.stack(CLIPS.arrays))
    for out, code in (("a.mp4s", 0), ("a.mp4s", 2)):
        words = ["export", tmp_path / "a.npz", tmp_path / out, "--layout", "frames"]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / "tools" / "evaluate.py"), run_name="__main__")
        assert (exit_.value.code or 0) == code
