"""tools/benchmark.py generate, and what it computes from what it measures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluate_tool import world  # noqa: F401 (a fixture)

from megavrc.benchmarks import cost
from megavrc.benchmarks import generate as benchmark_generate
from megavrc.benchmarks.generate_cases import random_model, trained_cases, variants_of
from megavrc.config import run_command
from megavrc.hardware import reset_peak_memory
from megavrc.model import VRC, ClipRequest, ConditionConfig, ModelConfig, VideoPipeline
from megavrc.model.compressor import BatchNorm
from megavrc.model.condition import Condition
from megavrc.model.decoder import Decoder
from megavrc.results import case, metric, read_result

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
    step = Decoder.step
    monkeypatch.setattr(
        Decoder,
        "step",
        lambda self, *args, **more: (step(self, *args, **more), made.append(self.cache.length))[0],
    )
    measured = model(**changes)
    VideoPipeline(measured).generate(ClipRequest(Condition(torch.tensor([0])), [0]), "ids")
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
    base = random_model("debug", 1, "cpu", torch.float32)
    models = variants_of(base, ["vrc-4", "vrc-16", "row", "token"])
    assert models["vrc-4"] is base
    assert len({id(each.trunk) for each in models.values()}) == 1
    for each in models.values():
        ids = VideoPipeline(each).generate(ClipRequest(each.null_condition(1), [0], frames=1), "ids")
        assert ids.shape == (1, 1, 8, 8)
        assert all(torch.isfinite(parameter).all() for parameter in each.parameters())


def dtypes(model: VRC) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of the batch norms, and of all else."""
    norms = {id(p) for m in model.modules() if isinstance(m, BatchNorm) for p in m.parameters()}
    kinds = [{p.dtype for p in model.parameters() if (id(p) in norms) == inside} for inside in (True, False)]
    return kinds[0], kinds[1]


def test_trained_and_random_models_in_bfloat16_are_stored_alike(world: Path) -> None:  # noqa: F811
    (case,), _ = trained_cases([world / "model"], None, [1], [1.0], [0], "cpu", torch.bfloat16)
    for model in (case.model, *variants_of(case.model, ["token", "vrc-1"]).values()):
        assert model.trunk.layers[0].attention.qkv.weight.is_contiguous()
        assert dtypes(model)[1] == {torch.bfloat16} and dtypes(model)[0] <= {torch.float32}
    assert dtypes(case.model)[0] == {torch.float32}
    assert dtypes(random_model("debug", 1, "cpu", torch.bfloat16))[0] == {torch.float32}


def test_ratios_compare_like_with_like() -> None:
    def timed(
        name: str, speculative: int, step_of: str, seconds: float | None, step: float
    ) -> dict[str, Any]:
        metrics = {"step": metric(step)} | ({} if seconds is None else {"seconds": metric(seconds)})
        options = {"model": name, "batch": 1, "guidance": 2.0, "speculative": speculative, "step_of": step_of}
        return case(name, metrics, **options)

    cases = [
        timed("row", 0, "row", 1.0, 0.5),
        timed("a", 0, "token", 4.0, 0.1),
        timed("a", 16, "pass", 2.0, 0.15),
        timed("b", 0, "token", 5.0, 0.1),
        timed("b", 16, "pass", None, 0.2),
        timed("token", 0, "token", 40.0, 0.2),
        timed("token", 16, "pass", 10.0, 0.3),
    ]
    job, pays = "batch 1, guidance 2", "(accepted tokens from which it pays)"
    ratios = benchmark_generate.ratios(cases, {1: metric(0.13)})
    assert {name: ratio["value"] for name, ratio in ratios.items()} == pytest.approx(
        {
            f"token / row, {job}": 40,
            f"token / a, {job}": 10,
            f"token / a, {job}, speculative 16": 5,
            f"token / b, {job}": 8,
            f"sequential / speculative 16 of a, {job}": 2,
            f"sequential / speculative 16 of token, {job}": 4,
            f"pass of 16 drafts / token step of a {pays}, {job}": 1.5,
            f"pass of 16 drafts / token step of b {pays}, {job}": 2,
            f"pass of 16 drafts / token step of token {pays}, {job}": 1.5,
            "step of transformers' Llama / step of a, batch 1": 1.3,
        }
    )


def test_the_peak_is_that_of_the_case_alone(tmp_path: Path) -> None:
    if reset_peak_memory("cpu") is None:
        pytest.skip("this system does not forget the peak memory of a process")
    ballast = torch.ones(2**26)  # 256 MiB, and torch itself
    common = ["--repeats=1", "--transformers=false", "--frames=5", f"--json={tmp_path / 'b.json'}"]
    assert run(*common, "--preset=debug", "--variants=[row]", "--guidance=1") == 0
    (case,) = read_result(tmp_path / "b.json")["cases"]
    assert 4 * 1_000_000 < case["metrics"]["peak"]["value"] < ballast.nbytes


