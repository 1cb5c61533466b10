"""Floating-point operations of a model, counted module by module, with the mask's exact area.

A multiplication and an addition are two operations; norms, activations and softmax, under one percent, are left out.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from .condition import Condition, kind_of
from .config import ModelConfig
from .vrc import VRC

BACKWARD = 2  # a matrix product has two gradients, each as large


def forward_flops(config: ModelConfig) -> dict[str, int]:
    """Operations of the training forward pass of one clip, by part of the model; `attention` is the two products of
    queries, keys and values. Parts that multiply no matrices are left out.
    """
    with torch.device("meta"):  # shapes only; all layers are alike, so one is counted
        model = VRC(dataclasses.replace(config, layers=1, refine_layer=0))
    counts: dict[str, int] = {}

    def counter(part: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            counts[part] = counts.get(part, 0) + _products(module, inputs[0], output)

        return count

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(counter(name.partition(".")[0]))
    model(*meta_batch(config, 1), backend="rects")
    parts = ("all",) if config.keep_first_frame or not config.has_segments else ("first", "later")
    pairs = sum(model.plan(part)[2].area for part in parts)
    counts["trunk"] *= config.layers
    counts["attention"] = config.layers * 2 * 2 * pairs * config.width
    return counts


def training_flops(config: ModelConfig) -> int:
    """Operations of one clip, forward and backward, nothing computed twice: the count that MFU is defined with."""
    return (1 + BACKWARD) * sum(forward_flops(config).values())


def meta_batch(config: ModelConfig, batch: int) -> tuple[Tensor | Condition, ...]:
    """Arguments of `VRC.forward` in training without content: ids, condition, drop and, to refine, known."""
    with torch.device("meta"):
        ids = torch.zeros(batch, 1 + config.frames, config.grid, config.grid, dtype=torch.long)
        drop = torch.zeros(batch, dtype=torch.bool)
        known = (torch.zeros(ids.shape, dtype=torch.bool),) if config.refine else ()
        return ids, kind_of(config.condition)(config.condition, 1).null(batch), drop, *known


def _products(module: nn.Module, x: Tensor, out: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return 2 * out.numel() * module.in_features
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    if isinstance(module, nn.ConvTranspose2d):  # every input cell meets every weight
        return 2 * x.numel() // module.in_channels * module.weight.numel()
    return 2 * out.numel() // module.out_channels * module.weight.numel()
