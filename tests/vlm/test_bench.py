"""The benchmark of token reduction: questions files, statistics, verdicts, and one small run of all of it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.quantization.rounding import round_weight
from megavrc.results import case, metric, read_result, result, write_result
from megavrc.vlm.accuracy import Asked
from megavrc.vlm.asking import MiniSubject, Reduced, plain
from megavrc.vlm.bench import FILES, bench, others_of, pareto
from megavrc.vlm.commands import describe_method, list_methods, report, run_method
from megavrc.vlm.costs import cost_cases
from megavrc.vlm.findings import of_compression, of_redundancy, of_turns_and_detail, rank_correlation
from megavrc.vlm.joint import joint_cases, rounded
from megavrc.vlm.mini import new_mini
from megavrc.vlm.questions import TYPES, conversation
from megavrc.vlm.report import accuracy_rows, cost_rows, unreduced_rows
from megavrc.vlm.tiny import FAMILIES, batch, prompt, tiny
from megavrc.vlm.watching import DECODED, peak_of, spend


def shares(**values: float) -> dict[str, Any]:
    return {name: metric(value, "share", 100, value - 0.01, value + 0.01) for name, value in values.items()}


def made(*rows: tuple[str, str, float, dict[str, float]], **more: Any) -> Any:
    cases = [
        case(f"{kind}: {method}", shares(**values), kind=kind, method=method, keep=keep, **more)
        for kind, method, keep, values in rows
    ]
    return result("made", {}, cases)


def test_shares_are_paired_and_without_types_below_the_goal() -> None:
    types = np.array([["colour", "digit"]] * 20)
    right = np.ones((20, 2), dtype=bool)
    right[:6, 1] = False  # digits: 70%
    whole = Asked(right, types, np.array([1] * 10 + [2] * 10), [(1.0, 1)])
    worse = right.copy()
    worse[:5, 0] = False
    found = Asked(worse, types, whole.seeds, [(0.25, 300), (0.5, 100)]).metrics(whole)
    assert whole.left_out() == ["digit"]
    assert found["digit"]["value"] == pytest.approx(0.7) and "detail" not in found and "turn_2" not in found
    assert found["all"]["value"] == 0.75 and found["lost_all"]["value"] == 0.25
    assert found["lost_all"]["low"] < 0.25 < found["lost_all"]["high"] and found["lost_colour"]["n"] == 20
    assert found["lost_all"]["by_seed"] == [0.5, 0.0] and found["budget"]["value"] == 0.3125
    assert found["lost_digit"]["value"] == 0 and found["lost_gist"]["value"] == 0.25
    # digits are as before in all 20 conversations: another may lose or win one, as often as Wilson says of 0 of 20
    assert found["lost_digit"]["high"] == -found["lost_digit"]["low"] == pytest.approx(0.1611, abs=1e-4)
    alone = whole.metrics(whole)
    assert alone["colour"]["low"] == pytest.approx(1 - 0.1611, abs=1e-4) and alone["colour"]["high"] == 1
    assert "low" not in alone["lost_colour"]  # against itself


def test_the_front_is_what_nothing_beats() -> None:
    rows = [
        ("image", "pool", 0.5, {"budget": 0.5, "all": 0.9}),
        ("image", "random", 0.5, {"budget": 0.5, "all": 0.8}),
    ]
    rows += [
        ("image", "divprune", 0.1, {"budget": 0.1, "all": 0.85}),
        ("video", "pool", 0.5, {"budget": 0.5, "all": 0.7}),
    ]
    lines = pareto(made(*rows)).splitlines()
    assert lines[0] == "kind,method,keep,budget,accuracy,front"
    assert [line.rsplit(",", 1)[1] for line in lines[1:]] == ["1", "0", "1", "1"]


def test_a_count_that_follows_the_content_is_marked() -> None:
    rows = made(*(("image", name, 0.25, {"lost_all": 0.1}) for name in ("prumerge", "divprune", "unreduced")))
    assert [row["keep"] for row in accuracy_rows(rows, "image")] == ["0.25 on average", "0.25", "0.25"]


def test_types_are_listed_whatever_their_names_begin_with() -> None:
    """The benchmark's own numbers are no types; `turnip` and `return` are."""
    values = dict.fromkeys(("all", "turn_1", "gist", "turnip", "return"), 1.0)
    values |= {f"lost_{name}": 0.0 for name in values}
    rows = made(("image", "unreduced", 1.0, values), ("image", "black", 1.0, values))
    rows["cases"][0]["facts"] = {"left_out_of_verdicts": []}
    assert [row["type"] for row in unreduced_rows(rows)] == ["turnip", "return"]


