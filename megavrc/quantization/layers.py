"""The layers of a module that are changed, and their inputs on calibration data."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .int8 import Int8Linear


@dataclass(frozen=True)
class Calibration:
    """Inputs that a method is fitted on, and their name, which goes into the result.

    A sample is what one call of the module takes: a mapping (a processor's image and text), a tuple, or one tensor.
    """

    name: str
    samples: Sequence[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"calibration data needs a name, not {self.name!r:.60}")
        one = isinstance(self.samples, Mapping | Tensor | str)  # a sample itself
        if one or not isinstance(self.samples, Sized) or not len(self.samples):
            raise ValueError("calibration data needs at least one sample, in a list")


@dataclass
class InputStatistics:
    """Statistics of the inputs of one layer that methods need, over all rows (tokens) of the calibration data."""

    gram_II: Tensor
    sum_I: Tensor
    largest_I: Tensor
    rows: int = 0

    @property
    def mean(self) -> Tensor:
        """[I]: the mean magnitude of each input."""
        return self.sum_I / self.rows

    @property
    def norm(self) -> Tensor:
        """[I]: the L2 norm of each input over all rows."""
        return self.gram_II.diagonal().sqrt()

    def error(self, change_OI: Tensor) -> float:
        """The squared error of the layer's output when its weight changes by this, summed over all rows."""
        return float(((change_OI @ self.gram_II) * change_OI).sum())

    def add(self, x: Tensor) -> None:
        rows = x.detach().flatten(0, -2).float()
        if not len(rows):
            return
        self.gram_II += rows.T @ rows
        self.sum_I += rows.abs().sum(0)
        self.largest_I = torch.maximum(self.largest_I, rows.abs().amax(0))
        self.rows += len(rows)


def statistics_of(x: Tensor) -> InputStatistics:
    """The statistics of inputs [.., I]."""
    zeros = x.new_zeros(x.shape[-1], dtype=torch.float32)
    found = InputStatistics(torch.diag(zeros), zeros.clone(), zeros.clone())
    found.add(x)
    return found


def linear_layers(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Linear]:
    """The linear layers that may change, by name: those under no module of `skip`, whose weight nothing else holds.

    A weight that is tied to an embedding or to another layer stays as it is, because changing it would change that too.

    Raises:
        ValueError: `skip` holds no names, or that of a module that is not there, no layer is left, or a weight is
            packed or not finite.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected a module of torch, not {type(model).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [*skip] if isinstance(skip, Iterable) and not isinstance(skip, str) else [skip]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"skip: expected names of modules, not {skip!r:.60}")
    if unknown := [name for name in names if name not in modules]:
        near = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"skip: no module is called {', '.join(unknown)}; modules at the top are: {near}")
    skipped = {
        id(m) for name, m in modules.items() if any(name == s or name.startswith(s + ".") for s in names)
    }
    holders = Counter(id(weight) for m in model.modules() for weight in m.parameters(recurse=False))
    chosen = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and id(m) not in skipped and holders[id(m.weight)] == 1
    }
    packed = [name for name, m in model.named_modules() if isinstance(m, Int8Linear) and id(m) not in skipped]
    if packed:
        raise ValueError(
            f"the weight of {packed[0]} is int8: it is in fewer bits already, nothing was changed"
        )
    if not chosen:
        raise ValueError("no linear layer is left to change")
    for name, layer in chosen.items():
        if not layer.weight.is_floating_point():
            kind = str(layer.weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"the weight of {name} is {kind}: it is in fewer bits already, nothing was changed"
            )
        if not bool(layer.weight.isfinite().all()):
            raise ValueError(f"the weight of {name} is not finite: nothing was changed")
    return chosen


@torch.no_grad()
def observe(
    model: nn.Module, layers: Mapping[str, nn.Linear], data: Calibration
) -> dict[str, InputStatistics]:
    """Statistics of the inputs of `layers`, from one pass of the unchanged model over the data, in eval mode.

    Raises:
        ValueError: a layer is never called, or its inputs are not finite.
    """
    found: dict[str, InputStatistics] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_record, found, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for sample in data.samples:
            if isinstance(sample, Mapping):
                model(**sample)
            else:
                model(*sample) if isinstance(sample, tuple) else model(sample)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    for name in layers:
        if name not in found or not found[name].rows:
            raise ValueError(
                f"no sample of {data.name!r} goes through {name}: skip it, or give samples that do"
            )
        if not bool(found[name].gram_II.isfinite().all()):
            raise ValueError(f"{data.name!r} gives {name} inputs that are not finite")
    return found


def input_of(inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> Tensor:
    """What a linear layer was called with: by place, or as `input`."""
    return inputs[0] if inputs else named["input"]


def _record(
    found: dict[str, InputStatistics],
    name: str,
    layer: nn.Module,
    inputs: tuple[Tensor, ...],
    named: Mapping[str, Tensor],
) -> None:
    x = input_of(inputs, named)
    if name in found:
        found[name].add(x)
    else:
        found[name] = statistics_of(x)
