"""Refinement: what known cells reach, one pass as ever, several passes as a likelihood and as samples of it."""

import itertools

import numpy as np
import pytest
import torch
from models import build, generate, inputs, refined
from test_generate_device import Twice
from torch import Tensor

from megavrc.model import (
    VRC,
    ClipRequest,
    CompressionConfig,
    ModelConfig,
    Sampling,
    SamplingSettings,
    VideoPipeline,
    pipeline,
)
from megavrc.model.code_length import code_length
from megavrc.model.condition import Condition
from megavrc.model.decoder import Decoder
from megavrc.model.refinement import draw_known, kept_cells, noisy_context, orders
from megavrc.model.sampling import uniforms

PASSES = SamplingSettings(later_passes=[5, 2])
ROWS = SamplingSettings(later_passes=[5, 2], row_passes=3)
KINDS = ["paper", "rate 1", "rate 64", "segments without x", "causal segments", "row", "row without x"]


def plain(model: VRC, **changes: object) -> VRC:
    """The model that does not refine, with the same weights."""
    other = VRC(ModelConfig.from_dict(model.config.to_dict() | {"refine": False, **changes})).double().eval()
    other.load_state_dict(
        {name: tensor for name, tensor in model.state_dict().items() if "partial" not in name}
    )
    return other


def some_known(model: VRC, batch: int = 2) -> Tensor:
    """Known cells as training draws them, of every frame."""
    known = torch.stack([draw_known(model.config, seed) for seed in range(5, 5 + batch)])
    known[:, 1:, 2, 3] = True
    if model.config.first_frame == "row":
        known[:, 0, :, 3] = True
    return known


def all_logits(model: VRC, ids: Tensor, condition, known: Tensor | None) -> Tensor:
    out = model(ids, condition, known=known, logits=True)
    return torch.cat([out.logits_first[:, None], out.logits_later], dim=1)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("variant", KINDS)
def test_where_nothing_is_known_nothing_is_added(variant, layer):
    """To the bit: frame by frame in training, and in one pass the model that does not refine."""
    model = refined(variant, refine_layer=layer)
    ids, condition = inputs(model)
    expected = all_logits(plain(model), ids, condition, None)
    known = some_known(model)
    assert torch.equal(all_logits(model, ids, condition, None), expected)
    assert torch.equal(all_logits(model, ids, condition, torch.zeros_like(known)), expected)
    assert not torch.allclose(all_logits(model, ids, condition, known)[:, 1], expected[:, 1])
    known[0] = False  # one sample alone
    assert torch.equal(all_logits(model, ids, condition, known)[0], expected[0])
    if layer == 0:
        guided = SamplingSettings(guidance=1.5)
        assert torch.equal(
            generate(model, condition, guided, [0, 1]), generate(plain(model), condition, guided, [0, 1])
        )


@pytest.mark.parametrize("variant", ["paper", "rate 64", "segments without x", "row"])
def test_known_cells_reach_their_own_frame_and_later_ones(variant):
    """By gradient: from the logits of a frame to the embeddings of the known cells of every frame."""
    model = refined(variant, refine_layer=1)
    ids, condition = inputs(model, batch=1)
    seen: list[Tensor] = []

    def keep(_module, arguments):
        tokens = arguments[0].detach().requires_grad_()
        seen.append(tokens)
        return tokens, arguments[1]

    model.partial.register_forward_pre_hook(keep)
    known = some_known(model, batch=1)
    for frame in range(1 + model.config.frames):
        seen.clear()
        all_logits(model, ids, condition, known)[:, frame].sum().backward()
        reached = torch.zeros(1, 8, 8) if seen[-1].grad is None else seen[-1].grad.abs().sum(3)
        for later, cells in enumerate(reached, 1):  # [F, g, g], known cells of frames 1..F
            assert (cells[~known[0, later]] == 0).all()
            assert (cells[known[0, later]] > 0).all() if later <= frame else (cells == 0).all()


