"""Every attention backend against the dense reference, on the masks of the model and on random staircases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megavrc.model import SegmentMask, segment_attention
from megavrc.model.attention import BACKENDS

OTHERS = [name for name in BACKENDS if name != "dense"]


def qkv(mask: SegmentMask, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    lengths = (len(mask.ends), mask.kv_len, mask.kv_len)
    return [torch.randn(2, 3, n, 16, generator=generator).to(dtype).requires_grad_() for n in lengths]


@pytest.mark.parametrize("backend", OTHERS)
@given(steps=st.lists(st.integers(0, 4), min_size=1, max_size=24), extra=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_backends_equal_the_reference_with_gradients(backend, steps, extra):
    ends = 1 + torch.tensor(steps).cumsum(0)
    mask = SegmentMask.from_ends(ends, int(ends[-1]) + extra)
    results = []
    for name in ("dense", backend):
        tensors = qkv(mask)
        out = segment_attention(*tensors, mask, backend=name)
        out.square().sum().backward()
        results.append([out, *(tensor.grad for tensor in tensors)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forbidden_keys_do_not_leak(backend):
    mask = SegmentMask.from_ends(torch.tensor([1, 2, 3, 6, 6, 6, 9, 9, 9]))
    q, k, v = (tensor.detach() for tensor in qkv(mask))
    before = segment_attention(q, k, v, mask, backend)
    k[:, :, 6:], v[:, :, 6:] = 1e4, -1e4
    after = segment_attention(q, k, v, mask, backend)
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert not torch.allclose(before[:, :, 6:], after[:, :, 6:])


def test_float32_error_is_small():
    mask = SegmentMask.from_ends(torch.tensor([*range(1, 65), *[80] * 16, *[96] * 16]))
    exact = segment_attention(*qkv(mask), mask, backend="dense")
    for backend in BACKENDS:
        got = segment_attention(*qkv(mask, dtype=torch.float32), mask, backend=backend)
        assert ((got - exact).norm() / exact.norm()) < 2e-6


@pytest.mark.parametrize("ends, kv_len", [([2, 1], None), ([0, 1], None), ([1, 5], 4)])
def test_impossible_masks_are_refused(ends, kv_len):
    with pytest.raises(ValueError, match="mask ends"):
        SegmentMask.from_ends(torch.tensor(ends), kv_len)


def test_wrong_lengths_and_backends_are_refused():
    mask = SegmentMask.from_ends(torch.tensor([1, 2]))
    q, k, v = qkv(mask)
    with pytest.raises(ValueError, match="3 queries and 2 keys"):
        segment_attention(torch.cat([q, q[:, :, :1]], dim=2), k, v, mask)
    with pytest.raises(ValueError, match="not one of auto, dense"):
        segment_attention(q, k, v, mask, backend="magic")
