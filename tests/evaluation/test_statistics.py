"""Intervals hold what they say; a model compared with itself is called different in about 5% of trials."""

import math

import numpy as np
import pytest

from megavrc.evaluation.distances import Sets, compare_sets
from megavrc.evaluation.frechet import discrepancy
from megavrc.evaluation.statistics import (
    apart,
    as_metric,
    clustered_share,
    crossed_mean,
    difference,
    distance_estimates,
    estimate,
    frechet_distance,
    mean_estimate,
    needed,
    poly_distance,
    share_difference,
    share_metric,
    sign_test,
    verdict,
)

DIMS, N = 4, 100


def share_apart(shift: float, distance: str, trials: int = 200, draws: int = 100) -> float:
    """How often model B (features moved by `shift`) is called different from A on the same prompts."""
    rng = np.random.default_rng(5)
    make = frechet_distance if distance == "frechet" else poly_distance
    found = 0
    for trial in range(trials):
        real = rng.standard_normal((N, DIMS))
        prompts = (
            rng.standard_normal((N, DIMS)) * 1.2 + 0.3
        )  # what the prompt decides; the seed adds the rest
        a, b = (prompts + rng.standard_normal((N, DIMS)) * 0.6 + step for step in (0, shift))
        first, second = distance_estimates([make(a, real), make(b, real)], N, N, draws, trial)
        found += apart(difference(second, first))
    return found / trials


@pytest.mark.parametrize("distance", ["frechet", "kernel"])
def test_a_model_against_itself(distance: str) -> None:
    """200 trials: 5% +- 1.5% by chance alone; another model is found."""
    assert 0.015 <= share_apart(0, distance) <= 0.095
    assert share_apart(0.4, distance, trials=20) > 0.8


def test_the_interval_of_a_distance_holds_its_mean() -> None:
    """With 16 dimensions the draws lie far above the value, and hold its mean only once they are moved to it."""
    rng = np.random.default_rng(2)
    sets = [(rng.standard_normal((64, 16)) * 1.5 + 0.5, rng.standard_normal((64, 16))) for _ in range(100)]
    found = [distance_estimates([frechet_distance(*pair)], 64, 64, 60, i)[0] for i, pair in enumerate(sets)]
    mean = np.mean([one.value for one in found])
    assert 0.88 <= np.mean([one.low <= mean <= one.high for one in found]) <= 0.99