@pytest.mark.parametrize("variant", ["paper", "row"])
def test_unknown_cells_reach_nothing_of_their_frame_and_known_ones_are_not_in_the_loss(variant):
    model = refined(variant)
    ids, condition = inputs(model)
    known = some_known(model)
    before = all_logits(model, ids, condition, known)
    first = 0 if variant == "row" else 1
    for frame in range(first, 1 + model.config.frames):
        row = slice(4, 5) if frame == 0 else slice(None)  # a row of the first frame sees the rows above it
        changed = ids.clone()
        other = (changed[:, frame, row] + 7) % model.config.vocab
        changed[:, frame, row] = changed[:, frame, row].where(known[:, frame, row], other)
        after = all_logits(model, changed, condition, known)
        assert torch.equal(
            before[:, frame].unflatten(1, (8, 8))[:, row], after[:, frame].unflatten(1, (8, 8))[:, row]
        )
    out = model(ids, condition, known=known, logits=True)
    losses = torch.nn.functional.cross_entropy(before.flatten(0, 2), ids.flatten(), reduction="none")
    unknown = ~known.flatten(2)
    losses = losses.view(unknown.shape)
    expected = torch.stack(
        [torch.stack([losses[b, t][unknown[b, t]].mean() for b in range(2)]).mean() for t in range(3)]
    )
    torch.testing.assert_close(out.loss_frames, expected)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize(("variant", "layer"), [(kind, 0) for kind in KINDS] + [("paper", 1), ("row", 1)])
def test_cached_passes_equal_the_training_forward(variant, layer, guidance):
    """Of each frame (and row): nothing known, then a few cells, then what its last pass knows."""
    model = refined(variant, refine_layer=layer)
    ids, condition = inputs(model)
    frames, side, in_rows = ids.flatten(2), 8, model.config.first_frame == "row"
    last = some_known(model)
    few = last & (torch.arange(8) == 3)
    decoder = Decoder(model, condition, 2, guidance)

    def expected(index: int, row: slice, now: Tensor) -> Tensor:
        known = last.clone()
        known[:, index, row] = now[:, index, row]
        given, free = (all_logits(model, ids, c, known) for c in (condition, model.null_condition(2)))
        guided = given if guidance == 1 else free + guidance * (given - free)
        return guided[:, index].unflatten(1, (side, side))[:, row].flatten(1, 2)

    def check(index: int, row: slice, logits) -> None:
        for now in (torch.zeros_like(last), few, last):
            cells = (ids[:, index, row].flatten(1), now[:, index, row].flatten(1))
            got = logits(cells if now.any() else None)
            torch.testing.assert_close(got, expected(index, row, now), rtol=1e-9, atol=1e-9)

    if in_rows:
        decoder.push(model.embed_start_row(2))
        for row in range(side):
            check(0, slice(row, row + 1), decoder.row_logits)
            decoder.push_raw(ids[:, 0, row])
    else:
        decoder.push_raw(frames[:, 0])
    for index in range(1, 1 + model.config.frames):
        decoder.push_segment(model.tokens(frames[:, index - 1]))
        check(index, slice(None), decoder.segment_logits)
    alone = variant == "segments without x"  # the condition
    assert decoder.passes == alone + 3 * (model.config.frames + side * in_rows)


def tiny(**changes: object) -> VRC:
    """Clips of so few tokens that all can be listed; what follows depends on what came before."""
    small = {"grid": 2, "vocab": 2, "layers": 2, "heads": 1, "width": 16, "frames": 1, "refine_layer": 1}
    model = refined("class", **{**small, **changes})
    torch.nn.init.normal_(model.head.weight, std=0.3)
    torch.nn.init.normal_(model.tokens.weight, std=1)
    torch.nn.init.normal_(model.partial.net[-1].weight, std=0.5)
    return model


def probabilities_of_all_clips(
    model: VRC, label: Tensor, order_TN: Tensor, passes: SamplingSettings
) -> Tensor:
    """Of every clip that the model can make, the probability when cells are drawn in this order."""
    config = model.config
    shape = (1 + config.frames, config.grid, config.grid)
    tokens = shape[0] * shape[1] * shape[2]
    clips = torch.tensor(list(itertools.product(range(config.vocab), repeat=tokens))).view(-1, *shape)
    order = order_TN.expand(len(clips), -1, -1)
    nats = code_length(model, clips, label.expand(len(clips)), order, passes.later_passes, passes.row_passes)
    return nats.sum(1).neg().exp()


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, SamplingSettings(later_passes=3)),
        (
            {"frames": 2, "compression": CompressionConfig(1, norm="rms")},
            SamplingSettings(later_passes=[2, 2]),
        ),
        ({"first_frame": "row"}, SamplingSettings(later_passes=2, row_passes=2)),
    ],
)
def test_the_probabilities_of_all_clips_sum_to_1(changes, passes):
    model = tiny(**changes)
    order = orders(model.config, uniforms([3], 4 * (1 + model.config.frames), "cpu").view(1, -1, 4))[0]
    assert probabilities_of_all_clips(model, torch.tensor([2]), order, passes).sum().item() == pytest.approx(
        1
    )


