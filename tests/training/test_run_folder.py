"""The run folder: what a start says of the one before, and what it leaves."""

from pathlib import Path

import pytest
import torch
from toy import toy_config

from megavrc import checkpoint
from megavrc.distributed import Rank
from megavrc.errors import UserError
from megavrc.files import read_json
from megavrc.training.config import BaseRunConfig
from megavrc.training.run_folder import RunFolder


def opened(config: BaseRunConfig, rank: Rank) -> RunFolder:
    return RunFolder(config, {"name": "toy"}, {}, rank)


def test_what_differs_from_last_time_is_said_and_kept(
    tmp_path: Path, alone: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(tmp_path / "run")
    config.deepspeed = {"zero": {"bucket": 1}}
    run = opened(config, alone)
    run.record_start()
    checkpoint.write(run.store, 3, {"model": {"w": torch.ones(1)}}, run.describe({}), keep=1)
    run.close()
    again = opened(config, alone)
    again.record_start()
    again.close()
    assert "differs" not in caplog.text

    moved = (tmp_path / "run").rename(tmp_path / "moved")
    config.run_dir = str(moved)
    config.optimizer.lr, config.optimizer.schedule, config.optimizer.betas = 1e-3, "constant", (0.9, 0.99)
    config.train.micro_batch, config.train.precision = 4, "bf16"
    config.deepspeed = {"zero": {"bucket": 2}}
    before = (moved / "config.yaml").read_text()
    run = opened(config, alone)  # a start that may yet end before it trains
    assert (moved / "config.yaml").read_text() == before
    assert len(read_json(moved / "run.json")["starts"]) == 2
    run.record_start()
    run.close()
    changed = [
        "deepspeed.zero.bucket 1, now 2",
        "optimizer.betas [0.9, 0.95], now [0.9, 0.99]",
        "optimizer.lr 0.01, now 0.001",
        "optimizer.schedule cosine, now constant",
        "train.micro_batch 2, now 4",
        "train.precision fp32, now bf16",
    ]
    assert f"{moved}: differs from last time: {'; '.join(changed)}" in caplog.text
    assert read_json(moved / "run.json")["starts"][-1]["changed"] == changed
    assert "precision: bf16" in (moved / "config.yaml").read_text()


def test_other_text_features_are_another_run_unless_it_did_not_know_them(tmp_path: Path, alone: Rank) -> None:
    config = toy_config(tmp_path / "run")
    for identity in ({}, {"text_features": ["a"]}, {"text_features": ["a"]}):  # the first as of before
        run = RunFolder(config, {"name": "toy"} | identity, {}, alone)
        run.record_start()
        run.close()
    with pytest.raises(UserError, match=r"another run \(text_features: \['a'\] there, \['b'\] here\)"):
        RunFolder(config, {"name": "toy", "text_features": ["b"]}, {}, alone)
