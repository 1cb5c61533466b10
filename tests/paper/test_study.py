"""The study's tables and verdicts are a function of its result files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megavrc.errors import UserError
from megavrc.files import read_json
from megavrc.paper.study import study
from megavrc.paper.study_claims import Claim, crossed, holm, judge
from megavrc.paper.study_runs import Cell, read_study
from megavrc.results import page_text, read_result, table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/study"
CLAIM = Claim(
    8, "refined above one pass", Cell("new", 10, "given", "whole"), Cell("old", 10, "given", "whole"), 0.1
)


def write_run(folder: Path, name: str, seed: int, whole: np.ndarray, keys: str = "k") -> None:
    """A result file with one case of drawn clips."""
    line = " ".join(f"{value:g}" for value in whole)
    rows = {score: line for score in ("all", "whole", "count", "shape", "direction", "speed", "flight")}
    rows |= {"jitter": line, "frozen": line, "objects": " ".join("12"[i % 2] for i in range(len(whole)))}
    row = {"name": "given 10", "config": {"checkpoint": 10, "clips": keys}, "metrics": {}, "by_clip": rows}
    content = {"format": 2, "run": name, "seed": seed, "status": "done", "machine": {}, "versions": {}}
    content |= {"revision": "r", "command": "c", "config": {}, "protocol": {}, "metrics": {}, "cases": [row]}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{seed}.json").write_text(json.dumps(content))


def write_pair(folder: Path, old: float, new: float, seeds: int = 3, clips: int = 200) -> None:
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        write_run(folder, "old", seed, rng.random(clips) < old)
        write_run(folder, "new", seed, rng.random(clips) < new)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content, row: content.update(seed="1"), "new-0.json: seed is '1', expected int"),
        (lambda content, row: row["config"].pop("clips"), "case given 10: clips is missing"),
        (lambda content, row: row["config"].update(checkpoint="x"), "case given 10: checkpoint is 'x'"),
        (lambda content, row: row.pop("by_clip"), "case given 10: by_clip is None"),
        (lambda content, row: row["by_clip"].update(whole=[1]), "case given 10: by_clip is"),
        (lambda content, row: row["by_clip"].update(whole="1 <b> 0"), "by_clip: could not convert .*'<b>'"),
        (lambda content, row: row["by_clip"].update(whole="1"), "by_clip: lines of different length"),
        (lambda content, row: row.update(by_clip=["1 2", "3 -"]), "by_clip: could not convert .*'-'"),
        (lambda content, row: row.update(by_clip=[]), "by_clip: lines of different length, or none"),
    ],
)
def test_damaged_results_are_one_line(tmp_path: Path, damage: Callable[..., Any], said: str) -> None:
    write_run(tmp_path, "new", 0, np.ones(4))
    content = json.loads((tmp_path / "new-0.json").read_text())
    damage(content, content["cases"][0])
    (tmp_path / "new-0.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "seeds", "word"),
    [
        (0.3, 0.8, 3, "holds"),
        (0.3, 0.3, 3, "refuted"),
        (0.3, 0.8, 2, "waits: 2 of 3 seeds"),
    ],
)
def test_a_verdict_follows_the_rules(tmp_path: Path, old: float, new: float, seeds: int, word: str) -> None:
    write_pair(tmp_path / "runs", old, new, seeds)
    [verdict] = judge(read_study(tmp_path / "runs"), [CLAIM])
    assert verdict.word == word
    assert len(verdict.by_seed) == seeds


def test_a_difference_that_one_seed_contradicts_is_not_shown(tmp_path: Path) -> None:
    write_pair(tmp_path / "runs", 0.3, 0.9)
    write_run(tmp_path / "runs", "new", 2, np.zeros(200))
    [verdict] = judge(read_study(tmp_path / "runs"), [CLAIM])
    assert verdict.word == "not shown"


def test_models_that_were_measured_on_different_clips_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "old", 0, np.ones(4))
    write_run(tmp_path / "runs", "new", 0, np.ones(4), keys="others")
    with pytest.raises(UserError, match="new and old, seed 0, given: measured on different clips"):
        judge(read_study(tmp_path / "runs"), [CLAIM])


def test_equal_models_are_told_apart_rarely() -> None:
    """A/A: three seeds that differ from each other as much as the clips make them, 100 times."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(100):
        first, second = (rng.random((2, 3, 100)) < 0.4).astype(float)
        spread = crossed(list(first - second), draws=1000)
        wrong += not spread.low <= 0 <= spread.high
    assert wrong <= 12


def test_the_bootstrap_takes_seeds_and_clips_and_leaves_out_what_says_nothing() -> None:
    same = [np.full(50, 0.2), np.full(50, 0.4)]
    spread = crossed(same)
    assert spread.value == pytest.approx(0.3)
    assert (spread.low, spread.high) == pytest.approx((0.2, 0.4))  # clips are equal, seeds are not
    assert crossed([np.array([1.0, np.nan, 0.0])]).value == 0.5


def test_holm() -> None:
    """By hand, seven tests: 0.05 / 7, then 0.05 / 6; the third fails and stops the fourth."""
    assert holm([0.04, 0.001, 0.008, 0.011]) == [False, True, True, False]
    assert holm([0.01]) == [False]


def test_a_changed_value_changes_tables_and_figures(tmp_path: Path) -> None:
    made = []
    for new in (0.5, 0.6):
        write_pair(tmp_path / "runs", 0.3, new, clips=40)
        study(tmp_path / "runs", tmp_path, tmp_path)
        made.append(
            (read_json(tmp_path / "study-clips.json")["cases"], (tmp_path / "study_whole.svg").read_text())
        )
    assert made[0][0] != made[1][0] and made[0][1] != made[1][1]


def test_what_is_run_needs_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--work: needed with --run and --smoke"):
        study(tmp_path, smoke=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"benchmarks/study/run\.py: not there; the study runs in a checkout"):
        study(tmp_path, run=True, work=tmp_path)


def test_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results of the study"):
        study(tmp_path)


@pytest.mark.skipif(not list(RESULTS.glob("*.json")), reason="no run of the study is committed")
def test_the_committed_tables_are_those_of_the_committed_runs(tmp_path: Path) -> None:
    study(RESULTS, tmp_path, tmp_path)
    for name in ("runs", "clips", "claims"):
        file = f"study-{name}.json"
        assert table(read_result(tmp_path / file)) == table(read_result(ROOT / "benchmarks/results" / file))
    page = ROOT / "docs/study.md"
    assert page_text(page) == page.read_text()
