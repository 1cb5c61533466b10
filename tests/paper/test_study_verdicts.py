"""The study's verdicts and intervals follow its rules."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_files import line_of, write_cases, write_pair, write_run

from megavrc.errors import UserError
from megavrc.paper.study_claims import Claim, crossed, equal_time, holm, hypotheses, judge, judge_speed
from megavrc.paper.study_runs import Cell, read_study
from megavrc.paper.study_tables import Costs, seeds_of, spread_metric
from megavrc.results import case, metric, result, write_result

PAIR = Cell("new", 10, "given", "whole"), Cell("old", 10, "given", "whole")
CLAIM = Claim(8, "refined above one pass", (PAIR,), 0.1, shares=True)
SPREADS = {"holds": 1.0, "refuted": -1.0, "not shown": 0.0}  # what is claimed, its opposite, and neither


@pytest.mark.parametrize(
    ("old", "new", "seeds", "word"),
    [
        (0.3, 0.8, 3, "holds"),
        (0.3, 0.3, 3, "refuted"),
        (0.3, 0.8, 2, "waits: 2 of 3 seeds"),
        (0.3, 0.38, 3, "not shown"),  # in all seeds more, on average by 8 points, and 10 are claimed
        (0.0, 0.0, 3, "not shown: no model gets more than 0.0%"),
    ],
)
def test_a_verdict_follows_the_rules(tmp_path: Path, old: float, new: float, seeds: int, word: str) -> None:
    write_pair(tmp_path / "runs", old, new, seeds)
    [verdict] = judge(read_study(tmp_path / "runs"), [CLAIM])
    assert verdict.word == word
    assert len(verdict.by_seed) == seeds


def number(runs: Path, hypothesis: int) -> Any:
    """The first verdict on a hypothesis."""
    return next(found for found in judge(read_study(runs), hypotheses()) if found.claim.number == hypothesis)


@pytest.mark.parametrize("word", SPREADS)
def test_sizes_are_judged_step_by_step(tmp_path: Path, word: str) -> None:
    """Hypothesis 3: bits must fall from 64 to 128 and again to 192, in every seed."""
    widest = {"holds": 800, "refuted": 950, "not shown": 800}[word]
    for seed in range(3):
        end = 950 if word == "not shown" and seed == 2 else widest
        for name, later in (("-64", 1000), ("", 900), ("-192", end)):
            lines = [f"10 {later + i % 7}" for i in range(40)]
            write_cases(tmp_path, f"scenes-vrc{name}", seed, {"bits val 4000": lines})
    verdict = number(tmp_path, 3)
    assert verdict.word == word
    assert verdict.by_seed[2] == 900 - (800 if word == "holds" else 950), "the smaller of the two steps"


@pytest.mark.parametrize("word", SPREADS)
def test_changed_cells_are_judged_against_the_rate(tmp_path: Path, word: str) -> None:
    """Hypothesis 6; a clip without unchanged cells says nothing."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        shift = SPREADS[word] if word != "not shown" else (0.3, -0.2, 0.1)[seed]
        for name, by_rate in (("scenes-rate1", shift), ("scenes-rate4", 0.0)):
            line = line_of(1 + by_rate + 0.1 * rng.standard_normal(60)) + " -"
            write_cases(tmp_path, name, seed, {"probes val 1000": {"gap": line}})
    assert number(tmp_path, 6).word == word


def test_a_seed_that_the_main_set_lacks_is_taken_from_the_second_tokenizer(tmp_path: Path) -> None:
    """A pair counts within one tokenizer; where both sets have the seed, the main set does."""
    for name, tokenizer, seeds, gap in (("scenes", "a", (0, 1), 2.0), ("again", "b", (1, 2), 1.0)):
        for seed in seeds:
            for rate, more in ((1, gap), (4, 0.0)):
                values = {"probes val 1000": {"gap": line_of(np.linspace(more, more + 0.1, 60))}}
                write_cases(tmp_path, f"{name}-rate{rate}", seed, values, tokenizer=tokenizer)
    verdict = number(tmp_path, 6)
    assert verdict.word == "holds"
    assert verdict.by_seed == pytest.approx({0: 2, 1: 2, 2: 1})
    (tmp_path / "again-rate4-2.json").unlink()
    write_cases(tmp_path, "scenes-rate4", 2, values, tokenizer="a")
    assert number(tmp_path, 6).word == "waits: 2 of 3 seeds", "no pair is made of both"


