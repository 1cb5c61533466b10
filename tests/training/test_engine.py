"""The engine on two gloo ranks: ZeRO stages agree, state goes in and out exactly, non-finite steps are skipped."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import environment, run_world

from megavrc.distributed import Rank
from megavrc.errors import UserError
from megavrc.training.config import TrainConfig
from megavrc.training.engine import deepspeed_config

FP32, BF16 = ("0:fp32", "1:fp32", "2:fp32", "3:fp32"), ("1:bf16", "2:bf16", "3:bf16")


def results(tmp_path: Path, ranks: int, *cases: str) -> dict[str, dict[str, Any]]:
    out = tmp_path / f"{ranks}.json"
    done = run_world(ranks, "engine_world.py", out, *cases)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def check(found: dict[str, dict[str, Any]], accumulation: int) -> None:
    check_real_model(found.pop("vrc"))
    for case, result in found.items():
        assert result["loaded_exactly"], case
        assert result["resumed_exactly"], case
        assert result["with_faults"] == 3 * [[True, True, False, True]], case
        assert all(result["finite_after_faults"]), case
        counts = result["micro_batches_counted"]
        assert counts == 3 * [3 * accumulation], f"{case}: the skipped step left its buffers"
        assert result["averaged"], case
        assert result["whole_core"], case


def check_real_model(found: dict[str, Any]) -> None:
    first = found["zero"]["0"]
    for zero, rows in found["zero"].items():
        assert near(rows, first, 1e-5), f"ZeRO stage {zero}"
    assert first[-1][0] < first[0][0] - 1, "it learns"
    for rows in found["accumulation"]:
        assert near(rows, found["accumulation"][0], 1e-5), "accumulation is one big batch"
    for name in found:
        assert not name.startswith("checkpointing") or found[name], f"{name}: the same bits"
    assert near(found["bf16"], found["plain"], 0.05)
    assert found["bf16_buffers"] == ["torch.float32"] and found["bf16_same_on_all_ranks"]
    assert found["bf16_apart"] < 0.05
    assert found.get("graph_breaks", 0) == 0
    for name in ("compiled", "compiled_checkpointed"):
        assert name not in found or near(found[name], found["plain"], 1e-4), name


def near(a: list[list[float]], b: list[list[float]], tolerance: float) -> bool:
    """Losses and gradient norms of each step."""
    return [x for row in a for x in row] == pytest.approx([x for row in b for x in row], rel=tolerance)


def norms(result: dict[str, Any], key: str = "losses") -> list[float]:
    """Gradient norms: they see the whole global batch."""
    return [row[2] for row in result[key]]


def test_zero_stages_on_two_ranks(tmp_path: Path) -> None:
    found = results(tmp_path, 2, "0:fp32", "3:fp32")  # stage 1 is what test_loop.py uses
    check(found, accumulation=2)
    for case, result in found.items():
        assert norms(result) == pytest.approx(norms(found["0:fp32"]), rel=1e-5), case
        assert norms(result, "big_batch") == pytest.approx(norms(result), rel=1e-5), (
            "accumulation is one big batch"
        )


@pytest.mark.slow
def test_all_stages_precisions_and_world_sizes(tmp_path: Path) -> None:
    two, one = results(tmp_path, 2, *FP32, *BF16), results(tmp_path, 1, *FP32, *BF16)
    check(two, accumulation=2)
    check(one, accumulation=4)
    for case in (*FP32, *BF16):
        tolerance = 1e-5 if case in FP32 else 2e-2
        assert norms(two[case]) == pytest.approx(norms(two["0:fp32"]), rel=tolerance), case
        assert norms(one[case]) == pytest.approx(norms(two[case]), rel=tolerance), case


START = """
import os, sys, torch
import megavrc.training.entry
from megavrc.distributed import connect
from megavrc.training.config import OptimizerConfig, TrainConfig
from megavrc.training.engine import Engine

loaded = "scipy" in sys.modules
with connect() as rank:
    core = torch.nn.Linear(2, 2)
    engine = Engine(core, lambda core, batch, step: (core(batch).sum(), {}), TrainConfig(), OptimizerConfig(), rank)
    loss, _ = engine.forward(torch.ones(8, 2), 0)
    engine.backward(loss)
os._exit(loaded or "torch._inductor.compile_fx" in sys.modules)  # as pretraining ends: ZeRO may abort after that
"""


def test_torchs_compiler_and_scipy_are_loaded_only_when_asked_for() -> None:
    """They take a rank seconds to import."""
    done = subprocess.run(
        [sys.executable, "-c", START], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def alone(**train: Any) -> tuple[TrainConfig, Rank]:
    return TrainConfig(**train), Rank(0, 2, 0, torch.device("cpu"))


def test_the_engine_configuration_is_derived() -> None:
    config = deepspeed_config(
        *alone(global_batch=12, micro_batch=3, zero=2, clip=0.5),
        {"zero_optimization": {"reduce_bucket_size": 7}},
    )
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["reduce_bucket_size"] == 7


@pytest.mark.parametrize(
    ("passthrough", "named"),
    [
        ({"train_batch_size": 5}, "deepspeed.train_batch_size"),
        ({"zero_optimization": {"stage": 3}}, "deepspeed.zero_optimization.stage"),
        ({"bf16": {"enabled": True}}, "deepspeed.bf16.enabled"),
        ({"optimizer": {"type": "AdamW"}}, "deepspeed.optimizer"),
        ({"fp16": {"enabled": True}}, "deepspeed.fp16: use train.precision"),
        ({"gradient_clipping": 0.5}, "deepspeed.gradient_clipping: use train.clip"),
    ],
)
def test_passthrough_cannot_contradict(passthrough: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        deepspeed_config(*alone(micro_batch=4), passthrough)


def test_batch_sizes_must_divide() -> None:
    with pytest.raises(
        UserError, match=r"train.global_batch: 10 is not a multiple of 2 ranks x train.micro_batch 4"
    ):
        deepspeed_config(*alone(global_batch=10, micro_batch=4), {})
