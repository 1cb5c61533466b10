"""Peak memory of training and of inference, VRC against `prediction: token` (Figure 6)."""

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Literal

import torch

from megavrc.benchmarks.generate_cases import CHANGES, random_model, variants_of
from megavrc.benchmarks.train import CLASSES, MODELS, training_peak
from megavrc.errors import UserError
from megavrc.hardware import check_device, peak_memory, reset_peak_memory
from megavrc.launch.memory import CONTEXT, activations, memory_bytes
from megavrc.model import VRC, ClipRequest, ConditionConfig, ModelConfig, SamplingSettings, VideoPipeline
from megavrc.model.config import Preset
from megavrc.model.layout import make_layout
from megavrc.progress import progress
from megavrc.results import Metric, case, check_result_place, metric, publish_tables, ratio, result

BF16 = 2  # bytes
RTX_4090 = 24 * 2**30  # the line of Figure 6
Prediction = Literal["segment", "token"]


def memory(
    preset: list[Preset] | None = None,
    train_batch: int = 1,
    batch: int = 16,
    frames: int = 4,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Peak memory of training (bf16, ZeRO 1, no checkpointing) and of generation (bf16, ids only), with random weights.

    Without what CUDA itself takes, about 1 GiB. On a GPU it is measured. On a CPU it is what the plan of megavrc
    plan_run reckons for one GPU, and marked as planned: weights, optimizer, activations; for generation weights, keys
    and values, and the largest logits.

    Args:
        preset: presets (default: b l xl, those of Figure 6).
        train_batch: clips of a training step.
        batch: clips generated at once.
        frames: latent frames after the first.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        json: file to write the result to.
    """
    check_result_place(json)
    if min(train_batch, batch, frames) < 1:
        raise UserError("--train_batch, --batch and --frames: at least 1")
    device = str(check_device(device))
    on_gpu = device.startswith("cuda")
    cases = []
    for size, prediction in progress(list(itertools.product(preset or ("b", "l", "xl"), MODELS)), "memory"):
        config = _config(size, prediction, frames)
        found = (
            _measured(config, train_batch, batch, device) if on_gpu else _planned(config, train_batch, batch)
        )
        name = f"{size}, {'VRC' if prediction == 'segment' else 'token'}"
        facts = {
            "how": "measured" if on_gpu else "planned",
            "within_24_GiB": [
                what for what, of in found.items() if of["value"] and of["value"] + CONTEXT <= RTX_4090
            ],
        }
        cases.append(case(name, found, facts, preset=size, prediction=prediction))
    ratios: dict[str, Metric] = {}
    for vrc, token in zip(cases[::2], cases[1::2], strict=True):
        ratios |= {
            f"{vrc['config']['preset']}: VRC / token, {what}": ratio(
                vrc["metrics"][what], token["metrics"][what]
            )
            for what in vrc["metrics"]
            if vrc["metrics"][what]["value"] and token["metrics"][what]["value"]
        }
    config_facts = {"train_batch": train_batch, "batch": batch, "frames": frames, "precision": "bf16"}
    protocol = {"how": "measured" if on_gpu else "planned", "weights": "random", "zero": 1, "guidance": 1}
    publish_tables(result("evaluate memory", config_facts, cases, ratios, protocol, device), json)


def _config(preset: Preset, prediction: Prediction, frames: int) -> ModelConfig:
    condition = ConditionConfig(kind="class", classes=CLASSES)
    config = ModelConfig(preset=preset, frames=frames, condition=condition)
    return dataclasses.replace(config, **CHANGES["token"]) if prediction == "token" else config


def _planned(config: ModelConfig, train_batch: int, batch: int) -> dict[str, Metric]:
    with torch.device("meta"):
        parameters = VRC(config).parameter_counts()["total"]
    planned = memory_bytes(
        parameters,
        activations(config, "bf16"),
        precision="bf16",
        zero=1,
        gpus=1,
        ema=False,
        micro_batch=train_batch,
        checkpointing=False,
    )
    training = sum(size for purpose, size in planned.items() if purpose != "CUDA")
    inference = BF16 * parameters + sum(inference_bytes(config, batch).values())
    return {"training": metric(training, "B"), "inference": metric(inference, "B")}


def inference_bytes(config: ModelConfig, batch: int, size: int = BF16) -> dict[str, int]:
    """Bytes that a generated batch takes beside weights, without guidance: keys and values of all rows; the logits of
    one pass (a segment's are those of all tokens of a frame), and their probabilities in float32."""
    rows = make_layout(config).length
    drawn = config.tokens_per_frame if config.has_segments else 1
    return {
        "cache": 2 * config.layers * batch * rows * config.width * size,
        "logits": batch * drawn * config.vocab * (size + 4),
    }


def _measured(config: ModelConfig, train_batch: int, batch: int, device: str) -> dict[str, Metric]:
    """Nothing where it does not fit."""
    measured = (config.preset, train_batch, config.prediction)
    with tempfile.TemporaryDirectory() as folder:
        training = training_peak(Path(folder), measured, config.frames)
    model = random_model(config.preset, config.frames, device, torch.bfloat16)
    if config.prediction == "token":
        model = variants_of(model, ["token"])["token"]
    reset_peak_memory(device)
    request = ClipRequest(model.null_condition(batch), range(batch), SamplingSettings())
    try:
        VideoPipeline(model).generate(request, "ids")
        inference: int | None = peak_memory(device)
    except torch.cuda.OutOfMemoryError:
        inference = None
    return {"training": metric(training, "B"), "inference": metric(inference, "B")}
