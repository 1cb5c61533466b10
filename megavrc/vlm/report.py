"""The benchmark's page, from its result files: findings with figures, curves, tables, and what each method keeps."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.files import write_atomic
from megavrc.reduction import METHODS
from megavrc.report.figures import COLOURS, panels, svg
from megavrc.report.page import picture, render
from megavrc.results import Result, read_result, shown
from megavrc.video.sheet import clip_grid, contact_sheet
from megavrc.video.write import write_png
from megavrc.vlm.accuracy import OWN, WHOLE
from megavrc.vlm.findings import (
    Case,
    budget_of,
    budgets,
    cases_of,
    findings,
    guided_by_prompt,
    lost,
    measured_cases,
    named,
)
from megavrc.vlm.questions import TYPES, Kind, conversation

COMMAND = "megavrc compress_vlm bench"
GROUPS = ("baseline", "spatial", "temporal", "both", "in the LLM")
HUES = dict(zip(GROUPS, (COLOURS[5], COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3]), strict=True))


def write_llmc_report(folder: Path) -> Path:
    """Write `report.html` into a folder of the benchmark's result files, and return its path."""
    files = {name: bench_result(folder / f"{name}.json") for name in ("accuracy", "costs", "joint", "kept")}
    accuracy, joint = files["accuracy"], files["joint"]
    kinds = [kind for kind in TYPES if cases_of(accuracy, kind)]
    drawn = (redundancy_figure(accuracy), turns_figure(accuracy), joint_figure(joint))
    page = render(
        Path(__file__).with_name("report.html"),
        mini=accuracy["config"]["mini"],
        findings=list(zip(findings(accuracy, joint), map(Markup, drawn), strict=True)),
        curves=Markup(accuracy_figure(accuracy, kinds)),
        unreduced=unreduced_rows(accuracy),
        tables={kind: accuracy_rows(accuracy, kind) for kind in kinds},
        costs={kind: cost_rows(files["costs"], kind) for kind in kinds},
        joint=joint_rows(joint),
        kept=[kept_picture(files["kept"], kind, folder) for kind in kinds if accuracy["config"]["mini"]],
        facts={**accuracy["machine"], **accuracy["versions"], "revision": accuracy["revision"]},
        protocol=accuracy["protocol"],
        config=accuracy["config"],
    )
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def bench_result(path: Path) -> Result:
    """A result file of the benchmark; UserError for one of another command."""
    if (content := read_result(path))["command"] != COMMAND:
        raise UserError(f"{path}: a result of `{content['command'][:60]}`; expected one of `{COMMAND}`")
    return content


def group_of(name: str) -> str:
    """Which colour a method has."""
    method = METHODS[name]
    if method.paper == "baseline":
        return "baseline"
    return "in the LLM" if method.place == "llm" else method.kind


# --- figures ------------------------------------------------------------------------------------------------------


def accuracy_figure(accuracy: Result, kinds: Sequence[Kind]) -> str:
    """Accuracy against budget, a line a method."""
    figure, axes = panels(len(kinds), columns=1, width=8.5, height=4.2)
    for axis, kind in zip(axes, kinds, strict=True):
        cases = measured_cases(accuracy, kind)
        for name in dict.fromkeys(map(named, cases)):
            own = sorted((share(case, "budget"), share(case, "all")) for case in cases if named(case) == name)
            axis.plot(
                *zip(*own, strict=True), marker="o", markersize=3, color=HUES[group_of(name)], alpha=0.7
            )
            axis.annotate(name, own[0], fontsize=6, textcoords="offset points", xytext=(-4, 0), ha="right")
        for group in dict.fromkeys(group_of(named(case)) for case in cases):
            axis.plot([], [], color=HUES[group], label=group)
        for case in cases_of(accuracy, kind):
            if named(case) in (WHOLE, "black") and "all" in case["metrics"]:
                axis.axhline(share(case, "all"), color="#999999", linewidth=0.8, linestyle=":")
        axis.set(
            title=f"{kind}: accuracy against layer-weighted budget",
            xlabel="visual tokens",
            ylabel="right answers",
        )
        if cases:
            axis.legend(fontsize=7, loc="lower right")
    return svg(figure)


