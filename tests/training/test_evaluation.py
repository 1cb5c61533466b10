"""Metrics of clips that a run generates while it trains."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_folders import save_clip
from test_tasks import make_tokens, preview_run
from torch import Tensor, nn
from worlds import world_results

from megavrc.errors import UserError
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import EvaluationConfig, RunConfig


def evaluated(tmp_path: Path, **changes: Any) -> RunConfig:
    config = preview_run(tmp_path)
    config.evaluation = EvaluationConfig(**({"every": 2, "clips": 5} | changes))
    return config


def test_it_changes_nothing_of_the_run_that_it_measures(tmp_path: Path) -> None:
    """Losses and weights to the bit, though one run is measured and in two parts."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = world_results(tmp_path, "evaluation_world.py")
    assert found["same_weights"]
    off, on = ({line["step"]: line for line in found["lines"][name]} for name in ("off", "on"))
    assert [off[step]["loss"] for step in range(1, 5)] == [on[step]["loss"] for step in range(1, 5)]
    assert not any(name.startswith("eval/") for line in off.values() for name in line)
    assert [step for step in on if "eval/frozen" in on[step]] == [2, 4]
    assert on[4]["eval/frozen_low"] <= on[4]["eval/frozen"] <= on[4]["eval/frozen_high"]
    board = accumulator.EventAccumulator(str(tmp_path / "on" / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("eval/frozen_high")] == [2, 4]
    assert "eval/all" in found["stdout"] and "_low" not in found["stdout"]


@pytest.fixture
def module(tmp_path: Path) -> VRC:
    torch.manual_seed(0)
    module = VRCTask(evaluated(tmp_path)).build().eval()
    torch.nn.init.normal_(module.get_parameter("head.weight"), std=0.2)
    return module


def test_metrics_are_of_the_same_clips_each_time(
    tmp_path: Path, module: VRC, caplog: pytest.LogCaptureFixture
) -> None:
    task = VRCTask(evaluated(tmp_path))
    first = task.evaluate(module, 2)
    assert first == task.evaluate(module, 4) == VRCTask(evaluated(tmp_path)).evaluate(module, 2)
    names = {"frozen", "looping", "fading", "blurring", "colour", "shape", "direction", "all"}
    assert set(first) == {f"eval/{name}{end}" for name in names for end in ("", "_low", "_high")}
    with torch.no_grad():  # a decoder without weights makes grey clips
        for weight in task.evaluation.tokenizer.net.decoder.parameters():  # type: ignore[union-attr]
            weight.zero_()
    logging.getLogger("megavrc").propagate = True
    still = task.evaluate(module, 6)
    assert still["eval/frozen"] == 1 and still["eval/frozen_low"] > 0.4  # of three prompts
    assert "step 6: 5 of 5 clips of the evaluation stand still" in caplog.text


def test_networks_of_the_user_measure_too(
    tmp_path: Path, module: VRC, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.jit.script(Colours()).save(str(tmp_path / "network.pt"))
    monkeypatch.setenv("MEGAVRC_I3D", str(tmp_path / "network.pt"))
    task = VRCTask(evaluated(tmp_path, network="i3d", clip=str(save_clip(tmp_path / "clip"))))
    found = task.evaluate(module, 2)
    for name in ("kernel_unknown", "clipsim", "above_others"):
        assert found[f"eval/{name}_low"] <= found[f"eval/{name}"] <= found[f"eval/{name}_high"]
    assert found["eval/kernel_unknown"] != 0
    measured = task.evaluation
    assert measured
    true = torch.stack([torch.as_tensor(item["ids"]).long() for item in measured.items])
    assert measured.measure(4, true)["eval/kernel_unknown"] == 0  # the conditions' own clips


class Colours(nn.Module):
    """The signature of the published I3D."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x.float().mean(dim=(2, 3, 4)) / 255


def test_classes_have_what_needs_no_captions(tmp_path: Path) -> None:
    config = evaluated(tmp_path)
    config.model = ModelConfig(frames=4, layers=1, condition=ConditionConfig(kind="class", classes=3))
    sha256 = VRCTask(preview_run(tmp_path)).video_tokenizer.sha256  # type: ignore[union-attr]
    config.data.path, config.data.text_tokenizer = str(make_tokens(tmp_path / "labelled", 5, sha256, 1)), ""
    task = VRCTask(config)
    assert {"eval/frozen", "eval/looping_low"} < set(task.evaluate(task.build().eval(), 2))
    config.evaluation.clip = str(tmp_path)
    with pytest.raises(UserError, match="classes, not captions"):
        VRCTask(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clips": 99}, "there are 12 samples"),
        ({"network": "nowhere"}, "evaluation.network: .* neither i3d nor a folder"),
        ({"clip": "nowhere"}, "evaluation.clip nowhere: no such file"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        VRCTask(evaluated(tmp_path, **changes))


def test_a_run_without_pixels_cannot_be_measured(tmp_path: Path) -> None:
    config = evaluated(tmp_path)
    config.data.video_tokenizer = ""
    with pytest.raises(UserError, match=r"data.video_tokenizer is needed"):
        VRCTask(config)
    problems = {
        "negative": EvaluationConfig(every=-1),
        "at least 4": EvaluationConfig(every=1, clips=2),
        "never asked": EvaluationConfig(network="i3d"),
    }
    for words, wrong in problems.items():
        assert words in " ".join(wrong.problems("video"))
    assert "makes no clips" in " ".join(EvaluationConfig(every=1).problems("image"))
