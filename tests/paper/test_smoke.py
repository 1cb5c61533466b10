"""`megavrc reproduce all --smoke`, stopped in between: every table and figure from six trainings that cells share."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megavrc.paper.measured import SMOKE
from megavrc.paper.reproduce import EXHIBITS
from megavrc.results import read_result

ROOT = Path(__file__).resolve().parents[2]


def start(out: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "megavrc", "reproduce", "all", "--smoke", f"--out={out}"]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_all_at_toy_size_with_a_stop_in_between(tmp_path: Path) -> None:
    out = tmp_path / "my paper"
    first = start(out)
    assert first.stdout
    for line in first.stdout:
        if line.split()[1:] == ["vrc-toy-debug"]:
            os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 0
    state = json.loads((out / "work" / "state.json").read_text())["jobs"]
    assert state["vrc-toy-debug"]["status"] == "stopped" and "token-toy-debug" not in state
    assert "missing" in (out / "table1.md").read_text()
    second = start(out)
    second.communicate()
    assert second.returncode == 0
    state = json.loads((out / "work" / "state.json").read_text())["jobs"]
    assert {name: job["status"] for name, job in state.items() if job["status"] != "done"} == {}
    assert len(state["stage1-toy-debug"]["attempts"]) == 1, "what is done is not done again"
    trained = {path.parent.name for path in (out / "work").glob("*/complete.json")}
    names = ("tokenizer", *(f"{name}-toy-debug" for name in ("stage1", "vrc", "token", "scratch", "rate16")))
    assert trained == set(names)
    for name in EXHIBITS:
        text = (out / f"{name}.md").read_text()
        assert SMOKE in text and (name == "table3" or "## Missing" not in text)
    for name in (name for name in EXHIBITS if name.startswith("fig")):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG") and (out / f"{name}.svg").exists()
    [row, floor] = read_result(out / "results" / "fvd-vrc-toy-debug.json")["cases"]
    assert "frechet_unknown" in row["metrics"] and "fvd" not in row["metrics"], "never called FVD"
    assert floor["name"] == "real against real"
    assert (out / "report.html").read_text().count(SMOKE) >= len(EXHIBITS)