@pytest.mark.parametrize("word", SPREADS)
def test_errors_accumulate_by_the_slope_beyond_true_histories(tmp_path: Path, word: str) -> None:
    """Hypothesis 7. Both models lose wholeness with true histories too, which must not count."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        slopes = {"holds": (0.15, 0.02), "refuted": (0.02, 0.15), "not shown": ((0.15, 0.02, 0.1)[seed], 0.1)}
        for name, slope in zip(("scenes-token", "scenes-vrc"), slopes[word], strict=True):
            true, own = {}, {}
            for frame in range(1, 5):
                draws = rng.random(400)
                share = 0.95 - 0.05 * frame
                true[f"whole_by_latent_{frame}"] = line_of(draws < share)
                own[f"whole_by_latent_{frame}"] = line_of(draws < share - slope * (frame - 1))
            write_cases(tmp_path, name, seed, {"each tuned 4000": true, "given tuned 4000": own})
    verdict = number(tmp_path, 7)
    assert verdict.word == word
    if word == "holds":
        assert verdict.spread.value == pytest.approx(0.13, abs=0.02)


def test_a_model_that_has_little_to_lose_does_not_seem_to_lose_less(tmp_path: Path) -> None:
    """Hypothesis 7: the token model falls by more points a frame, and keeps half; VRC keeps a quarter."""
    shares = {"scenes-token": (0.8, 0.4), "scenes-vrc": (0.2, 0.05)}  # by the last frame
    for seed, (name, (true, own)) in ((seed, item) for seed in range(3) for item in shares.items()):
        rng = np.random.default_rng(seed)
        draws = rng.random(400)
        given = np.linspace(true, own, 4)
        each = {f"whole_by_latent_{frame}": line_of(draws < true) for frame in range(1, 5)}
        free = {f"whole_by_latent_{frame + 1}": line_of(draws < given[frame]) for frame in range(4)}
        write_cases(tmp_path, name, seed, {"each tuned 4000": each, "given tuned 4000": free})
    verdict = number(tmp_path, 7)
    assert verdict.spread.low > 0
    assert verdict.word == "not shown: in shares of what true frames give, the other way round"


def test_what_accumulates_is_asked_of_one_set_of_clips(tmp_path: Path) -> None:
    lines = {f"whole_by_latent_{frame}": "1 0" for frame in range(1, 5)}
    write_cases(tmp_path, "scenes-vrc", 0, {"each tuned 4000": lines, "given tuned 4000": lines})
    file = tmp_path / "scenes-vrc-0.json"
    content = json.loads(file.read_text())
    content["cases"][1]["config"]["clips"] = "others"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="seed 0: given tuned and each tuned are of different clips"):
        read_study(tmp_path)["scenes-vrc"][0].clips(Cell("scenes-vrc", 4000, "each tuned", "decline"))


@pytest.mark.parametrize(
    ("ranges", "word"),
    [
        ([(50, 60), (66, 70)], "holds"),  # 5.0 to 6.7 times
        ([(30, 40), (35, 44)], "refuted"),
        ([(50, 60), (40, 44)], "not shown"),
        ([(50, 60), (40, 60)], "not shown"),  # b clearly, l not
        ([(50, 60)], "waits: preset l"),
    ],
)
def test_speed_is_judged_by_the_ranges_of_both_clocks(tmp_path: Path, ranges: list[Any], word: str) -> None:
    for preset, (low, high) in zip("bl", ranges, strict=False):
        token = metric((low + high) / 2, "s", 3, low, high)
        rows = [case("token, batch 1, guidance 1", {"seconds": token})]
        rows += [case("vrc-4, batch 1, guidance 1", {"seconds": metric(9.5, "s", 3, 9, 10)})]
        write_result(tmp_path / f"generate-{preset}.json", result("benchmark generate", {}, rows))
    assert judge_speed({preset: Costs(tmp_path).ratio(preset) for preset in "bl"}) == word


def test_a_claim_at_another_coverage_is_not_shown(tmp_path: Path) -> None:
    """Hypothesis 8: more whole clips do not count if modes are lost."""
    modes = tuple(Cell(name, 10, "modes", "modes") for name in ("new", "old"))
    claim = Claim(8, "refined", (PAIR,), 0.1, alike=(*modes, 0.05))
    for seed in range(3):
        for name, whole, excess in (("new", "1", "0.3"), ("old", "0", "0.1")):
            cases = {
                "given 10": {"whole": " ".join([whole] * 50)},
                "modes 10": {"modes": " ".join([excess] * 8)},
            }
            write_cases(tmp_path / "runs", name, seed, cases)
    [lost] = judge(read_study(tmp_path / "runs"), [claim])
    [kept] = judge(read_study(tmp_path / "runs"), [replace(claim, alike=(*modes, 0.25))])
    assert (lost.word, kept.word) == ("not shown: modes +0.20", "holds")
    few = {"given 10": {"whole": " ".join(["1"] * 50)}, "modes 10": {"modes": "0.1 0.1 0.1 - - - - -"}}
    write_cases(tmp_path / "runs", "new", 1, few)
    [unknown] = judge(read_study(tmp_path / "runs"), [claim])
    assert unknown.word == "not shown: modes of 3 first frames alone"


@pytest.mark.parametrize(
    ("slow", "word"), [(None, "waits: slow"), (0.4, "holds"), (1.0, "not shown: slow +0.50")]
)
def test_a_learning_rate_that_gains_more_than_a_claim_rests_on_undoes_it(
    tmp_path: Path, slow: float | None, word: str
) -> None:
    """Half of the old model's clips are whole, 80% of the new one's."""
    clips = np.arange(100)
    for seed in range(3):
        write_run(tmp_path, "old", seed, clips % 2 == 0)
        write_run(tmp_path, "new", seed, clips % 5 != 0)
    if slow is not None:
        write_run(tmp_path, "slow", 0, clips < 100 * slow)
    cells = tuple(replace(PAIR[0], run=run) for run in ("slow", "old"))
    [verdict] = judge(read_study(tmp_path), [replace(CLAIM, halved=(cells,))])
    assert verdict.word == word


def test_a_verdict_beside_its_hypothesis_takes_no_rank_of_the_correction(tmp_path: Path) -> None:
    write_pair(tmp_path / "runs", 0.3, 0.8)
    runs = read_study(tmp_path / "runs")
    words = [found.word for found in judge(runs, [CLAIM, *[replace(CLAIM, beside=True)] * 9])]
    assert words == ["holds"] * 10


@pytest.mark.parametrize(("vrc", "step"), [((38, 44), 2250), ((30, 44), 4000), (None, 4000)])
def test_equal_time_is_the_first_checkpoint_that_is_late_enough_for_both_clocks(
    tmp_path: Path, vrc: tuple[float, float] | None, step: int
) -> None:
    """The token model trains on 20 to 21 clips a second: 2250 steps are 4071 of VRC's at least."""
    if vrc:
        clips = {"VRC": vrc, "token": (20.0, 21.0)}
        rows = [
            case(f"debug, {name}", {"cpu_clips": metric(sum(ends) / 2, "clips/CPU s", 7, *ends)})
            for name, ends in clips.items()
        ]
        write_result(tmp_path / "train-study.json", result("benchmark train", {}, rows))
    assert equal_time(Costs(tmp_path).pace()) == step


