"""The plan against what happens: activations as measured, states exactly, FLOPs by hand; and what it says."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import ROOT
from scripts import run_script

from megavrc import checkpoint
from megavrc.config import load_config, run_command
from megavrc.data.shards import ShardWriter, shard_name
from megavrc.data.text_features import FeatureWriter
from megavrc.errors import UserError
from megavrc.hardware import GPUS, gpu_named, gpu_of
from megavrc.launch.memory import activations, count_saved, state_bytes
from megavrc.launch.plan import Job, make_plan, problems
from megavrc.launch.plan_run import plan_run
from megavrc.model import VRC, CompressionConfig, ConditionConfig, ModelConfig
from megavrc.model.condition import Condition
from megavrc.model.flops import forward_flops, meta_batch, training_flops
from megavrc.results import read_result
from megavrc.training.tasks.vrc_config import RunConfig

CLASS = ConditionConfig(kind="class", classes=3)
MODELS = {
    "debug": ModelConfig(condition=CLASS),
    "image": ModelConfig(frames=0, condition=CLASS),
    "token": ModelConfig(prediction="token", frames=2, condition=CLASS),
    "without the first frame": ModelConfig(keep_first_frame=False, condition=ConditionConfig(vocab=40)),
    "b": ModelConfig(preset="b", layers=2, frames=1, condition=CLASS),
}


def on_cpu(inputs: Any) -> Any:
    if isinstance(inputs, Condition):
        return Condition(on_cpu(inputs.values))
    if isinstance(inputs, torch.Tensor):
        return torch.zeros(inputs.shape, dtype=inputs.dtype)
    return tuple(on_cpu(item) for item in inputs)


@pytest.mark.parametrize(
    ("name", "precision"), [(name, precision) for name in MODELS for precision in ("fp32", "bf16")][:-1]
)  # without the last, which takes a CPU long
def test_activations_are_within_15_percent_of_what_autograd_keeps(name: str, precision: Any) -> None:
    config = MODELS[name]
    estimate = activations(config, precision)
    model = VRC(config).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    measured = count_saved(model, on_cpu(meta_batch(config, 1)), fused=False)
    assert estimate.layers + estimate.rest == pytest.approx(measured, rel=0.15)
    assert estimate.layer_input * 2 < estimate.layer, "checkpointing would not help"


def test_states_are_those_of_the_optimizer() -> None:
    """Weights, gradients and moments of a real step, fp32 at ZeRO stage 0: to the byte."""
    model = VRC(MODELS["debug"])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(*on_cpu(meta_batch(MODELS["debug"], 1))).loss.backward()
    for parameter in model.parameters():  # a class model uses all of them
        assert parameter.grad is not None
    optimizer.step()
    count = model.parameter_counts()["total"]
    states = state_bytes(count, "fp32", zero=0, gpus=1, ema=False)
    moments = [state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert states["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    assert states["gradients"] == sum(parameter.grad.nbytes for parameter in model.parameters())  # type: ignore[union-attr]
    assert states["moments"] == sum(moments) and states["master weights"] == 0


def test_zero_shards_what_it_says() -> None:
    sizes = [state_bytes(1000, "bf16", zero, 4, ema=True) for zero in (1, 2, 3)]
    names = ("weights", "gradients", "master weights", "moments", "averages")
    assert [[size[name] for name in names] for size in sizes] == [
        [2000, 2000, 1000, 2000, 1000],
        [2000, 500, 1000, 2000, 1000],
        [500, 500, 1000, 2000, 1000],
    ]
    assert [size["gathered weights"] for size in sizes] == [0, 0, 2000]


def test_flops_by_hand() -> None:
    """One layer, width d, S rows; the last segment has 16 cells, the mask is counted cell by cell."""
    config = ModelConfig(layers=1, frames=1, condition=CLASS)
    d, hidden, vocab, cells, kept = config.width, config.hidden, config.vocab, 64, 16
    rows = 1 + cells + kept
    area = (1 + cells) * (2 + cells) // 2 + kept * rows
    assert forward_flops(config) == {
        "trunk": 2 * rows * (4 * d * d + 3 * d * hidden),
        "attention": 4 * area * d,
        "head": 2 * 2 * cells * d * vocab,
        "compressor": 2 * kept * (9 * d * d + d * d),
        "decompressor": 2 * (kept * 16 * d * d + cells * d * d),
    }
    assert training_flops(config) == 3 * sum(forward_flops(config).values())


def test_flops_of_ablations() -> None:
    base = ModelConfig(condition=CLASS)
    two_calls = dataclasses.replace(base, keep_first_frame=False)
    assert forward_flops(two_calls)["attention"] < forward_flops(base)["attention"]
    token = forward_flops(ModelConfig(prediction="token", condition=CLASS))
    assert (
        token.keys() == {"trunk", "attention", "head"} and token["trunk"] > 2 * forward_flops(base)["trunk"]
    )
    rate_1 = dataclasses.replace(base, compression=CompressionConfig(rate=1))
    assert forward_flops(rate_1)["trunk"] > forward_flops(base)["trunk"]


def job(**changes: Any) -> Job:
    settings = {"gpu": gpu_named("a100"), "gpus": 8, "steps": 1000, "global_batch": 96, "micro_batch": 4}
    settings |= {
        "zero": 1,
        "precision": "bf16",
        "checkpointing": False,
        "ema": False,
        "mfu": 0.5,
        "checkpoint_s": 2.0,
        "checkpoints": 5,
    }
    return Job(**{**settings, **changes})


def test_time_follows_from_flops() -> None:
    model = MODELS["b"]
    plan = make_plan(model, job(clips=960))
    assert plan["clips_per_s"] == pytest.approx(8 * 312e12 * 0.5 / training_flops(model))
    assert plan["tokens_per_s"] == pytest.approx(2 * 1024 * plan["clips_per_s"])
    assert plan["run"]["gpu_hours"] == pytest.approx(96_000 / plan["clips_per_s"] / 3600 * 8)
    assert plan["epoch"]["hours"] == pytest.approx(plan["run"]["hours"] / 100)
    averaged = make_plan(model, job(ema=True))
    assert averaged["memory"]["averages"] == averaged["checkpoint_bytes"] // 4 // 8
    assert averaged["checkpoint_bytes"] * 3 == plan["checkpoint_bytes"] * 4
    assert make_plan(model, job(gpus=32))["save"]["seconds"] == pytest.approx(plan["save"]["seconds"] / 2)


@pytest.mark.parametrize("ema", [False, True])
def test_checkpoints_on_disk_are_as_one_that_is_written(ema: bool, tmp_path: Path) -> None:
    model = VRC(MODELS["debug"])
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    names = ("model", "exp_avg", "exp_avg_sq", *(("ema",) if ema else ()))
    groups = {**dict.fromkeys(names, weights), "buffers": dict(model.named_buffers())}
    files = list(checkpoint.write(tmp_path, 7, groups, {}, keep=1).iterdir())
    planned = make_plan(MODELS["debug"], job(gpus=1, ema=ema))["disk"]["checkpoints"]
    assert planned["files"] == 5 * len(files)
    assert planned["bytes"] == pytest.approx(5 * sum(file.stat().st_size for file in files), rel=0.02)
    shared = make_plan(MODELS["debug"], job(gpus=8, ema=ema))["disk"]["checkpoints"]
    assert shared["files"] > planned["files"], "each rank writes files of its own"


@pytest.mark.parametrize("name", ["debug", "image"])
def test_token_shards_on_disk_are_as_one_that_is_written(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    shape = (1 + model.frames, model.grid, model.grid)
    with ShardWriter(tmp_path / shard_name("train", 0, 1), shape, model.vocab) as shard:
        for number in range(300):
            ids = np.zeros(shape, np.int16)
            shard.add(
                f"{number:016x}-0000000", ids, {"caption": "a red square", "label": None, "source": "s"}
            )
        shard.commit()
    files = list(tmp_path.iterdir())
    planned = make_plan(model, job(clips=300))["disk"]["tokens"]
    assert planned["files"] == len(files)
    assert planned["bytes"] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)
    assert make_plan(model, job(clips=20481))["disk"]["tokens"]["files"] == 3 * (11 if model.frames else 2)
    assert make_plan(model, job())["disk"]["tokens"] is None
    assert "text_features" not in make_plan(model, job())["disk"], "of a model of classes"


def test_text_features_on_disk_are_as_those_that_are_written(tmp_path: Path) -> None:
    model = ModelConfig(frames=0, condition=ConditionConfig(text="features", feature_dim=40, slots=9))
    with FeatureWriter(tmp_path / shard_name("train", 0, 1)) as shard:
        for number in range(300):
            fields = {"caption": "a red square", "cut": False}
            shard.add(f"{number:016x}-0000000", np.zeros((8, 40), np.float16), fields)
        shard.commit()
    planned = make_plan(model, job(clips=300))["disk"]["text_features"]
    assert planned["files"] == len(list(tmp_path.iterdir()))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert planned["bytes"] == pytest.approx(size, rel=0.1)


def test_every_stage_and_micro_batch_is_as_if_configured() -> None:
    plan = make_plan(MODELS["b"], job())
    assert list(plan["memory_by_micro_batch"]) == ["zero_1", "zero_2", "zero_3"], "bf16 wants a stage"
    for zero, size, kind in ((1, 4, "plain"), (2, 16, "checkpointed"), (3, 1, "plain")):
        configured = make_plan(
            MODELS["b"], job(zero=zero, micro_batch=size, checkpointing=kind == "checkpointed")
        )
        total = plan["memory_by_micro_batch"][f"zero_{zero}"][kind][size]
        assert total == configured["memory"]["total"]


def test_copies_of_gradients_count_where_activations_are_less() -> None:
    """The optimizer step on one GPU: its bf16 gradients flat, and the same in fp32."""
    config = dataclasses.replace(MODELS["b"], frames=0, grid=8)
    plan = make_plan(config, job(gpus=1, micro_batch=1))
    assert plan["memory"]["activations"] == 6 * plan["parameters"]["total"]
    assert (
        make_plan(config, job(gpus=64, micro_batch=1))["memory"]["activations"]
        < plan["memory"]["activations"]
    )


def test_what_does_not_fit_is_named_with_what_would() -> None:
    small = job(gpu=dataclasses.replace(gpu_named("a100"), gib=8.0), micro_batch=16, gpus=2, global_batch=96)
    model = ModelConfig(preset="l", condition=CLASS)
    [problem] = problems(make_plan(model, small), small)
    assert re.match(
        r"memory: [\d.]+ GiB needed, 7\.4 GiB usable \(92% of 8\.0 GiB\); most of it is activations", problem
    )
    size = int(re.findall(r"train.micro_batch (\d+)", problem)[-1])
    assert "fits" in problem and 1 < size < 16 and 96 % (2 * size) == 0, problem
    tiny = dataclasses.replace(small, gpu=dataclasses.replace(small.gpu, gib=2.0))
    assert "nothing fits" in problems(make_plan(model, tiny), tiny)[0]
    odd = job(gpus=7)
    assert "96 is not a multiple of 7 GPUs" in problems(make_plan(MODELS["b"], odd), odd)[0]


def test_gpus_are_found_by_their_device_names() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 NVL": "h100-nvl",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100 80GB PCIe": "a100",
        "NVIDIA A10": "a10",
        "NVIDIA L40S": "l40s",
        "NVIDIA GeForce RTX 4090": "rtx-4090",
        "NVIDIA A100-PCIE-40GB": "a100",
        "NVIDIA H200 NVL": "h200-nvl",
        "NVIDIA A10G": None,
        "NVIDIA RTX A4000": None,
        "NVIDIA RTX A1000": None,
        "NVIDIA A100X": None,
        "NVIDIA GH200 480GB": None,
        "NVIDIA L40": None,
        "NVIDIA GeForce RTX 4090 D": None,
        "NVIDIA GeForce RTX 4090 Laptop GPU": None,
        "NVIDIA GeForce RTX 3090 Ti": None,
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
        "NVIDIA A40-48Q": None,
        "Tesla V100-SXM2-32GB": None,
        "NVIDIA GeForce RTX 3090": "rtx-3090",
    }
    found = {name: gpu_of(name) for name in names}
    assert {name: gpu.name if gpu else None for name, gpu in found.items()} == names
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    with pytest.raises(UserError, match="--tflops"):
        gpu_named("v100")
    with pytest.raises(UserError, match="'rtx4080' is not known, did you mean rtx-4090"):
        gpu_named("rtx4080")
    spelled = {
        "RTX4090": "rtx-4090",
        "NVIDIA GeForce RTX 3090": "rtx-3090",
        "H100_NVL": "h100-nvl",
        "A100 40": "a100-40",
    }
    assert {name: gpu_named(name).name for name in spelled} == spelled


# --- the command, and the configurations for known hardware -----------------------------------------------------

CONFIGS = ROOT / "pretrain" / "configs"
HARDWARE = sorted((CONFIGS / "hardware").glob("*.yaml"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, script = f"--config={CONFIGS / 'video_1.2b.yaml'}", "tools/plan_run.py"
    words = ["--gpu=h100", "--gpus=8", f"--json={tmp_path / 'plan.json'}", "--", config]
    assert run_script(script, *words) == 0
    shown = capsys.readouterr().out
    assert "1,293.9M" in shown and re.search(r"micro-batch +1 +2 +4 +8 ", shown)
    assert len(re.findall(r"ZeRO stage [123] +(\d+\.\d +){4}8, with activation checkpointing", shown)) == 3
    assert re.search(r"disk +\d+\.\d GiB in \d+ files: 5 checkpoints at once at most", shown)
    plan = read_result(tmp_path / "plan.json")
    assert plan["metrics"]["disk/checkpoints/bytes"]["unit"] == "B"
    assert plan["metrics"]["parameters/body"]["value"] == 1_130_457_088
    assert plan["metrics"]["memory/total"]["unit"] == "B" and plan["protocol"]["problems"] == []
    assert run_script(script, "--gpu=l4", "--check", "--", config, "--train.micro_batch=96") == 2
    said = capsys.readouterr().err
    assert "memory: " in said and said.count("\n") == 1
    assert run_script(script, "--gpu=l4") == 2
    assert "required: --config FILE" in capsys.readouterr().err


def described(path: Path) -> list[tuple[str, str, int, str]]:
    """The lines `base config.yaml  31.2 GiB` of a file's comment, its GPU and how many."""
    text = path.read_text()
    head = re.search(r"plan_run --gpu=(\S+) --gpus=(\d+)", text)
    assert head
    rows = re.findall(r"^#   (\S+\.yaml(?: --\S+)*) +(\d+\.\d GiB)$", text, re.MULTILINE)
    return [(base, head[1], int(head[2]), memory) for base, memory in rows]


