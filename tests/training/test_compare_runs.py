"""`tools/compare_runs.py` on metrics files: what is the same, what differs from where on, what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.training.compare import Curves, compare_runs, draw_curves, read_curves, relative_difference


def make_run(folder: Path, losses: dict[int, float], lr: float = 0.1, speed: float = 1.0) -> Path:
    folder.mkdir()
    lines = [
        {"step": step, "time": 10.0 * speed, "loss": loss, "clips/s": speed, "rank_s": [speed]}
        for step, loss in losses.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"run_dir: {folder}\noptimizer: {{lr: {lr}, betas: [0.9, 0.95]}}\n")
    starts = [{"host": "secret", "versions": {"torch": "9"}, "world_size": 2}]
    (folder / "run.json").write_text(json.dumps({"starts": starts}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    return {
        "a": make_run(tmp_path / "a", {10: 4.0, 20: 3.0, 30: 2.0}),
        "same": make_run(tmp_path / "same", {10: 4.0, 20: 3.0}, speed=7.0),
        "other": make_run(tmp_path / "other", {10: 4.0, 20: 3.03, 30: 2.5}, lr=0.2),
    }


def compared(*words: Any) -> int:
    return run_command(compare_runs, list(map(str, words)))


def test_speed_and_place_are_no_difference(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(runs["a"], runs["same"], "--tolerance=0") == 0
    shown = capsys.readouterr().out
    assert "config" not in shown and "clips/s" not in shown
    assert shown.splitlines()[-1].split() == ["loss", "2", "0", "0", "none"]


def test_the_verdict_is_a_sentence(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for other, tolerance, said in (
        ("same", 0, "The runs are the same: no difference in 1 metrics at up to 2 common steps."),
        (
            "other",
            0.3,
            "The runs agree within 0.3: the largest difference of 1 metrics at up to 3 common steps is 0.2",
        ),
        ("other", 0.05, "The runs differ: 1 of 1 metrics beyond 0.05, first loss at step 30; the largest"),
    ):
        compared(runs["a"], runs[other], f"--tolerance={tolerance}")
        assert capsys.readouterr().out.startswith(said)


def test_differences_are_measured_and_found(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "differences.json"
    assert compared(runs["a"], runs["other"], f"--json={file}") == 1
    found = json.loads(file.read_text())
    [row] = found["differences"]
    assert row["max"] == pytest.approx(0.2) and row["mean"] == pytest.approx((0.03 / 3.03 + 0.2) / 3)
    assert (row["key"], row["steps"], row["first_beyond"]) == ("loss", 3, 20)
    assert found["config"] == {"optimizer.lr": [0.1, 0.2]}
    assert "config optimizer.lr: 0.1 in A, 0.2 in B" in capsys.readouterr().out
    assert compared(runs["a"], runs["other"], "--tolerance=0.05", f"--json={file}") == 1
    assert json.loads(file.read_text())["differences"][0]["first_beyond"] == 30
    assert compared(runs["a"], runs["other"], "--tolerance=0.21") == 0


def test_a_reference_stands_for_the_run_and_names_no_machine(runs: dict[str, Path], tmp_path: Path) -> None:
    reference = tmp_path / "curves" / "a.jsonl"
    assert compared(runs["a"], f"--save={reference}", "--every=20") == 0
    assert sorted(read_curves(reference).lines) == [20, 30]  # and the last one
    assert compared(runs["a"], reference, "--tolerance=0") == 0
    assert compared(reference, runs["other"]) == 1
    text = reference.read_text()
    assert "secret" not in text and str(tmp_path) not in text and "clips/s" not in text
    header = json.loads(text.splitlines()[0])["reference"]
    assert header["world_size"] == 2 and header["config"]["optimizer.lr"] == 0.1


def test_a_plot_names_both_runs_as_they_are_called(tmp_path: Path) -> None:
    """A legend hides names that begin with _, and takes what stands between two $ for a formula."""
    one, two = (Curves(Path(name), {1: {"loss": 1.0}, 2: {"loss": 2.0}}, {}, {}) for name in ("_a", "b$x^{$"))
    draw_curves(one, two, ["loss"], tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert "<!-- _a -->" in drawn and "<!-- b$x^{$ -->" in drawn


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot(runs: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    plot = tmp_path / f"plot.{suffix}"
    compared(runs["a"], runs["other"], f"--plot={plot}")
    assert plot.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_values_that_are_not_finite() -> None:
    nan, infinite = float("nan"), float("inf")
    assert relative_difference(nan, nan) == relative_difference(0.0, 0.0) == 0.0
    assert relative_difference(nan, 1.0) == relative_difference(infinite, -infinite) == infinite
    assert relative_difference(-1.0, 1.0) == 2.0


def test_a_run_that_turned_nan_is_not_the_same(runs: dict[str, Path], tmp_path: Path) -> None:
    turned, file = make_run(tmp_path / "nan", {10: 4.0, 20: float("nan")}), tmp_path / "d.json"
    assert compared(runs["a"], turned, "--tolerance=9", f"--json={file}") == 1
    found = json.loads(file.read_text(), parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert found["differences"][0]["max"] is None and found["cases"][0]["metrics"]["mean"]["value"] is None
    assert "not finite" in found["cases"][0]["facts"]["note"]


def test_half_a_last_line_is_left_out(runs: dict[str, Path]) -> None:
    with open(runs["same"] / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    assert sorted(read_curves(runs["same"]).lines) == [10, 20]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}"], "give two runs"),
        (["{a}", "{tmp}/none"], "none: no such file"),
        (["{a}", "{other}", "--keys", "nothing"], "--keys nothing"),
        (["{a}", "{other}", "--plot=x.gif"], "x.gif: name a file that ends in .png or .svg"),
        (["{a}", "--save={tmp}/x", "--every=0"], "--every 0"),
        (["{a}", "--save={a}/metrics.jsonl"], "metrics.jsonl: is there and is no reference"),
        (["{a}", "{other}", "--tolerance=.nan"], "--tolerance nan: a number from 0 on"),
        (["{a}", "{other}", "--tolerance=-1"], "--tolerance -1.0: a number from 0 on"),
        (["{a}", "{same}", "--keys", "rank_s"], "--keys rank_s: at no common step"),
        (["{a}", "--save={tmp}/x", "--keys", "los"], "--keys los: no metric of"),
        (["{a}", "{late}"], "no metric at a common step"),
        (["{a}", "{broken}"], "no metric at a common step"),
        (["{a}", "{empty}"], "no lines of metrics"),
    ],
)
def test_mistakes_end_in_one_line(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    make_run(tmp_path / "late", {15: 1.0})
    (tmp_path / "broken").write_text('not json\n{"step": 1}\n')
    (tmp_path / "empty").write_text("")
    names = {**runs, "tmp": tmp_path, **{name: tmp_path / name for name in ("late", "broken", "empty")}}
    assert compared(*(word.format(**names) for word in words)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_readers_refuse_folders_without_metrics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        read_curves(tmp_path)