def test_a_difference_that_one_seed_contradicts_is_not_shown(tmp_path: Path) -> None:
    write_pair(tmp_path / "runs", 0.3, 0.9)
    write_run(tmp_path / "runs", "new", 2, np.zeros(200))
    [verdict] = judge(read_study(tmp_path / "runs"), [CLAIM])
    assert verdict.word == "not shown"


def test_models_that_were_measured_on_different_clips_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "old", 0, np.ones(4))
    write_run(tmp_path / "runs", "new", 0, np.ones(4), keys="others")
    with pytest.raises(UserError, match="new and old, seed 0, given: measured on different clips"):
        judge(read_study(tmp_path / "runs"), [CLAIM])


def test_models_of_two_rounds_are_not_compared(tmp_path: Path) -> None:
    """Their clips have the same keys."""
    for name, tokenizer in (("old", "first"), ("new", "second")):
        write_cases(tmp_path / "runs", name, 0, {"given 10": {"whole": "1 0"}}, tokenizer=tokenizer)
    with pytest.raises(UserError, match="measured on different clips, or of models with other tokenizers"):
        judge(read_study(tmp_path / "runs"), [CLAIM])


def test_equal_models_are_told_apart_rarely() -> None:
    """A/A: three seeds that differ from each other as much as the clips make them, 100 times."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(100):
        first, second = (rng.random((2, 3, 100)) < 0.4).astype(float)
        spread = crossed(list(first - second), draws=1000)
        wrong += not spread.low <= 0 <= spread.high
    assert wrong <= 12


def test_the_bootstrap_takes_seeds_and_clips_and_leaves_out_what_says_nothing() -> None:
    same = [np.full(50, 0.2), np.full(50, 0.4)]
    spread = crossed(same)
    assert spread.value == pytest.approx(0.3)
    assert (spread.low, spread.high) == pytest.approx((0.2, 0.4))  # clips are equal, seeds are not
    assert crossed([np.array([1.0, np.nan, 0.0])]).value == 0.5
    few = crossed([np.array([0.3, 0.4, *[np.nan] * 6])])  # one draw in ten has neither of the two
    assert (few.low, few.high) == pytest.approx((0.3, 0.4))


def test_none_of_the_clips_is_not_known_to_a_digit() -> None:
    none = spread_metric({seed: (np.zeros(512), "k") for seed in range(3)})
    assert none["value"] == none["low"] == 0 and none["high"] == pytest.approx(0.0074, abs=1e-3)
    assert spread_metric({0: (np.zeros(512), "k")}, "bits")["high"] == 0, "bits are no share"
    some = {seed: (np.array([0, 1, np.nan]), "k") for seed in range(2)}
    assert spread_metric(some)["n"] == 4, "a clip that says nothing is none"
    one = spread_metric({0: (np.zeros(512), "k"), 1: (np.full(512, np.nan), "k")})
    assert one == none | {"n": 512}, "nor is such a seed"


def test_a_row_says_how_many_seeds_its_numbers_have() -> None:
    assert [seeds_of(counts) for counts in ([], [0, 0], [0, 1, 1], [3, 0, 1])] == ["", "", "1", "1 to 3"]


def test_holm() -> None:
    """By hand, seven tests: 0.05 / 7, then 0.05 / 6; the third fails and stops the fourth."""
    assert holm([0.04, 0.001, 0.008, 0.011]) == [False, True, True, False]
    assert holm([0.01]) == [False]
