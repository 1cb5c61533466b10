"""What is said of answers: known preferences are found, raters who do not look are left out, tables name the models."""

import csv
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.report.figures import stacked_shares, svg
from megavrc.results import metric, read_result
from megavrc.web.toy_raters import answer_study
from megavrc.web.user_study import ClipPair, UserStudy, write_user_study
from megavrc.web.user_study_answers import Answers
from megavrc.web.user_study_report import export_answers, open_answers, report_study

Choose = Callable[
    [int, int, bool], str
]  # of rater, pair and whether it is a repeat: "first", "second" or "tie"
COMMANDS = {
    name: f"megavrc.web.user_study_report:{name}_{end}"
    for name, end in (("export", "answers"), ("report", "study"))
}


def study_of(folder: Path, prompts: int, repeats: int = 1, attention: int = 1) -> UserStudy:
    """A study without pictures; its last prompt stands there twice."""
    texts = [f'=prompt {index}, "quoted"' for index in range(prompts)]
    rows = [(f"key{index}", text, False) for index, text in enumerate([*texts[:-1], texts[0]])]
    rows += [("key0", texts[0], True)] * attention
    pairs = [
        ClipPair(*row, f"{folder.name}{index}p", f"{folder.name}{index}s") for index, row in enumerate(rows)
    ]
    questions = ("consistency", "text_match")
    study = UserStudy(
        folder, ("Ours <1>", "Theirs"), questions, pairs, repeats, (), "x" * 32, 8, 8, 16, 0.0, {}
    )
    (folder / "clips").mkdir(parents=True)
    for pair in pairs:
        for name in (pair.plain, pair.swapped):
            study.clip(name).touch()
    write_user_study(study)
    return study


def answer(
    study: UserStudy, raters: int, choose: Choose, attentive: Callable[[int], bool] = lambda _: True
) -> None:
    """Answers as raters give them, who see videos, not models. The text is always as the consistency, or a tie."""
    answers, rows = Answers(study), []
    for number in range(raters):
        rater = f"rater{number:02d}"
        seen: set[int] = set()
        for item in answers.items(rater)[0]:
            if study.pairs[item.pair].attention:
                wanted = "first" if attentive(number) else "second"
            else:
                wanted = choose(number, item.pair, item.pair in seen)
            seen.add(item.pair)
            side = {"first": "12"[item.swapped], "second": "21"[item.swapped], "tie": "tie"}[wanted]
            rows.append((rater, item.position, f"{rater}-{item.position}", side, "tie", 1500, len(rows)))
    with sqlite3.connect(study.answers) as base:
        base.executemany("insert into answer values (?, ?, ?, ?, ?, ?, ?)", rows)


def test_a_preference_is_found_with_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(tmp_path / "study", 20)
    ties = np.random.default_rng(0).random((12, 20)) < 0.1

    def choose(rater: int, pair: int, repeat: bool) -> str:
        return "tie" if ties[rater, pair] else "second" if pair % 5 == 1 else "first"

    answer(study, 12, choose)
    capsys.readouterr()
    report_study(study.folder, tmp_path / "report.json", tmp_path / "figure9.svg")
    said = capsys.readouterr().out
    assert "Video consistency: Ours <1> is preferred" in said
    assert "Video-text matching: no preference is shown" in said
    found = read_result(tmp_path / "report.json")
    assert found["config"]["first"] == "Ours <1>" and found["config"]["second"] == "Theirs"
    assert {name: value["value"] for name, value in found["metrics"].items()} == {
        "answers": 240, "prompts": 19, "raters": 12, "raters_inattentive": 0,
    }  # fmt: skip
    consistency, text = found["cases"]
    shares = {name: consistency["metrics"][name] for name in ("first", "tie", "second")}
    assert shares["tie"]["value"] == pytest.approx(ties.mean()) and shares["tie"]["n"] == 240
    assert sum(share["value"] for share in shares.values()) == pytest.approx(1)
    first = shares["first"]
    assert (
        first["low"] < first["value"] < first["high"] and first["high"] - first["low"] > 0.2
    )  # of prompts, not answers
    assert consistency["facts"]["prompts_won"] == [15, 4]
    assert consistency["metrics"]["sign_test"]["value"] == pytest.approx(0.0192, abs=1e-4)
    assert consistency["metrics"]["repeat_agreement"] | {"low": 0} == {
        "value": 1.0, "unit": "share", "n": 12, "low": 0, "high": 1.0,
    }  # fmt: skip
    side = consistency["metrics"]["video_1"]
    assert side["low"] < 0.5 < side["high"]
    assert text["metrics"]["tie"]["value"] == 1 and text["metrics"]["tie"]["low"] < 0.8  # exact, of 12 raters
    assert "video_1" not in text["metrics"] and text["metrics"]["sign_test"]["value"] == 1
    assert "Ours &lt;1&gt;" in (tmp_path / "figure9.svg").read_text()


