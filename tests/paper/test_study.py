"""The study's tables and verdicts are a function of its result files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megavrc.errors import UserError
from megavrc.files import read_json
from megavrc.paper.measured import SMOKE
from megavrc.paper.study import digest, study, write_study
from megavrc.paper.study_claims import Claim, crossed, equal_time, holm, hypotheses, judge, judge_speed
from megavrc.paper.study_runs import Cell, read_study
from megavrc.paper.study_tables import Costs, seeds_of, spread_metric
from megavrc.results import case, metric, page_text, read_result, result, table, write_result

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/study"
TABLES = ("runs", "clips", "claims", "bits", "probes", "shares", "table1", "table2", "table4")
PAIR = Cell("new", 10, "given", "whole"), Cell("old", 10, "given", "whole")
CLAIM = Claim(8, "refined above one pass", (PAIR,), 0.1, shares=True)
SPREADS = {"holds": 1.0, "refuted": -1.0, "not shown": 0.0}  # what is claimed, its opposite, and neither


def write_run(folder: Path, name: str, seed: int, whole: np.ndarray, keys: str = "k") -> None:
    """A result file with one case of drawn clips."""
    line = line_of(whole)
    rows = {score: line for score in ("all", "whole", "count", "shape", "direction", "speed", "flight")}
    rows |= {"jitter": line, "frozen": line, "objects": " ".join("12"[i % 2] for i in range(len(whole)))}
    write_cases(folder, name, seed, {"given 10": rows}, keys)


def line_of(values: np.ndarray) -> str:
    return " ".join(f"{value:g}" for value in values)


def write_cases(
    folder: Path, name: str, seed: int, cases: dict[str, Any], keys: str = "k", tokenizer: str = "t"
) -> None:
    """A result file with cases by name, which ends in the checkpoint, each with its values by clip."""
    rows = [
        {
            "name": label,
            "config": {"checkpoint": int(label.split()[-1]), "clips": keys},
            "metrics": {},
            "by_clip": by_clip,
        }
        for label, by_clip in cases.items()
    ]
    content = {"format": 2, "run": name, "seed": seed, "status": "done", "machine": {}, "versions": {}}
    content |= {"revision": "r", "command": "c", "config": {}, "metrics": {}, "cases": rows}
    content |= {"protocol": {"video_tokenizer": tokenizer}}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{seed}.json").write_text(json.dumps(content))


def write_pair(folder: Path, old: float, new: float, seeds: int = 3, clips: int = 200) -> None:
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        write_run(folder, "old", seed, rng.random(clips) < old)
        write_run(folder, "new", seed, rng.random(clips) < new)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content, row: content.update(seed="1"), "new-0.json: seed is '1', expected int"),
        (lambda content, row: row["config"].pop("clips"), "case given 10: clips is missing"),
        (lambda content, row: row["config"].update(checkpoint="x"), "case given 10: checkpoint is 'x'"),
        (lambda content, row: row.pop("by_clip"), "case given 10: by_clip is None"),
        (lambda content, row: row["by_clip"].update(whole=[1]), "case given 10: by_clip is"),
        (lambda content, row: row["by_clip"].update(whole="1 <b> 0"), "by_clip: could not convert .*'<b>'"),
        (lambda content, row: row["by_clip"].update(whole="1"), "by_clip: lines of different length"),
        (lambda content, row: row.update(by_clip=["1 2", "3 -"]), "by_clip: could not convert .*'-'"),
        (lambda content, row: row.update(by_clip=[]), "by_clip: lines of different length, or none"),
    ],
)
def test_damaged_results_are_one_line(tmp_path: Path, damage: Callable[..., Any], said: str) -> None:
    write_run(tmp_path, "new", 0, np.ones(4))
    content = json.loads((tmp_path / "new-0.json").read_text())
    damage(content, content["cases"][0])
    (tmp_path / "new-0.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_study(tmp_path)


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


def test_a_row_says_how_many_seeds_its_numbers_have() -> None:
    assert [seeds_of(counts) for counts in ([], [0, 0], [0, 1, 1], [3, 0, 1])] == ["", "", "1", "1 to 3"]


def test_holm() -> None:
    """By hand, seven tests: 0.05 / 7, then 0.05 / 6; the third fails and stops the fourth."""
    assert holm([0.04, 0.001, 0.008, 0.011]) == [False, True, True, False]
    assert holm([0.01]) == [False]


def test_a_changed_value_changes_tables_and_figures(tmp_path: Path) -> None:
    made = []
    for new in (0.5, 0.6):
        write_pair(tmp_path / "runs", 0.3, new, clips=40)
        study(tmp_path / "runs", tmp_path, tmp_path)
        made.append(
            (read_json(tmp_path / "study-clips.json")["cases"], (tmp_path / "study_whole.svg").read_text())
        )
    assert made[0][0] != made[1][0] and made[0][1] != made[1][1]


def test_a_smoke_run_has_its_banner_on_every_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(tmp_path / "runs", 0.3, 0.5, clips=10)
    write_study(tmp_path / "runs", tmp_path, tmp_path, tmp_path, smoke=True)
    assert capsys.readouterr().out.count(f"{SMOKE}\n\n|") == len(TABLES)
    assert {read_result(path)["protocol"]["smoke"] for path in tmp_path.glob("study-*.json")} == {SMOKE}
    pictures = [path.read_text() for path in tmp_path.glob("study_*.svg")]
    assert len(pictures) > 5 and all("toy clips, toy models" in picture for picture in pictures)


def test_a_kind_of_clips_has_its_own_checkpoints(tmp_path: Path) -> None:
    """`given` is not `given refined`, which was drawn later."""
    write_run(tmp_path / "runs", "new", 0, np.ones(4))
    path = tmp_path / "runs" / "new-0.json"
    content = json.loads(path.read_text())
    later = content["cases"][0] | {"name": "given refined 20", "config": {"checkpoint": 20, "clips": "k"}}
    path.write_text(json.dumps(content | {"cases": [*content["cases"], later]}))
    study(tmp_path / "runs", tmp_path, tmp_path)
    rows = [row["name"] for row in read_json(tmp_path / "study-clips.json")["cases"]]
    assert rows == ["new 10, given", "new 20, given refined"]


def test_what_is_run_needs_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--work: needed with --run and --smoke"):
        study(tmp_path, smoke=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"benchmarks/study/run\.py: not there; the study runs in a checkout"):
        study(tmp_path, run=True, work=tmp_path)


def test_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results of the study"):
        study(tmp_path)


def test_any_runs_may_be_missing_and_cells_say_what_makes_them(tmp_path: Path) -> None:
    write_cases(tmp_path / "runs", "scenes-vrc", 0, {"free tuned 4000": {"all": "1 0 1 0"}})
    refine = {"free 4000": {"all": "1 1 1 1"}, "free refined 4000": {"all": "1 0 0 0"}}
    write_cases(tmp_path / "runs", "scenes-refine", 0, refine)
    study(tmp_path / "runs", tmp_path, tmp_path, costs=tmp_path)
    rows = {row["name"]: row for row in read_json(tmp_path / "study-table1.json")["cases"]}
    assert rows["VRC"]["metrics"]["sound_from_text"]["value"] == 0.5
    assert rows["VRC"]["facts"]["whole_given"] == "`--priority 0 --tune`"
    refined = rows["VRC with refinement, passes 8, 1, 1, 1"]["metrics"]
    assert refined["sound_from_text_1_1"]["value"] == 0.25, "in those passes, not in one"
    assert rows["token model, VRC's parameters"]["facts"]["bits_later"] == "`--priority 1`"
    speed = read_json(tmp_path / "study-table2.json")["cases"][0]
    assert speed["facts"]["b"] == "`megavrc benchmark generate --preset b --json FILE`"
    for name in ("fig4", "fig5", "fig6", "price", "bits"):
        assert "missing" in (tmp_path / f"study_{name}.svg").read_text() or name == "bits"


@pytest.mark.skipif(not list(RESULTS.glob("*.json")), reason="no run of the study is committed")
def test_the_committed_tables_are_those_of_the_committed_runs() -> None:
    """By the hash of all that they are made from; the next test makes them."""
    made = digest(RESULTS, RESULTS.parent)
    for name in TABLES:
        assert read_result(RESULTS.parent / f"study-{name}.json")["config"]["results"] == made, (
            "megavrc reproduce study"
        )
    page = ROOT / "docs/study.md"
    assert page_text(page) == page.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not list(RESULTS.glob("*.json")), reason="no run of the study is committed")
def test_the_committed_tables_can_be_made_again(tmp_path: Path) -> None:
    study(RESULTS, tmp_path, tmp_path, RESULTS.parent)
    for name in TABLES:
        file = f"study-{name}.json"
        assert table(read_result(tmp_path / file)) == table(read_result(RESULTS.parent / file))
