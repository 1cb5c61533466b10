"""The state of training under DeepSpeed, as one whole fp32 tensor per parameter and moment, in and out.

Checkpoints therefore depend on neither the ZeRO stage nor the world size. One tensor at a time is whole on a rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megavrc.checkpoint.shards import Groups
from megavrc.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Group:
    """One group of a checkpoint.

    Attributes:
        like: shape and dtype of its tensors, on the meta device.
        get: the whole tensor of a name (collective).
        set: the inverse, given it on the CPU, the same on all ranks (collective).
    """

    like: dict[str, Tensor]
    get: Callable[[str], Tensor]
    set: Callable[[str, Tensor], Any]


class TrainingState:
    """Parameters, moments and buffers of a module that DeepSpeed trains.

    Args:
        core: the module.
        parameters: those that are trained, by name.
        adamw: the optimizer that DeepSpeed wraps.
        engine: DeepSpeed's.
        deepspeed: the package.
        zero: ZeRO stage.
        moments: what the optimizer keeps of every parameter.

    Attributes:
        groups: by the names that they have in checkpoints; more can be added.
        buffers: everything else that a checkpoint needs: persistent buffers, and parameters that are not trained.
    """

    def __init__(
        self,
        core: nn.Module,
        parameters: dict[str, nn.Parameter],
        adamw: torch.optim.Optimizer,
        engine: Any,
        deepspeed: Any,
        zero: int,
        moments: tuple[str, ...] = MOMENTS,
    ) -> None:
        self._parameters, self._adamw, self._engine = parameters, adamw, engine
        self._deepspeed, self._zero = deepspeed, zero
        others = core.state_dict(keep_vars=True).items()
        self.buffers = {name: tensor for name, tensor in others if name not in parameters}
        self._create_moments(moments)
        whole = {
            name: _meta(getattr(p, "ds_shape", p.shape), torch.float32) for name, p in parameters.items()
        }
        self.groups: dict[str, Group] = {
            "model": Group(whole, self._get_weight, self._set_weight),
            **{moment: self._moment_group(moment, whole) for moment in moments},
            "buffers": buffer_group(self.buffers),
        }

    @property
    def like(self) -> Groups:
        """Shape and dtype of everything that a checkpoint holds, on the meta device."""
        return {name: group.like for name, group in self.groups.items()}

    def gather(self, keep: bool, groups: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
        """Whole groups, copied to the CPU (collective). Every rank calls it, those that `keep` them get copies."""
        state: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
        for group in groups:
            for name, like in self.groups[group].like.items():
                full = self.groups[group].get(name)
                if keep:
                    state[group][name] = full.to("cpu", like.dtype, copy=True)
        return state

    def load(self, source: Groups, updates: int) -> set[str]:
        """Take over the state that a checkpoint holds (collective), tensor by tensor.

        Args:
            source: the same on all ranks; tensors may be read when they are asked for.
            updates: optimiser steps that were applied: AdamW's own count.

        Returns:
            Groups that the source lacks; they are as they were.

        Raises:
            UserError: the names or shapes are not those of this model.
        """
        if missing := {"model", "buffers"} - source.keys():
            raise UserError(f"the checkpoint has no {' and no '.join(sorted(missing))}")
        present = [name for name in self.groups if name in source]
        for name in present:
            _check_names(
                self.groups[name].like, source[name], "buffers" if name == "buffers" else "parameters"
            )
        for moments in self._adamw.state.values():
            moments["step"].fill_(updates)
        for group in present:
            for name in self.groups[group].like:
                self.groups[group].set(name, source[group][name])
        return self.groups.keys() - set(present)

    # --- one tensor --------------------------------------------------------------------------------------------------

    def _moment_group(self, moment: str, like: dict[str, Tensor]) -> Group:
        return Group(
            like,
            lambda name: self._get_moment(self._parameters[name], moment),
            lambda name, full: self._set_moment(self._parameters[name], full, moment),
        )

    def _get_weight(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        return parameter.detach() if self._zero == 0 else self._utils.safe_get_full_fp32_param(parameter)

    def _set_weight(self, name: str, full: Tensor) -> None:
        parameter = self._parameters[name]
        whole = full.to(self._engine.device)
        if self._zero == 3:
            self._utils.safe_set_local_fp32_param(parameter, self._my_part(parameter, whole))
        elif self._zero:
            self._utils.safe_set_full_fp32_param(parameter, whole)
        # Setting the fp32 master leaves the weights that the next forward uses as they were.
        with self._gathered(parameter):
            parameter.data.copy_(whole)

    def _get_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._zero == 0:
            return self._adamw.state[parameter][moment]
        return self._utils.safe_get_full_optimizer_state(parameter, moment)

    def _set_moment(self, parameter: nn.Parameter, full: Tensor, moment: str) -> None:
        whole = full.to(self._engine.device)
        if self._zero == 0:
            self._adamw.state[parameter][moment].copy_(whole)
        elif self._zero == 3:
            part = self._my_part(parameter, whole)
            self._utils.safe_set_local_optimizer_state(parameter, part, moment)
        else:
            self._utils.safe_set_full_optimizer_state(parameter, whole, moment)

    def _my_part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's partition at ZeRO stage 3: the setter of whole tensors cannot take a padded last one."""
        size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        padded = torch.zeros(size * self._engine.world_size, device=whole.device)
        padded[: whole.numel()] = whole.flatten()
        return padded[size * self._engine.global_rank :][:size]

    def _gathered(self, parameters: Any) -> Any:
        return self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=self._zero == 3)

    @property
    def _utils(self) -> Any:
        return self._deepspeed.utils

    def _create_moments(self, names: tuple[str, ...]) -> None:
        """Give AdamW its state now instead of at its first step.

        Resuming needs that, and so does saving: DeepSpeed links moments to parameters when the first parameter group
        has made its first step, and those of the second group do not exist then.
        """
        zero = self._engine.optimizer
        lists = (
            "single_partition_of_fp32_groups",
            "fp32_partitioned_groups_flat",
            "fp32_groups_flat_partition",
        )
        found = [getattr(zero, name) for name in lists if hasattr(zero, name)]
        for flat in found[0] if self._zero else self._parameters.values():
            self._adamw.state[flat] = {
                "step": torch.zeros((), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in names},
            }
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
            zero._lazy_init_hp_params_optimizer_state()


def buffer_group(buffers: dict[str, Tensor]) -> Group:
    """A group of tensors that every rank has whole."""
    return Group(
        {name: _meta(buffer.shape, buffer.dtype) for name, buffer in buffers.items()},
        lambda name: buffers[name].detach(),
        lambda name, full: buffers[name].data.copy_(full),
    )


def joined(first: Group, second: Group) -> Group:
    """Two groups of different names as one."""

    def of(name: str) -> Group:
        return second if name in second.like else first

    return Group(
        first.like | second.like, lambda name: of(name).get(name), lambda name, full: of(name).set(name, full)
    )


def _meta(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _check_names(mine: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    different = sorted(mine.keys() ^ given.keys())
    if different:
        raise UserError(f"the checkpoint has other {what} than the model, for example {different[0]}")
    for name, tensor in mine.items():
        if tensor.shape != (shape := given[name].shape):
            raise UserError(
                f"the checkpoint's {name} has shape {tuple(shape)}, the model's {tuple(tensor.shape)}"
            )