def test_the_interval_of_a_distance_is_that_of_its_prompts() -> None:
    """20 prompts of 5 clips, 20 real videos of 5 shots, each alike: drawn as wholes the interval holds, by clip not."""
    rng = np.random.default_rng(2)

    def clips(shift: float) -> np.ndarray:
        return (
            np.repeat(rng.standard_normal((20, 2)), 5, axis=0) + 0.2 * rng.standard_normal((100, 2)) + shift
        )

    names = [str(index // 5) for index in range(100)]
    sets = [(frechet_distance(clips(1.5), clips(0)), clip) for clip in range(80)]
    mean = np.mean([distance.value for distance, _ in sets])

    def held(drawn: list[str] | int) -> float:
        found = [distance_estimates([distance], drawn, drawn, 80, seed)[0] for distance, seed in sets]
        return float(np.mean([one.low <= mean <= one.high for one in found]))

    assert held(names) > 0.85 > 0.75 > held(100)
    few = distance_estimates([sets[0][0]], [str(i) for i in range(100)], 100, 20)[0]
    assert few[:3] == distance_estimates([sets[0][0]], 100, 100, 20)[0][:3]  # each clip its own prompt


def test_a_kernel_distance_of_two_clips_has_no_interval() -> None:
    """A draw of one clip alone has no pair: it counted as if its pairs were unlike, and moved all the others."""
    rng = np.random.default_rng(0)
    x, real = rng.standard_normal((3, 4)), rng.standard_normal((40, 4))
    (two,) = distance_estimates([poly_distance(x[:2], real)], 2, 40, 200)
    assert "low" not in as_metric(two, 2) and math.isnan(two.error) and not apart(difference(two, two))
    three, again = distance_estimates([poly_distance(x, real), poly_distance(x + 1, real)], 3, 40, 400)
    assert 10 < np.isnan(three.draws).sum() < 90 and three.low < three.value < three.high  # one in nine
    assert np.nanmean(three.draws) == pytest.approx(three.value)
    assert math.isfinite(difference(again, three).low)
    weights = np.array([[3.0, 0, 0], [2, 1, 0]])
    alone, pair = discrepancy(x, real, weights, np.ones((2, 40)))
    within = (
        (x[0] @ x[1]) / 4 + 1
    ) ** 3  # the one pair of two different clips, the other pair is of the same
    across = 2 * ((weights[1] @ (x @ real.T / 4 + 1) ** 3).sum()) / 120
    real_pairs = (real @ real.T / 4 + 1) ** 3
    both = (real_pairs.sum() - np.trace(real_pairs)) / (40 * 39)
    assert math.isnan(alone) and pair == pytest.approx(within + both - across)


def test_means() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(400)
    found = mean_estimate(values, 400)
    assert found.value == values.mean()
    assert found.error == pytest.approx(1 / 20, rel=0.15)
    assert found.low == pytest.approx(found.value - 1.96 / 20, abs=0.02)
    assert mean_estimate([2.0, 2.0], 10)[:3] == (2, 2, 2)
    alone, other = (mean_estimate(pair, 10, groups=["one video"] * 2) for pair in ([2.0, 3.0], [4.0, 5.0]))
    gap = difference(other, alone)
    assert "low" not in as_metric(alone, 2) and "low" not in as_metric(gap, 2)  # of others it says nothing
    assert (alone.value, gap.value) == (2.5, 2) and "no difference is shown" in verdict(gap, "a", "b")
    assert needed(alone.value, gap.error, 2, True) is None
    repeated = mean_estimate(np.repeat(values, 20), 400, groups=[str(i // 20) for i in range(8000)])
    assert repeated.error == pytest.approx(found.error, rel=0.15)  # 20 captions of a video are one video


def test_shares_have_an_interval_where_nothing_was_found() -> None:
    nothing = share_metric([0] * 144)
    assert (nothing["value"], nothing["low"]) == (0, 0) and nothing["high"] == pytest.approx(0.026, abs=1e-3)
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5):
        found = [share_metric(rng.random(60) < share) for _ in range(400)]
        assert 0.92 <= np.mean([one["low"] <= share <= one["high"] for one in found]) <= 0.99
        gaps = [share_difference(one, two) for one, two in zip(found[::2], found[1::2], strict=True)]
        assert 0.92 <= np.mean([gap["low"] <= 0 <= gap["high"] for gap in gaps]) <= 1


def test_pairing_finds_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(1)
    prompts = rng.standard_normal(60) * 5
    a, b = mean_estimate(prompts, 300), mean_estimate(prompts + 0.3 + 0.1 * rng.standard_normal(60), 300)
    assert a.high > b.low
    assert apart(difference(b, a)) and not apart(difference(a, a))


def test_samples_that_a_difference_takes() -> None:
    """Checked by what it promises: at that N the difference is found in 80% of trials."""
    rng = np.random.default_rng(0)
    value, spread, pilot = 10.0, 4.0, 200
    n = needed(value, spread / math.sqrt(pilot), pilot, paired=True) or 0
    assert n == pytest.approx((2.8 * spread / 0.5) ** 2, rel=0.01)
    hits = [
        abs(sample.mean()) > 1.96 * sample.std() / math.sqrt(n)
        for sample in rng.standard_normal((400, n)) * spread + 0.05 * value
    ]
    assert 0.72 < np.mean(hits) < 0.88
    alone, together = (needed(value, 1, 10, paired) or 0 for paired in (False, True))
    assert alone == pytest.approx(2 * together, abs=1)
    assert needed(0, 1, 10, paired=True) is None


def test_centred_draws_keep_their_spread() -> None:
    draws = np.linspace(3, 5, 101)
    found = estimate(1.0, draws, centred=True)
    assert (found.low, found.high) == (pytest.approx(0.05), pytest.approx(1.95))


def test_shares_of_answers_are_as_sure_as_their_prompts_are_many() -> None:
    """50 prompts, 6 answers each, prompts unlike: intervals over prompts hold the truth, over answers they do not."""
    rng = np.random.default_rng(2)
    groups, held = np.repeat([f"{index}" for index in range(50)], 6), np.zeros(2)
    for _ in range(200):
        chances = np.clip(0.7 + 0.25 * rng.standard_normal(50), 0, 1)  # their mean is 0.685
        hits = rng.random(300) < np.repeat(chances, 6)
        for index, found in enumerate((clustered_share(hits, groups, 200), share_metric(hits))):
            held[index] += found["low"] <= 0.685 <= found["high"]
    assert held[0] >= 180 > 175 > held[1], held
    one = clustered_share(np.arange(10) < 7, ["a"] * 10, 200)
    assert one == {"value": 0.7, "unit": "share", "n": 10, "low": 0, "high": 1}
    nothing = clustered_share(np.zeros(300, bool), groups, 200)
    assert nothing == share_metric(np.zeros(50)) | {"n": 300} and nothing["high"] > 0.06


def test_means_hold_for_other_raters_and_prompts() -> None:
    """6 raters who lean each their own way (sd 0.7 logits), 50 prompts likewise: over prompts alone 0 is often out."""
    rng, wrong, found = np.random.default_rng(0), np.zeros(2), 0
    prompts, raters = [f"{i % 50}" for i in range(300)], [f"{i // 50}" for i in range(300)]
    for preference in [0.0] * 150 + [1.5] * 50:
        logits = preference + 0.7 * rng.standard_normal((6, 1)) + 0.7 * rng.standard_normal(50)
        votes = np.where(rng.random((6, 50)) < 1 / (1 + np.exp(-logits)), 1.0, -1.0).ravel()
        one = crossed_mean(votes, (prompts, raters), -1)
        if preference:
            found += one["low"] > 0
        else:
            wrong += [not one["low"] <= 0 <= one["high"], apart(mean_estimate(votes, 100, 0, prompts))]
    assert wrong[0] <= 7 and wrong[1] >= 38, wrong  # of 150
    assert found >= 42, found  # of 50


def test_means_of_answers_worked_by_hand() -> None:
    values, ways = np.array([1, 1, 1, 0.0]), (["a", "b", "a", "b"], ["x", "x", "y", "y"])
    found = crossed_mean(values, ways)
    assert found == {"value": 0.75, "unit": "share", "n": 4, "low": 0, "high": 1}  # of 2 units: t is 12.7
    tenth = crossed_mean(
        np.tile(values, 100) / 10, [[f"{i // 4 % 5}{u}" for i, u in enumerate(way * 100)] for way in ways]
    )
    # 10 units of either way; 5 of them with 40 x 0.025, 5 with 40 x -0.025: 2 x (10/9 x 10 x 1) / 400^2
    assert tenth["high"] - 0.075 == pytest.approx(2.262157 * math.sqrt(2 * 10 / 9 * 10 / 400**2))
    turns = crossed_mean([1, 0, 0, 0, 1, 0, 0, 0, 1], ("aaabbbccc", "xyzxyzxyz"), -1)
    # no unit differs from another, answers do: t of 2 degrees x the error of 9 of them
    assert turns["low"] == pytest.approx(1 / 3 - 4.302653 * math.sqrt(2 / 9 / 8))


def test_the_sign_test() -> None:
    assert sign_test(10, 0) == pytest.approx(2 / 2**10)
    assert sign_test(3, 7) == sign_test(7, 3) == pytest.approx(0.34375)
    assert sign_test(5, 5) == 1 and sign_test(0, 0) == 1


def test_twenty_clips_of_a_prompt_are_one_sample_of_precision_and_limit() -> None:
    rng = np.random.default_rng(0)
    real, of_prompts = rng.normal(size=(100, 6)), 1.3 * rng.normal(size=(20, 6))
    alike = of_prompts.repeat(20, axis=0) + 0.01 * rng.normal(size=(400, 6))
    prompts = [f"prompt {index // 20}" for index in range(400)]
    whole, single = (
        compare_sets("fvd", Sets(real, None, {"x": alike}, drawn), "unknown").cases[0]["metrics"]
        for drawn in (prompts, None)
    )
    for name in ("precision_k3", "frechet_unknown_inf"):
        (one, of_one), (other, of_other) = (
            (found[name]["value"], found[name]["high"] - found[name]["low"]) for found in (whole, single)
        )
        assert one == other and of_one > 2 * of_other, name
    assert whole["recall_k3"] == single["recall_k3"]  # of real clips, each of which is one
