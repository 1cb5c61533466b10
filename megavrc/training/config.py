"""The configuration that every training run has. What a task adds to it stands beside the task."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from megavrc.config import to_dict, wrong_seed


@dataclass
class TrainConfig:
    """The loop.

    Attributes:
        steps: optimiser steps of the whole run.
        global_batch: samples of one optimiser step, over all ranks.
        micro_batch: samples of one forward pass of one rank; global_batch must be a multiple of ranks x this.
        clip: largest gradient norm (0: no clipping).
        log_every: steps between lines of metrics.
        save_every: steps between checkpoints; one more at the end and when stopped by a signal.
        preview_every: steps between previews (0: one at the end only).
        validate_every: steps between passes over the validation sets (0: one at the end only).
        keep: number of newest checkpoints that stay on disk.
        keep_every: interval in steps of the checkpoints that stay for good (0: none).
        keep_best: keep the checkpoint with the lowest validation loss too, where there is such a loss.
        async_save: write checkpoints while training goes on, from a copy in the host's memory: 12 bytes a parameter
            (16 with ema), divided by the ranks. Otherwise training waits.
        zero: ZeRO stage: 0 replicates everything, 1 shards the optimizer, 2 also gradients, 3 also weights.
        precision: arithmetic of the forward and backward pass; master weights and moments are fp32 always.
        workers: processes of each rank that read data; 0 reads in the training process.
        activation_checkpointing: `layers` keeps only the input of each block of the model and computes it again in the
            backward pass: less memory, about a third more computation.
        compile: compile each block of the model with torch.compile (not at ZeRO stage 3).
        ema: decay of an average of the weights, which previews, validation and conversion then can use (0: none).
        exit_duration: minutes after which the run saves and stops, as after a signal (0: no limit).
        spike_threshold: standard deviations above the mean of the last losses at which a loss is a spike; training then
            goes back to the last checkpoint and leaves out the data since (0: no guard).
        spike_window: number of losses behind mean and deviation; the guard begins after so many.
        spike_rollbacks: rollbacks of a run before it ends as diverged.
        watchdog_s: seconds without progress after which the log names the ranks that hold up the others and
            all exit with code 85; must be longer than a preview or a checkpoint takes (0: no watchdog).
    """

    steps: int = 1000
    global_batch: int = 8
    micro_batch: int = 8
    clip: float = 1.0
    log_every: int = 20
    save_every: int = 500
    preview_every: int = 500
    validate_every: int = 500
    keep: int = 3
    keep_every: int = 0
    keep_best: bool = True
    async_save: bool = True
    zero: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: int = 0
    activation_checkpointing: Literal["none", "layers"] = "none"
    compile: bool = False
    ema: float = 0.0
    exit_duration: float = 0.0
    spike_threshold: float = 0.0
    spike_window: int = 100
    spike_rollbacks: int = 3
    watchdog_s: float = 1200.0
    retired: ClassVar = {"straggler_factor": (1.5, "a rank is slow at 1.5 times the median rank's work")}

    def problems(self) -> Iterator[str]:
        for name in ("steps", "global_batch", "micro_batch", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                yield f"train.{name}: {getattr(self, name)} must be at least 1"
        not_negative = (
            "clip",
            "preview_every",
            "validate_every",
            "keep_every",
            "workers",
            "exit_duration",
            "watchdog_s",
        )
        for name in (*not_negative, "spike_threshold", "spike_rollbacks"):
            if getattr(self, name) < 0:
                yield f"train.{name}: {getattr(self, name)} is negative"
        if self.spike_window < 2:
            yield f"train.spike_window: {self.spike_window} must be at least 2"
        if not 0 <= self.ema < 1:
            yield f"train.ema: {self.ema} must be 0 or a decay below 1, such as 0.9999"
        if self.precision == "bf16" and self.zero == 0:
            yield "train.zero: bf16 needs ZeRO stage 1, 2 or 3, which keep fp32 master weights"
        if self.compile and self.zero == 3:
            yield "train.compile: ZeRO stage 3 fetches weights inside the layers, which breaks graphs; use 0, 1 or 2"


@dataclass
class OptimizerConfig:
    """AdamW and its schedule. Weights of two or more dimensions decay, others (gains, offsets, pad rows) do not.

    Attributes:
        kind: `adamw` is torch's, fused; `apex` the FusedAdam of NVIDIA apex, which must be installed.
        lr: peak learning rate.
        betas: decay of the first and of the second moment.
        eps: number added to the root of the second moment.
        weight_decay: decoupled weight decay, times lr.
        warmup: steps of linear warm-up from 0.
        schedule: after the warm-up, `cosine` down to final_lr x lr, which the step after the last would have, or
            `constant`.
        final_lr: the fraction of lr at the end of the cosine.
    """

    kind: Literal["adamw", "apex"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    warmup: int = 50
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr: float = 0.03

    def problems(self) -> Iterator[str]:
        if self.lr <= 0:
            yield f"optimizer.lr: {self.lr} must be positive"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"optimizer.betas: {self.betas} must lie in [0, 1)"
        if self.weight_decay < 0 or self.warmup < 0 or self.eps <= 0:
            yield "optimizer: weight_decay and warmup cannot be negative, eps must be positive"
        if not 0 <= self.final_lr <= 1:
            yield f"optimizer.final_lr: {self.final_lr} is a fraction of lr, from 0 to 1"


@dataclass
class PreviewConfig:
    """Previews while training.

    Attributes:
        count: clips of a preview (0: none).
    """

    count: int = 6

    def problems(self) -> Iterator[str]:
        if self.count < 0:
            yield f"preview.count: {self.count} is negative"


@dataclass(kw_only=True)
class BaseRunConfig:
    """A run of any task. A task's own configuration inherits from it and adds its model and data.

    Attributes:
        run_dir: folder for everything about the run; the same configuration started there again resumes it.
        seed: seed of weights, data order, dropout and condition dropout.
        train: the loop.
        optimizer: AdamW and its schedule.
        deepspeed: options passed on to DeepSpeed, which must have them; they must not contradict what is derived
            from `train`.
    """

    run_dir: str
    seed: int = 0
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError with all problems joined."""
        found = list(self.problems())
        if found:
            raise ValueError("; ".join(found))

    def problems(self) -> Iterator[str]:
        """Settings that cannot be, one sentence each. A task's configuration yields its own after these."""
        if not self.run_dir.strip() or "\0" in self.run_dir:
            yield f"run_dir: {self.run_dir!r} is no name of a folder"
        if wrong := wrong_seed(self.seed):
            yield wrong
        yield from (f"{name}: {value} is not a finite number" for name, value in _not_finite(to_dict(self)))
        yield from self.train.problems()
        yield from self.optimizer.problems()

    def shared(self) -> dict[str, Any]:
        """The part that must be the same on all ranks, as plain JSON types."""
        return to_dict(self)


def _not_finite(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a configuration, as JSON, that are NaN or infinite: (dotted name, number)."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _not_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, float) and not math.isfinite(content):
        yield name, content