def test_a_batch_that_did_not_fit_unreduced_leaves_a_cell_empty() -> None:
    rows = [
        case(name, {"total": metric(value, "s")}, kind="image", method=name, keep=1.0, batch=size)
        for name, size, value in (("unreduced", 1, 2.0), ("pool", 1, 1.0), ("pool", 8, 4.0))
    ]
    assert [row["times"] for row in cost_rows(result("made", {}, rows), "image")] == ["1.00", "0.50", ""]


def test_results_of_another_command_make_no_report(tmp_path: Path) -> None:
    rows = made(("image", "pool", 0.5, {"all": 0.9}))
    for name in FILES:
        write_result(tmp_path / f"{name}.json", rows)
    with pytest.raises(
        UserError, match=r"accuracy\.json: a result of `made`; expected one of `megavrc compress"
    ):
        report(tmp_path)


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([(1, 10), (2, 20), (3, 30)]) == pytest.approx(1)
    assert rank_correlation([(1, 30), (2, 20), (3, 10)]) == pytest.approx(-1)
    assert rank_correlation([(1, 1), (2, 3), (3, 2), (4, 4)]) == pytest.approx(0.8)
    assert rank_correlation([(1, 1), (1, 1)]) == 0


@pytest.mark.parametrize(
    ("spatial", "temporal", "verdict"),
    [(0.3, 0.1, "holds"), (0.1, 0.3, "does not hold"), (0.1, 0.115, "open")],
)
def test_the_verdict_on_redundancy_follows_the_intervals(
    spatial: float, temporal: float, verdict: str
) -> None:
    rows = [
        ("video", name, 0.25, {"lost_all": lost})
        for name, lost in (("divprune", spatial), ("dycoke", temporal))
    ]
    assert of_redundancy(made(*rows)).verdict == verdict


@pytest.mark.parametrize(("by_frame", "verdict"), [(0.5, "open"), (0.05, "does not hold")])
def test_methods_that_see_a_whole_clip_do_not_decide_alone(by_frame: float, verdict: str) -> None:
    """DivPrune removes what repeats from frame to frame too; a baseline decides nothing."""
    lost = {"divprune": 0.1, "vispruner": by_frame, "evs": 0.3, "pool": 0.9, "copy": 0.01}
    found = of_redundancy(made(*[("video", name, 0.25, {"lost_all": value}) for name, value in lost.items()]))
    assert found.verdict == verdict and "vispruner" in found.why[1]


def test_nothing_measured_leaves_findings_open() -> None:
    nothing = result("made", {}, [])
    assert [found(nothing).verdict for found in (of_redundancy, of_turns_and_detail, of_compression)] == [
        "open"
    ] * 3


def test_the_verdict_on_detail_and_turns() -> None:
    lost = {"lost_all": 0.2, "lost_detail": 0.5, "lost_gist": 0.1}
    first = made(("image", "fastv", 0.25, lost | {"lost_turn_1": 0.1, "lost_turn_3": 0.1}))
    frozen = made(
        ("image", "fastv", 0.25, {"lost_all": 0.2, "lost_turn_1": 0.1, "lost_turn_3": 0.4}),
        selection="frozen",
    )
    both = {**first, "cases": [*first["cases"], *frozen["cases"]]}

    def verdict(content: Any, seeds: int = 2) -> str:
        for row in content["cases"]:
            for value in row["metrics"].values():
                value["by_seed"] = [value["value"]] * seeds
        return of_turns_and_detail(content).verdict

    assert verdict(both) == "holds"
    assert verdict(both, seeds=1) == "open"  # one set of conversations says nothing of others
    frozen["cases"][0]["metrics"]["lost_turn_3"] = metric(0.1, "share")
    assert verdict(both) == "open"
    first["cases"][0]["metrics"]["lost_detail"] = metric(0.1, "share")
    assert verdict(both) == "does not hold"
    assert verdict(first) == "open"  # of later turns nothing is known


def test_a_part_without_judged_questions_leaves_its_finding_open() -> None:
    """As where all questions are of detail, or none of the first turn is above the goal."""
    lost = {"lost_all": 0.2, "lost_detail": 0.5, "lost_turn_3": 0.1}
    for selection in ("fresh", "frozen"):
        found = of_turns_and_detail(made(("image", "fastv", 0.25, lost), selection=selection))
        assert found.verdict == "open" and [line.split(":")[0] for line in found.why] == [
            "Detail cannot be judged",
            "Later turns cannot be judged",
        ]


