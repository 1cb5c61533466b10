"""Speculation: the distribution of sequential sampling, its argmax, fewer passes, and independence of the batch."""

import itertools
import logging
from collections.abc import Callable

import pytest
import torch
from models import build, generate, inputs
from torch import Tensor

from megavrc.model import VRC, Sampling, SamplingSettings, speculation
from megavrc.model.decoder import Decoder
from megavrc.model.sampling import draw, guide, probabilities, uniforms

SAMPLES = 4000
GREEDY = Sampling(top_k=1)


def tiny(**changes: object) -> VRC:
    """Clips of so few tokens that all can be listed; what follows depends on what came before."""
    small = {"grid": 2, "vocab": 3, "layers": 1, "heads": 1, "width": 16, "frames": 0}
    model = build("class", **{**small, **changes})
    torch.nn.init.normal_(model.head.weight, std=0.25)
    torch.nn.init.normal_(model.tokens.weight, std=1)
    return model


def exact(model: VRC, label: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Every clip that the model can make, [C, T x N], and its probability, from the training forward pass."""
    config = model.config
    shape = (1 + config.frames, config.grid, config.grid)
    clips = torch.tensor(list(itertools.product(range(config.vocab), repeat=shape[0] * shape[1] * shape[2])))

    def logits(condition: Tensor) -> Tensor:
        out = model(clips.view(-1, *shape), condition, logits=True)
        return torch.cat([out.logits_first[:, None], out.logits_later], dim=1).flatten(1, 2)

    free, wanted = logits(model.null_condition(len(clips))), logits(label.expand(len(clips)))
    guided = guide(wanted, free, settings.guidance, settings.plausibility)
    if config.frames:
        count, later = config.grid**2, settings.guidance_of(1)
        guided[:, count:] = guide(wanted[:, count:], free[:, count:], later, settings.plausibility)
    return clips, probabilities(guided, settings.first).gather(-1, clips[..., None])[..., 0].prod(1).detach()


def p_value(model: VRC, settings: SamplingSettings) -> float:
    """Of a G test that the clips which `generate` makes come with the exact probabilities; rare ones count as one."""
    label = torch.tensor([2])
    clips, probs = exact(model, label, settings)
    assert probs.sum().item() == pytest.approx(1)
    ids = generate(model, label.expand(SAMPLES), settings, list(range(SAMPLES))).flatten(1)
    place_values = model.config.vocab ** torch.arange(ids.shape[1] - 1, -1, -1)
    assert torch.equal((clips * place_values).sum(1), torch.arange(len(clips)))
    counts = torch.bincount((ids * place_values).sum(1), minlength=len(clips)).double()
    assert counts[probs == 0].sum() == 0
    rare = probs * SAMPLES < 5
    counts, expected = (
        torch.cat([each[~rare], each[rare].sum()[None]])[: None if probs[rare].sum() else -1]
        for each in (counts, probs * SAMPLES)
    )
    g = 2 * torch.special.xlogy(counts, counts / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), g / 2).item()


@pytest.mark.parametrize("window, draft", [(1, "repeat"), (2, "neighbour"), (2, "random"), (9, "neighbour")])
@pytest.mark.parametrize(
    "sampling, guidance",
    [(Sampling(), 1.0), (Sampling(), 2.5), (Sampling(1.3, top_k=2), 1.5), (Sampling(top_p=0.9), 1.0)],
)
def test_pictures_come_as_often_as_in_sequential_sampling(sampling, guidance, window, draft):
    settings = SamplingSettings(sampling, guidance=guidance, speculative=window, draft=draft)
    assert p_value(tiny(), settings) > 1e-3


@pytest.mark.parametrize("window", [0, 3])
def test_pictures_of_plausible_tokens_come_as_often_as_they_should(window):
    settings = SamplingSettings(guidance=2.5, plausibility=0.7, speculative=window)
    _, probs = exact(tiny(), torch.tensor([2]), settings)
    assert 0 < (probs == 0).sum() < len(probs)  # so the bound is at work
    assert p_value(tiny(), settings) > 1e-3


@pytest.mark.parametrize("draft", ["neighbour", "random"])
def test_clips_of_the_token_baseline_come_as_often_as_in_sequential_sampling(draft):
    model = tiny(prediction="token", vocab=2, frames=1)
    assert p_value(model, SamplingSettings(speculative=2, draft=draft)) > 1e-3
    settings = SamplingSettings(
        guidance=1.0, later_guidance=3.0, plausibility=0.5, speculative=2, draft=draft
    )
    assert p_value(model, settings) > 1e-3


def keep_all(drafts: Tensor, q: Tensor, p: Tensor, accept: Tensor, redraw: Tensor) -> tuple[Tensor, Tensor]:
    return drafts, torch.ones_like(drafts, dtype=torch.bool)


def redraw_from_p(drafts: Tensor, q: Tensor, p: Tensor, accept: Tensor, redraw: Tensor):
    _, stays = speculation_couple(drafts, q, p, accept, redraw)
    return drafts.where(stays, draw(p, redraw)), stays


def forget_q(drafts: Tensor, q: Tensor, p: Tensor, accept: Tensor, redraw: Tensor):
    return speculation_couple(drafts, torch.ones_like(q) / q.shape[-1], p, accept, redraw)


def reuse_the_number(drafts: Tensor, q: Tensor, p: Tensor, accept: Tensor, redraw: Tensor):
    return speculation_couple(drafts, q, p, accept, accept)


speculation_couple = speculation.couple


@pytest.mark.parametrize("wrong", [keep_all, redraw_from_p, forget_q, reuse_the_number])
def test_the_test_notices_wrong_rules(wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speculation, "couple", wrong)
    assert p_value(tiny(), SamplingSettings(speculative=3)) < 1e-9


@pytest.mark.parametrize(
    "variant, draft",
    [("paper", "neighbour"), ("token", "neighbour"), ("token", "random"), ("image", "repeat")]
    + [("segments without x", "random")],
)
def test_the_most_likely_tokens_are_those_of_sequential_decoding(variant, draft):
    model = build(variant)
    ids, condition = inputs(model)
    passes = []
    settings = SamplingSettings(GREEDY, GREEDY, guidance=1.5)
    expected = generate(model, condition, settings, [0, 1])
    settings = SamplingSettings(GREEDY, GREEDY, guidance=1.5, speculative=5, draft=draft)
    got = generate(
        model, condition, settings, [7, 8], on_speculation=lambda frame, count: passes.append((frame, count))
    )
    assert torch.equal(got, expected)
    tokenwise = ids.shape[1] if variant == "token" else 1
    assert [frame for frame, _ in passes] == list(range(tokenwise))
    assert all(11 <= count <= 64 for _, counts in passes for count in counts.tolist())


@pytest.mark.parametrize("variant", ["paper", "token"])
def test_a_sample_depends_on_its_own_seed_only(variant):
    model = build(variant)
    torch.nn.init.normal_(model.head.weight, std=0.05)  # drafts stay for a while, not equally long
    _, condition = inputs(model, batch=4)
    settings = SamplingSettings(Sampling(0.8), guidance=1.5, speculative=4)
    counts = []
    together = generate(
        model, condition, settings, [3, 1, 2, 9], on_speculation=lambda frame, passes: counts.append(passes)
    )
    assert len(set(counts[0].tolist())) > 1
    for index, seed in enumerate([3, 1, 2, 9]):
        alone = []
        clip = generate(
            model,
            condition[index : index + 1],
            settings,
            [seed],
            on_speculation=lambda frame, passes, alone=alone: alone.append(passes.item()),
        )
        assert torch.equal(together[index], clip[0])
        assert alone == [passes[index].item() for passes in counts]
    assert not torch.equal(together, generate(model, condition, settings, [4, 1, 2, 9]))


def test_tokens_that_depend_on_nothing_are_all_accepted(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "megavrc.speculation")
    model = build("class")
    torch.nn.init.zeros_(model.head.weight)  # as a fresh model
    counts = []
    settings = SamplingSettings(speculative=9, draft="random")
    label = torch.tensor([0, 1])
    generate(model, label, settings, [0, 1], on_speculation=lambda frame, passes: counts.append(passes))
    assert [passes.tolist() for passes in counts] == [[7, 7]]  # 64 tokens, 10 a pass
    assert "frame 0: 9.14 tokens accepted a pass" in caplog.text


def test_a_known_first_frame_is_not_speculated_on():
    model = build()
    ids, condition = inputs(model)
    settings = SamplingSettings(speculative=4)
    frames = []
    clip = generate(
        model, condition, settings, [0, 1], ids[:, :1], on_speculation=lambda frame, _: frames.append(frame)
    )
    assert torch.equal(clip, generate(model, condition, SamplingSettings(), [0, 1], ids[:, :1]))
    assert frames == []


@torch.no_grad()
def test_passes_leave_no_masks_behind():
    """A decoder's memory may serve a thousand clips, each with windows at other places."""
    model = build()
    _, condition = inputs(model)
    decoder = Decoder(model, condition, 2)
    shape = speculation.numbers_shape(model.config, SamplingSettings(speculative=5))[1:]
    numbers = uniforms([0, 1], shape[0] * shape[1] * shape[2], "cpu").unflatten(1, shape)
    speculation.speculative_frame(decoder, Sampling(), "neighbour", numbers)
    assert decoder.passes > 5
    assert not decoder.memory._masks


def test_impossible_settings_are_refused():
    model = build("row")
    _, condition = inputs(model)
    with pytest.raises(ValueError, match="row by row"):
        generate(model, condition, SamplingSettings(speculative=4), [0, 1])
    with pytest.raises(ValueError, match="speculative"):
        SamplingSettings(speculative=-1)
    with pytest.raises(ValueError, match="neighbour, repeat, random"):
        SamplingSettings(draft="best")
