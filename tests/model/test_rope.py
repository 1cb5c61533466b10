"""Rotary positions: the definition, and the ways in which it is computed."""

import pytest
import torch

from megavrc.model.rope import qkv_table, rope_table, rotate, rotate_qkv

ROWS, HEADS, DIM = 7, 3, 16
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 4e-2}


def positions():
    return torch.arange(3.0 * ROWS).view(ROWS, 3) / 2, torch.arange(ROWS) > 1


@pytest.mark.parametrize("dtype", CLOSE)
def test_rotation_by_its_definition_forward_and_backward(dtype):
    """Queries are views of fused projections, so their rows are not side by side in memory."""
    qkv = torch.randn(2, ROWS, 3, HEADS, DIM, dtype=dtype, requires_grad=True)
    table = rope_table(*positions(), DIM, 100.0)
    turned = rotate(qkv.permute(2, 0, 3, 1, 4)[0], table)
    cos, sin = table.double()
    x = qkv.detach().double()[:, :, 0].transpose(1, 2)
    even, odd = x[..., 0::2], x[..., 1::2]
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    assert turned.dtype == dtype and torch.allclose(turned.double(), expected, rtol=0, atol=CLOSE[dtype])
    assert torch.equal(turned[:, :, :2], qkv.permute(2, 0, 3, 1, 4)[0][:, :, :2]), (
        "the condition is not turned"
    )
    turned.backward(turned.detach())  # turning back what was turned gives what there was
    assert (
        torch.allclose(qkv.grad[:, :, 0], qkv[:, :, 0], rtol=0, atol=CLOSE[dtype])
        and not qkv.grad[:, :, 1:].any()
    )


@pytest.mark.parametrize("dtype", CLOSE)
def test_compiled_and_cached_rotations_agree(dtype):
    """To the same bits on x86; other CPUs may fuse a product and a sum in one of them."""
    qkv = torch.randn(2, ROWS, 3, HEADS, DIM, dtype=dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    table = rope_table(*positions(), DIM, 100.0)
    assert torch.allclose(
        torch.compile(rotate, backend="eager")(q, table), rotate(q, table), rtol=0, atol=CLOSE[dtype]
    )
    cached = rotate_qkv(qkv, qkv_table(table, dtype)).permute(2, 0, 3, 1, 4)
    assert torch.allclose(
        cached, torch.stack([rotate(q, table), rotate(k, table), v]), rtol=0, atol=CLOSE[dtype]
    )
