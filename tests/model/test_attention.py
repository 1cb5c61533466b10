"""Attention backends on CPU against the dense reference, the mask's tables, and how a backend is chosen."""

import logging
import sys

import attention_cases as cases
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, inputs

from megavrc.model import SegmentMask, attention, segment_attention
from megavrc.model.attention import BackendError, choose_backend
from megavrc.model.attention_flex import block_mask

PLAIN = ["rects", "masked"]


def staircase(steps: list[int], extra: int) -> SegmentMask:
    ends = 1 + torch.tensor(steps).cumsum(0)
    return SegmentMask.from_ends(ends, int(ends[-1]) + extra)


staircases = st.builds(staircase, st.lists(st.integers(0, 4), min_size=1, max_size=24), st.integers(0, 3))


# --- numerics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", PLAIN)
@given(mask=staircases)
@settings(max_examples=25, deadline=None)
def test_backends_equal_the_reference_with_gradients(backend, mask):
    q, k, v = (torch.randn(2, 3, n, 16).double() for n in (len(mask.ends), mask.kv_len, mask.kv_len))
    tensors = [q, k, v, torch.randn_like(q)]
    for got, exact in zip(
        *(cases.gradients(name, tensors, mask) for name in (backend, "dense")), strict=True
    ):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask", cases.SMALL.values(), ids=cases.SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_errors_against_float64(mask, dtype, head_dim):
    cases.check_errors("rects", mask, dtype, head_dim)


def test_scores_rounded_to_bfloat16_are_found_out():
    """The reference in bfloat16 does that: within the absolute limits, but twice as wrong as rectangles."""
    with pytest.raises(AssertionError):
        cases.check_errors("dense", cases.SMALL["text and segments"], torch.bfloat16, 64)


@pytest.mark.parametrize("prefix", [120, 128])
@pytest.mark.parametrize("segments, length", [(1, 1), (4, 24), (16, 24), (1, 256)])
@pytest.mark.parametrize("first_frame", [0, 37])
def test_layouts_of_models(prefix, first_frame, segments, length):
    cases.check_errors("rects", cases.layout(prefix + first_frame, segments, length), torch.float32)


@pytest.mark.parametrize("backend", ["dense", *PLAIN])
def test_properties(backend):
    cases.check_leaks(backend, torch.float32)
    cases.check_permutation(backend, torch.float32)
    cases.check_causal(backend, torch.float32)
    cases.check_large_logits(backend, torch.float32)


@pytest.mark.parametrize("backend", ["dense", "rects"])
def test_gradients_by_finite_differences(backend):
    mask = cases.layout(4, 2, 3, extra=1)
    q, k, v = (torch.randn(1, 2, n, 4).double().requires_grad_() for n in (10, 11, 11))
    assert torch.autograd.gradcheck(lambda *tensors: segment_attention(*tensors, mask, backend), (q, k, v))


@pytest.mark.slow  # two compilations
def test_flex_forward():
    mask = cases.layout(150, 2, 70, start=140, extra=9)
    tensors = cases.draw(mask, torch.float32, head_dim=64)
    q, k, v = (tensor.requires_grad_() for tensor in tensors[:3])  # which FlexAttention refuses on CPU
    with torch.no_grad(), cases.empty_is_nan():
        out = segment_attention(q, k, v, mask, "flex")
    exact = segment_attention(q.double(), k.double(), v.double(), mask, "dense")
    assert (out - exact).norm() / exact.norm() < 2e-6


