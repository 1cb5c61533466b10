"""`megavrc reproduce study`: tables and figures of docs/study.md, from the result files of its runs alone."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megavrc.errors import UserError
from megavrc.paper.measured import SMOKE
from megavrc.paper.study_claims import DRAWS, SEEDS, Spread, crossed, judge
from megavrc.paper.study_runs import Array, Cell, StudyRun, read_study, values
from megavrc.report.figures import banner, panels, save
from megavrc.results import Metric, case, metric, publish_tables, result

SHOWN = ("all", "whole", "count", "shape", "direction", "speed", "flight", "jitter", "frozen")
MODES = ("modes", "modes_whole", "modes_other")
KINDS = {"given": SHOWN, "free": SHOWN, "modes": MODES}
KINDS |= {f"{kind} refined": shown for kind, shown in KINDS.items()}  # in several passes
PROTOCOL = {
    "low, high": f"95% interval, bootstrap over seeds and clips, {DRAWS} draws",
    "temperatures": "1 and 1, top-p 1",
}


def study(
    results: Path = Path("benchmarks/results/study"),
    tables: Path = Path("benchmarks/results"),
    figures: Path = Path("docs/images"),
    run: bool = False,
    smoke: bool = False,
    work: Path | None = None,
) -> int:
    """Make the study's tables and figures from what its runs have measured so far.

    Args:
        results: folder of the runs' result files.
        tables: gets study-runs.json, study-clips.json, study-claims.json; docs/study.md shows them.
        figures: gets study_bits.svg and, once clips are drawn, study_whole.svg.
        run: first run the study's first priority as far as it is not done, for hours (benchmarks/study/README.md).
        smoke: run it at toy size, and keep all in WORK/results.
        work: folder for what is run, outside of the checkout.
    """
    code = 0
    if run or smoke:
        if work is None:
            raise UserError("--work: needed with --run and --smoke, a folder outside of the checkout")
        results = work / "results" if smoke else results
        tables, figures = (results / "tables",) * 2 if smoke else (tables, figures)
        code = _run_study(work, results, smoke)
    runs = read_study(results)
    protocol = PROTOCOL | ({"smoke": SMOKE} if smoke else {})
    for name, cases in (("runs", _runs(runs)), ("clips", _clips(runs)), ("claims", _claims(runs))):
        content = result("megavrc reproduce study", {}, cases, protocol=protocol)
        print(f"{SMOKE}\n" if smoke else "")
        publish_tables(content, tables / f"study-{name}.json")
    for name, figure in (("bits", _figure_bits(runs)), ("whole", _figure_whole(runs))):
        if figure:
            if smoke:
                banner(figure, SMOKE)
            save(figure, figures / f"study_{name}.svg")
    return code


def _run_study(work: Path, results: Path, smoke: bool) -> int:
    """Its runner's exit code."""
    script = Path("benchmarks/study/run.py")
    if not script.is_file():
        raise UserError(f"{script}: not there; the study runs in a checkout of megavrc")
    words = [sys.executable, str(script), "run", f"--work={work}", f"--results={results}"]
    words += ["--smoke", "--samples"] if smoke else []
    return subprocess.run(words).returncode


def _checkpoints(runs: list[StudyRun], begins: str) -> list[int]:
    """Of a run's cases whose name begins so, the checkpoints."""
    rows = [row for run in runs for row in run.content["cases"] if row["name"].startswith(begins)]
    return sorted({row["config"]["checkpoint"] for row in rows})


def _runs(runs: dict[str, list[StudyRun]]) -> Iterator[dict[str, Any]]:
    """A row a run: cost, and the bits of a validation clip at its last checkpoint."""
    for name, seeds in runs.items():
        facts = {"seeds": len(seeds), "status": ", ".join(sorted({run.status for run in seeds}))}
        metrics: dict[str, Metric] = {}
        for key in ("parameters", "train_flops", "cpu_seconds"):
            known = [cost["value"] for run in seeds if (cost := run.metric(key))]
            if known:
                unit = {"train_flops": "TFLOP", "cpu_seconds": "s"}.get(key, "")
                scale = 1e-12 if key == "train_flops" else 1
                metrics[key] = metric(float(np.mean(known)) * scale, unit, len(known))
        for step in _checkpoints(seeds, "bits val ")[-1:]:
            for part in ("first", "later", "total"):
                found = values(runs, Cell(name, step, "bits val", part))
                if any(clips.any() for clips, _ in found.values()):  # images have no later frames
                    metrics[f"bits_{part}"] = _metric(found, "bits")
        yield case(name, metrics, facts)


