"""On a CUDA device: the attention suite in bfloat16, and the model as on the CPU."""

import math
import threading
from importlib.util import find_spec

import attention_cases as cases
import pytest
import torch
from models import build, generate, inputs, refined

from megavrc.benchmarks import cost
from megavrc.model import (
    VRC,
    ClipRequest,
    ConditionConfig,
    ModelConfig,
    Sampling,
    SamplingSettings,
    VideoPipeline,
    segment_attention,
)
from megavrc.model import cuda_graphs as graphs
from megavrc.model.attention import choose_backend
from megavrc.model.condition import Condition
from megavrc.model.cuda_graphs import Workspace
from megavrc.model.decoder import Decoder
from megavrc.model.generate import Sampler
from megavrc.model.refinement import frame_passes, orders
from megavrc.model.sampling import uniforms
from megavrc.model.speculation import numbers_shape

pytestmark = pytest.mark.gpu


BACKENDS = ["rects", "masked", "flex", "triton", "flash"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """A backend that passes its trial; only flash-attn may be missing."""
    if request.param == "flash" and not any(map(find_spec, ("flash_attn", "flash_attn_interface"))):
        pytest.skip("flash-attn is not installed")
    torch.compiler.reset()
    return choose_backend(request.param, "cuda", torch.bfloat16, 64, True)


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


def sized(preset: str = "b", dtype: torch.dtype = torch.bfloat16, **changes: object) -> VRC:
    """A model of a paper's size with random weights, on the GPU."""
    torch.manual_seed(0)
    condition = ConditionConfig(kind="class", classes=10)
    with torch.device("cuda"):
        model = VRC(ModelConfig(preset=preset, condition=condition, dropout=0.0, **changes))  # type: ignore[arg-type]
        torch.nn.init.normal_(model.head.weight, std=0.02)
    return model.to(dtype).eval().requires_grad_(False)


def eager(model: VRC, condition, settings: SamplingSettings, seeds: list[int]) -> torch.Tensor:
    """Clips as on a CPU: no graph, no fused kernel, positions that the host knows."""
    space = Workspace(model, len(seeds), settings.copies, steps="host")
    count = space.uniform_BTN[0].numel()
    numbers = uniforms(seeds, count, "cpu")
    space.uniform_BTN.copy_(numbers.view_as(space.uniform_BTN))
    if max(frame_passes(model.config, settings)) > 1:  # the last numbers of a seed
        places = uniforms(seeds, 2 * count + math.prod(numbers_shape(model.config, settings)), "cpu")
        space.order_BTN.copy_(orders(model.config, places[:, -count:].reshape(space.order_BTN.shape)))
    with torch.no_grad():
        decoder = Decoder(model, condition, len(seeds), settings.guidance, space.memory)
        sampler = Sampler(decoder, settings, space)
        sampler.take(None)
        for index in range(1 + model.config.frames):
            sampler.frame(index)
    return space.ids_BTN.unflatten(2, (model.config.grid, -1))


def kept(pipeline: VideoPipeline) -> Workspace:
    """What the last job has left."""
    (space,) = pipeline._kept.values()
    return space


GREEDY = SamplingSettings(Sampling(top_k=1), Sampling(top_k=1), guidance=1.5)


@pytest.mark.parametrize("variant", ["paper", "token", "row", "segments without x", "image"])
def test_graphs_draw_what_eager_steps_draw(variant, monkeypatch):
    """In float64, where kernels that add in another order draw the same; three clips, one workspace."""
    monkeypatch.setattr(graphs, "KEY_STEP", 24)  # several graphs of token steps
    model = build(variant).cuda()
    _, condition = inputs(model)
    settings = SamplingSettings(Sampling(0.8, top_k=20), Sampling(0.9, top_p=0.9), guidance=1.5)
    pipeline = VideoPipeline(model)
    for seeds in ([0, 1], [2, 3], [0, 1]):
        expected = eager(model, condition.cuda(), settings, seeds)
        assert torch.equal(generate(pipeline, condition.cuda(), settings, seeds), expected)


@pytest.mark.parametrize("variant", ["paper", "row"])
def test_graphs_refine_as_eager_steps_do(variant, monkeypatch):
    """Several passes of a frame, each a graph of its own."""
    monkeypatch.setattr(graphs, "KEY_STEP", 24)
    model = refined(variant).cuda()
    _, condition = inputs(model)
    passes = {"later_passes": [5, 2], "row_passes": 2 if variant == "row" else 1}
    settings = SamplingSettings(Sampling(0.8), Sampling(0.9, top_p=0.9), guidance=1.5, **passes)
    pipeline = VideoPipeline(model)
    for seeds in ([0, 1], [2, 3], [0, 1]):
        expected = eager(model, condition.cuda(), settings, seeds)
        assert torch.equal(generate(pipeline, condition.cuda(), settings, seeds), expected)


@pytest.mark.parametrize("variant", ["paper", "token", "class"])
def test_fused_graphs_take_the_tokens_of_eager_steps(variant, monkeypatch):
    """In float32, the most likely ones: so few that none is near a tie."""
    monkeypatch.setattr(graphs, "KEY_STEP", 24)
    model = build(variant).float().cuda()
    _, condition = inputs(model)
    pipeline = VideoPipeline(model)
    got = generate(pipeline, condition.cuda(), GREEDY, [0, 1])
    assert kept(pipeline).memory.fused is not None
    assert torch.equal(got, eager(model, condition.cuda(), GREEDY, [0, 1]))


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-2), (torch.bfloat16, 0.3)])
def test_a_frame_of_fused_graphs_has_the_most_likely_tokens(dtype, limit):
    """A whole frame at full size: what was drawn is within rounding the best that the training forward pass sees."""
    model = sized(dtype=dtype, frames=0)
    label = torch.zeros(1, dtype=torch.long, device="cuda")
    pipeline = VideoPipeline(model)
    ids = generate(pipeline, label, SamplingSettings(GREEDY.first), [0])
    assert kept(pipeline).memory.fused is not None
    logits = model(ids, label, logits=True).logits_first.float()
    drawn = logits.gather(-1, ids.flatten(1)[..., None])[..., 0]
    assert (logits.amax(-1) - drawn).max() < limit * logits.std()