def test_flash_is_exact_by_rectangles(tmp_path, monkeypatch):
    """With a stand-in for the package that does what flash-attn documents: causal is aligned to the bottom right."""
    (tmp_path / "flash_attn.py").write_text(
        "import torch\n"
        "def flash_attn_func(q, k, v, causal):\n"
        "    q, k, v = (x.transpose(1, 2) for x in (q, k, v))\n"
        "    rows, keys = q.shape[2], k.shape[2]\n"
        "    seen = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows) if causal else None\n"
        "    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)\n"
        "    return out.transpose(1, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(attention, "_loaded", dict(attention._loaded))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)  # not installed
    for name in ("flash_attn", "megavrc.model.attention_flash"):
        monkeypatch.setitem(sys.modules, name, None)  # so that they are forgotten afterwards
        del sys.modules[name]
    for mask in cases.SMALL.values():
        cases.check_errors("flash", mask, torch.float32)


# --- the mask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends, kv_len", [([2, 1], None), ([0, 1], None), ([1, 5], 4)])
def test_impossible_masks_are_refused(ends, kv_len):
    with pytest.raises(ValueError, match="mask ends"):
        SegmentMask.from_ends(torch.tensor(ends), kv_len)


@given(mask=staircases)
@settings(max_examples=40, deadline=None)
def test_tables_say_what_the_dense_mask_says(mask):
    ends, starts = mask.tables(torch.device("cpu"))
    dense = mask.dense()
    assert torch.equal(ends, dense.sum(1).int())
    assert torch.equal(starts, len(mask.ends) - dense.sum(0).int())


@pytest.mark.parametrize(
    "mask",
    [
        cases.layout(120 + 1024, 4, 256),
        cases.layout(128 + 1024, 4, 256),
        cases.layout(1 + 300, 4, 64),
        cases.layout(200, 2, 30, start=100, extra=150),
        cases.layout(0, 1, 256),
        cases.layout(5),
    ],
    ids=["2168", "2176", "class", "cached rows", "one segment", "tiny"],
)
def test_block_mask_has_the_tiles_of_a_full_scan(mask):
    from torch.nn.attention.flex_attention import create_block_mask

    ours = block_mask(mask, torch.device("cpu"))
    theirs = create_block_mask(ours.mask_mod, None, None, len(mask.ends), mask.kv_len, device="cpu")
    assert ours.shape == theirs.shape
    for part in ("kv", "full_kv", "q", "full_q"):
        numbers = [getattr(each, f"{part}_num_blocks")[0, 0].tolist() for each in (ours, theirs)]
        indices = [getattr(each, f"{part}_indices")[0, 0].tolist() for each in (ours, theirs)]
        tiles = [
            [sorted(row[:number]) for number, row in zip(*pair, strict=True)]
            for pair in zip(numbers, indices, strict=True)
        ]
        assert tiles[0] == tiles[1], part


def test_a_mask_first_used_in_inference_mode_can_be_trained_with():
    mask = SegmentMask.from_ends(torch.tensor([3, 4]))  # causal but not square: needs its dense part
    q, k, v = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)
    with torch.inference_mode():
        segment_attention(q, k, v, mask)
    segment_attention(q.requires_grad_(), k, v, mask).sum().backward()


# --- choosing -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """No backend has been tried yet, and what this test tries is forgotten."""
    monkeypatch.delenv("MEGAVRC_ATTENTION", raising=False)
    monkeypatch.setattr(attention, "_loaded", dict(attention._loaded))
    tried = (attention._choose, attention._trial)
    for function in tried:
        function.cache_clear()
    yield monkeypatch
    for function in tried:
        function.cache_clear()


def qkv(mask: SegmentMask, requires_grad: bool = True):
    return [
        torch.randn(1, 2, n, 16, requires_grad=requires_grad)
        for n in (len(mask.ends), mask.kv_len, mask.kv_len)
    ]


def leaky(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v)


def test_auto_on_cpu_is_rectangles_said_once(fresh, caplog):
    caplog.set_level(logging.INFO, "megavrc")
    mask = cases.layout(6, 2, 3)
    for _ in range(2):
        segment_attention(*qkv(mask), mask)
    assert [record.getMessage() for record in caplog.records] == [
        "attention on cpu, float32, head_dim 16: rects"
    ]


@pytest.mark.parametrize(
    "broken, reason",
    [
        (leaky, "wrong output, relative error"),
        (lambda *tensors: leaky(*tensors) * float("nan"), "wrong output, relative error nan"),
        (lambda q, k, v, mask: attention.rects_attention(q, k.detach(), v, mask) + 0 * k.sum(), "wrong dk"),
    ],
    ids=["leaks", "NaN", "gradient"],
)
def test_auto_passes_over_a_backend_that_computes_something_else(fresh, caplog, broken, reason):
    caplog.set_level(logging.INFO, "megavrc")
    fresh.setitem(attention._loaded, "flash", broken)
    fresh.setitem(attention.TRAINING, "cpu", ("flash", "rects"))
    mask = cases.layout(6, 2, 3)
    tensors = qkv(mask)
    assert torch.equal(segment_attention(*tensors, mask), segment_attention(*tensors, mask, "rects"))
    assert len(caplog.records) == 1
    assert f"head_dim 16: rects (flash: {reason}" in caplog.text


