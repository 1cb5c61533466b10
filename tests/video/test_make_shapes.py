"""tools/make_shapes.py as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

from megavrc.evaluation.alignment import detect
from megavrc.video import read_clip

ROOT = Path(__file__).parents[2]
SMALL = ("--clips", "8", "--val", "2", "--seed", "3")


def make_shapes(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "make_shapes.py"), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def test_make_shapes(tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert make_shapes(out, *SMALL).returncode == 0
    manifest = (out / "manifest.jsonl").read_text()
    rows = [json.loads(line) for line in manifest.splitlines()]
    assert [row["split"] for row in rows] == ["train"] * 8 + ["val"] * 2 + ["heldout"] * 2
    assert len({row["id"] for row in rows}) == 12
    for row in rows:
        frames = read_clip(out / row["path"], 0, 17, size=None)
        assert frames.shape == (17, 64, 64, 3)
        found = detect(frames)
        assert {name: getattr(found, name) for name in row["attributes"]} == row["attributes"]
        assert row["caption"] == f"a {found.colour} {found.shape} moves {found.direction}"
    heldout = {row["label"] for row in rows if row["split"] == "heldout"}
    assert len(heldout) == 2 and not heldout & {row["label"] for row in rows if row["split"] != "heldout"}

    # Run again: what is there is kept, what is missing is made anew, byte for byte.
    kept, lost = out / rows[0]["path"], out / rows[5]["path"]
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    recipe = json.loads((out / "shapes.json").read_text())
    assert recipe.pop("format") == 1
    (out / "shapes.json").write_text(json.dumps(recipe))  # as it was before files had numbers
    assert make_shapes(out, *SMALL).returncode == 0
    assert kept.stat().st_mtime_ns == before and lost.read_bytes() == content
    assert (out / "manifest.jsonl").read_text() == manifest


def test_another_set_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "shapes.json").write_text(json.dumps({"seed": 4}))
    refused = make_shapes(tmp_path, *SMALL)
    assert refused.returncode == 2 and "seed" in refused.stderr and refused.stderr.count("\n") == 1
    (tmp_path / "shapes.json").rename(tmp_path / "notes.json")
    refused = make_shapes(tmp_path, *SMALL)
    assert refused.returncode == 2 and "not empty" in refused.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.json"]