def redundancy_figure(accuracy: Result) -> str:
    """Left: mean loss on clips by kind of method. Right: loss on pictures against loss on clips, a dot a method."""
    figure, (left, right) = panels(2, columns=2, width=4.6, height=3.4)
    clips, pictures = measured_cases(accuracy, "video"), measured_cases(accuracy, "image")
    for group in GROUPS:
        draw_losses(
            left, [case for case in clips if group_of(named(case)) == group], "all", HUES[group], group
        )
    left.set(title="clips: lost, mean of methods", xlabel="keep", ylabel="accuracy lost")
    theirs = {(named(case), budget_of(case)): lost(case, "all") for case in clips}
    for case in pictures:
        key = (named(case), budget_of(case))
        if key in theirs:
            right.scatter(lost(case, "all"), theirs[key], s=12, color=HUES[group_of(key[0])])
    right.set(title="the same method on both", xlabel="lost on pictures", ylabel="lost on clips")
    return svg(figure)


def turns_figure(accuracy: Result) -> str:
    """Left: detail and gist of pictures. Right: methods that the prompt guides, turn by turn."""
    figure, (left, right) = panels(2, columns=2, width=4.6, height=3.2)
    pictures = measured_cases(accuracy, "image")
    for number, part in enumerate(("detail", "gist")):
        draw_losses(left, pictures, part, COLOURS[number], part)
    left.set(title="pictures: lost, mean of methods", xlabel="keep", ylabel="accuracy lost")
    for number, selection in enumerate(("fresh", "frozen")):
        guided = [case for case in measured_cases(accuracy, selection=selection) if guided_by_prompt(case)]
        turns = [turn for turn in (1, 2, 3) if any(f"lost_turn_{turn}" in case["metrics"] for case in guided)]
        if turns:
            means = [mean_loss(guided, f"turn_{turn}") for turn in turns]
            right.plot(turns, means, marker="o", color=COLOURS[number], label=f"selection {selection}")
            right.legend(fontsize=7)
    right.set(title="guided by the prompt", xlabel="turn", ylabel="accuracy lost", xticks=(1, 2, 3))
    return svg(figure)


def joint_figure(joint: Result) -> str:
    """Accuracy against how many times fewer tokens x bits."""
    kinds = list(dict.fromkeys(case["config"]["kind"] for case in joint["cases"]))
    figure, axes = panels(max(1, len(kinds)), columns=2, width=4.6, height=3.2)
    for axis, kind in zip(axes, kinds, strict=False):
        formats = dict.fromkeys(case["config"]["simulated"] for case in joint["cases"])
        for number, bits in enumerate(formats):
            dots = [
                (share(case, "compression"), share(case, "all"))
                for case in cases_of(joint, kind)
                if case["config"]["simulated"] == bits and "all" in case["metrics"]
            ]
            if dots:
                label = "16 bits" if bits == "none" else f"{bits}, simulated"
                axis.scatter(*zip(*dots, strict=True), s=16, color=COLOURS[number], label=label)
        axis.set(title=kind, xlabel="tokens x bits, times fewer", ylabel="right answers", xscale="log")
        if axis.has_data():
            axis.legend(fontsize=7)
    return svg(figure)


def draw_losses(axis: Any, cases: Sequence[Case], part: str, colour: str, label: str) -> None:
    """A line through what methods lose of a part at each budget, their mean; nothing without cases."""
    if keeps := budgets(cases):
        means = [mean_loss([case for case in cases if budget_of(case) == keep], part) for keep in keeps]
        axis.plot(keeps, means, marker="o", color=colour, label=label)
        axis.legend(fontsize=7)


def share(case: Case, name: str) -> float:
    return float(case["metrics"][name]["value"])


def mean_loss(cases: Sequence[Case], part: str) -> float:
    values = [lost(case, part) for case in cases if f"lost_{part}" in case["metrics"]]
    return fmean(values) if values else float("nan")