def test_of_speculation_with_random_weights_only_the_pass_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--repeats=1", "--transformers=false", "--frames=1", f"--json={tmp_path / 'b.json'}"]
    assert run(*common, "--preset=debug", "--variants=[vrc-4,row]", "--guidance=1", "--speculative=8") == 0
    plain, speculative, row = read_result(tmp_path / "b.json")["cases"]
    assert [each["config"]["step_of"] for each in (plain, speculative, row)] == ["token", "pass", "row"]
    assert "seconds" in plain["metrics"] and "seconds" not in speculative["metrics"]
    printed = capsys.readouterr().out
    assert (
        "pass of 8 drafts / token step of vrc-4" in printed and "accepted" not in printed.split("pass of")[0]
    )


def test_refinement_is_measured_with_several_numbers_of_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--repeats=1", "--transformers=false", "--frames=5", f"--json={tmp_path / 'b.json'}"]
    common += ["--preset=debug", "--variants=[vrc-4,refine]", "--guidance=1", "--sampled-steps=2"]
    assert run(*common, "--refine_passes", "8", "2") == 0
    result = read_result(tmp_path / "b.json")
    names = ["vrc-4", "refine, 8 passes", "refine, 2 passes"]
    assert [case["config"]["model"] for case in result["cases"]] == names
    assert "refine, 2 passes / vrc-4, batch 1, guidance 1" in result["metrics"]
    share = result["metrics"]["further passes of refine, 8 passes / clip of vrc-4, batch 1, guidance 1"]
    plain, refined = (case["metrics"]["later_frames"]["value"] for case in result["cases"][:2])
    assert share["value"] == (refined - plain) / result["cases"][0]["metrics"]["seconds"]["value"]
    assert run(*common, "--refine_passes=2000") == 2
    assert "--refine_passes: [2000], expected 1 to" in capsys.readouterr().err


def test_random_models_are_measured_and_said_to_be_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--repeats=1", "--transformers=false", "--frames=5", f"--json={tmp_path / 'b.json'}"]
    assert run(*common, "--preset=debug", "--variants=[vrc-4,token,row]", "--sampled-steps=2") == 0
    printed, result = capsys.readouterr().out, read_result(tmp_path / "b.json")
    assert "weights random" in printed and "EXTRAPOLATED from 2 token steps" in printed
    assert "accepted" not in printed  # says nothing about weights that were not trained
    assert [case["config"]["model"] for case in result["cases"][::2]] == ["vrc-4", "token", "row"]
    assert {case["config"]["guidance"] for case in result["cases"]} == {1.0, 2.0}
    assert "token / vrc-4, batch 1, guidance 1" in result["metrics"]
    for row in result["cases"]:
        found = {name: seconds["value"] for name, seconds in row["metrics"].items()}
        phases = sum(found[phase] for phase in ("prefill", "first_frame", "later_frames"))
        assert found["seconds"] == pytest.approx(phases)


def test_matrices_in_int8_take_a_quarter_and_their_step_is_compared(tmp_path: Path) -> None:
    common = [
        "--repeats=1",
        "--transformers=false",
        "--frames=5",
        "--guidance=1",
        f"--json={tmp_path / 'b.json'}",
    ]
    options = ["--preset=debug", "--variants=[vrc-4,token]", "--sampled-steps=2", "--quantize=int8"]
    assert run(*common, *options) == 0
    result = read_result(tmp_path / "b.json")
    assert [case["config"]["model"] for case in result["cases"]] == [
        "vrc-4",
        "token",
        "vrc-4 int8",
        "token int8",
    ]
    plain, _, int8, _ = (case["metrics"] for case in result["cases"])
    ratio = result["metrics"]["step of vrc-4 / with int8, batch 1, guidance 1"]["value"]
    assert ratio == pytest.approx(plain["step"]["value"] / int8["step"]["value"])
    assert int8["floor_step"]["value"] < 0.35 * plain["floor_step"]["value"]  # bytes that a step reads


def test_a_trained_folder_reports_accepted_tokens(
    world: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "b.json"
    options = ["--repeats=1", "--transformers=false", "--speculative=3", "--batch=2", "--guidance=1"]
    options += ["--variants=[vrc-16,token]", "--dtype=bfloat16"]
    prompt = "--prompt=a red square moves left"
    assert run(f"--model={world / 'model'}", prompt, *options, f"--json={out}") == 0
    assert "accepted" in capsys.readouterr().out
    result = read_result(out)
    sequential, speculative, other, baseline = result["cases"]
    assert (sequential["config"]["speculative"], speculative["config"]["speculative"]) == (0, 3)
    assert (other["config"]["model"], baseline["config"]["model"]) == ("vrc-16", "token")
    assert 1 <= speculative["metrics"]["accepted"]["value"] <= 4
    assert result["config"]["grid"] == 4


def test_impossible_options_are_refused() -> None:
    assert run("--frames=16") == 2
    assert run("--preset=debug", "--variants=[row]", "--sampled-steps=33") == 2
    assert run("--model=/nonexistent") == 2