def test_one_conversation_has_no_interval_and_leaves_findings_open() -> None:
    cases = made(("video", "divprune", 0.25, {"lost_all": 0.3}), ("video", "dycoke", 0.25, {"lost_all": 0.1}))
    both = shares(lost_all=0.0, budget=0.5) | {"compression": metric(8)}
    grid = [case("x", both, kind="video", method="pool", keep=0.5, simulated="int4")]
    for row in (*cases["cases"], *grid):
        row["metrics"]["lost_all"] = metric(row["metrics"]["lost_all"]["value"], "share", 1)
    found = of_redundancy(cases)
    assert found.verdict == "open" and "10.0 points: their intervals touch" in found.why[0]
    joint = of_compression(result("made", {}, grid))
    assert joint.verdict == "open" and "nothing stays within 5 points for certain" in joint.why[0]


def test_seeds_that_disagree_leave_a_verdict_open() -> None:
    """Means over methods, seed by seed: a difference of one sign in each seed counts, however large its mean."""
    lost = {"lost_all": 0.2, "lost_detail": 0.4, "lost_gist": 0.1, "lost_turn_1": 0.1, "lost_turn_3": 0.3}
    both = made(("image", "fastv", 0.25, lost))
    both["cases"] += made(("image", "fastv", 0.25, lost), selection="frozen")["cases"]
    for row in both["cases"]:
        for name, low, high in (
            ("detail", 0.2, 0.6),
            ("gist", 0.1, 0.1),
            ("turn_1", 0.1, 0.1),
            ("turn_3", 0.2, 0.4),
        ):
            row["metrics"][f"lost_{name}"]["by_seed"] = [low, high]
    found = of_turns_and_detail(both)
    assert found.verdict == "holds" and "40.0 points against 10.0 (by seed +10.0 +50.0)" in found.why[0]
    both["cases"][0]["metrics"]["lost_detail"]["by_seed"] = [0.05, 0.75]
    assert of_turns_and_detail(both).verdict == "open"


def test_the_verdict_on_both_together_counts_tokens_times_bits() -> None:
    def cell(method: str, simulated: str, factor: float, lost: float) -> Any:
        values = shares(lost_all=lost, all=1 - lost, budget=0.5) | {"compression": metric(factor)}
        return case("x", values, kind="image", method=method, keep=0.5, simulated=simulated)

    cells = [
        cell("unreduced", "none", 1, 0),
        cell("pool", "none", 2, 0.01),
        cell("unreduced", "int4", 4, 0.01),
    ]
    joint = result("made", {}, [*cells, cell("pool", "int4", 8, 0.03), cell("pool", "int3", 10, 0.2)])
    found = of_compression(joint)
    assert found.verdict == "holds" and "8.0 times fewer" in found.why[0] and "4.0 times" in found.why[0]
    assert (
        of_compression(result("made", {}, [*cells, cell("pool", "int4", 8, 0.3)])).verdict == "does not hold"
    )
    unsure = [*cells, cell("pool", "int4", 8, 0.055)]  # 4.5 to 6.5 points
    assert of_compression(result("made", {}, unsure)).verdict == "open"


def test_answers_are_compared_without_case_articles_and_marks() -> None:
    assert plain(" A Red. ") == plain("red") and plain("red") != plain("blue")


def test_the_benchmark_from_end_to_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for kind in TYPES:
        new_mini(kind).save_pretrained(tmp_path / "mini" / kind)
    bench(
        tmp_path,
        tmp_path / "mini",
        methods=["fastv", "dycoke"],
        keep=[0.5],
        conversations=3,
        seeds=[1],
        quick=True,
    )
    accuracy, costs = (read_result(tmp_path / f"{name}.json") for name in ("accuracy", "costs"))
    names = [row["name"] for row in accuracy["cases"]]
    assert names[:2] == ["image: unreduced", "image: fastv 0.5"] and "video: dycoke 0.5" in names
    budgets = [row["metrics"]["budget"]["value"] for row in accuracy["cases"] if row["config"]["keep"] == 0.5]
    assert all(abs(budget - 0.5) <= 1 / 64 for budget in budgets)
    assert {row["config"]["batch"] for row in costs["cases"]} == {1}  # of 3 conversations no 8 are a batch
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4 and page.count("data:image/png") == 2 and "simulated" in page


