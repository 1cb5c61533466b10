"""The engine: DeepSpeed, at every world size and ZeRO stage, on GPUs and on CPUs. The only file that imports it.

Notable: the state goes in and out as one full fp32 tensor per parameter and moment, so that checkpoints do not depend
on ZeRO; a step with a non-finite gradient on any rank is skipped on all of them at every ZeRO stage.
"""

import contextlib
import difflib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megavrc.checkpoint.shards import Groups
from megavrc.distributed import Rank
from megavrc.errors import UserError
from megavrc.model.quick_start import nothing_compiled
from megavrc.training.averaging import AVERAGE, Average
from megavrc.training.config import OptimizerConfig, TrainConfig
from megavrc.training.optimizer import make_optimizer
from megavrc.training.state import MOMENTS, TrainingState, buffer_group, joined

SMALL = 100_000  # elements; ZeRO stage 3 keeps parameters below this whole anyway (its persistence threshold)
PRECISIONS = ("fp16", "bfloat16", "amp", "torch_autocast")  # sections of DeepSpeed beside `bf16`
Loss = Callable[[nn.Module, Any, int], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Update:
    """The outcome of an optimiser step."""

    applied: bool
    grad_norm: float


class _Objective(nn.Module):
    """The loss as a module, because DeepSpeed's hooks (ZeRO stage 3) sit on forward."""

    def __init__(self, core: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.core = core
        self._loss = loss

    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self._loss(self.core, batch, step)
        # A loss that is not finite can have gradients that are. Now it has none, and the step is skipped everywhere.
        return loss * torch.where(loss.detach().isfinite(), 1.0, float("nan")).to(loss.dtype), metrics


class Engine:
    """Trains `core`.

    Args:
        core: the module whose parameters and persistent buffers are the state; moved to the rank's device.
        loss: called as loss(core, batch, step) -> (scalar, detached metrics).
        train, optimizer: hyper-parameters.
        rank: of this process; torch's process group must exist.
        passthrough: more DeepSpeed configuration.

    Raises:
        UserError: `passthrough` contradicts what is derived, or the batch sizes do not divide.
    """

    def __init__(
        self,
        core: nn.Module,
        loss: Loss,
        train: TrainConfig,
        optimizer: OptimizerConfig,
        rank: Rank,
        passthrough: dict[str, Any] | None = None,
    ) -> None:
        config = _Asked(deepspeed_config(train, rank, passthrough or {}))
        deepspeed = _import_deepspeed(rank)
        self.core, self.train = core.to(rank.device), train
        self.accumulation: int = config["gradient_accumulation_steps"]
        self._parameters = {name: p for name, p in core.named_parameters() if p.requires_grad}
        self._adamw = make_optimizer(self._parameters, train, optimizer)
        objective = _Objective(core, loss)
        with _its_refusals(deepspeed, passthrough):
            self._engine, *_ = deepspeed.initialize(
                model=objective, optimizer=self._adamw, config=config, dist_init_required=False
            )
        config.refuse_unread()
        if train.zero == 3:
            # ZeRO fetches parameters for the forward of their module; small ones are also used outside (type rows).
            for parameter in self._parameters.values():
                if parameter.ds_numel < SMALL:  # type: ignore[attr-defined]
                    deepspeed.zero.register_external_parameter(objective, parameter)
        moments = (*MOMENTS, AVERAGE) if train.ema else MOMENTS
        self.state = TrainingState(
            core, self._parameters, self._adamw, self._engine, deepspeed, train.zero, moments
        )
        self._buffers = self.state.buffers
        self.averages = Average(train.ema, self._adamw.state, self._buffers) if train.ema else None
        if self.averages:
            averages = self.state.groups[AVERAGE]
            self.state.groups[AVERAGE] = joined(averages, buffer_group(self.averages.buffers))
        self.updates = 0  # applied optimiser steps: AdamW's own count

    # --- one optimiser step ----------------------------------------------------------------------------------

    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and detached metrics of one micro-batch."""
        return self._engine(batch, step)

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch accumulate."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch, nothing more

    def snapshot_buffers(self) -> list[Tensor]:
        """Copies of the buffers, to undo what a forward pass that is then skipped did to them."""
        return [buffer.detach().clone() for buffer in self._buffers.values()]

    def step(self, lr: float, before: list[Tensor]) -> Update:
        """Apply the accumulated gradients, unless one of them is not finite; then `before` becomes the buffers."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        applied = not self._engine.optimizer.overflow
        self.updates += applied
        if applied and self.averages:
            self.averages.update(self.updates)
        if not applied:
            for buffer, old in zip(self._buffers.values(), before, strict=True):
                buffer.data.copy_(old)
        norm = self._engine.optimizer._global_grad_norm
        return Update(applied, float(norm) if applied else float("nan"))

    # --- state in and out ------------------------------------------------------------------------------------

    def gather_state(self, keep: bool, groups: tuple[str, ...] | None = None) -> dict[str, dict[str, Tensor]]:
        """Whole groups of the state (default: all), on the CPU (collective).

        Every rank must call it, but only those that `keep` them get the copies.
        """
        return self.state.gather(keep, groups or tuple(self.state.groups))

    def load_state(self, source: Groups, updates: int) -> set[str]:
        """The inverse of `gather_state`, see `TrainingState.load`; any world size and ZeRO stage."""
        self.updates = updates
        for group in self._adamw.param_groups:
            group["step"] = updates  # where apex counts; torch counts beside the moments
        missing = self.state.load(source, updates)
        if self.averages and AVERAGE in missing:  # switched on since the checkpoint was written
            self.averages.restart()
        return missing

    @contextlib.contextmanager
    def whole_core(self, build: Callable[[], nn.Module], everywhere: bool = False) -> Iterator[nn.Module]:
        """The module with all its weights, in eval mode, for use without other ranks (collective to enter).

        With averaging, it has the averaged weights. Then, and at ZeRO stage 3, whose hooks would wait for other ranks,
        it is another one, made by `build`.

        Args:
            everywhere: whole on every rank, not on the main rank alone.
        """
        core = self.core
        if self.train.zero == 3 or self.averages:
            keep = everywhere or self._engine.global_rank == 0
            weights = AVERAGE if self.averages else "model"
            state = self.gather_state(keep, ("buffers", weights))
            if keep:
                core = build()
                core.load_state_dict(state["buffers"] | state[weights])
                for parameter in core.parameters():  # buffers stay as they are, as in training
                    parameter.data = parameter.data.to(self.device, self._dtype)
                core.to(self.device)
        core.eval()
        with torch.no_grad():
            yield core
        core.train()

    @property
    def _dtype(self) -> torch.dtype:
        """Of weights in the forward pass."""
        return torch.bfloat16 if self.train.precision == "bf16" else torch.float32

    @property
    def device(self) -> torch.device:
        return self._engine.device


class _Asked(dict[str, Any]):
    """A configuration that notes which keys are asked for, as DeepSpeed says nothing of those that it does not know."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.names: set[Any] = set()  # shared with shallow copies

    def __contains__(self, name: object) -> bool:
        self.names.add(name)
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def refuse_unread(self) -> None:
        """UserError if there are keys that nobody has asked for."""
        for name in self.keys() - self.names:
            near = difflib.get_close_matches(str(name), map(str, self.names), n=1)
            hint = f", did you mean {near[0]}?" if near else "; drop it"
            raise UserError(f"deepspeed.{name}: DeepSpeed has no such option{hint}")


def deepspeed_config(train: TrainConfig, rank: Rank, passthrough: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's JSON, derived from ours, with the user's additions. Raises UserError where they contradict."""
    if train.global_batch % (rank.world_size * train.micro_batch):
        raise UserError(
            f"train.global_batch: {train.global_batch} is not a multiple of {rank.world_size} ranks x "
            f"train.micro_batch {train.micro_batch}"
        )
    derived: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.global_batch // (rank.world_size * train.micro_batch),
        "gradient_clipping": train.clip if train.zero else 0.0,  # at stage 0 the optimizer clips
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": {"stage": train.zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    defaults: dict[str, Any] = {"zero_optimization": {"stage": train.zero}}
    if rank.device.type == "cpu":  # no streams to overlap with; the extra flat copies only cost time
        defaults["zero_optimization"] |= {"overlap_comm": False, "contiguous_gradients": False}
    _refuse_contradictions(derived, passthrough, "deepspeed")
    return _merged(_merged(derived, defaults), passthrough)


def _refuse_contradictions(derived: dict[str, Any], given: dict[str, Any], where: str) -> None:
    for key, value in given.items():
        if key in ("optimizer", "scheduler"):
            raise UserError(f"{where}.{key}: use the optimizer section instead")
        if key in PRECISIONS and isinstance(value, dict) and value.get("enabled"):
            raise UserError(f"{where}.{key}: use train.precision instead")
        if key in derived and isinstance(value, dict) and isinstance(derived[key], dict):
            _refuse_contradictions(derived[key], value, f"{where}.{key}")
        elif key in derived and value != derived[key]:
            if key == "gradient_clipping":  # at ZeRO stage 0 the derived number says nothing
                raise UserError(f"{where}.{key}: use train.clip instead")
            raise UserError(
                f"{where}.{key}: {value!r} contradicts {derived[key]!r}, which follows from train; drop it"
            )


@contextlib.contextmanager
def _its_refusals(deepspeed: Any, passthrough: dict[str, Any] | None) -> Iterator[None]:
    """What DeepSpeed says of the user's additions, as a UserError; without additions it is no mistake of the user."""
    refusals = (
        *(ValueError, TypeError, AssertionError, deepspeed.runtime.config.DeepSpeedConfigError),
        deepspeed.runtime.zero.utils.ZeRORuntimeException,
    )
    try:
        yield
    except refusals as error:
        if not passthrough:
            raise
        found: list[dict[str, Any]] = getattr(
            error, "errors", list
        )()  # of pydantic, for names and types within a section
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found)
        raise UserError(f"deepspeed: DeepSpeed refuses {', '.join(passthrough)}: {said or error}") from None


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _import_deepspeed(rank: Rank) -> Any:
    if rank.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it guesses, with a warning
    warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
    import deepspeed
    import deepspeed.ops

    with nothing_compiled(), contextlib.suppress(ImportError):  # ZeRO imports it; it is not used here
        import deepspeed.runtime.zero.muon.original_muon
    from deepspeed.utils import logger

    # Its CPU collectives would be compiled at start-up: 20 s and more, and a hang for ever after a killed build.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel("ERROR" if rank.main else "CRITICAL")
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
