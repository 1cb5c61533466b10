"""Training on the features of a text encoder, from captions to a checkpoint, through the real commands."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoders import make_encoder
from test_tasks import CAPTIONS, make_tokens
from worlds import ROOT, run_world

from megavrc.config import dump_yaml
from megavrc.data.dataset import TokenDataset
from megavrc.data.text_features import TextFeatures
from megavrc.errors import UserError
from megavrc.files import sha256_json
from megavrc.hf.convert import read_run
from megavrc.model import ConditionConfig, ModelConfig
from megavrc.model.condition import FeatureEmbedding
from megavrc.tokenization.text_features import text_features
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig, TokenDataConfig, ValidationDataConfig


def make_features(out: Path, seed: int = 0) -> None:
    """As the tool makes them, with a random T5 of width 16."""
    make_encoder(out / f"t5-{seed}", seed)
    text_features(out=out, encoder=out / f"t5-{seed}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokens")
    make_tokens(out / "video", 5, splits=("train", "val"))
    make_features(out)
    return out


def features_run(made: Path, run_dir: Path, width: int = 16) -> RunConfig:
    condition = ConditionConfig(text="features", feature_dim=width)
    model = ModelConfig(frames=4, layers=1, condition=condition)
    data = TokenDataConfig(str(made / "video"), validation={"held_out": ValidationDataConfig(samples=5)})
    config = RunConfig(run_dir=str(run_dir), stage="video", model=model, data=data)
    for name, value in {
        "steps": 6,
        "micro_batch": 4,
        "log_every": 1,
        "validate_every": 3,
        "ema": 0.9,
    }.items():
        setattr(config.train, name, value)
    config.optimizer.lr, config.optimizer.warmup = 1e-3, 1
    return config


def test_training_on_text_features_end_to_end(made: Path, tmp_path: Path) -> None:
    config = features_run(made, tmp_path / "run")
    dump_yaml(config, tmp_path / "config.yaml")
    done = run_world(1, ROOT / "pretrain" / "pretrain_vrc.py", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/held_out/loss" in line] == [3, 6]
    assert {f"val/held_out/frame_{frame}" for frame in range(1, 5)} < lines[-1].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    plain, averaged = read_run(tmp_path / "run"), read_run(tmp_path / "run", weights="ema")
    assert plain.weights.keys() == averaged.weights.keys()
    name = "condition.project.0.weight"
    assert not torch.equal(plain.weights[name], averaged.weights[name])
    assert plain.state["facts"]["text_encoder"] == VRCTask(config).source.text_encoder
    assert plain.state["validation_loss"] == lines[-1]["val/held_out/loss"]
    held_out = VRCTask(config).validation["held_out"]
    assert held_out.identity, "which samples they are"
    assert plain.state["validation_sets"] == sha256_json({"held_out": [held_out.identity, 5]})


def test_a_batch_has_the_features_of_its_captions(made: Path, tmp_path: Path) -> None:
    task = VRCTask(features_run(made, tmp_path))
    tokens = TokenDataset(made / "video")
    features = TextFeatures(tokens)
    items = [{**task.source[index], "position": index} for index in range(3)]
    collated = task.collate(items)["condition"]
    condition, real = collated.values, collated.real
    assert condition.shape == (3, 7, 16) and real.shape == (3, 7), "8 slots, the last is begin-video"
    for row, caption in enumerate(CAPTIONS):
        assert tokens[row]["caption"] == caption
        count = len(features[row])
        assert real[row].tolist() == [False] * (7 - count) + [True] * count
        assert torch.equal(condition[row, 7 - count :], features[row].float())


def test_features_are_cut_to_the_slots_and_may_be_none() -> None:
    padded = FeatureEmbedding.make(ConditionConfig(slots=5), [torch.ones(9, 2), torch.empty(0, 2)])
    assert padded.real.tolist() == [[True] * 4, [False] * 4]
    assert padded.values.sum() == 8


def test_features_that_do_not_fit_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"model.condition.feature_dim: is 32, the text features have 16 columns"
    ):
        VRCTask(features_run(made, tmp_path, width=32))
    other = tmp_path / "tokens"
    make_tokens(other / "video", 5, splits=("val",))
    make_features(other, seed=1)
    config = features_run(made, tmp_path)
    sets = config.data.validation
    sets["held_out"] = replace(sets["held_out"], path=str(other / "video"))
    with pytest.raises(
        UserError, match=r"data.validation.held_out: its text features were made by another encoder"
    ):
        VRCTask(config)
