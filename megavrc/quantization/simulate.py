"""Simulated quantization and sparsity of any torch module: its numbers become those of few bits, its memory stays."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .gptq import round_gptq
from .layers import Calibration, InputStatistics, input_of, linear_layers, observe
from .rounding import LEVELS, SCALE_BITS, STORED_BITS, check_known, grouped, round_weight
from .scaling import awq_scale, rotate_hadamard, round_scaled, smoothing_scale
from .sparsity import check_share, zero_smallest, zero_wanda

QUANTIZERS = {"rtn": False, "hadamard": False, "smoothquant": True, "awq": True, "gptq": True}
"""Method: whether it is fitted on calibration data."""
PRUNERS = {"magnitude": False, "wanda": True}


@dataclass(frozen=True)
class Simulation:
    """The record of what was done to a module. `simulated` is always true: no byte is saved, and nothing is faster."""

    method: str
    weights: str
    """The format, or the share of zeros."""
    group_size: int | None
    activations: str | None
    calibration: str | None
    """Name and size of the data that the method was fitted on."""
    layers: tuple[str, ...]
    bits: float | None
    """Bits a weight of the changed layers would take, scales of 16 bits included; None for sparsity."""
    simulated: bool = True


def simulate_quantization(
    model: nn.Module,
    method: str,
    weights: str,
    *,
    group_size: int | None = None,
    activations: str | None = None,
    calibration: Calibration | None = None,
    skip: Iterable[str] = (),
) -> Simulation:
    """Round the weights of a module's linear layers in place; with `activations` their inputs too, one scale a token.

    Args:
        method: One of `QUANTIZERS`. Those that need calibration see the inputs of the unchanged model.
        weights: A format of `rounding.LEVELS`.
        group_size: How many inputs share a scale; None is one scale for each output channel.
        activations: The format of the layers' inputs, rounded by hooks as the module runs, or None.
        skip: Names of modules, or one name; nothing under them changes. Embeddings, convolutions and tied weights
            never do.

    Raises:
        ValueError: an unknown name, groups that do not divide a layer's inputs, missing or needless calibration data,
            `activations` of the output projection of torch's MultiheadAttention. The module is then as it was.
    """
    _check_method(method, QUANTIZERS, calibration)
    for number_format in (weights, weights if activations is None else activations):
        check_known("format", number_format, LEVELS)
    if method == "smoothquant" and activations is None:
        raise ValueError(
            "smoothquant moves outliers of activations into weights: say in which format activations are"
        )
    layers = linear_layers(model, skip)
    for name, layer in layers.items():
        try:
            grouped(layer.weight, group_size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}, or skip the layer") from None
    if activations:
        _refuse_uncalled(model, layers)
    observed = observe(model, layers, calibration) if calibration else {}
    for name, layer in layers.items():
        rounded, scale = _quantized(layer.weight.detach(), method, weights, group_size, observed.get(name))
        _set_weight(layer, rounded)
        if activations:
            hook = partial(_round_input, activations, scale, method == "hadamard")
            layer.register_forward_pre_hook(hook, with_kwargs=True)
    count = sum(layer.weight.numel() for layer in layers.values())
    groups = sum(grouped(layer.weight, group_size)[..., 0].numel() for layer in layers.values())
    bits = STORED_BITS[weights] + SCALE_BITS * groups / count
    return Simulation(
        method, weights, group_size, activations, _named(calibration, observed), tuple(layers), bits
    )


def simulate_sparsity(
    model: nn.Module,
    method: str,
    share: float,
    *,
    calibration: Calibration | None = None,
    skip: Iterable[str] = (),
) -> Simulation:
    """Set `share` of the weights of each linear layer to zero, in place: `magnitude` by layer, `wanda` by row.

    Raises:
        ValueError: as `simulate_quantization`, or a share outside [0, 1).
    """
    _check_method(method, PRUNERS, calibration)
    check_share(share)
    layers = linear_layers(model, skip)
    observed = observe(model, layers, calibration) if calibration else {}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        _set_weight(
            layer, zero_wanda(weight, observed[name], share) if observed else zero_smallest(weight, share)
        )
    return Simulation(
        method, f"{share:g} zero", None, None, _named(calibration, observed), tuple(layers), None
    )


def _refuse_uncalled(model: nn.Module, layers: Iterable[str]) -> None:
    """ValueError for a layer of torch's MultiheadAttention, which takes its weight and runs no hook of it."""
    for name in layers:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise ValueError(
                f"{name}: torch's MultiheadAttention takes its weight and never calls it, so its inputs cannot be "
                "rounded: skip it, or leave activations as they are"
            )


def _check_method(method: str, methods: dict[str, bool], calibration: Calibration | None) -> None:
    check_known("method", method, methods)
    if methods[method] and calibration is None:
        raise ValueError(f"{method} is fitted on inputs: give calibration data")
    if not isinstance(calibration, Calibration | None):
        raise ValueError(f"calibration is Calibration(name, samples), not {type(calibration).__name__}")
    if calibration and not methods[method]:
        raise ValueError(f"{method} uses no calibration data: give none")


def _quantized(
    weight: Tensor, method: str, number_format: str, group_size: int | None, inputs: InputStatistics | None
) -> tuple[Tensor, Tensor | None]:
    """The rounded weight, and the scale by which inputs are divided before they are rounded."""
    if method == "hadamard":
        return rotate_hadamard(round_weight(rotate_hadamard(weight), number_format, group_size)), None
    if inputs is None:
        return round_weight(weight, number_format, group_size), None
    if method == "gptq":
        return round_gptq(weight, inputs, number_format, group_size), None
    scale = (
        awq_scale(weight, inputs, number_format, group_size)
        if method == "awq"
        else smoothing_scale(weight, inputs)
    )
    return round_scaled(weight, scale, number_format, group_size), scale


def _round_input(
    number_format: str,
    scale: Tensor | None,
    rotated: bool,
    layer: nn.Module,
    inputs: tuple[Tensor, ...],
    named: dict[str, Tensor],
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    x = input_of(inputs, named)
    if rotated:
        rounded = rotate_hadamard(round_weight(rotate_hadamard(x), number_format))
    elif scale is not None:
        on_device = scale.to(x.device)
        rounded = round_weight(x.float() / on_device, number_format) * on_device
    else:
        rounded = round_weight(x, number_format)
    x = rounded.to(x.dtype)
    return ((x, *inputs[1:]), named) if inputs else ((), named | {"input": x})


@torch.no_grad()
def _set_weight(layer: nn.Linear, weight: Tensor) -> None:
    layer.weight.copy_(weight)


def _named(calibration: Calibration | None, observed: dict[str, InputStatistics]) -> str | None:
    if calibration is None:
        return None
    rows = max(inputs.rows for inputs in observed.values())
    return f"{calibration.name} ({len(calibration.samples)} samples, at most {rows} rows a layer)"
