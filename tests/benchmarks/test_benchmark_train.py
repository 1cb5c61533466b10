"""`tools/benchmark.py train` on tiny runs of the real engine: what is reported, by hand; and running out of memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megavrc.benchmarks.train import train
from megavrc.errors import UserError
from megavrc.model import ConditionConfig, ModelConfig
from megavrc.model.flops import training_flops

ROOT = Path(__file__).resolve().parents[2]


def benchmark(json_file: Path, *words: str, address_space: int | None = None) -> dict[str, Any]:
    limit = ["prlimit", f"--as={address_space}"] if address_space else []
    done = subprocess.run(
        [*limit, sys.executable, "tools/benchmark.py", "train", "--preset=[debug]", "--frames=1", *words]
        + [f"--json={json_file}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(json_file.read_text()), "shown": done.stdout}


def test_both_models_are_measured_and_compared(tmp_path: Path) -> None:
    result = benchmark(tmp_path / "train.json", "--micro_batch=[2]", "--steps=3", "--saves=1")
    assert [case["prediction"] for case in result["cases"]] == ["segment", "token"]
    assert result["machine"]["cpu"] and result["machine"]["gpu"] is None
    for case in result["cases"]:
        condition = ConditionConfig(kind="class", classes=101)
        flops = training_flops(ModelConfig(frames=1, prediction=case["prediction"], condition=condition))
        assert case["tokens/s"] == pytest.approx(2 * 64 * case["clips/s"])
        assert case["TFLOP/s/rank"] == pytest.approx(case["clips/s"] * flops / 1e12)
        assert "mfu_%" not in case, "a CPU has no peak in the table"
        [round_] = case["rounds"]
        assert round_["before_GiB"] < case["memory_GiB"] < 8 and len(case["checkpoint_stalls_s"]) == 1
        assert round_["first"] == pytest.approx(6.24, abs=0.3), "ln 512: it really trains on 512 codes"
    vrc, token = result["cases"]
    assert 0 < token["planned_GiB"] and f"{vrc['planned_GiB']:7.2f} GiB" in result["shown"]
    [ratio] = result["against_token"]
    assert ratio["clips/s"] == pytest.approx(vrc["clips/s"] / token["clips/s"])
    assert ratio["memory_GiB"] == pytest.approx(vrc["memory_GiB"] / token["memory_GiB"])
    assert "of the memory" in result["shown"]


@pytest.mark.slow
def test_a_case_without_memory_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    """The address space of every process is limited, which ends large allocations as a full machine does."""
    words = ("--micro_batch=[2048,1]", "--steps=1", "--saves=0")
    result = benchmark(tmp_path / "train.json", *words, address_space=7 * 2**30)
    large, small = result["cases"][:2], result["cases"][2:]
    assert all(case["out_of_memory"] for case in large)
    assert all(case["clips/s"] > 0 for case in small)
    assert [ratio["micro_batch"] for ratio in result["against_token"]] == [1]
    assert result["shown"].count("out of memory") == 2


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1])
def test_the_plan_of_the_memory_is_within_15_percent(tmp_path: Path, zero: int) -> None:
    """Of what a training of 113M parameters adds to the libraries: states, copies of gradients and activations."""
    words = ("--preset=[b]", "--grid=8", "--micro_batch=[1]", f"--zero={zero}", "--steps=1", "--saves=0")
    for case in benchmark(tmp_path / "train.json", *words)["cases"]:
        measured = case["memory_GiB"] - case["rounds"][0]["before_GiB"]
        assert case["planned_GiB"] == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    words = ("--micro_batch=[1]", "--steps=1", "--saves=0", "--processes=2")
    result = benchmark(tmp_path / "train.json", *words)
    assert result["machine"]["processes"] == 2 and len(result["against_token"]) == 1


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least 1"):
        train(steps=0)
    with pytest.raises(UserError, match=r"zero.*bf16"):
        train(preset=["debug"], precision="bf16", zero=0)