SAMPLES = 6000


def p_value(model: VRC, passes: SamplingSettings) -> float:
    """Of a G test that clips come as often as their probability, the mean over the orders of the cells."""
    label = torch.tensor([2])
    places = [order_of(order) for order in itertools.permutations(range(4))]
    each = [probabilities_of_all_clips(model, label, order, passes) for order in places]
    probs = torch.stack(each).mean(0)
    ids = generate(model, label.expand(SAMPLES), passes, list(range(SAMPLES))).flatten(1)
    counts = torch.bincount((ids * 2 ** torch.arange(7, -1, -1)).sum(1), minlength=len(probs)).double()
    expected = probs * SAMPLES
    rare = expected < 5
    counts, expected = (torch.cat([v[~rare], v[rare].sum()[None]]) for v in (counts, expected))
    kept = expected > 0
    g = 2 * torch.special.xlogy(counts[kept], counts[kept] / expected[kept]).sum()
    return torch.special.gammaincc((kept.sum().double() - 1) / 2, g / 2).item()


def order_of(second: tuple[int, ...]) -> Tensor:
    return torch.tensor([[0, 1, 2, 3], second])


@pytest.mark.parametrize("later_passes", [2, 4])
def test_clips_come_as_often_as_they_should(later_passes):
    model = tiny()
    assert p_value(model, SamplingSettings(later_passes=later_passes)) > 1e-3


def test_the_test_notices_passes_that_see_nothing(monkeypatch):
    refine = Decoder.refine
    monkeypatch.setattr(Decoder, "refine", lambda self, added: refine(self, 0 * added))
    assert p_value(tiny(), SamplingSettings(later_passes=2)) < 1e-9


@pytest.mark.parametrize(
    ("variant", "settings"),
    [("paper", PASSES), ("row", ROWS), ("segments without x", PASSES)],
)
def test_a_sample_depends_on_its_own_seed_only(variant, settings):
    model = refined(variant)
    _, condition = inputs(model, batch=3)
    settings = SamplingSettings(
        guidance=1.5, later_passes=settings.later_passes, row_passes=settings.row_passes
    )
    together = generate(model, condition, settings, [3, 1, 2])
    for index, seed in enumerate([3, 1, 2]):
        alone = generate(model, condition[index : index + 1], settings, [seed])
        assert torch.equal(together[index], alone[0])
    if variant != "row":  # given frames are seen as drawn in one pass
        assert torch.equal(together, generate(model, condition, settings, [3, 1, 2], prefix=together[:, :1]))
    assert torch.equal(together[:, :2], generate(model, condition, settings, [3, 1, 2], frames=1))


def test_refinement_leaves_the_draws_before_it_as_they_were():
    """The first frame, sequential or speculative, and a first later frame of one pass: the same for a seed."""
    model = refined()
    _, condition = inputs(model)
    for speculative in (0, 4):
        one = generate(model, condition, SamplingSettings(speculative=speculative), [0, 1])
        settings = SamplingSettings(speculative=speculative, later_passes=[1, 3])
        several = generate(model, condition, settings, [0, 1])
        assert torch.equal(one[:, :2], several[:, :2]) and not torch.equal(one[:, 2], several[:, 2])


def test_a_stream_refines_as_the_whole_does():
    model = refined()
    _, condition = inputs(model)
    request = ClipRequest(Condition.of(condition), [0, 1], PASSES)
    whole = VideoPipeline(model).generate(request, "ids")
    assert torch.equal(torch.cat(list(VideoPipeline(model).stream(request, "ids")), dim=1), whole)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"feedback": "soft"}, {"first_frame": "row"}, {"refine_layer": 1}])
def test_passes_can_be_repeated_as_capturing_a_graph_does(options, monkeypatch):
    model = refined(frames=3, **options)
    _, condition = inputs(model)
    settings = SamplingSettings(
        Sampling(0.8), later_passes=[4, 2], row_passes=2 if "first_frame" in options else 1, guidance=1.7
    )
    expected = generate(model, condition, settings, [0, 1])
    keys: list[object] = []

    class Watched(Twice):
        def __init__(self, model, batch, copies):
            super().__init__(model, batch, copies, steps="device")

        def run(self, key, decoder, one_pass):
            keys.append(key)
            super().run(key, decoder, one_pass)

    monkeypatch.setattr(pipeline, "Workspace", Watched)
    assert torch.equal(generate(model, condition, settings, [0, 1]), expected)
    segments = [key for key in keys if key[0] != "token"]
    assert len(set(segments)) == len(segments) >= 7  # a graph for each


