"""Generation: draws, guidance, prefixes, and independence of the batch."""

import pytest
import torch
from models import VARIANTS, build, generate, inputs

from megavrc.model import ClipRequest, Sampling, SamplingSettings, VideoPipeline
from megavrc.model.condition import Condition
from megavrc.model.sampling import draw, guide, probabilities, uniforms


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sample_depends_on_its_own_seed_only(variant):
    model = build(variant)
    ids, condition = inputs(model, batch=3)
    settings = SamplingSettings(guidance=1.5)

    def pick(index):
        if isinstance(condition, tuple):
            return tuple(part[index] for part in condition)
        return condition[index]

    together = generate(model, condition, settings, seeds=[3, 1, 2])
    assert together.shape == ids.shape
    for index, seed in enumerate([3, 1, 2]):
        alone = generate(model, pick(slice(index, index + 1)), settings, seeds=[seed])
        assert torch.equal(together[index], alone[0])
    assert not torch.equal(together, generate(model, condition, settings, seeds=[4, 1, 2]))


@pytest.mark.parametrize("variant", ["paper", "token", "row"])
def test_top_k_1_is_argmax_and_guidance_1_is_none(variant):
    model = build(variant)
    _, condition = inputs(model)
    greedy = SamplingSettings(Sampling(temperature=0), Sampling(temperature=0))
    top_1 = SamplingSettings(Sampling(top_k=1), Sampling(top_k=1))
    ids = generate(model, condition, greedy, [0, 1])
    assert torch.equal(ids, generate(model, condition, top_1, [5, 6]))
    out = model(ids, condition, logits=True)
    logits = torch.cat([out.logits_first[:, None], out.logits_later], dim=1)
    assert torch.equal(ids.flatten(2), logits.argmax(-1))
    plain = generate(model, condition, SamplingSettings(), [0, 1])
    doubled = SamplingSettings(guidance=1 + 1e-12)  # 1 itself leaves out the unconditional half of the batch
    assert torch.equal(plain, generate(model, condition, doubled, [0, 1]))
    assert not torch.equal(plain, generate(model, condition, SamplingSettings(guidance=3.0), [0, 1]))


def test_guidance_chooses_among_plausible_tokens():
    """p_c is 0.6, 0.3, 0.06, 0.04; without the bound, guidance of 3 puts an unlikely token first."""
    c, u = torch.tensor([[0.6, 0.3, 0.06, 0.04], [0.6, 0.1, 0.1, 0.2]], dtype=torch.float64).log().unbind()
    u = u - 5  # logits are not normalised
    plain = guide(c, u, 3.0)
    assert torch.equal(plain, u + 3.0 * (c - u)) and torch.equal(guide(c, u, 3.0, 0.0), plain)
    for bound, kept in [(1e-9, 4), (0.06, 4), (0.07, 3), (0.11, 2), (0.49, 2), (0.51, 1), (1.0, 1)]:
        guided = guide(c, u, 3.0, bound)
        assert torch.equal(guided[:kept], plain[:kept])
        assert (guided[kept:] == float("-inf")).all()
        wanted = torch.where(torch.arange(4) < kept, c.exp() ** 3 / u.exp() ** 2, 0)
        torch.testing.assert_close(probabilities(guided, Sampling()), wanted / wanted.sum())
        assert probabilities(guided, Sampling(1e6, top_k=3, top_p=0.99)).isfinite().all()
    rare, free = torch.tensor([[0.7, 0.299, 0.001], [0.7, 0.29999, 0.00001]]).log()
    assert guide(rare, free, 5.0).argmax() == 2 and guide(rare, free, 5.0, 0.01).argmax() != 2
    assert guide(c, u, 1.0, 0.9) is c


def test_strong_guidance_of_half_precision_is_finite():
    """s (c - u) is beyond the numbers of float16."""
    c, u = torch.tensor([[60.0, -60.0, 0.0], [-60.0, 60.0, 0.0]], dtype=torch.float16)
    guided = guide(c, u, 2000.0)
    assert guided.isfinite().all()
    assert draw(probabilities(guided, Sampling()), torch.tensor(0.5, dtype=torch.float64)) == 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0), Sampling(top_k=1)])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_probabilities_that_are_no_numbers_are_refused(number, sampling):
    model = build()
    with torch.no_grad():
        model.trunk.norm.weight[0] = number
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        generate(model, inputs(model)[1], SamplingSettings(sampling, sampling), [0, 1])


