"""The same model on a CUDA device: equal to the CPU in float64, finite and close in bfloat16."""

import pytest
import torch
from models import build, inputs

from megavrc.model import Sampling, SamplingSettings, SegmentMask, generate, segment_attention
from megavrc.model.attention import BACKENDS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-3), (torch.bfloat16, 2.5e-2)])
def test_attention_with_gradients(backend, dtype, limit):
    mask = SegmentMask.from_ends(torch.tensor([*range(1, 129), *[192] * 64, *[256] * 64]))
    torch.manual_seed(0)
    exact = [
        torch.randn(2, 4, 256, 64, dtype=torch.float64, device="cuda", requires_grad=True) for _ in range(3)
    ]
    tested = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    results = []
    for tensors, name in ((exact, "dense"), (tested, backend)):
        out = segment_attention(*tensors, mask, backend=name)
        out.float().square().sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in tensors)])
    for expected, got in zip(*results, strict=True):
        assert ((got - expected).norm() / expected.norm()) < limit


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
