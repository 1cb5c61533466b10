"""`megavrc reproduce study`: tables and figures of docs/study.md, from the result files of its runs alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megavrc.errors import UserError
from megavrc.files import read_json, sha256_json
from megavrc.paper.measured import SMOKE
from megavrc.paper.study_claims import DRAWS, Verdict, equal_time, hypotheses, judge, judge_speed
from megavrc.paper.study_figures import drawn
from megavrc.paper.study_runs import Cell, StudyRun, read_study, values, with_objects
from megavrc.paper.study_shares import ceiling_shares, told_apart
from megavrc.paper.study_tables import (
    PRESETS,
    Costs,
    checkpoints,
    checks,
    gameplay,
    price,
    probes,
    says,
    small_table1,
    small_table2,
    small_table4,
    spread_metric,
)
from megavrc.report.figures import banner, save
from megavrc.results import Metric, case, metric, publish_tables, result

SHOWN = ("all", "whole", "count", "shape", "direction", "speed", "flight", "jitter", "frozen")
MODES = ("modes", "modes_whole", "modes_other")
KINDS = {"given": SHOWN, "free": SHOWN, "modes": MODES}
KINDS |= {f"{kind} refined": shown for kind, shown in KINDS.items()}  # in several passes
KINDS |= {f"{kind} tuned": shown for kind, shown in KINDS.items()}  # at each run's best temperatures
KINDS["reconstructed"] = SHOWN
PROTOCOL = {
    "low, high": f"95% interval, bootstrap over seeds, crossed with clips (the same in all seeds), {DRAWS} draws; "
    "of one seed over its clips alone; of no clip or all, Wilson's",
    "temperatures": "1 and 1, top-p 1; tuned: each run's best on validation prompts",
}


def study(
    results: Path = Path("benchmarks/results/study"),
    tables: Path = Path("benchmarks/results"),
    figures: Path = Path("docs/images"),
    costs: Path = Path("benchmarks/results"),
    run: bool = False,
    smoke: bool = False,
    work: Path | None = None,
) -> int:
    """Make the study's tables and figures from what its runs have measured so far.

    Args:
        results: folder of the runs' result files.
        tables: folder for study-runs.json, study-clips.json, study-claims.json, study-bits.json, study-checks.json,
            study-gameplay.json, study-probes.json, study-shares.json, study-told.json and study-table1.json, 2 and 4,
            which docs/study.md shows.
        figures: folder for study_bits.svg, study_price.svg, study_fig4.svg, 5, 6 and, once clips
            are drawn, study_whole.svg.
        costs: folder with generate-b.json and generate-l.json of `megavrc benchmark generate`, train-study.json of
            `megavrc benchmark train` and memory.json of `megavrc evaluate memory`, as far as they are there.
        run: first run the study's first priority as far as it is not done, for hours (benchmarks/study/README.md).
        smoke: run it at toy size and keep everything in WORK/results.
        work: folder outside of the checkout that the runs are written to.
    """
    code = 0
    if run or smoke:
        if work is None:
            raise UserError("--work: needed with --run and --smoke, a folder outside of the checkout")
        if smoke:
            results, costs = work / "results", work
            tables = figures = results / "tables"
        code = _run_study(work, results, smoke)
    write_study(results, tables, figures, costs, smoke)
    return code


def write_study(results: Path, tables: Path, figures: Path, costs: Path, smoke: bool) -> None:
    """Write all tables and figures; those of toy size under a banner. Arguments as those of `study`."""
    runs, cost = read_study(results), Costs(costs)
    protocol = PROTOCOL | ({"smoke": SMOKE} if smoke else {})
    config = {"results": digest(results, costs)}
    made = {"runs": _runs(runs), "clips": _clips(runs), "claims": _claims(runs, cost), "bits": price(runs)}
    made |= {
        "checks": checks(runs),
        "gameplay": gameplay(runs),
        "probes": probes(runs),
        "table1": small_table1(runs),
        "shares": ceiling_shares(runs),
        "told": told_apart(runs),
        "table2": small_table2(cost),
        "table4": small_table4(runs),
    }
    for name, cases in made.items():
        print(f"{SMOKE}\n" if smoke else "")
        content = result("megavrc reproduce study", config, cases, protocol=protocol)
        publish_tables(content, tables / f"study-{name}.json")
    for name, figure in drawn(runs, cost):
        if smoke:
            banner(figure, SMOKE)
        save(figure, figures / f"study_{name}.svg")


def digest(results: Path, costs: Path) -> str:
    """Hash of all files that the tables are made from: it says whether they are those of these files."""
    files = [*sorted(results.glob("*.json")), *(file for file in Costs(costs).files if file.exists())]
    return sha256_json({file.name: read_json(file) for file in files})


def _run_study(work: Path, results: Path, smoke: bool) -> int:
    """Its runner's exit code."""
    script = Path("benchmarks/study/run.py")
    if not script.is_file():
        raise UserError(f"{script}: not there; the study runs in a checkout of megavrc")
    words = [sys.executable, str(script), "run", f"--work={work}", f"--results={results}"]
    words += ["--smoke", "--samples"] if smoke else []
    return subprocess.run(words).returncode


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
        for step in checkpoints(seeds, "bits val")[-1:]:
            for part in ("first", "later", "total"):
                found = values(runs, Cell(name, step, "bits val", part))
                if any(clips.any() for clips, _ in found.values()):  # images have no later frames
                    metrics[f"bits_{part}"] = spread_metric(found, "bits")
            if found := values(runs, Cell(name, step, "bits heldout", "total")):
                metrics["bits_heldout"] = spread_metric(found, "bits")
        yield case(name, metrics, facts)


