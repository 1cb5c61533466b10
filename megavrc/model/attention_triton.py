"""The `triton` backend: a FlashAttention kernel for the segment mask, forward and backward.

As in FlashAttention-2 (Dao, 2023), but every tile knows from the row ends which keys it needs: key tiles that all its
rows see are multiplied without a mask, tiles at the edge of the staircase with one, tiles beyond it never. The backward
pass is one kernel over key tiles (dK, dV) and one over row tiles (dQ): no atomics, so gradients are the same in
every run. Log-sum-exps are kept in base 2.

Tile sizes are fixed, because other sizes round differently and a resumed run must repeat the old one bit by bit.
`MEGAVRC_ATTENTION_TUNE=1` searches instead; `megavrc benchmark attention --tune` reports what that would gain.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .segment_mask import SegmentMask

# mypy: allow-untyped-defs, allow-incomplete-defs

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("triton is not installed") from error

TUNE = "MEGAVRC_ATTENTION_TUNE"
LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)

# --- forward ------------------------------------------------------------------------------------------------------


@triton.jit
def _load_rows(pointer, row, stride, dim, limit, MASKED: tl.constexpr):
    """Rows of a [rows, D] matrix; with MASKED, zeros from row `limit` on."""
    pointers = pointer + row[:, None] * stride + dim[None, :]
    if MASKED:
        return tl.load(pointers, mask=row[:, None] < limit, other=0.0)
    return tl.load(pointers)


@triton.jit
def _attend(
    mixed, peak, total, q, end, k_ptr, v_ptr, k_s, v_s, start, stop, keys, scale,
    D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The running softmax over the key tiles [start, stop); start is a multiple of BLOCK_N."""
    dim = tl.arange(0, D)
    for first in range(start, stop, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        k = _load_rows(k_ptr, key, k_s, dim, keys, MASKED)
        v = _load_rows(v_ptr, key, v_s, dim, keys, MASKED)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            score = tl.where(key[None, :] < end[:, None], score, float("-inf"))
        new_peak = tl.maximum(
            peak, tl.max(score, 1) * scale
        )  # finite: key 0 is in the first tile of every row
        p = tl.exp2(score * scale - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(p, 1)
        mixed = tl.dot(p.to(v.dtype), v, mixed * decay[:, None], input_precision=PRECISION)
        peak = new_peak
    return mixed, peak, total


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, ends_ptr,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, o_b, o_h, o_s,
    heads, rows, keys, scale,
    D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Outputs and log-sum-exps of one tile of rows."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M  # rows with the most keys are started first
    pair = tl.program_id(1)
    batch, head = (pair // heads).to(tl.int64), pair % heads
    dim = tl.arange(0, D)
    row = first + tl.arange(0, BLOCK_M)
    last = tl.minimum(first + BLOCK_M, rows) - 1
    q = _load_rows(q_ptr + batch * q_b + head * q_h, row, q_s, dim, rows, True)
    end = tl.load(ends_ptr + tl.minimum(row, last))  # rows that do not exist see what the last one sees
    seen_by_all = tl.load(ends_ptr + first) // BLOCK_N * BLOCK_N
    k_ptr += batch * k_b + head * k_h
    v_ptr += batch * v_b + head * v_h
    mixed = tl.zeros([BLOCK_M, D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed, peak, total = _attend(
        mixed, peak, total, q, end, k_ptr, v_ptr, k_s, v_s, 0, seen_by_all, keys, scale,
        D, BLOCK_N, PRECISION, False,
    )  # fmt: skip
    mixed, peak, total = _attend(
        mixed, peak, total, q, end, k_ptr, v_ptr, k_s, v_s, seen_by_all, tl.load(ends_ptr + last), keys, scale,
        D, BLOCK_N, PRECISION, True,
    )  # fmt: skip
    exists = row < rows
    o_ptrs = o_ptr + batch * o_b + head * o_h + row[:, None] * o_s + dim[None, :]
    tl.store(o_ptrs, (mixed / total[:, None]).to(o_ptr.dtype.element_ty), mask=exists[:, None])
    tl.store(lse_ptr + pair.to(tl.int64) * rows + row, peak + tl.log2(total), mask=exists)


# --- backward -----------------------------------------------------------------------------------------------------


@triton.jit
def _delta_kernel(
    o_ptr, do_ptr, delta_ptr, o_b, o_h, o_s, do_b, do_h, do_s, heads, rows,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta_i = o_i . do_i, what the softmax's gradient subtracts."""
    pair = tl.program_id(1)
    batch, head = (pair // heads).to(tl.int64), pair % heads
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dim = tl.arange(0, D)
    o = _load_rows(o_ptr + batch * o_b + head * o_h, row, o_s, dim, rows, True)
    do = _load_rows(do_ptr + batch * do_b + head * do_h, row, do_s, dim, rows, True)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + pair.to(tl.int64) * rows + row, delta, mask=row < rows)


@triton.jit
def _key_gradients(
    dk, dv, k, v, key, q_ptr, do_ptr, lse_ptr, delta_ptr, ends_ptr, q_s, do_s, start, stop, rows, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what the row tiles [start, stop) contribute to dK (without its scale) and dV of one tile of keys."""
    dim = tl.arange(0, D)
    for first in range(start, stop, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        q = _load_rows(q_ptr, row, q_s, dim, rows, MASKED)
        do = _load_rows(do_ptr, row, do_s, dim, rows, MASKED)
        if MASKED:
            lse = tl.load(lse_ptr + row, mask=row < rows, other=0.0)
            delta = tl.load(delta_ptr + row, mask=row < rows, other=0.0)
        else:
            lse = tl.load(lse_ptr + row)
            delta = tl.load(delta_ptr + row)
        p_t = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale - lse[None, :])
        if MASKED:
            end = tl.load(ends_ptr + row, mask=row < rows, other=0)  # rows that do not exist see nothing
            p_t = tl.where(key[:, None] < end[None, :], p_t, 0.0)
        dv = tl.dot(p_t.to(do.dtype), do, dv, input_precision=PRECISION)
        ds_t = p_t * (tl.dot(v, tl.trans(do), input_precision=PRECISION) - delta[None, :])
        dk = tl.dot(ds_t.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _key_gradients_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, ends_ptr, starts_ptr,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, do_b, do_h, do_s, dk_b, dk_h, dk_s, dv_b, dv_h, dv_s,
    heads, rows, keys, scale,
    D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys: the rows that see some of its keys, all of them, and the incomplete last tile."""
    first = tl.program_id(0) * BLOCK_N  # the first keys have the most rows
    pair = tl.program_id(1)
    batch, head = (pair // heads).to(tl.int64), pair % heads
    dim = tl.arange(0, D)
    key = first + tl.arange(0, BLOCK_N)
    k = _load_rows(k_ptr + batch * k_b + head * k_h, key, k_s, dim, keys, True)
    v = _load_rows(v_ptr + batch * v_b + head * v_h, key, v_s, dim, keys, True)
    some = tl.load(starts_ptr + first) // BLOCK_M * BLOCK_M
    every = tl.cdiv(tl.load(starts_ptr + tl.minimum(first + BLOCK_N, keys) - 1), BLOCK_M) * BLOCK_M
    complete = rows // BLOCK_M * BLOCK_M
    q_ptr += batch * q_b + head * q_h
    do_ptr += batch * do_b + head * do_h
    lse_ptr += pair.to(tl.int64) * rows
    delta_ptr += pair.to(tl.int64) * rows
    dk = tl.zeros([BLOCK_N, D], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)
    dk, dv = _key_gradients(
        dk, dv, k, v, key, q_ptr, do_ptr, lse_ptr, delta_ptr, ends_ptr, q_s, do_s, some, every, rows, scale,
        D, BLOCK_M, PRECISION, True,
    )  # fmt: skip
    dk, dv = _key_gradients(
        dk, dv, k, v, key, q_ptr, do_ptr, lse_ptr, delta_ptr, ends_ptr, q_s, do_s, every, complete, rows, scale,
        D, BLOCK_M, PRECISION, False,
    )  # fmt: skip
    dk, dv = _key_gradients(
        dk, dv, k, v, key, q_ptr, do_ptr, lse_ptr, delta_ptr, ends_ptr, q_s, do_s,
        tl.maximum(every, complete), rows, rows, scale,
        D, BLOCK_M, PRECISION, True,
    )  # fmt: skip
    exists = key[:, None] < keys
    dk_ptrs = dk_ptr + batch * dk_b + head * dk_h + key[:, None] * dk_s + dim[None, :]
    dv_ptrs = dv_ptr + batch * dv_b + head * dv_h + key[:, None] * dv_s + dim[None, :]
    tl.store(dk_ptrs, (dk * (scale * LN_2)).to(dk_ptr.dtype.element_ty), mask=exists)
    tl.store(dv_ptrs, dv.to(dv_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _row_gradients(
    dq, q, do, lse, delta, end, k_ptr, v_ptr, k_s, v_s, start, stop, keys, scale,
    D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what the key tiles [start, stop) contribute to dQ (without its scale) of one tile of rows."""
    dim = tl.arange(0, D)
    for first in range(start, stop, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        k = _load_rows(k_ptr, key, k_s, dim, keys, MASKED)
        v = _load_rows(v_ptr, key, v_s, dim, keys, MASKED)
        p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale - lse[:, None])
        if MASKED:
            p = tl.where(key[None, :] < end[:, None], p, 0.0)
        ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _row_gradients_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, ends_ptr,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, do_b, do_h, do_s, dq_b, dq_h, dq_s,
    heads, rows, keys, scale,
    D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of rows, with the forward kernel's order of tiles."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    pair = tl.program_id(1)
    batch, head = (pair // heads).to(tl.int64), pair % heads
    dim = tl.arange(0, D)
    row = first + tl.arange(0, BLOCK_M)
    exists = row < rows
    last = tl.minimum(first + BLOCK_M, rows) - 1
    q = _load_rows(q_ptr + batch * q_b + head * q_h, row, q_s, dim, rows, True)
    do = _load_rows(do_ptr + batch * do_b + head * do_h, row, do_s, dim, rows, True)
    lse = tl.load(lse_ptr + pair.to(tl.int64) * rows + row, mask=exists, other=0.0)
    delta = tl.load(delta_ptr + pair.to(tl.int64) * rows + row, mask=exists, other=0.0)
    end = tl.load(ends_ptr + tl.minimum(row, last))
    seen_by_all = tl.load(ends_ptr + first) // BLOCK_N * BLOCK_N
    k_ptr += batch * k_b + head * k_h
    v_ptr += batch * v_b + head * v_h
    dq = tl.zeros([BLOCK_M, D], tl.float32)
    dq = _row_gradients(
        dq, q, do, lse, delta, end, k_ptr, v_ptr, k_s, v_s, 0, seen_by_all, keys, scale,
        D, BLOCK_N, PRECISION, False,
    )  # fmt: skip
    dq = _row_gradients(
        dq, q, do, lse, delta, end, k_ptr, v_ptr, k_s, v_s, seen_by_all, tl.load(ends_ptr + last), keys, scale,
        D, BLOCK_N, PRECISION, True,
    )  # fmt: skip
    dq_ptrs = dq_ptr + batch * dq_b + head * dq_h + row[:, None] * dq_s + dim[None, :]
    tl.store(dq_ptrs, (dq * (scale * LN_2)).to(dq_ptr.dtype.element_ty), mask=exists[:, None])


# --- launches -----------------------------------------------------------------------------------------------------


def _tiles(kernel: Any, q: Tensor) -> dict[str, int]:
    """Tile sizes, those that FlexAttention takes on an H100 at head_dim 64; half for float32 and head_dim 128."""
    if q.device.type == "cpu":  # the interpreter: small, so that short sequences have many tiles
        return {"BLOCK_M": 32, "BLOCK_N": 32}
    tiles = {
        _forward_kernel: {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 4, "num_stages": 3},
        _key_gradients_kernel: {"BLOCK_M": 64, "BLOCK_N": 128, "num_warps": 8, "num_stages": 3},
        _row_gradients_kernel: {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
    }[kernel]
    if q.dtype == torch.float32 or q.shape[-1] > 64:
        tiles |= {"BLOCK_M": tiles["BLOCK_M"] // 2, "BLOCK_N": tiles["BLOCK_N"] // 2, "num_stages": 2}
    return tiles


@functools.cache
def _tuner(kernel: Any) -> Any:
    """An autotuner over tile sizes, made at its first use: making one on a machine without a GPU can fail."""
    configs = [
        triton.Config({"BLOCK_M": rows, "BLOCK_N": keys}, num_warps=warps, num_stages=stages)
        for rows in (64, 128)
        for keys in (64, 128)
        for warps in (4, 8)
        for stages in (2, 3)
    ]
    return triton.autotune(configs, key=["rows", "keys", "D"])(kernel)


def tuned() -> dict[str, str]:
    """The choice of the last search, kernel by kernel."""
    kernels = (_forward_kernel, _key_gradients_kernel, _row_gradients_kernel)
    names = ("forward", "key gradients", "row gradients")
    chosen = {
        name: getattr(_tuner(kernel), "best_config", None)
        for name, kernel in zip(names, kernels, strict=True)
    }
    return {name: str(config) for name, config in chosen.items() if config}


def _launch(
    kernel: Any, count: int, block: str, tensors: list[Tensor], tables: list[Tensor], q: Tensor, keys: int
) -> None:
    """Run a kernel over tiles of `block` rows (or keys) of every head.

    Args:
        kernel: takes the tensors, the tables, the strides of the 4-dimensional tensors, and sizes.
        count: rows or keys to cover.
        block: BLOCK_M or BLOCK_N.
        tensors: [B, H, S, D] or [B, H, S].
        tables: row ends, key starts.
        q: queries, for sizes and device.
        keys: number of keys.
    """
    batch, heads, rows, dim = q.shape
    strides = [stride for tensor in tensors if tensor.dim() == 4 for stride in tensor.stride()[:3]]
    arguments = [*tensors, *tables, *strides, heads, rows, keys, dim**-0.5 * LOG2_E]
    options: dict[str, Any] = {"D": dim, "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32"}
    if os.environ.get(TUNE) == "1" and q.device.type != "cpu":
        kernel = _tuner(kernel)
    else:
        options |= _tiles(kernel, q)
    with torch.cuda.device_of(q):
        kernel[lambda meta: (triton.cdiv(count, meta[block]), batch * heads)](*arguments, **options)


def _new(like: Tensor) -> Tensor:
    """[B, H, S, D] as a view of [B, S, H, D], so that joining the heads afterwards copies nothing."""
    batch, heads, length, dim = like.shape
    return like.new_empty(batch, length, heads, dim).transpose(1, 2)


def _forward(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    o, lse = _empty_results(q, k, v, ends, starts)
    _launch(_forward_kernel, q.shape[2], "BLOCK_M", [q, k, v, o, lse], [ends], q, k.shape[2])
    return o, lse


def _backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, ends: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, rows, dim = q.shape
    do = _rows(do)
    delta, (dq, dk, dv) = torch.empty_like(lse), _empty_gradients(do, q, k, v)
    with torch.cuda.device_of(q):
        _delta_kernel[(triton.cdiv(rows, 64), batch * heads)](
            o, do, delta, *o.stride()[:3], *do.stride()[:3], heads, rows, D=dim, BLOCK_M=64
        )
    shared = [q, k, v, do, lse, delta]
    _launch(_key_gradients_kernel, k.shape[2], "BLOCK_N", [*shared, dk, dv], [ends, starts], q, k.shape[2])
    _launch(_row_gradients_kernel, rows, "BLOCK_M", [*shared, dq], [ends], q, k.shape[2])
    return dq, dk, dv


def _rows(tensor: Tensor) -> Tensor:
    """The kernels take any strides, if the last dimension is contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


# --- one operator, so that torch.compile keeps one graph --------------------------------------------------------------


def _register() -> Any:
    """The operator `megavrc_HASH::attention`; the same file, copied into a converted folder, shares it."""
    space = "megavrc_" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    operators = getattr(torch.ops, space)
    if not hasattr(operators, "attention"):
        forward = torch.library.custom_op(f"{space}::attention", _forward, mutates_args=())
        backward = torch.library.custom_op(f"{space}::attention_backward", _backward, mutates_args=())
        forward.register_fake(_empty_results)
        backward.register_fake(_empty_gradients)
        forward.register_autograd(functools.partial(_differentiate, backward), setup_context=_save)
    return operators.attention.default


def _empty_results(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    return _new(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _empty_gradients(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _new(q), _new(k), _new(v)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ends, starts = inputs
    ctx.save_for_backward(q, k, v, *output, ends, starts)


def _differentiate(backward: Any, ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(do, *ctx.saved_tensors), None, None


_attention: Callable[..., tuple[Tensor, Tensor]] = _register()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    """See `segment_attention`. float32, float16 and bfloat16; head_dim 16, 32, 64 or 128."""
    return _attention(_rows(q), _rows(k), _rows(v), *mask.tables(q.device))[0]