def test_passes_that_a_model_cannot_make_are_refused():
    model, simple = refined(), build()
    condition = Condition(inputs(model)[1])
    for wrong, settings, message in (
        (simple, PASSES, "later_passes: this model was trained without refinement"),
        (model, SamplingSettings(later_passes=[1, 1, 2]), r"later_passes: \[1, 1, 2\] for 2 later frames"),
        (model, SamplingSettings(later_passes=65), "later_passes: 65 for 64 cells"),
        (refined("row"), SamplingSettings(row_passes=9), "row_passes: 9 for 8 cells"),
        (
            model,
            SamplingSettings(row_passes=2),
            "row_passes: this model does not draw its first frame row by row",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            VideoPipeline(wrong).stream(ClipRequest(condition, [0, 1], settings), "ids")
    for later in (0, [2, -1], [1.5], 1.5, "8", True, None):
        with pytest.raises(ValueError, match="later_passes is a positive number or a list of them"):
            SamplingSettings(later_passes=later)
    numbers = SamplingSettings(later_passes=(np.int64(5), 2), row_passes=np.int32(3))  # of any library
    assert numbers == ROWS and str(numbers) == str(ROWS)
    assert SamplingSettings(later_passes=np.int64(4)) == SamplingSettings(later_passes=4)
    with pytest.raises(ValueError, match="known: this model has no refinement"):
        simple(*inputs(simple), known=torch.zeros(2, 3, 8, 8, dtype=torch.bool))


def test_every_pass_keeps_a_cell_and_the_last_one_all():
    assert kept_cells(64, 8) == [2, 5, 11, 19, 29, 40, 52, 64]  # cosine
    for cells, passes in itertools.product((2, 7, 64), (1, 2, 5, 7, 33, 64)):
        if passes <= cells:
            kept = kept_cells(cells, passes)
            assert len(kept) == passes and kept[-1] == cells and kept[0] > 0
            assert all(before < after for before, after in itertools.pairwise(kept))


def test_training_draws_what_generation_meets():
    """Nothing known in three frames of ten, never everything, else all shares, any cell as likely as another."""
    config = build(frames=4).config
    known = torch.stack([draw_known(config, seed) for seed in range(3000)])
    assert not known[:, 0].any()
    later = known[:, 1:].flatten(0, 1)
    counts = later.sum((1, 2))
    assert (counts == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert counts.max() == 63 and (counts == 1).any()
    share = later.double().mean(0)
    assert (share / share.mean() - 1).abs().max() < 0.06
    rows = draw_known(build("row").config, 3)[0]
    assert len(set(rows.sum(1).tolist())) > 2 and (rows.sum(1) < 8).all()
    assert torch.equal(draw_known(config, 4), draw_known(config, 4))
    assert not torch.equal(draw_known(config, 4), draw_known(config, 5))


def test_context_noise_replaces_a_share_of_what_is_compressed_and_no_target():
    model = build(context_noise=0.25, frames=4)
    ids, condition = inputs(model, batch=8)
    noisy = torch.stack([noisy_context(model.config, clip, seed) for seed, clip in enumerate(ids)])
    changed = (noisy != ids[:, :-1]).double().mean().item()
    assert changed == pytest.approx(0.25 * 49 / 50, abs=0.03)
    assert torch.equal(noisy_context(model.config, ids[3], 3), noisy[3])
    clean = model(ids, condition, logits=True)
    out = model(ids, condition, context=noisy, logits=True)
    assert torch.equal(out.logits_first, clean.logits_first)
    assert not torch.allclose(out.logits_later, clean.logits_later)
    assert torch.equal(
        model(ids, condition, context=ids[:, :-1], logits=True).logits_later, clean.logits_later
    )


def test_options_that_do_not_fit_are_refused():
    for options, message in (
        (dict(prediction="token", refine=True), "prediction: token draws every token in a pass of its own"),
        (dict(prediction="token", context_noise=0.1), "context_noise 0"),
        (dict(refine=True, refine_layer=2), "refine_layer: 2 is not one of the layers 0..1"),
        (dict(context_noise=1.0), "context_noise: 1.0 is not a share"),
        (dict(feedback="features"), "features need a model that was trained to compress them"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)
