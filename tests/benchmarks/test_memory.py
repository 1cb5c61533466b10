"""Memory as planned: its parts against what generation and training really hold."""

import dataclasses
from pathlib import Path

import pytest
import torch
from scripts import evaluate

from megavrc.benchmarks.generate_cases import CHANGES
from megavrc.benchmarks.memory import inference_bytes
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.model.cuda_graphs import Workspace
from megavrc.results import read_result


@pytest.mark.parametrize("prediction", ["segment", "token"])
@pytest.mark.parametrize("keep", [True, False])
def test_keys_and_values_are_those_of_generation(prediction: str, keep: bool) -> None:
    config = ModelConfig("debug", condition=ConditionConfig(kind="class", classes=3), keep_first_frame=keep)
    if prediction == "token":
        config = dataclasses.replace(config, **CHANGES["token"])
    cache = Workspace(VRC(config), 3).memory.cache
    held = sum(layer.untyped_storage().nbytes() for layer in cache.layers)
    assert inference_bytes(config, 3, size=4)["cache"] == held


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("memory", "--preset", "debug", "--train_batch", 64, "--json", tmp_path / "m.json") == 0
    found = read_result(tmp_path / "m.json")
    vrc, token = found["cases"]
    assert vrc["facts"]["how"] == token["facts"]["how"] == found["protocol"]["how"] == "planned"
    assert vrc["metrics"]["training"]["value"] < token["metrics"]["training"]["value"]
    assert found["metrics"]["debug: VRC / token, training"]["value"] < 1
    capsys.readouterr()
    for words in (("--batch", 0), ("--preset", "bb"), ("--device", "tpu")):
        assert evaluate("memory", *words) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.gpu
def test_measured(tmp_path: Path) -> None:
    from megavrc.benchmarks.memory import memory

    memory(["b"], device="cuda", json=tmp_path / "m.json")
    vrc, token = read_result(tmp_path / "m.json")["cases"]
    assert vrc["facts"]["how"] == "measured"
    assert 0 < vrc["metrics"]["training"]["value"] < token["metrics"]["training"]["value"]
    assert torch.cuda.is_available()