@pytest.mark.parametrize("path", HARDWARE, ids=lambda path: path.name)
def test_configurations_for_known_hardware_fit_as_they_say(path: Path) -> None:
    rows = described(path)
    assert {base for base, *_ in rows} >= {"image_1.2b.yaml", "video_1.2b.yaml"}, "text, both stages"
    assert len([base for base, *_ in rows if base.startswith("ucf101")]) >= 2, "classes, both stages"
    for base, gpu, gpus, memory in rows:
        file, *options = base.split()
        config = load_config(RunConfig, [f"--config={CONFIGS / file}", f"--config={path}", *options])
        train = config.train
        checkpointing = train.activation_checkpointing != "none"
        planned = Job(
            gpu=gpu_named(gpu),
            gpus=gpus,
            steps=train.steps,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            zero=train.zero,
            precision=train.precision,
            checkpointing=checkpointing,
            ema=train.ema > 0,
            mfu=0.4,
            checkpoint_s=1.0,
            checkpoints=1,
        )
        plan = make_plan(config.model, planned)
        assert problems(plan, planned) == []
        assert memory == f"{plan['memory']['total'] / 2**30:.1f} GiB", f"{path.name}, {base}: run plan_run.py"


def test_the_four_sizes_are_there() -> None:
    assert [path.name for path in HARDWARE] == ["24gb.yaml", "64x80gb.yaml", "80gb.yaml", "8x80gb.yaml"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--mfu=1.5", "--mfu above 0"),
        ("--tflops=-1", "--tflops -1.0"),
        ("--gib_memory=.nan", "--gib_memory nan"),
    ]
    + [("--checkpoint_s=.inf", "--checkpoint_s inf"), ("--clips=0", "--clips 0: at least 1")],
)
def test_numbers_that_cannot_be(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [option, "--gpu=h100", "--", "--config=video_1.2b", "--run_dir=r"]
    assert run_command(plan_run, words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--tflops=500", ("of 500 TFLOP/s", "GiB of 80.0 GiB")),
        ("--gib_memory=40", ("of 989.5 TFLOP/s", "GiB of 40.0 GiB")),
    ],
)
def test_a_peak_or_a_memory_takes_the_place_of_the_known_one(
    option: str, said: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [option, "--gpu=h100", "--", "--config=ucf101_image", "--run_dir=r"]
    assert run_command(plan_run, words) == 0
    output = capsys.readouterr().out
    assert all(part in output for part in said), output