def test_auto_passes_over_a_package_whose_library_is_broken(fresh, caplog, tmp_path):
    """Built for another torch, flash-attn fails when it is imported, and not with an ImportError."""
    (tmp_path / "libbroken.so").write_bytes(b"\x7fELF but no more")
    package = f"import ctypes\nctypes.CDLL({str(tmp_path / 'libbroken.so')!r})\n"
    (tmp_path / "flash_attn_interface.py").write_text(package)
    fresh.syspath_prepend(tmp_path)
    caplog.set_level(logging.INFO, "megavrc")
    for name in ("flash_attn_interface", "megavrc.model.attention_flash"):
        fresh.setitem(sys.modules, name, None)  # so that they are forgotten afterwards
        del sys.modules[name]
    attention._loaded.pop("flash", None)
    fresh.setitem(attention.TRAINING, "cpu", ("flash", "rects"))
    mask = cases.layout(6, 2, 3)
    segment_attention(*qkv(mask), mask)
    assert "head_dim 16: rects (flash: OSError: " in caplog.text and "libbroken.so" in caplog.text


@pytest.mark.parametrize(
    "backend, reason",
    [("flex", "no backward pass on CPU"), ("flash", "flash-attn is not installed"), ("magic", "not one of")],
)
def test_a_requested_backend_that_cannot_run_is_an_error(fresh, backend, reason):
    mask = cases.layout(6, 2, 3)
    with pytest.raises(BackendError, match=reason) as raised:
        segment_attention(*qkv(mask), mask, backend)
    assert "\n" not in str(raised.value)
    fresh.setenv("MEGAVRC_ATTENTION", backend)
    with pytest.raises(BackendError, match=reason):
        segment_attention(*qkv(mask), mask)


def test_the_variable_overrides_auto_and_an_argument_overrides_the_variable(fresh):
    fresh.setenv("MEGAVRC_ATTENTION", "masked")
    assert choose_backend("auto", "cpu", torch.float32, 16, True) == "masked"
    assert choose_backend("dense", "cpu", torch.float32, 16, True) == "dense"


def test_a_step_of_cached_decoding_tries_nothing(fresh):
    fresh.setenv("MEGAVRC_ATTENTION", "magic")
    mask = SegmentMask.from_ends(torch.tensor([9]))
    q, k, v = qkv(mask)
    torch.testing.assert_close(segment_attention(q, k, v, mask), segment_attention(q, k, v, mask, "dense"))


def test_wrong_lengths_are_refused():
    mask = SegmentMask.from_ends(torch.tensor([1, 2]))
    q, k, v = qkv(mask)
    with pytest.raises(ValueError, match="3 queries and 2 keys"):
        segment_attention(torch.cat([q, q[:, :, :1]], dim=2), k, v, mask)


@pytest.mark.slow
def test_compiled_code_keeps_one_graph(fresh):
    mask = cases.layout(6, 2, 3)
    tensors = qkv(mask)
    compiled = torch.compile(
        lambda q, k, v: segment_attention(q * 2, k, v, mask) + 1, fullgraph=True, backend="aot_eager"
    )
    got, expected = compiled(*tensors), segment_attention(tensors[0] * 2, *tensors[1:], mask, "dense") + 1
    torch.testing.assert_close(got, expected)
    for one, other in zip(*(torch.autograd.grad(out.sum(), tensors) for out in (got, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_layers_trace_neither_the_trial_nor_the_choice(fresh):
    compiling = []

    def recorded(q, k, v, mask):
        compiling.append(torch.compiler.is_compiling())
        return attention.rects_attention(q, k, v, mask)

    fresh.setitem(attention._loaded, "flash", recorded)
    fresh.setitem(attention.TRAINING, "cpu", ("flash",))
    model = build(layers=1)
    ids, condition = inputs(model)
    layer = model.trunk.layers[0]
    layer.forward = torch.compile(layer.forward, dynamic=False, backend="eager")
    model(ids, condition).loss.backward()
    assert compiling == [False, True]  # the trial, the layer
