"""A simulated cache of few bits: what is written, what it changes, and where fast kernels would leave it out."""

import copy

import pytest
import torch
from torch import Tensor, nn

from megavrc.model import VRC, ClipRequest, ConditionConfig, ModelConfig, VideoPipeline
from megavrc.model.cache import DeviceStep, KVCache
from megavrc.model.decoder import Decoder
from megavrc.model.fused_step import HAVE_TRITON, why_not_fused
from megavrc.quantization.cache import simulate_cache
from megavrc.quantization.rounding import round_cache
from megavrc.quantization.simulate import simulate_quantization


def generator() -> VRC:
    torch.manual_seed(0)
    model = VRC(ModelConfig(preset="debug", condition=ConditionConfig(vocab=100)))
    nn.init.normal_(model.head.weight, std=0.1)
    return model.eval().requires_grad_(False)


def logits(model: VRC) -> tuple[Tensor, KVCache]:
    decoder = Decoder(model, model.null_condition(1), 1)
    decoder.push_raw(torch.arange(30)[None])
    return decoder.raw_logits(30), decoder.cache


def test_keys_and_values_are_written_rounded_and_fewer_bits_change_more() -> None:
    model = generator()
    (exact, whole), errors = logits(model), []
    for bits, expected in ((8, 9.0), (4, 5.0)):
        rounded = copy.deepcopy(model)
        assert simulate_cache(rounded, bits) == expected  # heads of 32: 2 x 16 bits for 32 numbers
        got, cache = logits(rounded)
        errors.append(float((got - exact).norm() / exact.norm()))
        first = whole.layers[0][:, :, :, : whole.length]  # its inputs are those of the exact model
        assert torch.equal(
            cache.layers[0][:, :, :, : cache.length], torch.stack(round_cache(first[0], first[1], bits))
        )
    assert 0 < errors[0] < 0.02 < errors[1] < 0.3
    assert torch.equal(logits(model)[0], exact)


def test_steps_on_a_device_write_the_same() -> None:
    caches = []
    qkv = torch.randn(1, 1, 3, 2, 8)
    for on_device in (False, True):
        cache = KVCache(1, 1, 2, 4, 8, qkv, rounding=torch.round)
        place = DeviceStep(cache, torch.tensor([0]), 1) if on_device else cache
        place.attend(0, qkv, None)
        caches.append(cache.layers[0])
    assert torch.equal(*caches)
    assert torch.equal(caches[0][:, 0, :, 0], qkv[0, 0, 1:].round())


def test_clips_are_made_with_it_and_a_sample_keeps_to_itself() -> None:
    model = generator()
    pipeline, condition = VideoPipeline(model), model.null_condition(2)
    exact = pipeline.generate(ClipRequest(condition, [3, 4]), "ids")
    simulate_cache(model, 4, group_size=16)
    both = pipeline.generate(ClipRequest(condition, [3, 4]), "ids")
    assert not torch.equal(both, exact)
    assert torch.equal(pipeline.generate(ClipRequest(condition[:1], [3]), "ids")[0], both[0])


@pytest.mark.parametrize(
    ("bits", "group", "message"), [(3, None, "3 bits is not simulated"), (8, 5, "do not divide 32")]
)
def test_what_cannot_be_is_refused(bits: int, group: int | None, message: str) -> None:
    model = generator()
    with pytest.raises(ValueError, match=message):
        simulate_cache(model, bits, group)
    assert model.trunk.cache_rounding is None


@pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed")
def test_fused_kernels_do_not_leave_a_simulation_out() -> None:
    model = generator()
    assert why_not_fused(model, 1) == ""
    simulate_cache(model, 8)
    assert why_not_fused(model, 1) == "keys and values are rounded"
    model = generator()
    simulate_quantization(model, "rtn", "int8", activations="int8")
    assert "hooks" in why_not_fused(model, 1)
