"""What a CUDA graph holds is a function that does not read the position on the host: here it runs eagerly, on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import build, generate, inputs

from megavrc.model import Sampling, SamplingSettings
from megavrc.model import cuda_graphs as graphs
from megavrc.model.cuda_graphs import Workspace
from megavrc.model.decoder import Decoder, store_for_generation
from megavrc.model.fused_step import why_not_fused
from megavrc.model.generate import Sampler
from megavrc.model.sampling import uniforms

SETTINGS = SamplingSettings(Sampling(0.8, top_k=20), Sampling(0.9, top_p=0.9), guidance=1.7)


def run(space: Workspace, model, condition, seeds, settings=SETTINGS, known=None) -> torch.Tensor:
    """One clip per seed in this workspace."""
    space.uniform_BTN.copy_(uniforms(seeds, space.uniform_BTN[0].numel(), "cpu").view_as(space.uniform_BTN))
    sampler = Sampler(Decoder(model, condition, len(seeds), settings.guidance, space.memory), settings, space)
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
@pytest.mark.parametrize(
    ("variant", "guidance", "later"),
    [
        ("paper", 1.0, 1.0),
        ("paper", 1.7, 3.0),
        ("token", 1.7, 1.0),
        ("row", 1.7, 1.7),
        ("segments without x", 1.7, 1.7),
        ("features", 1.0, 1.0),
    ],
)
def test_steps_at_a_device_position_draw_what_sliced_steps_draw(variant, guidance, later, monkeypatch):
    monkeypatch.setattr(graphs, "KEY_STEP", 24)  # several lengths of attention within these short clips
    model = build(variant)
    _, condition = inputs(model)
    settings = SamplingSettings(
        SETTINGS.first, SETTINGS.later, guidance, later_guidance=later, plausibility=0.3
    )
    space = Workspace(model, 2, settings.copies, steps="device")
    for seeds in ([0, 1], [7, 8]):  # the second clip finds the first one's keys in the cache
        assert torch.equal(
            run(space, model, condition, seeds, settings), generate(model, condition, settings, seeds)
        )
    if model.config.frames:
        known = generate(model, condition, settings, [3, 4])[:, :2]
        expected = generate(model, condition, settings, [3, 4], prefix=known)
        assert torch.equal(run(space, model, condition, [3, 4], settings, known.flatten(2)), expected)


class Twice(Workspace):
    """Makes every pass twice, as capturing does."""

    def run(self, key, decoder, one_pass):
        state, index, pending = decoder.state, self.index.clone(), list(decoder._pending)
        one_pass()
        decoder.restore(state)
        decoder._pending.extend(pending)
        decoder.passes -= 1
        self.index.copy_(index)
        one_pass()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"feedback": "soft"}, {"first_frame": "row"}])
def test_passes_can_be_repeated(options):
    model = build(frames=3, **options)
    _, condition = inputs(model)
    space = Twice(model, 2, SETTINGS.copies, steps="device")
    assert torch.equal(run(space, model, condition, [0, 1]), generate(model, condition, SETTINGS, [0, 1]))


@torch.no_grad()
def test_attention_covers_the_position_and_little_more(monkeypatch):
    monkeypatch.setattr(graphs, "KEY_STEP", 24)
    model = build()
    space = Workspace(model, 1)
    capacity = space.memory.cache.layers[0].shape[3]
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
    if variant == "paper":
        assert model.compressor.net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(generate(model, condition, SETTINGS, [0, 1]), expected)


@torch.no_grad()
def test_a_workspace_made_in_inference_mode_serves_clips_outside_of_it():
    model = build()
    _, condition = inputs(model)
    with torch.inference_mode():
        space = Workspace(model, 2, SETTINGS.copies, steps="device")
        run(space, model, condition, [0, 1])
    expected = generate(model, condition, SETTINGS, [2, 3])
    assert torch.equal(run(space, model, condition, [2, 3]), expected)


class Adapted(torch.nn.Linear):
    """Adds something to its product, as an adapter that is not merged does."""


def test_fused_kernels_run_only_what_they_compute():
    pytest.importorskip("triton", reason="triton is not installed")
    model = build("class").float()
    assert why_not_fused(model, rows=8) == ""
    assert "at most 8" in why_not_fused(model, rows=9)
    assert "float64" in why_not_fused(build("class"), rows=1)
    store_for_generation(model)
    assert "transposed" in why_not_fused(model, rows=1)
    model.bfloat16()
    store_for_generation(model)  # bfloat16 belongs in rows
    assert why_not_fused(model, rows=1) == ""
    forward = model.trunk.layers[1].feed_forward
    forward.down = Adapted(*forward.down.weight.t().shape, bias=False, dtype=torch.bfloat16)
    assert "Adapted" in why_not_fused(model, rows=1)


def test_fused_kernels_compute_what_the_layers_compute():
    pytest.importorskip("triton", reason="triton is not installed")
    script = Path(__file__).with_name("fused_interpreter.py")
    run = subprocess.run(
        [sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