def test_who_does_not_look_is_left_out_and_who_prefers_a_side_is_seen(tmp_path: Path, capsys) -> None:
    study = study_of(tmp_path / "study", 9)
    answer(study, 8, lambda rater, pair, repeat: "second" if rater < 2 else "first", lambda rater: rater >= 2)
    report_study(study.folder, tmp_path / "a.json")
    report_study(study.folder, tmp_path / "b.json", keep_inattentive=True)
    one, both = (read_result(tmp_path / name) for name in ("a.json", "b.json"))
    assert one["cases"][0]["metrics"]["first"]["value"] == 1 and one["metrics"]["raters"]["value"] == 6
    assert both["cases"][0]["metrics"]["first"]["value"] == 0.75
    assert (
        one["metrics"]["raters_inattentive"]["value"] == both["metrics"]["raters_inattentive"]["value"] == 2
    )

    lazy = study_of(tmp_path / "lazy", 9, attention=0)
    items = {number: Answers(lazy).items(f"rater{number:02d}")[0] for number in range(6)}
    sides = {(n, item.pair): item.swapped for n in items for item in reversed(items[n])}
    answer(lazy, 6, lambda rater, pair, repeat: "second" if sides[rater, pair] != repeat else "first")
    capsys.readouterr()
    report_study(lazy.folder)
    said = capsys.readouterr().out
    assert "no preference is shown" in said and "raters prefer video 1" in said
    again = {row.prompt for row in open_answers(lazy) if row.kind == "repeat"}  # drawn, at most one a rater
    assert f"0 % (0 to {100 * (1 - 0.025 ** (1 / len(again))):.3g})" in said, said  # repeat_agreement, exact


@pytest.mark.parametrize("names", [("_ours", "theirs"), ("a$x^{$b", "$B$")])
def test_a_figure_names_models_as_they_are_called(names: tuple[str, str]) -> None:
    """A legend hides names that begin with _, and takes what stands between two $ for a formula."""
    rows = {row: [metric(0.5, low=0.4, high=0.6), metric(0.2), metric(0.3)] for row in ("one", "two")}
    figure = stacked_shares(rows, (names[0], "no difference", names[1]))
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [names[0], "no difference", names[1]]
    drawn = [handle.get_facecolor() for handle in legend.get_patches()]
    assert drawn == [part.patches[0].get_facecolor() for part in figure.axes[0].containers[:3]]
    text = svg(figure)
    assert names[0] in text and names[1] in text


def test_few_prompts_show_no_preference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(tmp_path / "study", 3, repeats=0, attention=0)
    answer(study, 30, lambda *_: "first")
    report_study(study.folder)
    assert (
        "no preference is shown: 0 lies in the interval" in capsys.readouterr().out
    )  # two prompts, 90 answers
    study = study_of(tmp_path / "five", 6, repeats=0, attention=0)
    answer(study, 30, lambda rater, pair, repeat: "tie" if rater == pair else "first")
    report_study(study.folder)
    assert "prompts may split so by chance, sign_test 0.062" in capsys.readouterr().out


def test_one_rater_says_nothing_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(tmp_path / "study", 20, repeats=0, attention=0)
    answer(study, 1, lambda *_: "first")
    report_study(study.folder, json=tmp_path / "found.json", figure=tmp_path / "figure.svg")
    assert "no preference is shown: one rater, or one prompt, says nothing of" in capsys.readouterr().out
    [row, *_] = read_result(tmp_path / "found.json")["cases"]
    assert row["metrics"]["first"] == {"value": 1, "unit": "share", "n": 20}


