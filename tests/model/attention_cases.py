"""The numerics suite of the attention backends, for any device: errors against float64, leaks, stray values."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from megavrc.model import SegmentMask
from megavrc.model.attention import load_backend

# Relative Frobenius errors against float64: (output and dQ, dK and dV), three to six times what was seen.
LIMITS = {torch.float32: (2e-6, 2e-6), torch.float16: (2e-3, 2e-3), torch.bfloat16: (1.2e-2, 2.5e-2)}


def layout(prefix: int, segments: int = 0, length: int = 1, start: int = 0, extra: int = 0) -> SegmentMask:
    """A causal prefix and bidirectional segments; the rows from `start` on; `extra` keys that no row sees."""
    ends = [
        *range(1, prefix + 1),
        *(prefix + (1 + row // length) * length for row in range(segments * length)),
    ]
    return SegmentMask.from_ends(torch.tensor(ends[start:]), ends[-1] + extra)


# All with a last tile that is not full; segments that begin and end inside a tile; one row, one key.
SMALL = {
    "text only": layout(45),
    "text and segments": layout(40, 3, 21),
    "segments of one": layout(33, 4, 1),
    "one segment only": layout(0, 1, 70),
    "cached rows": layout(40, 3, 21, start=50),
    "keys nobody sees": layout(30, 2, 17, extra=50),
    "one row": layout(1),
}

LARGE = {  # for tiles of 128
    "text only": layout(300),
    "text and segments": layout(120 + 37, 4, 24),
    "segments of one": layout(128 + 37, 4, 1),
    "one segment only": layout(0, 1, 256),
    "cached rows": layout(150, 2, 70, start=140),
    "keys nobody sees": layout(130, 2, 70, extra=150),
    "16 frames": layout(120 + 37, 16, 24),
    "class": layout(1 + 1024, 4, 256),
    "unaligned": layout(120 + 1024, 4, 256),
    "aligned": layout(128 + 1024, 4, 256),
}


@contextlib.contextmanager
def empty_is_nan() -> Iterator[None]:
    """Memory that is allocated without a value holds NaN, so what a kernel leaves out shows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def draw(
    mask: SegmentMask,
    dtype: torch.dtype,
    head_dim: int = 32,
    device: str = "cpu",
    batch: int = 2,
    heads: int = 2,
) -> list[Tensor]:
    """q, k, v as the views of one fused projection that a model makes, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    rows = len(mask.ends)
    q, k, v = normal(batch, mask.kv_len, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    return [q[:, :, :rows], k, v, normal(batch, rows, heads, head_dim).transpose(1, 2)]


def gradients(backend: str, tensors: list[Tensor], mask: SegmentMask) -> list[Tensor]:
    """[o, dq, dk, dv] of a backend."""
    q, k, v = (tensor.detach().requires_grad_() for tensor in tensors[:3])
    with empty_is_nan():
        out = load_backend(backend)(q, k, v, mask)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3])]


def errors(
    backend: str,
    mask: SegmentMask,
    dtype: torch.dtype,
    head_dim: int = 32,
    device: str = "cpu",
    scale: float = 1.0,
) -> list[float]:
    """Relative errors of [o, dq, dk, dv]; NaN if any value is. `scale` multiplies q, so the logits."""
    q, *others = draw(mask, dtype, head_dim, device)
    got = gradients(backend, [q * scale, *others], mask)
    exact = gradients("dense", [tensor.double() for tensor in (q * scale, *others)], mask)
    # A single visible key has no gradient but zero in q and k: what cancels there is of the size of a row.
    least = head_dim**0.5
    return [
        float((a.double() - b).norm() / b.norm().clamp(min=least)) for a, b in zip(got, exact, strict=True)
    ]


def check_errors(
    backend: str, mask: SegmentMask, dtype: torch.dtype, head_dim: int = 32, device: str = "cpu"
) -> None:
    """Within the limits and, in bfloat16, not much worse than rectangles."""
    found = errors(backend, mask, dtype, head_dim, device)
    limits = [LIMITS[dtype][index >= 2] for index in range(4)]
    assert all(error <= limit for error, limit in zip(found, limits, strict=True)), (found, limits)
    if dtype == torch.bfloat16:
        other = errors("rects", mask, dtype, head_dim, device)
        worse = [error > 1.5 * limit + 1e-5 for error, limit in zip(found, other, strict=True)]
        assert not any(worse), (found, other)  # 1e-5: with one visible key, rectangles may be exact


def check_large_logits(backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Scores in the hundreds: finite, and not much worse than rectangles."""
    mask = layout(40, 2, 21)
    found = errors(backend, mask, dtype, device=device, scale=30.0)
    other = errors("rects", mask, dtype, device=device, scale=30.0)
    assert all(error <= 1.5 * limit + 1e-6 for error, limit in zip(found, other, strict=True)), (found, other)


def check_leaks(backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Rows that do not see a key do not change in any bit with it; all others change. Keys that no row sees stay 0."""
    mask = layout(40, 2, 21, extra=5)
    ends = torch.tensor(mask.ends, device=device)
    tensors = draw(mask, dtype, device=device, batch=1)
    before = gradients(backend, tensors, mask)
    for key in (1, 39, 40, 61, 84):
        q, k, v, gradient = (tensor.clone() for tensor in tensors)
        k[:, :, key] += 3.0
        v[:, :, key] -= 50.0
        out, dq, _, _ = gradients(backend, [q, k, v, gradient], mask)
        blind = ends <= key
        for old, new in ((before[0], out), (before[1], dq)):
            assert torch.equal(new[:, :, blind], old[:, :, blind]), f"key {key} leaks"
            assert (new != old).any(-1)[:, :, ~blind].all(), f"key {key} is not seen"
    assert not before[2][:, :, 82:].any() and not before[3][:, :, 82:].any()


def check_permutation(backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Rows of a segment in another order give their outputs in that order."""
    mask = layout(40, 2, 21)
    q, k, v, gradient = draw(mask, dtype, device=device)
    order = torch.cat([torch.arange(61), 61 + torch.randperm(21, generator=torch.Generator().manual_seed(0))])
    order = order.to(device)
    out = gradients(backend, [q, k, v, gradient], mask)[0][:, :, order]
    permuted = gradients(backend, [tensor[:, :, order] for tensor in (q, k, v, gradient)], mask)[0]
    torch.testing.assert_close(permuted, out, rtol=0, atol=10 * LIMITS[dtype][0])


def check_causal(backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """A mask that grows by one a row is torch's causal attention."""
    q, k, v, _ = draw(layout(75), dtype, device=device)
    out = load_backend(backend)(q, k, v, layout(75))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=10 * LIMITS[dtype][0])
