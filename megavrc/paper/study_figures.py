"""Figures of the study, from its result files: drawn whatever of them is there; what is missing is named."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from megavrc.paper.plots import COLUMN, GIB, TEXT
from megavrc.paper.plots import TOKEN as TOKEN_STYLE
from megavrc.paper.plots import VRC as VRC_STYLE
from megavrc.paper.study_claims import Spread, again
from megavrc.paper.study_runs import Cell, values
from megavrc.paper.study_tables import (
    RATES,
    TOKEN,
    Costs,
    Runs,
    checkpoints,
    price,
    says,
    spread_metric,
    spread_of,
)
from megavrc.report.figures import COLOURS, panels
from megavrc.results import Metric

SIZES = {64: "scenes-vrc-64", 128: "scenes-vrc", 192: "scenes-vrc-192"}  # width -> run
MEASURES = (  # title, kind, score
    ("bits of the later frames", "bits val", "later"),
    ("sound clips, true first frame", "given tuned", "all"),
)


def drawn(runs: Runs, costs: Costs) -> Iterator[tuple[str, Any]]:
    """All figures with their names, each drawn when it is asked for; those of clips once there are any."""
    made: dict[str, Callable[[], Any]] = {
        "bits": partial(_bits, runs),
        "whole": partial(_whole, runs),
        "price": partial(_price, runs),
        "fig4": partial(_series, runs, SIZES, "width of the model", "--priority 2"),
        "fig5": partial(_series, runs, RATES, "rate of compression (area)", "--priority 1", True),
        "fig6": partial(_memory, costs),
    }
    yield from ((name, figure) for name, draw in made.items() if (figure := draw()))


def _bits(runs: Runs) -> Any:
    """Bits of a validation clip by training step: the first frame, the later ones; of `scenes`, one scale for all."""
    figure, axes = panels(2, columns=2, width=5.8)
    scenes = {name: seeds for name, seeds in runs.items() if name.startswith("scenes-")}
    for part, axis in zip(("first", "later"), axes, strict=True):
        for place, (name, seeds) in enumerate(scenes.items()):
            if part == "later" and "stage1" in name and "without" not in name:
                continue  # images: one frame
            points = [
                (step, spread_of(values(runs, Cell(name, step, "bits val", part))))
                for step in checkpoints(seeds, "bits val")
            ]
            _curve(axis, points, f"{name} ({_seeds(len(seeds))})", place)
        axis.set_title(f"{part} frame" + "s" * (part == "later"))
        axis.set_xlabel("training steps of 8 clips")
        axis.locator_params(axis="x", nbins=5)
        axis.set_ylabel("bits a clip")
        axis.set_ylim(bottom=0)
    if axes[0].has_data():  # beside both: inside, so many names cover the curves
        axes[1].legend(
            *axes[0].get_legend_handles_labels(),
            loc="upper left",
            bbox_to_anchor=(1, 1),
            fontsize=8,
            handlelength=3,
        )
    return figure


def _curve(axis: Any, points: list[tuple[int, Spread]], label: str, place: int) -> None:
    """A run's means over the steps; its place among the runs decides colour and, for print in grey, marker and line."""
    if points:
        steps, spreads = zip(*points, strict=True)
        means = np.array([spread.value for spread in spreads])
        bounds = np.array([[s.value - s.low, s.high - s.value] for s in spreads]).T
        style = {
            "color": f"C{place}",
            "marker": "os^DvpXP*<>h"[place % 12],
            "linestyle": ("-", "--", ":")[place // len(COLOURS) % 3],
        }
        axis.errorbar(steps, means, yerr=bounds, markersize=4, label=label, **style)


ENTRIES = {"given": "from the true first frame", "free": "from the text"}


def _whole(runs: Runs) -> Any:
    """Whole and sound clips of each model at its last checkpoint, by entry and passes; None before any are drawn."""
    rows = [
        (name, steps[-1], passes)
        for name, seeds in runs.items()
        for passes in ("", " refined")
        if (steps := checkpoints(seeds, f"given{passes}"))
    ]
    if not rows:
        return None
    figure, axes = panels(2, columns=1, width=7, height=0.9 + 0.4 * len(rows))
    for score, axis in zip(("whole", "all"), axes, strict=True):
        for shift, (kind, entry) in enumerate(ENTRIES.items()):
            for tuned in ("", " tuned"):
                points = {
                    place: spread_metric(found)
                    for place, (name, step, passes) in enumerate(rows)
                    if says(found := values(runs, Cell(name, step, kind + passes + tuned, score)))
                }
                label = f"{entry}{', best temperatures' if tuned else ''}"
                _across(axis, points, shift, bool(tuned), label)
        axis.set_yticks(range(len(rows)), [_row(*row, len(runs[row[0]])) for row in rows], fontsize=8)
        axis.set_xlim(0, 1)
        axis.set_ylim(len(rows) - 0.4, -0.5)
        axis.set_xlabel({"whole": "whole clips, share", "all": "sound clips, share"}[score])
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)
    return figure


def _row(name: str, step: int, passes: str, seeds: int) -> str:
    return f"{name}{', several passes' if passes else ''}\nstep {step:,}, {_seeds(seeds)}"


def _seeds(count: int) -> str:
    return f"{count} seed" + "s" * (count != 1)