def test_raters_who_lean_each_their_own_way_show_no_preference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three lean to the first model, on every prompt: intervals over prompts alone announced it."""
    study, rng = study_of(tmp_path / "study", 50, repeats=0, attention=0), np.random.default_rng(0)
    firsts = rng.random((3, 50)) < [[0.85], [0.75], [0.35]]
    answer(study, 3, lambda rater, pair, repeat: "first" if firsts[rater, pair] else "second")
    report_study(study.folder)
    said = capsys.readouterr().out
    assert "Video consistency: no preference is shown: 0 lies in the interval" in said


def test_answers_that_all_agree_have_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for raters, words in ((5, "no preference is shown"), (6, "Ours <1> is preferred")):
        study = study_of(tmp_path / f"{raters}", 10, repeats=0, attention=0)
        answer(study, raters, lambda *_: "first")
        report_study(study.folder, json=tmp_path / "found.json")
        assert f"Video consistency: {words}" in capsys.readouterr().out
        gap = read_result(tmp_path / "found.json")["cases"][0]["metrics"]["first_minus_second"]
        least = 2 * 0.025 ** (1 / raters) - 1  # the sign test of as many
        assert gap["value"] == gap["high"] == 1 and gap["low"] == pytest.approx(least)


def test_one_prompt_says_nothing_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(tmp_path / "study", 1, repeats=0, attention=0)
    answer(study, 30, lambda *_: "first")
    report_study(study.folder, json=tmp_path / "found.json")
    assert "no preference is shown" in capsys.readouterr().out
    [row, *_] = read_result(tmp_path / "found.json")["cases"]
    assert "low" not in row["metrics"]["first_minus_second"]


def test_the_table_names_models_and_kinds(tmp_path: Path) -> None:
    study = study_of(tmp_path / "study", 4)
    answer(study, 2, lambda rater, pair, repeat: "second" if pair == 1 else "first")
    for _ in range(2):  # its own table it may replace
        export_answers(study.folder, tmp_path / "answers.csv")
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 6
    for row in rows:
        wanted = {"key1": "Theirs"}.get(row["key"], "Ours <1>")
        assert row["consistency"] == ("whole" if row["kind"] == "attention" else wanted)
        assert (
            row["text_match"] == "tie"
            and float(row["seconds"]) == 1.5
            and row["prompt"].startswith("=prompt")
        )
        assert row["video_1"] in (("whole", "in pieces") if row["kind"] == "attention" else study.names)
    kinds = [row["kind"] for row in rows if row["rater"] == "1"]
    assert sorted(kinds) == ["attention"] + ["pair"] * 4 + ["repeat"]
    assert [int(row["position"]) for row in rows] == [*range(6), *range(6)]


def test_what_cannot_be_reported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(tmp_path / "study", 4)

    def refused(*words: str) -> str:
        assert run_command(COMMANDS, list(words)) == 2
        return capsys.readouterr().err

    folder = str(study.folder)
    assert "no answers yet; megavrc user_study serve" in refused("report", folder)
    assert not study.answers.exists()
    assert "study.json: no such file" in refused("export", str(tmp_path), "--csv", "x.csv")
    assert "figure.pdf: name a file that ends in .png or .svg" in refused(
        "report", folder, "--figure", "figure.pdf"
    )
    answer(study, 1, lambda *_: "first", lambda _: False)
    said = (
        "no answers that count: all 5 to pairs of the two models are of raters who missed an attention pair"
    )
    assert f"study: {said} (1 of 1 raters); --keep_inattentive counts them" in refused("report", folder)
    checks = "select position from item where pair = 4"
    with sqlite3.connect(study.answers) as base:
        base.execute(f"delete from answer where position not in ({checks})")
    said = "no answers to pairs of the two models yet, only 1 to attention pairs (missed by 1 of 1 raters)"
    assert f"study: {said}" in refused("report", folder)
    assert f"study: {said}" in refused("report", folder, "--keep_inattentive")
    with sqlite3.connect(study.answers) as base:
        base.execute("delete from answer")
    with pytest.raises(UserError, match="no answers yet"):
        open_answers(study)
    other, alike = (study_of(tmp_path / name, 2, repeats=0, attention=0) for name in ("other", "alike"))
    answer(alike, 1, lambda *_: "first")
    alike.answers.rename(other.answers)
    assert "answers.sqlite: answers to another study" in refused("report", str(other.folder))
    mine = tmp_path / "mine.csv"
    mine.write_text("my,own\n")
    assert "mine.csv: is there and is no table of answers" in refused("export", folder, "--csv", str(mine))
    assert "study.json: name a file that ends in .csv" in refused(
        "export", folder, "--csv", f"{folder}/study.json"
    )
    assert mine.read_text() == "my,own\n"
    (study.folder / "study.json").write_text(json.dumps({"format": 1}))
    assert "study.json" in refused("report", folder)


@pytest.mark.parametrize(
    "change",
    [
        "answer set consistency = 'x'",
        "answer set text_match = null",
        "answer set milliseconds = 'abc'",
        "answer set arrived = null",
        "answer set rater = 'another'",
        "item set pair = 99",
        "item set pair = 'a'",
    ],
)
def test_answers_edited_by_hand_are_one_line(tmp_path: Path, change: str) -> None:
    study = study_of(tmp_path / "study", 2)
    answer(study, 1, lambda *_: "first")
    with sqlite3.connect(study.answers) as base:
        base.execute(f"update {change} where position = 1")
    for asked in (report_study, lambda folder: export_answers(folder, tmp_path / "x.csv")):
        with pytest.raises(UserError, match="at position 1 is none that the server wrote: delete its row"):
            asked(study.folder)


@pytest.mark.parametrize("changed", [{"questions": ["text_match"]}, {"names": ["one", "one"]}])
def test_a_study_edited_by_hand_is_one_line(tmp_path: Path, changed: dict[str, list[str]]) -> None:
    study = study_of(tmp_path / "study", 2)
    answer(study, 1, lambda *_: "first")
    place = study.folder / "study.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changed))
    with pytest.raises(UserError, match="not two names, or no pairs or questions"):
        report_study(study.folder)


def test_drawn_answers_go_through_the_servers_own_rules(tmp_path: Path) -> None:
    study = study_of(tmp_path / "study", prompts=4)
    for _ in range(2):  # what is answered stays
        answer_study(study.folder, raters=4)
    rows = open_answers(study)
    assert len(rows) == 4 * (4 + 1 + 1) == len((study.folder / "answers.csv").read_text().splitlines()) - 1
    report_study(study.folder, json=tmp_path / "found.json")
    found = read_result(tmp_path / "found.json")
    assert found["metrics"]["raters_inattentive"]["value"] == 1
    assert found["metrics"]["answers"]["value"] == 3 * 4