def test_what_is_kept_of_an_earlier_run_says_its_revision(tmp_path: Path) -> None:
    """The kind that is not measured anew; twice kept, the revision stays that of its measurement."""
    rows = [case(kind, shares(colour=0.5), kind=kind) for kind in TYPES]
    write_result(tmp_path / "a.json", result("made", {"turns": 3}, rows) | {"revision": "first"})
    kept = others_of(tmp_path / "a.json", {"turns": 3}, ["image"])
    assert [(row["name"], row["facts"]) for row in kept] == [("video", {"revision": "first"})]
    write_result(tmp_path / "b.json", result("made", {"turns": 3}, kept) | {"revision": "second"})
    assert others_of(tmp_path / "b.json", {"turns": 3}, ["image"]) == kept
    assert others_of(tmp_path / "b.json", {"turns": 1}, ["image"]) == []  # measured otherwise


def test_a_budget_out_of_reach_is_said_in_the_grid_and_left_out_of_costs(tmp_path: Path) -> None:
    """PyramidDrop cannot leave a tenth of the tokens of six layers."""
    new_mini("image").save_pretrained(tmp_path / "image")
    subject = MiniSubject(tmp_path, "image")
    asked = [conversation("image", "test", 0, index) for index in range(2)]
    methods = ["pool", "pyramiddrop"]
    grid = joint_cases(subject, {0: asked}, methods, [0.1], ["int4"], turns=1, batch=2)
    refused = [row["name"] for row in grid if "refused" in row.get("facts", {})]
    assert refused == [f"image: pyramiddrop 0.1 simulated {bits}" for bits in ("none", "int4")]
    assert all("compression" in row["metrics"] for row in grid if row["name"] not in refused)
    timed = cost_cases(subject, asked, asked, methods, keep=0.1, sizes=[1], rounds=1)
    assert [row["config"]["method"] for row in timed] == ["unreduced", "pool"]


def test_layers_that_groups_do_not_divide_have_smaller_ones() -> None:
    """As those of 3420 and 4304 inputs in towers of Qwen2.5-VL and SigLIP; the bits are the mean over weights."""
    names = {"wide": (64, 4), "odd": (36, 4), "lm_head": (64, 8)}
    model = torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in names.items()})
    found, bits = rounded(model, "int4")
    for name, size in (("wide", 32), ("odd", 18)):
        assert torch.equal(found[name].weight, round_weight(model[name].weight, "int4", size))
    assert torch.equal(found["lm_head"].weight, model["lm_head"].weight)
    assert bits == pytest.approx(((4 + 16 / 32) * 256 + (4 + 16 / 18) * 144) / 400)


class Tiny:
    """A family with random weights, as a subject that is timed."""

    name, longest = "tiny", 1

    def __init__(self, family: str) -> None:
        self.family, self.model = family, tiny(family)

    def inputs(self, conversations: Any, turn: int) -> dict[str, torch.Tensor]:
        return batch(*[prompt(self.family, "image", [5, 6]) for _ in conversations])

    def words(self, ids: torch.Tensor) -> list[str]:
        return [""] * len(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_timed_in_its_parts(family: str) -> None:
    """Also one that would end its answer at once."""
    subject = Tiny(family)
    asked = [conversation("image", "test", 0, index) for index in range(2)]
    subject.model.generation_config.eos_token_id = list(range(200))
    for reduced in (Reduced(), Reduced("divprune", 0.5)):
        spent = spend(subject, asked, reduced)
        assert spent.tower > 0 and len(spent.llm) == 1 + DECODED
        assert spent.total >= spent.tower + sum(spent.llm)
    assert (peak_of(subject, asked, Reduced()) or 1) > 0


def test_a_method_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    list_methods("llava")
    describe_method("divprune")
    told = capsys.readouterr().out
    assert "| divprune | 2503.02175 | projector | spatial |  | yes |" in told and "arXiv 2503.02175" in told
    assert "it compares frames" in next(line for line in told.splitlines() if line.startswith("| dycoke"))


def test_a_method_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"--method: no method 'divprun': divprune"):
        describe_method("divprun")
    with pytest.raises(UserError, match=r"no method 'poool': pool"):
        bench(methods=["poool"])


def test_numbers_that_cannot_be_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--batch=0"], ["--turns=0"], ["--frames=0"], ["--n=0"]):
        assert run_command(run_method, ["--method=pool", *words]) == 2
        assert f"{words[0].split('=')[0]}: 0, at least 1" in capsys.readouterr().err
    for command, words in (
        (run_method, ["--method=pool", "--keep=25"]),
        (bench, ["--keep=0.5", "--keep=-1"]),
    ):
        assert run_command(command, words) == 2
        share = float(words[-1].split("=")[1])
        assert f"--keep: {share} is not a share above 0 and at most 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="--keep: nan is not a share"):
        bench(keep=[math.nan])
    for word in ("--conversations=-2", "--batch=-1"):
        assert run_command(bench, [word]) == 2
        assert "at least 1" in capsys.readouterr().err
