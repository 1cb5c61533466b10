"""Memory of a training run on each GPU, by what it is for.

Weights and optimizer follow from counts. Activations are what autograd keeps in a forward pass of the model itself
on the meta device (shapes without numbers), so that every option of the model is accounted for as it is written.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megavrc.model import VRC, ModelConfig
from megavrc.model.attention import choose_backend
from megavrc.model.flops import meta_batch
from megavrc.model.layout import make_layout
from megavrc.model.transformer import Attention

BUCKET = 500_000_000  # elements of DeepSpeed's reduce_bucket_size, which it allocates whole, however small the model
LIVE = 1_000_000_000  # elements of its stage3_max_live_parameters
CONTEXT = 2**30  # CUDA context, kernels and cuBLAS workspaces: about 0.5 to 1 GiB
GPU_ONLY = ("buckets", "CUDA")  # purposes that there are none of on CPUs, as the engine sets DeepSpeed up
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Activations:
    """Bytes that one clip adds to a forward and backward pass.

    Attributes:
        layers: kept by all transformer layers.
        layer: by one of them. layer_input: its input alone, which activation checkpointing keeps.
        rest: embeddings, compressor, decompressor, logits and loss.
        transient: gradients of the logits in fp32, at the beginning of the backward pass.
    """

    layers: int
    layer: int
    layer_input: int
    rest: int
    transient: int

    def bytes(self, checkpointing: bool) -> int:
        """Peak, with or without activation checkpointing of the layers."""
        if not checkpointing:
            return self.layers + self.rest + self.transient
        inputs = self.layers // self.layer * self.layer_input
        return inputs + self.rest + max(self.transient, self.layer)


def activations(config: ModelConfig, precision: Precision) -> Activations:
    """Count them from models of one and of two layers: all layers are alike."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    sizes = (dataclasses.replace(config, layers=layers, refine_layer=0) for layers in (1, 2))
    one, two = (saved_bytes(size, dtype) for size in sizes)
    parts = ("all",) if config.keep_first_frame or not config.has_segments else ("first", "later")
    rows = sum(make_layout(config, part).length for part in parts)
    logits = (1 + config.frames) * config.tokens_per_frame * config.vocab
    return Activations(
        layers=config.layers * (two - one),
        layer=two - one,
        layer_input=rows * config.width * dtype.itemsize,
        rest=one - (two - one),
        transient=logits * 2 * 4,  # of the cross-entropy's output and input
    )


def saved_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of the training forward pass of one clip, attention being fused."""
    with torch.device("meta"):
        model = VRC(config).to(dtype)
    return count_saved(model, meta_batch(config, 1), fused=True)


def count_saved(model: VRC, inputs: tuple[object, ...], fused: bool) -> int:
    """Bytes that the backward pass of a model keeps, without its weights.

    Args:
        model: called with the inputs; on any device.
        fused: reckon what fused attention would keep. (The meta device would run the formula, with all scores.)
    """
    weight = model.tokens.weight
    # Before counting, so that the backend's trial is not counted.
    choose_backend("rects", weight.device.type, weight.dtype, model.config.head_dim, gradients=True)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice
    inside = attention = 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not inside and storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    def enter(*_: object) -> None:
        nonlocal inside
        inside += 1

    def leave(module: Attention, _: object, output: Tensor) -> None:
        nonlocal inside, attention
        inside -= 1
        attention += _fused_attention(module, output)

    for module in model.modules() if fused else ():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*inputs, backend="rects")
    return attention + sum(storage.nbytes() for storage in kept.values())


def _fused_attention(module: Attention, output: Tensor) -> int:
    """What attention keeps: its input, the projection (v is a part of it), turned q and k, the output twice (by head,
    and transposed for the last projection), a logarithm a row and head, and a dropout mask of bytes.
    """
    in_dtype = (1 + 3 + 2 + 2) * output.nbytes
    rows = output.numel() // output.shape[-1]
    return in_dtype + 4 * rows * module.heads + (output.numel() if module.dropout.p else 0)


def memory_bytes(
    parameters: int,
    clip: Activations,
    *,
    precision: Precision,
    zero: int,
    gpus: int,
    ema: bool,
    micro_batch: int,
    checkpointing: bool,
) -> dict[str, int]:
    """Peak on each GPU, by purpose.

    When the optimizer steps, activations are gone and DeepSpeed copies gradients: the larger of both counts.
    """
    states = state_bytes(parameters, precision, zero, gpus, ema)
    activation = max(micro_batch * clip.bytes(checkpointing), _step_bytes(parameters, precision, zero, gpus))
    return {**states, "activations": activation}


def state_bytes(parameters: int, precision: Precision, zero: int, gpus: int, ema: bool) -> dict[str, int]:
    """Bytes on each GPU that do not depend on the batch, by purpose.

    ZeRO stage 1 shards moments, averages (`train.ema`) and master weights, stage 2 gradients too, stage 3 weights too.
    """
    size = _size(precision)

    def sharded(total: int, from_stage: int) -> int:
        return -(-total // gpus) if zero >= from_stage else total

    return {
        "weights": sharded(size * parameters, 3),
        "gathered weights": size * min(LIVE, parameters) if zero == 3 else 0,
        "gradients": sharded(size * parameters, 2),
        "master weights": sharded(4 * parameters, 1) if zero else 0,
        "moments": sharded(8 * parameters, 1),
        "averages": sharded(4 * parameters, 1) if ema else 0,
        "buckets": size * BUCKET if zero else 0,
        "CUDA": CONTEXT,
    }


def _step_bytes(parameters: int, precision: Precision, zero: int, gpus: int) -> int:
    """Copies of gradients while they are reduced (stage 0), or of this rank's share, flat and in fp32, for AdamW."""
    if not zero:
        return _size(precision) * min(BUCKET, parameters)
    return -(-parameters // gpus) * (4 if precision == "fp32" else 2 + 4)


def _size(precision: Precision) -> int:
    """Bytes of a weight in the forward pass."""
    return 2 if precision == "bf16" else 4