@pytest.mark.parametrize("variant", ["paper", "token", "row", "segments without x"])
def test_guidance_of_later_frames_is_their_own(variant):
    model = build(variant)
    _, condition = inputs(model)

    def clip(guidance, later, **options):
        settings = SamplingSettings(guidance=guidance, later_guidance=later, **options)
        return generate(model, condition, settings, [0, 1])

    none, both = clip(1.0, None), clip(3.0, 3.0)
    assert torch.equal(clip(1.0, 1.0), none) and torch.equal(clip(3.0, None), both)
    assert torch.equal(clip(1.0, 1.0, plausibility=0.9), none)  # the bound belongs to guidance
    first, later = clip(3.0, 1.0), clip(1.0, 3.0)
    assert torch.equal(first[:, 0], both[:, 0]) and not torch.equal(first[:, 1:], both[:, 1:])
    assert torch.equal(later[:, 0], none[:, 0]) and not torch.equal(later[:, 1:], none[:, 1:])
    assert not torch.equal(clip(3.0, 3.0, plausibility=0.9), both)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_numbers_that_give_no_probabilities_are_refused(number):
    """They were an index out of range, which on CUDA takes the process's device with it."""
    for name in ("guidance", "later_guidance", "plausibility"):
        with pytest.raises(ValueError, match=f"{name}.*got"):
            SamplingSettings(**{name: number})
    with pytest.raises(ValueError, match="temperature"):
        Sampling(temperature=number)


def test_a_tiny_temperature_takes_the_most_likely_token():
    logits = torch.tensor([1.0, 30.0, 29.0])
    for temperature in (1e-45, 1e-39, 1e-6):
        assert probabilities(logits, Sampling(temperature)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("variant", ["paper", "token", "row", "segments without x"])
def test_a_prefix_is_kept_and_continued_as_if_generated(variant):
    model = build(variant)
    _, condition = inputs(model)
    whole = generate(model, condition, SamplingSettings(), [0, 1])
    for known in range(1, 4):
        assert torch.equal(
            whole, generate(model, condition, SamplingSettings(), [0, 1], prefix=whole[:, :known])
        )


def test_fewer_frames_are_the_beginning_of_more():
    model = build()
    _, condition = inputs(model)
    whole = generate(model, condition, SamplingSettings(), [0, 1])
    seen = list(VideoPipeline(model).stream(ClipRequest(Condition.of(condition), [0, 1]), "ids"))
    assert [ids.shape[1] for ids in seen] == [1, 1, 1]
    assert torch.equal(torch.cat(seen, dim=1), whole)
    assert torch.equal(whole[:, :2], generate(model, condition, SamplingSettings(), [0, 1], frames=1))


def test_autocast_around_generation_changes_nothing():
    model = build().float()
    _, condition = inputs(model)
    expected = generate(model, condition, SamplingSettings(guidance=1.5), [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generate(model, condition, SamplingSettings(guidance=1.5), [0, 1]), expected)


def test_soft_feedback_changes_only_frames_after_the_first_segment():
    _, condition = inputs(build())
    tokens = generate(build(), condition, SamplingSettings(), [0, 1])
    other = generate(build(feedback="soft"), condition, SamplingSettings(), [0, 1])
    assert torch.equal(tokens[:, :2], other[:, :2])
    assert not torch.equal(tokens[:, 2], other[:, 2])


def test_impossible_requests_are_refused():
    model = build()
    ids, condition = inputs(model)
    with pytest.raises(ValueError, match="frames: 4 asked for, the model generates at most 3"):
        generate(model, condition, SamplingSettings(), [0, 1], frames=3)
    with pytest.raises(ValueError, match="frames: 0 is not a positive number"):
        generate(model, condition, SamplingSettings(), [0, 1], frames=-1)
    with pytest.raises(ValueError, match="beginning: ids"):
        generate(model, condition, SamplingSettings(), [0, 1], prefix=ids[:, :, :4])
    with pytest.raises(ValueError, match="beginning: ids that are not from 0 to"):
        generate(model, condition, SamplingSettings(), [0, 1], prefix=ids[:, :1] + model.config.vocab)
    with pytest.raises(ValueError, match="top_p"):
        Sampling(top_p=0.0)


def test_filters_keep_what_they_should():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64))
    assert probabilities(logits, Sampling(top_k=2)).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, Sampling(top_p=0.6)).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, Sampling(top_p=0.5)).tolist() == pytest.approx([1, 0, 0, 0])
    warm = probabilities(logits, Sampling(temperature=0.5))
    assert warm.tolist() == pytest.approx((torch.tensor([0.25, 0.0625, 0.0225, 0.01]) / 0.345).tolist())


def test_draws_follow_the_distribution_and_avoid_impossible_tokens():
    probs = torch.tensor([0.0, 0.2, 0.0, 0.7, 0.1, 0.0], dtype=torch.float64)
    uniform = uniforms([7], 100_000, "cpu")[0]
    ids = draw(probs.expand(len(uniform), -1), uniform)
    share = torch.bincount(ids, minlength=6) / len(ids)
    assert share.tolist() == pytest.approx(probs.tolist(), abs=0.01)
    assert share[[0, 2, 5]].sum() == 0
    edge = draw(probs.float().expand(2, -1), torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert edge.tolist() == [1, 4]
