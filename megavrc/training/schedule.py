"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from megavrc.training.config import OptimizerConfig


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Rate of optimiser step `step` (from 0) of a run of `steps`: linear warm-up, then cosine or constant."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))
