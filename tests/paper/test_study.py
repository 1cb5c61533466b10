"""The study's tables and figures are a function of its result files."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_files import write_cases, write_pair, write_run

from megavrc.errors import UserError
from megavrc.files import read_json
from megavrc.paper.measured import SMOKE
from megavrc.paper.study import digest, study, write_study
from megavrc.paper.study_figures import drawn
from megavrc.paper.study_runs import read_study
from megavrc.paper.study_tables import Costs, checks, gameplay, price
from megavrc.report.figures import save
from megavrc.results import case, metric, page_text, read_result, result, table, write_result

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/study"
TABLES = (
    "runs",
    "clips",
    "claims",
    "bits",
    "checks",
    "gameplay",
    "probes",
    "shares",
    "told",
    "table1",
    "table2",
    "table4",
)


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


def test_a_copy_of_a_run_is_no_other_seed(tmp_path: Path) -> None:
    write_run(tmp_path, "new", 0, np.ones(4))
    (tmp_path / "a copy.json").write_bytes((tmp_path / "new-0.json").read_bytes())
    with pytest.raises(
        UserError, match=r"a copy\.json: is new with seed 0: name it new-0\.json, or take it away"
    ):
        read_study(tmp_path)


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_what_could_not_be_timed_has_no_ratio(tmp_path: Path, seconds: float | None) -> None:
    timed = {"token": 4.0, "vrc-4": seconds}
    rows = [case(f"{name}, batch 1, guidance 1", {"seconds": metric(s, "s")}) for name, s in timed.items()]
    write_result(tmp_path / "generate-b.json", result("c", {}, rows))
    rows = [case(f"step, {name}", {"cpu_clips": metric(seconds)}) for name in ("VRC", "token")]
    write_result(tmp_path / "train-study.json", result("c", {}, rows))
    costs = Costs(tmp_path)
    assert costs.ratio("b") is None and costs.pace() is None


def test_memory_of_another_command_is_one_line(tmp_path: Path) -> None:
    write_result(tmp_path / "memory.json", result("c", {}, [case("a", {"training": metric(1.0)})]))
    with pytest.raises(UserError, match=r"memory\.json: case a: preset is missing"):
        Costs(tmp_path).memory()


def test_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results of the study"):
        study(tmp_path)
    with pytest.raises(UserError, match="there: no such folder; go to the checkout of megavrc"):
        study(tmp_path / "there")


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


def test_a_size_that_does_not_fit_and_a_model_that_was_not_timed_are_left_out(tmp_path: Path) -> None:
    write_cases(tmp_path / "runs", "scenes-vrc", 0, {"free tuned 4000": {"all": "1 0 1 0"}})
    rows = [
        case(
            f"xl, {name}",
            {"training": metric(value), "inference": metric(2.0**30)},
            preset="xl",
            prediction=name,
        )
        for name, value in (("token", None), ("segment", 2.0**34))
    ]
    write_result(tmp_path / "memory.json", result("evaluate memory", {}, rows))
    timed = [case("b, VRC", {"cpu_clips": metric(2.0)})]
    write_result(tmp_path / "train-study.json", result("benchmark train", {}, timed))
    study(tmp_path / "runs", tmp_path, tmp_path, costs=tmp_path)
    assert (tmp_path / "study_fig6.svg").is_file()


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


def test_clips_in_one_pass_and_in_several_have_rows_of_their_own(tmp_path: Path) -> None:
    shown = {"whole": "1 0 1 0", "all": "1 0 0 0"}
    write_cases(tmp_path / "runs", "scenes-vrc", 0, {"given 4000": shown})
    kinds = ("given", "given refined", "given refined tuned", "free refined")
    write_cases(tmp_path / "runs", "scenes-refine", 0, {f"{kind} 16000": shown for kind in kinds})
    figure = dict(drawn(read_study(tmp_path / "runs"), Costs(tmp_path)))["whole"]
    rows = [label.get_text().split("\n") for label in figure.axes[0].get_yticklabels()]
    assert rows == [
        ["scenes-refine", "step 16,000, 1 seed"],
        ["scenes-refine, several passes", "step 16,000, 1 seed"],
        ["scenes-vrc", "step 4,000, 1 seed"],
    ]
    points = {bars.get_label(): list(bars.lines[0].get_ydata()) for bars in figure.axes[0].containers}
    assert points == {
        "from the true first frame": [0, 1, 2],
        "from the true first frame, best temperatures": [1],
        "from the text": [1.2],
    }


def test_the_price_tells_the_first_later_frame_from_the_others(tmp_path: Path) -> None:
    bits = {"scenes-token": ["60 70 20 20", "50 70 20 30"], "scenes-rate1": ["60 90 20 21", "50 110 20 30"]}
    for name, by_clip in bits.items():
        write_cases(tmp_path, name, 0, {"bits val 4000": by_clip})
    token, independence, *_ = price(read_study(tmp_path))
    for row, expected in ((token, [115, 70, 45]), (independence, [30.5, 30, 0.5])):
        columns = ("bits", "first_later", "others")
        assert [row["metrics"][column]["value"] for column in columns] == pytest.approx(expected)
    assert token["facts"] == {"seeds": 1}


def test_checks_stand_beside_the_usual_run_of_the_same_seed(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"bits val 4000": ["60 70 20", "50 70 20"]}
    write_cases(tmp_path, "again-token", 1, usual | {"given tuned 4000": {"whole": "1 1", "all": "1 0"}})
    wider: dict[str, Any] = {"bits val 4000": ["58 69 19", "50 69 18"]}
    write_cases(tmp_path, "again-token-160", 1, wider | {"given tuned 4000": {"whole": "1 0", "all": "0 0"}})
    write_cases(tmp_path, "again-token-lr", 2, {"bits val 4000": ["60 70 20", "50 70 20"]})
    parameters, _, rate, *_ = checks(read_study(tmp_path))
    found = {column: value["value"] for column, value in parameters["metrics"].items()}
    assert found == pytest.approx(
        {"bits_first": -1, "bits_later": -2.5, "whole_given": -0.5, "sound_given": -0.5}
    )
    assert parameters["facts"] == {"seeds": "1"}
    assert not rate["metrics"]  # of another seed than the usual run
    assert rate["facts"]["bits_later"] == "`--priority 1`"


def test_gameplay_is_compared_at_equal_steps_and_at_equal_operations(tmp_path: Path) -> None:
    vrc = {"bits val 500": ["60 94 24", "50 84 24"], "bits val 1000": ["60 90 20", "50 80 20"]}
    write_cases(tmp_path, "gameplay-vrc", 0, vrc)
    write_cases(tmp_path, "gameplay-rate1", 0, {"bits val 500": ["60 93 23", "50 83 23"]})
    token = {"bits val 500": ["60 95 20", "50 90 20"], "bits val 1000": ["60 70 20", "50 70 20"]}
    write_cases(tmp_path, "gameplay-token", 0, token)
    refine = {"bits val 1000": ["60 99 29", "50 89 29"], "bits val refined 1000": ["60 80 29", "50 70 29"]}
    refine["bits val refined everywhere 1000"] = ["60 80 14", "50 70 14"]
    write_cases(tmp_path, "gameplay-vrc-64", 0, {"bits val 1000": ["60 93 23", "50 83 23"]})
    write_cases(tmp_path, "gameplay-refine", 0, refine)
    runs = read_study(tmp_path)
    assert not any(
        axis.has_data() for axis in dict(drawn(runs, Costs(tmp_path)))["bits"].axes
    )  # of `scenes` alone
    rows = list(gameplay(runs))
    found = [row["metrics"]["bits"]["value"] for row in rows if row["metrics"]]
    assert found == pytest.approx([90, 15, -7.5, 0.5, -1.5, 2, 18, -1, -16, 6])
    assert [row["facts"]["bits"] for row in rows if not row["metrics"]] == ["`--priority 2`"] * 13


def test_legends_and_numbers_of_axes_cover_nothing(tmp_path: Path) -> None:
    """Of runs of 4000 and 16,000 steps, each point at the edge that a legend stands at."""
    for name, steps in {"scenes-vrc": (1000, 4000), "scenes-refine-long": (4000, 16000)}.items():
        bits: dict[str, Any] = {f"bits val {step}": ["60 90 90", "70 80 80"] for step in steps}
        write_cases(tmp_path / "runs", name, 0, bits | {f"given {steps[-1]}": {"whole": "0 0", "all": "1 1"}})
    figures = dict(drawn(read_study(tmp_path / "runs"), Costs(tmp_path)))
    for name in ("bits", "whole"):
        save(figures[name], tmp_path / f"{name}.png")
        for axis in figures[name].axes:
            numbers = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
            inside = [box for box in numbers if axis.bbox.x0 <= (box.x0 + box.x1) / 2 <= axis.bbox.x1]
            assert all(left.x1 + 2 < right.x0 for left, right in pairwise(inside))
    [beside] = [axis.get_legend() for axis in figures["bits"].axes if axis.get_legend()]
    assert beside.get_window_extent().x0 >= figures["bits"].axes[1].bbox.x1 - 1
    [legend] = [axis.get_legend() for axis in figures["whole"].axes if axis.get_legend()]
    assert legend.get_window_extent().y0 >= figures["whole"].axes[0].bbox.y1 - 1


def test_every_run_has_a_style_of_its_own(tmp_path: Path) -> None:
    """In colour by colour and line, in grey by marker: more runs than there are colours."""
    runs = [f"rate{rate}" for rate in (1, 4, 16, 64)] + ["refine", "refine-long", "token", "vrc", "vrc-long"]
    for name in runs:
        write_cases(tmp_path / "runs", f"scenes-{name}", 0, {"bits val 4000": ["60 90 90", "70 80 80"]})
    axis = dict(drawn(read_study(tmp_path / "runs"), Costs(tmp_path)))["bits"].axes[0]
    lines = [bars.lines[0] for bars in axis.containers]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(runs)
    assert len({line.get_marker() for line in lines}) == len(runs)
