"""The invariants of the model (docs/model.md): what may depend on what, sizes, first losses, and what equals what."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import VARIANTS, build, inputs

from megavrc.model import VRC, CompressionConfig, ConditionConfig, ModelConfig
from megavrc.model.decoder import Decoder
from megavrc.model.omnitokenizer import OmniTokenizerConfig

BODY = {
    "b": 84_953_856,
    "l": 308_331_520,
    "xl": 731_475_200,
    "1.2b": 1_130_457_088,
}  # LlamaGen, arXiv 2406.06525


def all_logits(model: VRC, ids, condition, backend: str = "auto") -> torch.Tensor:
    """[B, 1 + F, N, V]."""
    out = model(ids, condition, logits=True, backend=backend)
    return torch.cat([out.logits_first[:, None], out.logits_later], dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_frame_does_not_depend_on_itself_or_on_later_frames(variant):
    model = build(variant)
    ids, condition = inputs(model)
    before = all_logits(model, ids, condition)
    for frame in range(1, 1 + model.config.frames):
        changed = ids.clone()
        changed[:, frame] = (changed[:, frame] + 7) % model.config.vocab
        after = all_logits(model, changed, condition)
        assert torch.equal(before[:, :frame], after[:, :frame])
        if model.config.prediction == "segment":
            assert torch.equal(before[:, frame], after[:, frame])
        if frame < model.config.frames:
            assert not torch.allclose(before[:, frame + 1], after[:, frame + 1])


@pytest.mark.parametrize("variant", ["paper", "token", "row", "segments without x"])
def test_a_token_of_the_first_frame_is_seen_only_after_it(variant):
    model = build(variant)
    ids, condition = inputs(model)
    before = all_logits(model, ids, condition)
    changed = ids.clone()
    changed[:, 0, 3, 2] = (changed[:, 0, 3, 2] + 7) % model.config.vocab
    after = all_logits(model, changed, condition)
    side = model.config.grid
    first_changed = 4 * side if variant == "row" else 3 * side + 2 + 1
    assert torch.equal(before[:, 0, :first_changed], after[:, 0, :first_changed])
    assert not torch.allclose(before[:, 0, first_changed], after[:, 0, first_changed])
    assert not torch.allclose(before[:, 1], after[:, 1])


@pytest.mark.parametrize("variant", ["paper", "rate 16", "token", "segments without x"])
def test_causality_by_gradient(variant):
    """The gradient of each frame's logits reaches exactly the embeddings that the mask allows."""
    model = build(variant)
    ids, condition = inputs(model, batch=1)
    rows: list[torch.Tensor] = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        rows.append(output)

    handle = model.tokens.register_forward_hook(keep)
    for frame in range(1, 1 + model.config.frames):
        rows.clear()
        model.zero_grad()
        all_logits(model, ids, condition)[:, frame].sum().backward()
        reached = torch.zeros(1 + model.config.frames)
        for output in rows:  # the raw rows [B, L, D] and the frames to be compressed [B, F, g, g, D]
            assert output.grad is not None
            if output.dim() == 3:
                per_token = output.grad.abs().sum((0, 2))
                for t, part in enumerate(per_token.split(model.config.tokens_per_frame)):
                    reached[t] += part.sum()
            else:
                reached[: model.config.frames] += output.grad.abs().sum((0, 2, 3, 4))
        last_seen = frame if model.config.prediction == "token" else frame - 1
        assert (reached[: last_seen + 1] > 0).all()
        assert (reached[last_seen + 1 :] == 0).all()
    handle.remove()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_decoding_equals_the_training_forward(variant, guidance):
    """With guidance, a forward pass with the condition and one without, put together as u + s (c - u)."""
    model = build(variant)
    ids, condition = inputs(model)
    given, free = (all_logits(model, ids, c) for c in (condition, model.null_condition(len(ids))))
    assert not torch.allclose(given, free)
    expected = given if guidance == 1 else free + guidance * (given - free)
    frames = ids.flatten(2)
    decoder = Decoder(model, condition, len(ids), guidance)
    side, count = model.config.grid, model.config.tokens_per_frame

    def check(got, frame, tokens=slice(None)):
        torch.testing.assert_close(got, expected[:, frame, tokens], rtol=1e-9, atol=1e-9)

    if model.config.first_frame == "row":
        decoder.push(model.embed_start_row(len(ids)))
        for row in range(side):
            tokens = slice(row * side, (row + 1) * side)
            check(decoder.row_logits(), 0, tokens)
            decoder.push_raw(frames[:, 0, tokens])
    for frame in range(1 + model.config.frames if model.config.prediction == "token" else 1):
        for token in range(count if model.config.first_frame == "token" else 0):
            check(decoder.raw_logits()[:, 0], frame, token)
            decoder.push_raw(frames[:, frame, token : token + 1])
    for frame in range(1, 1 + model.config.frames if model.config.has_segments else 1):
        decoder.push_segment(model.tokens(frames[:, frame - 1]))
        check(decoder.segment_logits(), frame)
    first = side if model.config.first_frame == "row" else count
    passes = first + model.config.frames * (1 if model.config.prediction == "segment" else count)
    assert decoder.passes == passes


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_backends_agree(variant):
    model = build(variant)
    ids, condition = inputs(model)
    expected = all_logits(model, ids, condition, backend="dense")
    for backend in ("rects", "masked"):
        torch.testing.assert_close(all_logits(model, ids, condition, backend), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("preset", BODY)
def test_parameter_counts_are_those_of_the_paper(preset):
    with torch.device("meta"):
        model = VRC(ModelConfig(preset=preset, condition=ConditionConfig(kind="class", classes=101)))
    counts = model.parameter_counts()
    assert counts["body"] == BODY[preset]
    width = model.config.width
    assert counts["compressor"] == 9 * width**2 + width + 2 * width + width**2 + width
    assert counts["decompressor"] == 16 * width**2 + width + 2 * width + width**2 + width
    assert counts["total"] == sum(count for name, count in counts.items() if name != "total")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_model_starts_at_ln_v(variant):
    torch.manual_seed(0)
    model = build(variant)
    model.init_weights()
    ids, condition = inputs(model)
    out = model.train()(ids, condition)
    for loss in out.loss_frames:
        assert abs(loss.item() - math.log(model.config.vocab)) < 1e-6


def test_rate_1_identity_is_plain_block_prediction():
    """Against the sequence written out: every frame's raw embeddings as one segment, states straight to the head."""
    model = build("identity")
    ids, condition = inputs(model)
    out = model(ids, condition, logits=True)
    layout, table, _ = model.plan()
    blocks = model.tokens(ids[:, :-1]).flatten(1, 3) + model.types.weight[2]
    rows = torch.cat([model.embed_condition(condition), model.embed_raw(ids[:, 0].flatten(1)), blocks], dim=1)
    states = model.trunk(rows, table, layout.mask(), backend="dense")
    expected = model.head(states[:, layout.condition + layout.raw :]).unflatten(1, (model.config.frames, -1))
    torch.testing.assert_close(out.logits_later, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["paper", "row", "segments without x"])
def test_no_later_frames_is_the_image_model(variant):
    video, image = build(variant), build(variant, frames=0, seed=5)
    report = image.load_state_dict(video.state_dict(), strict=False)
    assert not report.missing_keys
    assert {key.split(".")[0] for key in report.unexpected_keys} == {"compressor", "decompressor"}
    ids, condition = inputs(video)
    expected = video(ids, condition, logits=True).logits_first
    torch.testing.assert_close(image(ids[:, :1], condition, logits=True).logits_first, expected)


def test_null_condition_replaces_dropped_samples():
    for variant in ("paper", "class", "features"):
        model = build(variant)
        ids, condition = inputs(model)
        dropped = all_logits(model, ids, condition)
        null = all_logits(model, ids, model.null_condition(2))
        out = model(ids, condition, drop=torch.tensor([True, False]), logits=True)
        torch.testing.assert_close(out.logits_first[0], null[0, 0])
        torch.testing.assert_close(out.logits_first[1], dropped[1, 0])


def test_loss_reductions_weigh_frames_as_documented():
    ids, condition = inputs(build())
    frames = build()(ids, condition).loss_frames
    count = build().config.tokens_per_frame
    expected = {
        "term": frames[0] + frames[1:].mean(),
        "token": frames.mean(),
        "block": frames[0] + frames[1:].mean() * count,
    }
    for reduction, value in expected.items():
        torch.testing.assert_close(build(loss_reduction=reduction)(ids, condition).loss, value)
    weighted = build(frame_loss_weight=[2.0, 1.0, 0.0])(ids, condition).loss
    torch.testing.assert_close(weighted, 2 * frames[0] + frames[1] / 2)


def test_gradients_reach_every_parameter():
    for variant in VARIANTS:
        model = build(variant).train()
        ids, condition = inputs(model)
        drop = torch.tensor([True, False])
        model(ids, condition, drop=drop).loss.backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not missing, f"{variant}: {missing}"


def test_wrong_shapes_are_refused_by_name():
    model = build()
    ids, condition = inputs(model)
    with pytest.raises(ValueError, match=r"ids have shape \(2, 8, 8\), the model takes \(3, 8, 8\)"):
        model(ids[:, :2], condition)
    with pytest.raises(ValueError, match="condition has 5 slots, the model takes 8"):
        model(ids, condition[:, :5])


def test_all_problems_of_a_configuration_are_reported_together():
    with pytest.raises(ValueError) as error:
        ModelConfig(grid=6, heads=3, compression=CompressionConfig(16, "identity"))
    for name in ("grid: 6", "width: 128", "compression.kind: identity", "condition.vocab"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    "name_value",
    [("layers", -1), ("layers", 10**6), ("width", 10**9), ("vocab", 10**12), ("grid", 10**5)],
    ids=str,
)
def test_numbers_that_no_model_has_are_refused_at_once(name_value):
    name, value = name_value
    with pytest.raises(ValueError, match=f"{name}: {value} is not from 1 to"):
        ModelConfig(**{name: value})


def test_configuration_round_trip_and_unknown_key():
    config = build("row").config
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"unknown key compression\.ratee"):
        ModelConfig.from_dict({"compression": {"ratee": 4}})


