"""Options that other tests try one by one, together: clips of random models under random settings."""

import random
from itertools import pairwise

import pytest
import torch
from models import build, generate, inputs
from test_refinement import all_logits
from torch import Tensor

from megavrc.model import VRC, CompressionConfig, ConditionConfig, Sampling, SamplingSettings, pipeline
from megavrc.model.cuda_graphs import Workspace
from megavrc.model.refinement import frame_passes, kept_cells, orders
from megavrc.model.sampling import draw, guide, probabilities, uniforms

CONDITIONS = [
    ConditionConfig(vocab=40, slots=4, attention="bidirectional"),
    ConditionConfig(kind="class", classes=5, slots=1),
    ConditionConfig(text="features", feature_dim=6, slots=4),
]
SEEDS = [3, 2**33]  # of a batch


def random_model(chance: random.Random) -> VRC:
    """A small one in which every token depends clearly on what it may see."""
    changes = {
        "condition": chance.choice(CONDITIONS),
        "compression": CompressionConfig(chance.choice([1, 4, 16]), norm=chance.choice(["batch", "rms"])),
        "segment_attention": chance.choice(["bidirectional", "causal"]),
    }
    if chance.random() < 0.2:
        changes["prediction"] = "token"
    else:
        changes["decompressor_head"] = chance.choice(["shared", "own"])
        changes["first_frame"] = chance.choice(["token", "row"])
        changes["keep_first_frame"] = chance.random() < 0.6
        changes["refine"] = chance.random() < 0.7
        changes["refine_layer"] = chance.randrange(2) if changes["refine"] else 0
    model = build(grid=4, width=32, heads=2, vocab=9, **changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(model.head.weight, std=0.6)
    return model


def random_settings(chance: random.Random, model: VRC) -> SamplingSettings:
    several = {}
    if model.config.refine:
        several["later_passes"] = [chance.choice([1, 3, 16]), chance.choice([1, 2])]
        several["row_passes"] = chance.choice([1, 3]) if model.config.first_frame == "row" else 1
    first, later = (
        Sampling(chance.choice([0.8, 1.3]), chance.choice([0, 4]), chance.choice([1.0, 0.8]))
        for _ in range(2)
    )
    scales = dict(guidance=chance.choice([1.0, 2.0]), later_guidance=chance.choice([None, 1.0, 0.5]))
    return SamplingSettings(first, later, **scales, plausibility=chance.choice([0.0, 0.2]), **several)


@torch.no_grad()
def drawn_again(model: VRC, ids: Tensor, condition, settings: SamplingSettings, known: int) -> Tensor:
    """The tokens of all but the known frames, [B, T, N], each drawn from the training forward pass over the clip."""
    config, count, side = model.config, model.config.tokens_per_frame, model.config.grid
    numbers = uniforms(SEEDS, 2 * ids[0].numel(), "cpu").view(len(ids), 2, -1, count)
    order, passes = orders(config, numbers[:, 1]), frame_passes(config, settings)
    parts = [(index, slice(0, count)) for index in range(known, len(passes))]
    if config.first_frame == "row" and not known:
        parts[:1] = [(0, slice(row, row + side)) for row in range(0, count, side)]
    last, again = torch.zeros_like(ids.flatten(2), dtype=torch.bool), ids.flatten(2).clone()

    def see(seen: Tensor, index: int, part: slice, cells: int) -> Tensor:
        seen[:, index, part] = False
        seen[:, index, part].scatter_(1, order[:, index, part][:, :cells], True)
        return seen

    kept = [[0, *kept_cells(part.stop - part.start, passes[index])] for index, part in parts]
    for (index, part), cells in zip(parts, kept, strict=True):
        see(last, index, part, cells[-2])
    for (index, part), cells in zip(parts, kept, strict=True):
        for before, upto in pairwise(cells):
            seen = see(last.clone(), index, part, before).view_as(ids) if config.refine else None
            given, free = (
                all_logits(model, ids, c, seen) for c in (condition, model.null_condition(len(ids)))
            )
            scale = settings.guidance_of(index)
            logits = guide(given[:, index, part], free[:, index, part], scale, settings.plausibility)
            probs = probabilities(logits, settings.later if index else settings.first)
            new = order[:, index, part][:, before:upto]
            tokens = draw(probs, numbers[:, 0, index, part])
            again[:, index, part].scatter_(1, new, tokens.gather(1, new))
    return again


@pytest.mark.parametrize("seed", range(16))
def test_every_token_is_drawn_from_what_training_would_predict(seed, monkeypatch):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    model = random_model(chance)
    settings, condition = random_settings(chance, model), inputs(model)[1]
    whole = generate(model, condition, settings, SEEDS)
    for known in (0, 1, 2):
        ids = generate(model, condition, settings, SEEDS, whole[:, :known]) if known else whole
        assert torch.equal(drawn_again(model, ids, condition, settings, known), ids.flatten(2))
    one = tuple(part[1:] for part in condition) if isinstance(condition, tuple) else condition[1:]
    assert torch.equal(generate(model, one, settings, SEEDS[1:]), whole[1:])
    monkeypatch.setattr(pipeline, "Workspace", lambda *given: Workspace(*given, steps="device"))
    assert torch.equal(generate(model, condition, settings, SEEDS), whole)
