"""The optimizer: AdamW, its parameter groups, and the guard that ZeRO stage 0 lacks."""

from typing import Any

import torch
from torch import nn

from megavrc.errors import UserError
from megavrc.training.config import OptimizerConfig, TrainConfig


def make_optimizer(
    parameters: dict[str, nn.Parameter], train: TrainConfig, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """AdamW over two groups: weights of two or more dimensions, which decay, and the rest, which do not.

    Raises:
        UserError: `optimizer.kind: apex` without apex.
    """
    groups = [
        {"params": [p for p in parameters.values() if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    cls, more = (_apex(), {}) if config.kind == "apex" else (torch.optim.AdamW, {"fused": True})
    if not train.zero:
        cls = _guarded(cls, train.clip)
    return cls([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, **more)


def _apex() -> Any:
    try:
        from apex.optimizers import FusedAdam  # its default is AdamW's decay
    except (ImportError, OSError) as error:  # OSError: built for another torch
        raise UserError(
            f"optimizer.kind: apex cannot be imported ({error}); build NVIDIA's apex from its sources (the package of "
            "that name on PyPI is another), or use adamw"
        ) from None
    return FusedAdam


def _guarded(cls: Any, clip: float) -> Any:
    """An optimizer that clips by itself and skips non-finite gradients, for ZeRO stage 0: DeepSpeed has no guard there.

    `overflow` and `_global_grad_norm` are the attributes that DeepSpeed's own optimizers report through.
    """

    class Guarded(cls):
        overflow = False
        _global_grad_norm = 0.0

        def step(self, closure: Any = None) -> None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
            self._global_grad_norm = float(norm)
            self.overflow = not bool(torch.isfinite(norm))
            if not self.overflow:
                super().step(closure)

    return Guarded
