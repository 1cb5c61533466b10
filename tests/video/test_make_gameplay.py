"""tools/make_gameplay.py as a user runs it."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megavrc.config import run_command
from megavrc.evaluation.quality import psnr
from megavrc.video import probe, read_clip
from megavrc.video.gameplay import FPS, SCENARIOS, gameplay_caption, gameplay_clip, opened
from megavrc.video.gameplay_set import make_gameplay
from megavrc.video.manifest import read_manifest
from megavrc.video.synthetic import SPLIT_CLIPS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vizdoom") is None, reason='needs vizdoom (39 MB): pip install -e ".[study]"'
)


def make(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "make_gameplay.py"), f"--out={out}", "--seed=3", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def test_make_gameplay(tmp_path: Path) -> None:
    out, small = tmp_path / "set", ("--clips=12", "--val=6", "--test=3")
    made = make(out, *small)
    assert made.returncode == 0, made.stderr
    rows = read_manifest(out / "manifest.jsonl")
    assert [row["split"] for row in rows] == ["train"] * 12 + ["val"] * 6 + ["test"] * 3
    assert Counter(row["label"] for row in rows[:12]) == dict.fromkeys(range(6), 2)
    with opened(SCENARIOS[2]) as game:
        played = gameplay_clip(game, SCENARIOS[2], 3, SPLIT_CLIPS + 2)
    row = rows[14]  # the third of val
    assert row["label"] == 2 and row["caption"] == gameplay_caption(played.actions)
    known = row["attributes"]
    assert known["scenario"] == SCENARIOS[2] and known["actions"] == [list(held) for held in played.actions]
    assert np.allclose(known["places"], played.places, atol=1e-3)
    assert psnr(read_clip(out / row["path"], 0, 17, size=None), played.frames) > 30
    assert probe(out / row["path"]).fps == FPS
    assert len({json.dumps(row["attributes"]["places"]) for row in rows}) == len(
        rows
    )  # no clip in two splits

    manifest = (out / "manifest.jsonl").read_bytes()
    kept, lost = out / rows[0]["path"], out / rows[5]["path"]
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert make(out, *small, "--processes=1").returncode == 0
    assert kept.stat().st_mtime_ns == before and lost.read_bytes() == content
    assert (out / "manifest.jsonl").read_bytes() == manifest


def test_another_engine_makes_another_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path / "set", "--clips=1", "--val=0", "--test=0").returncode == 0
    file = tmp_path / "set" / "gameplay.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vizdoom": "1.2.4"}))
    options = [f"--out={tmp_path / 'set'}", "--seed=3", "--clips=1", "--val=0", "--test=0"]
    assert run_command(make_gameplay, options) == 2
    assert "other vizdoom;" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (["--size=241"], "size 241: at most 240"),
        (["--frames=0"], "frames 0: at least 1"),
        (["--frames=1"], "frames 1: at least 2"),
        (["--test=-1", "--crf=0"], "-1 clips of split test: at least 0; crf 0: at least 1"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(make_gameplay, [f"--out={tmp_path / 'set'}", *options]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
    assert not (tmp_path / "set").exists()