def _clips(runs: dict[str, list[StudyRun]]) -> Iterator[dict[str, Any]]:
    """A row a run, checkpoint and kind of clips: their scores."""
    for name, seeds in runs.items():
        for kind, scores in KINDS.items():
            for step in _checkpoints(seeds, f"{kind} "):
                metrics = {}
                for score in scores:
                    found = values(runs, Cell(name, step, kind, score))
                    if any(not np.isnan(clips).all() for clips, _ in found.values()):
                        metrics[score] = _metric(found)
                for count, label in ((1, "one"), (2, "two")) if not kind.startswith("modes") else ():
                    found = _with_objects(runs, Cell(name, step, kind, "whole"), count)
                    if found:
                        metrics[f"whole_{label}"] = _metric(found)
                seeds_done = len(values(runs, Cell(name, step, kind, scores[0])))
                yield case(f"{name} {step}, {kind}", metrics, {"seeds": seeds_done}, kind=kind, step=step)


def _with_objects(runs: dict[str, list[StudyRun]], cell: Cell, count: int) -> dict[int, tuple[Array, str]]:
    """`values` of the clips whose scene has so many objects; nan for the others."""
    objects = values(runs, replace(cell, score="objects"))
    return {
        seed: (np.where(objects[seed][0] == count, clips, np.nan), keys)
        for seed, (clips, keys) in values(runs, cell).items()
    }


def _claims(runs: dict[str, list[StudyRun]]) -> Iterator[dict[str, Any]]:
    for verdict in judge(runs):
        claim = verdict.claim
        metrics = {"difference": metric(None)}
        if verdict.spread:
            metrics["difference"] = metric(
                verdict.spread.value, "", len(verdict.by_seed), verdict.spread.low, verdict.spread.high
            )
        each = " ".join(f"{mean:+.3f}" for mean in verdict.by_seed.values())
        yield case(f"H{claim.number}: {claim.says}", metrics, {"by_seed": each, "verdict": verdict.word})


def _spread(found: dict[int, tuple[Array, str]]) -> Spread:
    """Over the seeds that say something."""
    return crossed([clips for clips, _ in found.values() if not np.isnan(clips).all()])


def _metric(found: dict[int, tuple[Array, str]], unit: str = "") -> Metric:
    spread = _spread(found)
    n = sum(len(clips) for clips, _ in found.values())
    return metric(spread.value, unit, n, spread.low, spread.high)


# --- figures -----------------------------------------------------------------------------------------------------


def _figure_bits(runs: dict[str, list[StudyRun]]) -> Any:
    """Bits of a validation clip by training step: the first frame, the later ones."""
    figure, axes = panels(2, columns=2)
    for part, axis in zip(("first", "later"), axes, strict=True):
        for place, (name, seeds) in enumerate(runs.items()):
            if part == "later" and "stage1" in name and "without" not in name:
                continue  # images: one frame
            points = [
                (step, _spread(values(runs, Cell(name, step, "bits val", part))))
                for step in _checkpoints(seeds, "bits val ")
            ]
            _curve(axis, points, f"{name} ({len(seeds)} of {SEEDS} seeds)", f"C{place}")
        axis.set_title(f"{part} frame" + "s" * (part == "later"))
        axis.set_xlabel("training steps of 8 clips")
        axis.set_ylabel("bits a clip")
        axis.set_ylim(bottom=0)
        if axis.has_data():
            axis.legend(fontsize=8)
    return figure


def _figure_whole(runs: dict[str, list[StudyRun]]) -> Any:
    """Whole and sound clips of each model at its last checkpoint, by entry; None before any are drawn."""
    rows = {name: steps[-1] for name, seeds in runs.items() if (steps := _checkpoints(seeds, "given "))}
    if not rows:
        return None
    figure, axes = panels(2, columns=2)
    for score, axis in zip(("whole", "all"), axes, strict=True):
        for shift, kind in enumerate(("given", "free")):
            for place, (name, step) in enumerate(rows.items()):
                found = values(runs, Cell(name, step, kind, score))
                if not found:
                    continue
                spread = _spread(found)
                error = [[spread.value - spread.low], [spread.high - spread.value]]
                label = (
                    {"given": "from the true first frame", "free": "from the text"}[kind]
                    if not place
                    else None
                )
                axis.errorbar(
                    spread.value,
                    place + 0.2 * shift,
                    xerr=error,
                    fmt="os"[shift],
                    color=f"C{shift}",
                    label=label,
                )
        axis.set_yticks(range(len(rows)), list(rows))
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_xlabel({"whole": "whole clips, share", "all": "sound clips, share"}[score])
    axes[0].legend(fontsize=8)
    return figure


def _curve(axis: Any, points: list[tuple[int, Spread]], label: str, colour: str) -> None:
    if points:
        steps, spreads = zip(*points, strict=True)
        means = np.array([spread.value for spread in spreads])
        bounds = np.array([[s.value - s.low, s.high - s.value] for s in spreads]).T
        axis.errorbar(steps, means, yerr=bounds, marker="o", markersize=3, label=label, color=colour)
