"""What a CUDA graph holds is a function that does not read the position on the host: here it runs eagerly, on a CPU."""

import pytest
import torch
from models import build, inputs

from megavrc.model import Sampling, SamplingSettings, generate, graphs
from megavrc.model.decoder import Decoder, store_for_generation
from megavrc.model.generate import Sampler
from megavrc.model.graphs import Workspace
from megavrc.model.sampling import uniforms

SETTINGS = SamplingSettings(Sampling(0.8, top_k=20), Sampling(0.9, top_p=0.9), guidance=1.7)


def run(space: Workspace, model, condition, seeds, settings=SETTINGS, known=None) -> torch.Tensor:
    """One clip per seed in this workspace."""
    space.uniform_BTN.copy_(uniforms(seeds, space.uniform_BTN[0].numel(), "cpu").view_as(space.uniform_BTN))
    sampler = Sampler(Decoder(model, condition, len(seeds), settings.guidance, space.cache), settings, space)
    sampler.take(known)
    for index in range(0 if known is None else known.shape[1], 1 + model.config.frames):
        sampler.frame(index)
    assert sampler.decoder.passes == passes(model.config, sampler.known)
    return space.ids_BTN.unflatten(2, (model.config.grid, -1)).clone()


def passes(config, known: int) -> int:
    if config.prediction == "token":
        return (1 + config.frames - known) * config.tokens_per_frame
    first = config.grid if config.first_frame == "row" else config.tokens_per_frame
    extra = 0 if config.keep_first_frame or not known else 1  # the condition, alone
    return (0 if known else first) + 1 + config.frames - max(known, 1) + extra


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 1.7])
@pytest.mark.parametrize(
    "variant", ["paper", "token", "row", "segments without x", "class", "features", "image"]
)
def test_steps_at_a_device_position_draw_what_sliced_steps_draw(variant, guidance, monkeypatch):
    monkeypatch.setattr(graphs, "KEY_STEP", 24)  # several lengths of attention within these short clips
    model = build(variant)
    _, condition = inputs(model)
    settings = SamplingSettings(SETTINGS.first, SETTINGS.later, guidance)
    space = Workspace(model, 2, guidance, steps="device")
    for seeds in ([0, 1], [7, 8]):  # the second clip finds the first one's keys in the cache
        assert torch.equal(
            run(space, model, condition, seeds, settings), generate(model, condition, settings, seeds)
        )
    if model.config.frames:
        known = generate(model, condition, settings, [3, 4])[:, :2]
        expected = generate(model, condition, settings, [3, 4], prefix=known)
        assert torch.equal(run(space, model, condition, [3, 4], settings, known.flatten(2)), expected)


@torch.no_grad()
def test_attention_covers_the_position_and_little_more(monkeypatch):
    monkeypatch.setattr(graphs, "KEY_STEP", 24)
    model = build()
    space = Workspace(model, 1)
    capacity = space.cache.layers[0].shape[3]
    assert [space.keys_for(rows) for rows in (1, 24, 25, capacity)] == [24, 24, 48, capacity]


@torch.no_grad()
@pytest.mark.parametrize("variant", ["paper", "token"])
def test_matrices_stored_transposed_change_nothing_but_strides(variant):
    model = build(variant).float()
    _, condition = inputs(model)
    expected = generate(model, condition, SETTINGS, [0, 1])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store_for_generation(model)
    assert model.trunk.layers[0].attention.qkv.weight.stride() == (1, 192)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(generate(model, condition, SETTINGS, [0, 1]), expected)