# --- tables -------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def unreduced_rows(accuracy: Result) -> list[Row]:
    """Every type of question: the model as it is, with black pictures, chance."""
    by_name = {(case["config"]["kind"], named(case)): case for case in accuracy["cases"]}
    rows = []
    for (kind, method), case in by_name.items():
        if method == WHOLE:
            black = by_name[kind, "black"]["metrics"]
            out = case["facts"]["left_out_of_verdicts"]
            rows += [
                {
                    "kind": kind,
                    "type": name,
                    "whole": shown(value),
                    "black": shown(black[name]),
                    "left_out": name in out,
                }
                for name, value in case["metrics"].items()
                if f"lost_{name}" in case["metrics"] and not OWN.fullmatch(name)
            ]
    return rows


def accuracy_rows(accuracy: Result, kind: Kind) -> list[Row]:
    """One row a method, budget and selection."""
    losses = ("all", "detail", "gist", "turn_1", "turn_2", "turn_3")
    parts = ("budget", "all", *(f"lost_{part}" for part in losses))
    return [
        {
            "method": named(case),
            "keep": wanted_keep(case),
            "selection": case["config"].get("selection", ""),
            **table_cells(case, parts),
        }
        for case in cases_of(accuracy, kind)
    ]


def table_cells(case: Case, parts: Sequence[str]) -> Row:
    """The metrics of a case as a table shows them, empty where it has none, and why it was refused."""
    values = {part: shown(case["metrics"][part]) if part in case["metrics"] else "" for part in parts}
    return {"refused": case.get("facts", {}).get("refused", ""), "cells": values}


def wanted_keep(case: Case) -> str:
    """The budget, marked where the count follows the content: then it holds on average of other inputs."""
    method = METHODS.get(named(case))
    return f"{budget_of(case):g}" + (" on average" if method and method.calibrated else "")


def cost_rows(costs: Result, kind: Kind) -> list[Row]:
    """One row a method and batch size, with how many times as long as the unreduced model it takes: empty where that
    one's batch did not fit into memory.
    """
    own = cases_of(costs, kind)
    whole = {case["config"]["batch"]: share(case, "total") for case in own if named(case) == WHOLE}

    def times(case: Case) -> str:
        unreduced = whole.get(case["config"]["batch"])
        return f"{share(case, 'total') / unreduced:.2f}" if unreduced else ""

    return [
        {
            "method": named(case),
            "batch": case["config"]["batch"],
            "cells": {name: shown(value) for name, value in case["metrics"].items()},
            "times": times(case),
        }
        for case in own
    ]


def joint_rows(joint: Result) -> list[Row]:
    """One row a cell of the grid."""
    parts = ("budget", "bits", "compression", "all", "lost_all")
    return [{**case["config"], **table_cells(case, parts)} for case in joint["cases"]]


# --- what is kept -------------------------------------------------------------------------------------------------


def kept_picture(kept: Result, kind: Kind, folder: Path) -> Markup:
    """The first test conversation's picture or clip under each method: dropped tokens are dark."""
    cases = cases_of(kept, kind)
    seed = kept["config"]["seeds"][0]
    frames = conversation(kind, "test", seed, 0).frames
    rows = [("as it is", frames), *((named(case), masked(frames, case["facts"]["kept"])) for case in cases)]
    sheet = (
        clip_grid(rows, columns=6, scale=2)[0]
        if kind == "image"
        else contact_sheet(rows, len(frames), scale=1)
    )
    write_png(folder / f"kept_{kind}.png", sheet)
    return picture(folder / f"kept_{kind}.png", f"what each method keeps of a {kind}")


def masked(frames: NDArray[np.uint8], kept: Sequence[int]) -> NDArray[np.uint8]:
    """Frames [T, H, W, 3] with the tokens that are not kept darkened; tokens lie frame by frame, row by row."""
    side = 8 if len(frames) == 1 else 4
    stays = np.zeros(len(frames) * side * side, dtype=np.float32)
    stays[list(kept)] = 1
    size = frames.shape[1] // side
    mask = stays.reshape(len(frames), side, side).repeat(size, 1).repeat(size, 2)[..., None]
    return (frames * (0.15 + 0.85 * mask) + 90 * mask * (frames.max(-1, keepdims=True) < 60)).astype(np.uint8)
