"""The demo from end to end with a hundredth of its steps: every command, every file, the report in one piece."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = [sys.executable, "-m", "megavrc.recipes.demo", "--part=0.01"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run([*WORDS, f"--out={folder}"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_every_part_leaves_its_result(run):
    for name in ("tokenizer", "stage1", "stage2"):
        assert (run / name / "complete.json").is_file()
        if name != "tokenizer":  # at so few steps it has no codebook yet, and nothing to show
            assert list((run / name / "previews").glob("*.png"))
        assert list((run / name / "tensorboard").iterdir())
        lines = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] > 0 and lines[-1]["loss"] > 0
    assert len(list((run / "samples").glob("*.mp4"))) == 3
    assert len(list((run / "samples").glob("0*.gif"))) == 3
    assert (run / "hf" / "modeling_vrc.py").is_file()


def test_scores_cover_all_sets(run):
    scores = json.loads((run / "alignment.json").read_text())
    assert set(scores) == {"real", "reconstructed", "generated", "generated_t1", "heldout"}
    assert scores["real"]["all"] >= 0.99
    assert scores["reconstructed"]["psnr"] > 5


def test_the_report_needs_no_other_file(run):
    page = (run / "report.html").read_text()
    assert page.count("data:image/") == 2 and page.count("<svg") == 3
    sources = re.findall(r'(?:src|href)="([^"#]{1,40})', page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "small-scale demonstration" in page


def test_a_finished_demo_is_not_done_again(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if "samples" not in path.parts}
    done = subprocess.run([*WORDS, f"--out={run}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("already there") >= 7
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"report.html", "samples", run.name}
