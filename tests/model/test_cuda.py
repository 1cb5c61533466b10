"""On a CUDA device: the attention suite in bfloat16, and the model as on the CPU."""

from importlib.util import find_spec

import attention_cases as cases
import pytest
import torch
from models import build, inputs

from megavrc.model import Sampling, SamplingSettings, generate, segment_attention
from megavrc.model.attention import choose

pytestmark = pytest.mark.gpu


BACKENDS = ["rects", "masked", "flex", "triton", "flash"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """A backend that passes its trial; only flash-attn may be missing."""
    if request.param == "flash" and not any(map(find_spec, ("flash_attn", "flash_attn_interface"))):
        pytest.skip("flash-attn is not installed")
    torch.compiler.reset()
    return choose(request.param, "cuda", torch.bfloat16, 64, True)


@pytest.mark.parametrize("name", cases.LARGE)
def test_attention_errors(backend, name):
    cases.check_errors(backend, cases.LARGE[name], torch.bfloat16, 64, "cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("head_dim", [32, 128])
def test_attention_errors_of_other_sizes(backend, dtype, head_dim):
    cases.check_errors(backend, cases.LARGE["text and segments"], dtype, head_dim, "cuda")


@pytest.mark.parametrize("backend", ["rects", "flex", "triton"])
def test_attention_errors_in_float32(backend):
    cases.check_errors(backend, cases.LARGE["text and segments"], torch.float32, 64, "cuda")


def test_attention_properties(backend):
    if backend != "flash":  # its dQ is summed by atomics: not the same bits twice
        cases.check_leaks(backend, torch.bfloat16, "cuda")
    cases.check_permutation(backend, torch.bfloat16, "cuda")
    cases.check_causal(backend, torch.bfloat16, "cuda")
    cases.check_large_logits(backend, torch.bfloat16, "cuda")


def test_attention_backward_a_thousand_times(backend):
    """No launch returns NaN or an outlier; the Triton kernel returns the same bits every time."""
    mask = cases.LARGE["aligned"]
    tensors = cases.draw(mask, torch.bfloat16, 64, "cuda")
    exact = cases.gradients("dense", [tensor.double() for tensor in tensors], mask)
    first = cases.gradients(backend, tensors, mask)
    worst, same = torch.zeros(4, device="cuda"), torch.ones((), dtype=torch.bool, device="cuda")
    for _ in range(1000):
        got = cases.gradients(backend, tensors, mask)
        errors = [(a - b).norm() / b.norm() for a, b in zip(got, exact, strict=True)]
        worst = torch.maximum(worst, torch.stack(errors).float().nan_to_num(torch.inf))
        same &= torch.stack([(a == b).all() for a, b in zip(got, first, strict=True)]).all()
    limits = [cases.LIMITS[torch.bfloat16][index >= 2] for index in range(4)]
    assert all(error <= limit for error, limit in zip(worst.tolist(), limits, strict=True)), worst
    assert backend != "triton" or same


def test_attention_compiled(backend):
    mask = cases.LARGE["text and segments"]
    q, k, v, gradient = cases.draw(mask, torch.bfloat16, 64, "cuda")
    tensors = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    compiled = torch.compile(lambda *x: segment_attention(*x, mask, backend) * 2, fullgraph=True)
    results = []
    for out in (compiled(*tensors), segment_attention(*tensors, mask, backend) * 2):
        results.append([out, *torch.autograd.grad(out, tensors, gradient)])
    for one, other in zip(*results, strict=True):
        assert (one - other).float().norm() / other.float().norm() < 1e-2


@pytest.mark.parametrize("variant", ["paper", "token", "row", "segments without x"])
def test_generation_equals_the_cpu(variant):
    model = build(variant)
    _, condition = inputs(model)
    settings = SamplingSettings(Sampling(0.7), Sampling(0.5), guidance=1.5)
    expected = generate(model, condition, settings, [0, 1])
    got = generate(model.cuda(), condition.cuda(), settings, [0, 1])
    assert torch.equal(got.cpu(), expected)


def test_training_step_in_bfloat16():
    model = build().float().cuda().train()
    ids, condition = (tensor.cuda() for tensor in inputs(model))
    expected = model(ids, condition).loss
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(ids, condition).loss
    loss.backward()
    assert abs(loss - expected) < 0.05
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
