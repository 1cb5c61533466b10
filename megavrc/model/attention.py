"""Attention under the segment mask, with one of several backends: docs/attention.md.

A backend is tried before its first use, once for each device, dtype and head_dim, on a small input against the
reference; `auto` takes the first of the device's list that passes.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_sdpa import dense_attention, masked_attention, rects_attention
from .quick_start import never_traced
from .segment_mask import SegmentMask

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendError",
    "SegmentMask",
    "choose_backend",
    "load_backend",
    "segment_attention",
]

log = logging.getLogger("megavrc")

VARIABLE = "MEGAVRC_ATTENTION"
Backend = Literal["dense", "rects", "masked", "flex", "triton", "flash"]
BACKENDS = get_args(Backend)
# Triton goes first, and flash joins, when the benchmark on a GPU shows them faster (docs/attention.md).
TRAINING = {"cuda": ("flex", "triton", "rects")}
# Relative Frobenius errors of a trial: wide enough for TF32, far below any wrong mask.
LIMITS = {torch.float64: 1e-9, torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 2.5e-2}

Attention = Callable[[Tensor, Tensor, Tensor, SegmentMask], Tensor]
_loaded: dict[str, Attention] = {
    "dense": dense_attention,
    "rects": rects_attention,
    "masked": masked_attention,
}


class BackendError(ValueError):
    """A backend that was asked for is unknown or cannot run here; the message is one line."""


def segment_attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask, backend: str = "auto") -> Tensor:
    """Softmax attention in which query row i sees the keys j < mask.ends[i].

    Args:
        q: [B, H, Sq, D]; k, v: [B, H, Sk, D] with Sk = mask.kv_len.
        mask: built once for the layout.
        backend: one of BACKENDS; `auto` is the value of MEGAVRC_ATTENTION, or else what suits the device best.

    Returns:
        [B, H, Sq, D] in q's dtype.

    Raises:
        ValueError: tensors that do not have the mask's lengths.
        BackendError: a backend that is unknown, or cannot run on this device, dtype and head_dim.
    """
    if (q.shape[2], k.shape[2]) != (len(mask.ends), mask.kv_len):
        raise ValueError(
            f"attention got {q.shape[2]} queries and {k.shape[2]} keys for a mask of {len(mask.ends)} x {mask.kv_len}"
        )
    if backend == "auto" and mask.is_full:  # a step of cached decoding: nothing to mask, nothing to choose
        return F.scaled_dot_product_attention(q, k, v)
    gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    name = choose_backend(backend, q.device.type, q.dtype, q.shape[-1], gradients)
    return _loaded[name](q, k, v, mask)


def prepare(backend: str, mask: SegmentMask, x: Tensor, head_dim: int, gradients: bool) -> str:
    """Choose a backend for the rows `x` and build what it derives from the mask; returns its name.

    For layers that may be compiled: done here, neither a trial nor a table is part of what is traced.
    """
    device, dtype = x.device, x.dtype
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device.type)
    name = choose_backend(backend, device.type, dtype, head_dim, gradients)
    if name == "triton":
        mask.tables(device)
    elif name == "flex":
        from .attention_flex import kept_blocks

        kept_blocks(mask, device)
    return name


@never_traced
def choose_backend(backend: str, device_type: str, dtype: torch.dtype, head_dim: int, gradients: bool) -> str:
    """The backend that `segment_attention` takes.

    Raises:
        BackendError: see there.
    """
    if backend == "auto":
        backend = os.environ.get(VARIABLE) or "auto"
    return _choose(backend, device_type, dtype, head_dim, gradients)


@functools.cache
def _choose(backend: str, device_type: str, dtype: torch.dtype, head_dim: int, gradients: bool) -> str:
    case = f"{device_type}, {str(dtype).removeprefix('torch.')}, head_dim {head_dim}"
    case += "" if gradients else ", no gradients"
    if backend != "auto":
        if backend not in BACKENDS:
            raise BackendError(f"attention backend {backend!r} is not one of auto, {', '.join(BACKENDS)}")
        if problem := _trial(backend, device_type, dtype, head_dim, gradients):
            raise BackendError(
                f"attention backend {backend!r} cannot run on {case}: {problem}; take auto or another"
            )
        return backend
    refused: list[str] = []
    # Without gradients, calls have many different lengths (prefill, evaluation): no kernel is compiled for each.
    for name in TRAINING.get(device_type, ("rects",)) if gradients else ("rects",):
        problem = _trial(name, device_type, dtype, head_dim, gradients)
        if not problem:
            reasons = f" ({'; '.join(refused)})" if refused else ""
            log.info("attention on %s: %s%s", case, name, reasons)
            return name
        refused.append(f"{name}: {problem}")
    raise BackendError(f"no attention backend runs on {case}: {'; '.join(refused)}")


@functools.cache
def _trial(name: str, device_type: str, dtype: torch.dtype, head_dim: int, gradients: bool) -> str:
    """Run a backend on a small input; returns in one line why it cannot be used, or an empty string."""
    if name in _loaded and device_type not in ("cpu", "cuda"):
        return ""  # plain torch; a meta device has no numbers to compare
    mask = SegmentMask.from_ends(torch.tensor([*range(1, 98), *[129] * 32, *[166] * 37], device="cpu"))
    generator = torch.Generator("cpu").manual_seed(0)  # the global random state stays as it is
    shape = (4, 1, 2, mask.kv_len, head_dim)
    inputs = torch.randn(shape, generator=generator, device="cpu").to(dtype)
    try:
        attention = load_backend(name)
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            with torch.autocast(device_type, enabled=False):
                got = _results(attention, inputs.to(device_type), mask)
            expected = _results(dense_attention, inputs.double(), mask)
    except Exception as error:  # packages that are missing, broken, or built for another GPU raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    for what, exact, tried in zip(("output", "dq", "dk", "dv"), expected, got, strict=False):
        difference = float((tried.double().cpu() - exact).norm() / exact.norm())
        if not difference < LIMITS.get(dtype, 0.0):  # NaN is not below anything
            return f"wrong {what}, relative error {difference:.1e}"
    return ""


def load_backend(name: str) -> Attention:
    """Import a backend's file: only these need optional packages or are slow to import."""
    if name not in _loaded:
        if name == "flex":
            from .attention_flex import attention
        elif name == "triton":
            from .attention_triton import attention
        else:
            from .attention_flash import attention
        _loaded[name] = attention
    return _loaded[name]


def _results(attention: Attention, inputs: Tensor, mask: SegmentMask) -> list[Tensor]:
    """Output and, where gradients are enabled, the gradients; inputs are q, k, v and the output's gradient."""
    gradients = torch.is_grad_enabled()
    q, k, v = (tensor.clone().requires_grad_(gradients) for tensor in inputs[:3])
    out = attention(q, k, v, mask)
    derivatives = torch.autograd.grad(out, (q, k, v), inputs[3]) if gradients else ()
    return [out.detach(), *derivatives]
