"""tools/benchmark.py generate, and what it computes from what it measures."""

import json
from pathlib import Path

import pytest
import torch
from test_evaluate_tool import world  # noqa: F401 (a fixture)

from megavrc.config import run_command
from megavrc.evaluation import cost
from megavrc.model import VRC, ConditionConfig, ModelConfig, SamplingSettings, generate
from megavrc.recipes import benchmark_generate

SMALL = {"layers": 1, "heads": 1, "width": 16, "vocab": 32, "grid": 4, "frames": 2}


def run(*options: str) -> int:
    return run_command({"generate": benchmark_generate.generate}, ["generate", *options])


def model(**changes: object) -> VRC:
    condition = ConditionConfig(kind="class", classes=3)
    return VRC(ModelConfig(condition=condition, **{**SMALL, **changes})).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes, others",
    [({}, 2), ({"prediction": "token"}, 0), ({"first_frame": "row"}, 2), ({"frames": 0}, 0)],
)
def test_the_passes_that_the_floor_counts_are_those_that_are_made(
    changes: dict[str, object], others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    step = cost.Decoder.step
    monkeypatch.setattr(
        cost.Decoder, "step", lambda self, count: (step(self, count), made.append(self.cache.length))[0]
    )
    measured = model(**changes)
    generate(measured, torch.tensor([0]), SamplingSettings(), [0])
    drawing = made[: len(made) - others] if others else made
    row = changes.get("first_frame") == "row"
    assert cost.token_passes(measured) == (drawing if row else drawing[1:])


def test_the_floor_is_weights_and_visible_keys_over_bandwidth() -> None:
    measured = model()
    weights = 4 * sum(p.numel() for part in (measured.trunk, measured.head) for p in part.parameters())
    rows = range(2, 17)  # the class and the tokens so far, for the tokens 1..15
    keys = 4 * 2 * 16 * sum(rows)
    assert cost.floor_seconds(measured, 1, 1.0, 1e9) == pytest.approx((15 * weights + keys) / 1e9)
    assert cost.floor_seconds(measured, 3, 2.0, 1e9) == pytest.approx((15 * weights + 6 * keys) / 1e9)


def test_sampled_steps_are_summed_as_if_all_had_been_timed() -> None:
    steps = torch.tensor([2.0, 10.0, 50.0], dtype=torch.float64)
    linear = 0.5 + 0.1 * steps
    assert cost._integral(steps, linear, 60) == pytest.approx(sum(0.5 + 0.1 * step for step in range(60)))


def test_models_of_one_preset_share_their_trunk() -> None:
    models = benchmark_generate._random("debug", ["vrc-4", "vrc-16", "row", "token"], 1, "cpu", torch.float32)
    assert len({id(each.trunk) for each in models.values()}) == 1
    for each in models.values():
        ids = generate(each, each.null_condition(1), SamplingSettings(), [0], frames=0)
        assert ids.shape == (1, 1, 8, 8)
        assert all(torch.isfinite(parameter).all() for parameter in each.parameters())


def test_random_models_are_measured_and_said_to_be_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--repeats=1", "--transformers=false", "--frames=5", f"--json={tmp_path / 'b.json'}"]
    assert run(*common, "--preset=debug", "--variants=[vrc-4,token,row]", "--sampled-steps=2") == 0
    printed, result = capsys.readouterr().out, json.loads((tmp_path / "b.json").read_text())
    assert "weights: random" in printed and "EXTRAPOLATED from 2 token steps" in printed
    assert "accepted" not in printed  # says nothing about weights that were not trained
    assert [case["name"] for case in result["cases"][::2]] == ["vrc-4", "token", "row"]
    assert {case["guidance"] for case in result["cases"]} == {1.0, 2.0}
    assert "token / vrc-4, batch 1, guidance 1" in result["ratios"]
    for case in result["cases"]:
        phases = sum(case[phase]["median"] for phase in ("prefill", "first_frame", "later_frames"))
        assert case["seconds"]["median"] == pytest.approx(phases)


def test_a_trained_folder_reports_accepted_tokens(
    world: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "b.json"
    options = ["--repeats=1", "--transformers=false", "--speculative=3", "--batch=2", "--guidance=1"]
    prompt = "--prompt=a red square moves left"
    assert run(f"--model={world / 'model'}", prompt, *options, f"--json={out}") == 0
    assert "accepted" in capsys.readouterr().out
    result = json.loads(out.read_text())
    sequential, speculative, baseline = result["cases"]
    assert (sequential["speculative"], speculative["speculative"], baseline["name"]) == (0, 3, "token")
    assert 1 <= speculative["accepted_tokens_per_pass"]["median"] <= 4
    assert result["model"]["grid"] == 4


def test_impossible_options_are_refused() -> None:
    assert run("--frames=16") == 2
    assert run("--preset=debug", "--variants=[row]", "--sampled-steps=33") == 2
    assert run("--model=/nonexistent") == 2
