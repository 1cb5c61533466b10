"""Activation checkpointing and compilation of a model's blocks, one by one and from outside.

The forward of each block is replaced, so parameters keep their names and DeepSpeed's hooks their modules.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megavrc.training.config import TrainConfig

Forward = Callable[..., Any]


def prepare_blocks(blocks: Iterable[nn.Module], train: TrainConfig) -> None:
    """Compile and checkpoint blocks as `train` says. They must not hold a BatchNorm: it would count a batch twice."""
    for block in blocks:
        forward = torch.compile(block.forward, dynamic=False) if train.compile else block.forward
        if train.activation_checkpointing == "layers":
            forward = functools.partial(_checkpointed, forward)
        if forward is not block.forward:
            block.forward = functools.partial(_in_training, forward, block.forward)


def _in_training(forward: Forward, plain: Forward, *args: Any) -> Any:
    """Previews generate with sequences of all lengths, each of which would be compiled anew: they run as they are."""
    return (forward if torch.is_grad_enabled() else plain)(*args)


def _checkpointed(forward: Forward, *args: Any) -> Any:
    # Under ZeRO stage 3 the saved weights are empty by the time of the backward pass, which the check would mind.
    return checkpoint(forward, *args, use_reentrant=False, determinism_check="none")