def places(content: dict[str, Any], *before: str) -> Iterator[tuple[str, ...]]:
    for name, value in content.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from places(value, *before, name)


@pytest.mark.parametrize("config", [build("row").config, OmniTokenizerConfig()], ids=["model", "tokenizer"])
def test_a_configuration_of_wrong_types_is_named(config) -> None:
    """As damaged files hold it: whatever stands in a place, it is taken or refused by the place's name."""
    for place in places(config.to_dict()):
        for wrong in (None, "x", [], ["x"], {}, True, -1, 0.5, 1e308, float("nan"), 10**30):
            content = config.to_dict()
            inner = functools.reduce(lambda found, name: found[name], place[:-1], content)
            inner[place[-1]] = wrong
            try:
                type(config).from_dict(content)
            except ValueError as error:
                assert place[-1] in str(error) or "heads" in str(error)


@pytest.mark.slow
def test_fresh_segments_do_not_spike_a_warm_model():
    """A head trained on images meets fresh segments without a loss above the fresh start's (ln V)."""
    torch.manual_seed(0)
    image = build(frames=0).float().train()
    ids, condition = inputs(image, batch=8)
    ids = ids // 10  # something to learn
    optimizer = torch.optim.AdamW(image.parameters(), lr=3e-3)
    for _ in range(30):
        image(ids, condition).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    video = build(seed=3).float().train()
    video.load_state_dict(image.state_dict(), strict=False)
    video.init_segments()
    clips = ids.expand(-1, 3, -1, -1)
    optimizer = torch.optim.AdamW(video.parameters(), lr=1e-3)
    for step in range(50):
        out = video(clips, condition)
        assert out.loss_later < 1.01 * math.log(video.config.vocab), f"step {step}"
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert out.loss_later < 2.0


def test_a_model_first_used_in_inference_mode_can_be_trained():
    model = build().float()  # float64 would copy the table
    ids, condition = inputs(model)
    with torch.inference_mode():
        model(ids, condition)
    model(ids, condition).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
