"""tools/make_scenes.py as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megavrc.evaluation.quality import psnr
from megavrc.video import read_clip
from megavrc.video.manifest import read_manifest
from megavrc.video.scenes import SceneSettings, from_attributes, heldout_scenes, render_scene, scene

ROOT = Path(__file__).parents[2]
SMALL = ("--clips=6", "--val=2", "--test=3", "--seed=3")


def make_scenes(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "make_scenes.py"), f"--out={out}", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def test_make_scenes(tmp_path: Path) -> None:
    out = tmp_path / "set"
    made = make_scenes(out, *SMALL, "--told=0.25")
    assert made.returncode == 0, made.stderr
    rows = read_manifest(out / "manifest.jsonl")
    assert [row["split"] for row in rows] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3 + ["heldout"] * 3
    settings = SceneSettings(told=0.25, heldout=heldout_scenes(3))
    assert from_attributes(rows[4]["attributes"]) == scene(3, 4, settings)
    assert len({json.dumps(row["attributes"]) for row in rows}) == len(rows)
    for row in rows:
        shown = from_attributes(row["attributes"])
        assert row["caption"] == shown.caption and row["attributes"]["bits"] == shown.bits
        frames = read_clip(out / row["path"], 0, 17, size=None)
        assert frames.shape == (17, 64, 64, 3) and psnr(frames, render_scene(shown)) > 30
        if row["split"] == "heldout":
            first = shown.objects[0]
            assert first.told and (first.colour, first.shape, first.direction) in settings.heldout

    # Run again: what is there is kept, what is missing is made anew, byte for byte.
    manifest = (out / "manifest.jsonl").read_bytes()
    kept, lost = out / rows[0]["path"], out / rows[5]["path"]
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert make_scenes(out, *SMALL, "--told=0.25").returncode == 0
    assert kept.stat().st_mtime_ns == before and lost.read_bytes() == content
    assert (out / "manifest.jsonl").read_bytes() == manifest

    refused = make_scenes(out, *SMALL, "--told=0.5", "--bounce=random")
    assert refused.returncode == 2 and "told, bounce" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [["--kind=corner"], ["--told=0"]], ids=["corner", "untold"])
def test_where_nothing_is_told_nothing_is_held_out(tmp_path: Path, options: list[str]) -> None:
    assert make_scenes(tmp_path / "set", *SMALL, *options).returncode == 0
    rows = read_manifest(tmp_path / "set" / "manifest.jsonl")
    assert len(rows) == 11 and {row["split"] for row in rows} == {"train", "val", "test"}
    assert not any("the " in row["caption"].replace("the background", "") for row in rows)
    bits = {"corner": {1}, "scenes": {3, 6}}[rows[0]["attributes"]["kind"]]
    assert {row["attributes"]["bits"] for row in rows} <= bits


def test_clips_of_a_split_do_not_depend_on_the_size_of_the_others(tmp_path: Path) -> None:
    for name, clips in (("one", "0"), ("two", "3")):
        assert make_scenes(tmp_path / name, f"--clips={clips}", "--val=1", "--test=0").returncode == 0
    one, two = (read_clip(tmp_path / name / "videos/val-000000.mp4", 0, 17) for name in ("one", "two"))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--kind=corners"], "kind 'corners'"),
        (["--told=1.5"], "told 1.5"),
        (["--bounce=high"], "bounce 'high'"),
        (["--heldout=13"], "heldout 13"),
        (["--kind=corner", "--told=1"], "kind corner"),
        (
            ["--clips=-1", "--size=4", "--crf=60"],
            "-1 clips of split train: at least 0; size 4: at least 8; crf 60",
        ),
        (["--seed=-1"], "seed: -1"),
        (["--processes=0"], "processes 0"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path,
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from megavrc.config import run_command
    from megavrc.video.scene_set import make_scenes as main

    assert run_command(main, [f"--out={tmp_path / 'set'}", *options]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
    assert not (tmp_path / "set").exists()