def _across(axis: Any, points: dict[int, Metric], shift: int, filled: bool, label: str) -> None:
    """Points of one entry, one below the other; hollow at the paper's temperatures."""
    if points:
        axis.errorbar(
            [point["value"] for point in points.values()],
            [place + 0.2 * shift for place in points],
            xerr=_reach(list(points.values())),
            fmt="os"[shift],
            color=f"C{shift}",
            markerfacecolor=f"C{shift}" if filled else "white",
            label=label,
        )


def _reach(points: Sequence[Metric]) -> list[list[float]]:
    return [
        [max(0.0, point["value"] - point["low"]) for point in points],
        [max(0.0, point["high"] - point["value"]) for point in points],
    ]


def _price(runs: Runs) -> Any:
    """Bits of the later frames: what independence and compression add, and what passes take away."""
    first, *parts = price(runs)
    figure, (axis,) = panels(1, width=7, height=3.6)
    frames = {"first_later": "the first later frame", "others": "the other later frames, together"}
    for shift, (column, label) in enumerate(frames.items()):
        points = {
            place: part["metrics"][column]
            for place, part in enumerate(parts)
            if column in part["metrics"]
        }  # fmt: skip
        there = list(points.values())
        bars = axis.barh(
            [place + 0.38 * shift - 0.19 for place in points],
            [point["value"] for point in there],
            height=0.36,
            xerr=_reach(there),
            color=f"C{shift}",
            label=label,
        )
        axis.bar_label(bars, fmt="%+.0f", padding=3, fontsize=7)
    for place, part in enumerate(parts):
        if not part["metrics"]:
            options = part["facts"]["bits"].strip("`")
            axis.text(0, place, f" missing: run.py run {options}", va="center", fontsize=8, color="#777")
    axis.set_yticks(range(len(parts)), [part["name"].replace(": ", ":\n") for part in parts], fontsize=8)
    axis.set_ylim(len(parts) - 0.4, -0.6)
    axis.margins(x=0.08)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.legend(fontsize=8)
    whole = first["metrics"].get("bits")
    axis.set_xlabel("bits a clip" + (f", beside the token model's {whole['value']:.0f}" if whole else ""))
    return figure


def _series(runs: Runs, models: dict[int, str], label: str, options: str, baseline: bool = False) -> Any:
    """Bits and sound clips of models that differ in one number, beside the token model."""
    figure, axes = panels(2, columns=2, width=COLUMN, height=2.2, text=TEXT)
    for axis, (title, kind, score) in zip(axes, MEASURES, strict=True):
        cells = [Cell(name, 4000, kind, score) for name in models.values()]
        for of, least, marks, model in (
            (cells, 1, "o-", "VRC"),
            (map(again, cells), 2, "s:", "VRC, tokenizer made anew"),  # one point alone compares nothing
        ):
            points = {
                place: spread_metric(found)
                for place, cell in enumerate(of)
                if says(found := values(runs, cell))
            }
            if of is cells:
                absent = [str(number) for place, number in enumerate(models) if place not in points]
            if len(points) < least:
                continue
            there = list(points.values())
            means = [point["value"] for point in there]
            axis.errorbar(
                list(points), means, yerr=_reach(there), color=VRC_STYLE.colour, fmt=marks, label=model
            )
        if baseline and says(found := values(runs, Cell(TOKEN.run, 4000, kind, score))):
            height = spread_metric(found)["value"]
            axis.axhline(height, color=TOKEN_STYLE.colour, linestyle="--", label="token model")
        if absent:
            tuned = " --tune" if "tuned" in kind else ""
            _missing(axis, f"run.py run {options}{tuned}", f"{', '.join(absent)}: ")
        axis.set_xticks(range(len(models)), list(map(str, models)))
        axis.set(title=title, xlabel=label, xlim=(-0.5, len(models) - 0.5))
        axis.margins(y=0.15)
        axis.set_ylim(bottom=0)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=7)
    return figure


def _memory(costs: Costs) -> Any:
    """Peak memory of training and of inference, by preset."""
    content = costs.memory()
    figure, axes = panels(2, columns=2, width=COLUMN, height=2.2, text=TEXT)
    styles = {"token": TOKEN_STYLE, "segment": VRC_STYLE}
    for axis, purpose in zip(axes, ("training", "inference"), strict=True):
        axis.set(title=purpose, ylabel="peak, GiB")
        if content is None:
            _missing(axis, "megavrc evaluate memory")
            continue
        rows = content["cases"]
        presets = list(dict.fromkeys(row["config"]["preset"] for row in rows))
        for shift, (prediction, style) in enumerate(styles.items()):
            mine = [
                row
                for row in rows
                if row["config"]["prediction"] == prediction and row["metrics"][purpose]["value"]  # fits
            ]
            axis.bar(
                [presets.index(row["config"]["preset"]) + 0.4 * (shift - 0.5) for row in mine],
                [row["metrics"][purpose]["value"] / GIB for row in mine],
                0.4,
                color=style.colour,
                hatch=style.hatch,
                edgecolor="white",
                label={"token": "token model", "segment": "VRC"}[prediction],
            )
        axis.set_xticks(range(len(presets)), presets)
    if content:
        axes[0].legend(fontsize=7)
    return figure


def _missing(axis: Any, command: str, what: str = "") -> None:
    """Name what makes the points that are not there."""
    axis.text(
        0.5,
        0.04,
        f"missing: {what}\n{command}",
        transform=axis.transAxes,
        ha="center",
        fontsize=7,
        color="#777",
    )