@pytest.mark.parametrize("mode", ["inference", "autocast"])
def test_modes_around_generation_change_nothing(mode):
    model = build().float().cuda()
    _, condition = inputs(model)
    around = torch.inference_mode() if mode == "inference" else torch.autocast("cuda", torch.bfloat16)
    pipeline = VideoPipeline(model)
    with around:
        first = generate(pipeline, condition.cuda(), GREEDY, [0, 1])
    assert torch.equal(generate(pipeline, condition.cuda(), GREEDY, [0, 1]), first)


def test_another_thread_may_use_the_gpu_while_graphs_are_captured():
    """As the web page does, which decodes the frames that are there."""
    stop, sums = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            sums.append(torch.ones(2**20 + 2**16 * len(sums) % 2**24, device="cuda").mean().item())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        model = build().cuda()
        _, condition = inputs(model)
        got = generate(model, condition.cuda(), GREEDY, [0, 1])
    finally:
        stop.set()
        thread.join()
    assert torch.equal(got, eager(model, condition.cuda(), GREEDY, [0, 1]))
    assert sums and set(sums) == {1.0}


def test_what_a_job_leaves_goes_with_the_pipeline():
    model = sized(frames=0)
    label = torch.zeros(1, dtype=torch.long, device="cuda")
    generate(model, label, SamplingSettings(), [0])  # libraries keep some memory
    before = torch.cuda.memory_allocated()
    pipeline = VideoPipeline(model)
    generate(pipeline, label, SamplingSettings(), [0])
    buffers = kept(pipeline).memory.cache.layers
    assert torch.cuda.memory_allocated() - before > sum(buffer.nbytes for buffer in buffers)
    del buffers, pipeline
    assert torch.cuda.memory_allocated() - before < 2**20


def test_a_new_job_takes_memory_when_the_old_one_has_given_its_own_back():
    pipeline = VideoPipeline(sized(frames=0))
    with pipeline._workspace(64, SamplingSettings()):
        pass
    size = sum(buffer.nbytes for buffer in kept(pipeline).memory.cache.layers)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with pipeline._workspace(64, SamplingSettings(Sampling(0.5))):
        assert torch.cuda.max_memory_allocated() - before < size / 2


def test_prefill_is_timed_in_the_memory_of_the_clips():
    model, batch = sized(frames=0, grid=8), 512
    labels = torch.zeros(batch, dtype=torch.long, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pipeline = VideoPipeline(model)
    cost.clip_phases(pipeline, ClipRequest(Condition(labels), range(batch)))
    size = sum(buffer.nbytes for buffer in kept(pipeline).memory.cache.layers)
    assert size < torch.cuda.max_memory_allocated() - before < 1.8 * size


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_the_second_device():
    model = build().float().to("cuda:1")
    _, condition = inputs(model)
    pipeline = VideoPipeline(model)
    got = generate(pipeline, condition.to("cuda:1"), GREEDY, [0, 1])
    assert kept(pipeline).memory.fused is not None
    assert torch.equal(got, eager(model, condition.to("cuda:1"), GREEDY, [0, 1]))


def test_captured_graphs_follow_weights_that_move():
    model = build().cuda()
    _, condition = inputs(model)
    pipeline = VideoPipeline(model)
    first = generate(pipeline, condition.cuda(), SamplingSettings(), [0, 1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data * 0.5
    halved = generate(pipeline, condition.cuda(), SamplingSettings(), [0, 1])
    assert not torch.equal(first, halved)
    model.cpu()
    assert torch.equal(halved.cpu(), generate(pipeline, condition, SamplingSettings(), [0, 1]))


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
    settings = SamplingSettings(guidance=guidance)
    space = Workspace(model, 1, settings.copies, steps="device")
    label = torch.zeros(1, dtype=torch.long, device="cuda")
    sampler = Sampler(Decoder(model, label, 1, guidance, space.memory), settings, space)
    sampler.take(None)
    sampler.token(0, sampler.settings.first)
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
    pipeline = VideoPipeline(model)
    generate(pipeline, condition.cuda(), settings, [0, 1])
    frames = pipeline.stream(ClipRequest(Condition(condition.cuda()), [2, 3], settings), "ids")
    torch.cuda.set_sync_debug_mode("error")
    try:
        count = len(list(frames))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert count == 1 + model.config.frames
