"""The same model on a CUDA device: equal to the CPU in float64, finite and close in bfloat16."""

import pytest
import torch
from models import build, inputs

from megavrc.model import (
    VRC,
    ConditionConfig,
    ModelConfig,
    Sampling,
    SamplingSettings,
    SegmentMask,
    generate,
    segment_attention,
)
from megavrc.model.attention import BACKENDS
from megavrc.model.decoder import Decoder
from megavrc.model.generate import Sampler, generate_frames
from megavrc.model.graphs import Workspace
from megavrc.model.sampling import uniforms

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


def sized(preset: str = "b", dtype: torch.dtype = torch.bfloat16, **changes: object) -> VRC:
    """A model of a paper's size with random weights, on the GPU."""
    torch.manual_seed(0)
    condition = ConditionConfig(kind="class", classes=10)
    with torch.device("cuda"):
        model = VRC(ModelConfig(preset=preset, condition=condition, dropout=0.0, **changes))  # type: ignore[arg-type]
        torch.nn.init.normal_(model.head.weight, std=0.02)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("variant", ["paper", "token", "row", "segments without x", "image"])
def test_graphs_draw_what_eager_steps_draw(variant):
    """In float64, where kernels that add in another order draw the same; three clips, one workspace."""
    model = build(variant).cuda()
    _, condition = inputs(model)
    settings = SamplingSettings(Sampling(0.8, top_k=20), Sampling(0.9, top_p=0.9), guidance=1.5)
    for seeds in ([0, 1], [2, 3], [0, 1]):
        space = Workspace(model, 2, settings.guidance, steps="host")
        space.uniform_BTN.copy_(
            uniforms(seeds, space.uniform_BTN[0].numel(), "cuda").view_as(space.uniform_BTN)
        )
        with torch.no_grad():
            decoder = Decoder(model, condition.cuda(), 2, settings.guidance, space.memory)
            sampler = Sampler(decoder, settings, space)
            sampler.take(None)
            for index in range(1 + model.config.frames):
                sampler.frame(index)
        expected = space.ids_BTN.unflatten(2, (model.config.grid, -1))
        assert torch.equal(generate(model, condition.cuda(), settings, seeds), expected)


def test_captured_graphs_follow_weights_that_move():
    model = build().cuda()
    _, condition = inputs(model)
    first = generate(model, condition.cuda(), SamplingSettings(), [0, 1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data * 0.5
    halved = generate(model, condition.cuda(), SamplingSettings(), [0, 1])
    assert not torch.equal(first, halved)
    assert torch.equal(halved.cpu(), generate(model.cpu(), condition, SamplingSettings(), [0, 1]))


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_fused_token_step_equals_the_layers(dtype, limit, batch):
    model = sized(dtype=dtype, frames=0)
    labels = torch.zeros(batch, dtype=torch.long, device="cuda")
    decoder = Decoder(model, labels, batch, guidance=2.0)
    ids = torch.randint(8192, (batch, 301), device="cuda")
    decoder.push_raw(ids[:, :-1])
    decoder.step(1)
    assert decoder.memory.fused is not None
    got = decoder.device_step(ids[:, -1:], torch.tensor([301], device="cuda"), 512)
    decoder.push_raw(ids[:, -1:])
    expected = decoder.raw_logits()[:, 0]
    assert (got - expected).norm() / expected.norm() < limit


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_kernels_of_a_token_step(guidance):
    """At most 7 a layer and 12 more: at batch 1 a step costs as many launches as it has."""
    model = sized(frames=0)
    space = Workspace(model, 1, guidance, steps="device")
    label = torch.zeros(1, dtype=torch.long, device="cuda")
    sampler = Sampler(Decoder(model, label, 1, guidance, space.memory), SamplingSettings(), space)
    sampler.take(None)
    sampler._token(0, sampler.settings.first)
    space.index.fill_(1)
    sampler._token_on_device(256, sampler.settings.first)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        sampler._token_on_device(256, sampler.settings.first)
        torch.cuda.synchronize()
    kernels = [
        event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    assert 5 * 12 <= len(kernels) <= 7 * 12 + 12, kernels


@pytest.mark.parametrize("variant", ["paper", "token", "row"])
def test_a_second_clip_never_waits_for_the_host(variant):
    model = build(variant).float().cuda()
    _, condition = inputs(model)
    settings = SamplingSettings(Sampling(0.8, top_k=20), Sampling(0.9, top_p=0.9), guidance=1.5)
    generate(model, condition.cuda(), settings, [0, 1])
    frames = generate_frames(model, condition.cuda(), settings, [2, 3])
    torch.cuda.set_sync_debug_mode("error")
    try:
        count = len(list(frames))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert count == 1 + model.config.frames