def _clips(runs: dict[str, list[StudyRun]]) -> Iterator[dict[str, Any]]:
    """A row a run, checkpoint and kind of clips: their scores."""
    for name, seeds in runs.items():
        for kind, scores in KINDS.items():
            for step in checkpoints(seeds, kind):
                metrics = {}
                for score in scores:
                    found = values(runs, Cell(name, step, kind, score))
                    if says(found):
                        metrics[score] = spread_metric(found)
                for count, label in ((1, "one"), (2, "two")) if not kind.startswith("modes") else ():
                    if found := with_objects(runs, Cell(name, step, kind, "whole"), count):
                        metrics[f"whole_{label}"] = spread_metric(found)
                seeds_done = len(values(runs, Cell(name, step, kind, scores[0])))
                yield case(f"{name} {step}, {kind}", metrics, {"seeds": seeds_done}, kind=kind, step=step)


def _claims(runs: dict[str, list[StudyRun]], costs: Costs) -> Iterator[dict[str, Any]]:
    """A row a verdict, by the number of its hypothesis."""
    rows = [
        (verdict.claim.number, _verdict(verdict))
        for verdict in judge(runs, hypotheses(equal_time(costs.pace())))
    ]
    rows.append((5, _speed(costs)))
    yield from (row for _, row in sorted(rows, key=lambda item: item[0]))


def _verdict(verdict: Verdict) -> dict[str, Any]:
    spread, claim = verdict.spread, verdict.claim
    found = (
        metric(spread.value, "", len(verdict.by_seed), spread.low, spread.high) if spread else metric(None)
    )
    each = " ".join(f"{mean:+.3f}" for mean in verdict.by_seed.values())
    return case(
        f"H{claim.number}: {claim.says}", {"difference": found}, {"by_seed": each, "verdict": verdict.word}
    )


def _speed(costs: Costs) -> dict[str, Any]:
    ratios = {preset: costs.ratio(preset) for preset in PRESETS}
    each = " ".join(f"{preset} {ratio['value']:.2f}x" for preset, ratio in ratios.items() if ratio)
    return case(
        "H5: seconds of a clip, token model over VRC, presets b and l",
        {"difference": metric(None)},
        {"by_seed": each, "verdict": judge_speed(ratios)},
    )
