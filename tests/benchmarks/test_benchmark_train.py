"""`tools/benchmark.py train` on tiny runs of the real engine: what is reported, by hand; and running out of memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megavrc.benchmarks.train import train
from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.model import ConditionConfig, ModelConfig
from megavrc.model.flops import training_flops
from megavrc.results import read_result

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--preset=debug", "--frames=1")


def benchmark(json_file: Path, *words: str, address_space: int | None = None) -> dict[str, Any]:
    limit = ["prlimit", f"--as={address_space}"] if address_space else []
    done = subprocess.run(
        [*limit, sys.executable, "tools/benchmark.py", "train", *SMALL, *words] + [f"--json={json_file}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**read_result(json_file), "shown": done.stdout}


def values(case: dict[str, Any]) -> dict[str, float]:
    return {name: found["value"] for name, found in case["metrics"].items()}


def test_both_models_are_measured_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "train.json"
    assert run_command(train, [*SMALL, "--micro_batch=2", "--steps=3", "--saves=1", f"--json={file}"]) == 0
    result = {**read_result(file), "shown": capsys.readouterr().out}
    assert [case["config"]["prediction"] for case in result["cases"]] == ["segment", "token"]
    assert result["machine"]["cpu"] and result["machine"]["device"] == "cpu"
    for case in result["cases"]:
        condition = ConditionConfig(kind="class", classes=101)
        prediction = case["config"]["prediction"]
        flops = training_flops(ModelConfig(frames=1, prediction=prediction, condition=condition))
        found = values(case)
        assert found["tokens"] == pytest.approx(2 * 64 * found["clips"])
        assert found["flops"] == pytest.approx(found["clips"] * flops / 1e12)
        assert "mfu" not in found, "a CPU has no peak in the table"
        assert found["before"] < found["memory"] < 8 and case["metrics"]["stall"]["n"] == 1
        assert found["first"] == pytest.approx(6.24, abs=0.3), "ln 512: it really trains on 512 codes"
    vrc, token = map(values, result["cases"])
    assert 0 < token["planned"] and f"{vrc['planned']:.3g} GiB" in result["shown"]
    ratios = {name.split(": ")[1]: found["value"] for name, found in result["metrics"].items()}
    assert ratios["clips"] == pytest.approx(vrc["clips"] / token["clips"])
    assert ratios["memory"] == pytest.approx(vrc["memory"] / token["memory"])
    assert "VRC / token: memory" in result["shown"]


@pytest.mark.slow
def test_a_case_without_memory_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    """The address space of every process is limited, which ends large allocations as a full machine does."""
    words = ("--micro_batch=[2048,1]", "--steps=1", "--saves=0")
    result = benchmark(tmp_path / "train.json", *words, address_space=7 * 2**30)
    large, small = result["cases"][:2], result["cases"][2:]
    assert all(case["facts"]["out_of_memory"] and not case["metrics"] for case in large)
    assert all(values(case)["clips"] > 0 for case in small)
    assert {name.split(", ")[1] for name in result["metrics"]} == {"micro-batch 1"}
    assert "out of memory" in result["shown"] and result["shown"].count("True") == 2


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1])
def test_the_plan_of_the_memory_is_within_20_percent(tmp_path: Path, zero: int) -> None:
    """Of what a training of 113M parameters adds to the libraries: states, copies of gradients and activations."""
    words = ("--preset=[b]", "--grid=8", "--micro_batch=[1]", f"--zero={zero}", "--steps=1", "--saves=0")
    for case in benchmark(tmp_path / "train.json", *words)["cases"]:
        found = values(case)
        assert found["planned"] == pytest.approx(found["memory"] - found["before"], rel=0.2)


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    words = ("--micro_batch=[1]", "--steps=1", "--saves=0", "--processes=2")
    result = benchmark(tmp_path / "train.json", *words)
    assert result["config"]["processes"] == 2 and len(result["metrics"]) == 3


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least 1"):
        train(steps=0)
    with pytest.raises(UserError, match=r"zero.*bf16"):
        train(preset=["debug"], precision="bf16", zero=0)
