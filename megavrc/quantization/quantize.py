"""Weights kept in fewer bits and computed with: by torch (int8 on a CPU), torchao and bitsandbytes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from megavrc.model import VRC

from .int8 import Int8Linear
from .layers import linear_layers
from .rounding import check_known

Format = Literal["int8", "fp8", "int4", "nf4"]
GROUP_SIZE = 128  # inputs that share a scale in int4


@dataclass(frozen=True)
class Quantized:
    """The report on a quantized module: how its layers are kept now, and the bytes they took before and take now."""

    weights: Format
    by: Literal["torch", "torchao", "bitsandbytes"]
    layers: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def quantize(model: nn.Module, weights: Format, skip: Iterable[str] = ()) -> Quantized:
    """Keep the weights of a module's linear layers in fewer bits, in place, on the device where they are.

    The module then only infers. Inputs are not rounded, except to bfloat16 by int8 on a CPU.

    Args:
        weights: `int8` (a scale for each output channel), `fp8` (e4m3, the same), `int4` (groups of 128 inputs; of
            bfloat16 weights on CUDA), `nf4` (groups of 64).
        skip: Names of modules, or one name; nothing under them changes. Embeddings, convolutions, tied weights and
            subclasses of `nn.Linear`, which may do more, never do.

    Raises:
        ValueError: an unknown format, one that this device or installation cannot compute with, or what
            `linear_layers` refuses. The module is then as it was.
    """
    check_known("format", weights, get_args(Format))
    layers = {name: each for name, each in linear_layers(model, skip).items() if type(each) is nn.Linear}
    if not layers or "" in layers:
        raise ValueError("quantize: give a module that holds linear layers of torch's own class")
    before = sum(map(stored_bytes, layers.values()))
    device = next(iter(layers.values())).weight.device.type
    by: Literal["torch", "torchao", "bitsandbytes"] = "torchao"
    if weights == "nf4":
        by = "bitsandbytes"
        _replace(model, layers, _nf4_maker())
    elif weights == "int8" and device == "cpu":
        by = "torch"
        _replace(model, layers, Int8Linear)
    else:
        _quantize_torchao(model, layers, weights, device)
    after = sum(stored_bytes(model.get_submodule(name)) for name in layers)
    return Quantized(weights, by, tuple(layers), before, after)


def quantize_generator(model: VRC, weights: Format) -> Quantized:
    """The matrices of the trunk and the head; embeddings, norms, compressor and decompressor stay.

    Raises:
        ValueError: as `quantize`.
    """
    return quantize(
        model, weights, [name for name, _ in model.named_children() if name not in ("trunk", "head")]
    )


def stored_bytes(module: nn.Module) -> int:
    """Bytes of what a module keeps, scales included."""
    return sum(_bytes(value) for value in module.state_dict().values())


def _bytes(value: Tensor) -> int:
    if hasattr(value, "__tensor_flatten__"):  # torchao's: a tensor made of tensors
        return sum(_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.numel() * value.element_size()


def _replace(
    model: nn.Module, layers: Mapping[str, nn.Linear], make: Callable[[nn.Linear], nn.Module]
) -> None:
    made = {id(layer): make(layer).train(layer.training) for layer in layers.values()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in made:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, made[id(module)])


def _nf4_maker() -> Callable[[nn.Linear], nn.Module]:
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        raise ValueError("quantize: nf4 needs bitsandbytes: pip install 'megavrc[quant]'") from None

    def make(layer: nn.Linear) -> nn.Module:
        outputs, inputs = layer.weight.shape
        made = Linear4bit(
            inputs, outputs, layer.bias is not None, compute_dtype=layer.weight.dtype, quant_type="nf4"
        )
        made.load_state_dict(layer.state_dict())
        return made.to(layer.weight.device).requires_grad_(False)  # rounds on its way to a device, a CPU too

    return make


def _quantize_torchao(model: nn.Module, layers: Mapping[str, nn.Linear], weights: str, device: str) -> None:
    if weights == "int4" and (
        device != "cuda" or {w.weight.dtype for w in layers.values()} != {torch.bfloat16}
    ):
        raise ValueError(
            "quantize: int4 is for bfloat16 weights on a CUDA device; nf4 takes as little on any"
        )
    odd = [name for name, layer in layers.items() if layer.weight.shape[1] % GROUP_SIZE]
    if weights == "int4" and odd:
        raise ValueError(f"quantize: int4 shares scales among {GROUP_SIZE} inputs; skip {', '.join(odd)}")
    try:
        from torchao import quantization as ao
    except ImportError:
        raise ValueError(f"quantize: {weights} needs torchao: pip install 'megavrc[int8]'") from None
    kinds: dict[str, Callable[[], Any]] = {
        "int8": ao.Int8WeightOnlyConfig,
        "fp8": ao.Float8WeightOnlyConfig,
        "int4": lambda: ao.Int4WeightOnlyConfig(GROUP_SIZE, int4_packing_format="tile_packed_to_4d"),
    }
    ao.quantize_(model, kinds[weights](), filter_fn=lambda _, name: name in layers)
