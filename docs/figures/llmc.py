"""What the benchmark of LLMC+ says, from its result files, for docs/llmc.md; the figures of its findings.

`python docs/figures/llmc.py` draws the figures; docs/figures/draw.py writes the page.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megavrc.files import read_json
from megavrc.reduction import METHODS
from megavrc.results import markdown, read_result
from megavrc.vlm.accuracy import WHOLE
from megavrc.vlm.findings import Case, budgets, cases_of, findings, measured_cases, named
from megavrc.vlm.mini import FOLDER
from megavrc.vlm.questions import ANSWERS, TYPES, Kind
from megavrc.vlm.report import joint_figure, redundancy_figure, turns_figure

ROOT = Path(__file__).resolve().parents[2]
IMAGES, RESULTS = ROOT / "docs/images", ROOT / "benchmarks/results/llmc"
FIGURES = ("llmc_redundancy.svg", "llmc_turns.svg", "llmc_joint.svg")


def percent(value: Case) -> str:
    """A share in whole percent, or points, with its interval."""
    ends = (value["value"], value.get("low"), value.get("high"))
    middle, low, high = (None if end is None else f"{100 * end:.0f}" for end in ends)
    return f"{middle} ({low} to {high})" if low != high else str(middle)


def mini_vlm(_: str) -> str:
    """Shares of right answers of the shipped models, from the records of their trainings."""
    runs = {kind: read_json(FOLDER / kind / "complete.json") for kind in TYPES}
    rows = [
        [
            f"{kind}: {name}",
            f"{100 * run['metrics'][f'val/test/{name}']:.0f}",
            f"{100 / len(ANSWERS[name]):.0f}",
            str(run["step"]),
            str(run["recipe"]["seed"]),
        ]
        for kind, run in runs.items()
        for name in TYPES[kind]
    ]
    return markdown(["right answers, %", "trained", "chance", "steps", "seed"], rows)


def unreduced(accuracy: Any, kind: Kind) -> Iterator[list[str]]:
    """A row a type of question."""
    cases = {named(case): case for case in cases_of(accuracy, kind)}
    path = FOLDER / kind / "blind.json"
    trained = read_json(path)["metrics"] if path.is_file() else {}
    for name in TYPES[kind]:
        right, black = (cases[method]["metrics"][name] for method in (WHOLE, "black"))
        blind = trained.get(f"val/test/{name}")
        out = name in cases[WHOLE]["facts"]["left_out_of_verdicts"]
        yield [
            f"{kind}: {name}",
            percent(right),
            percent(black),
            "" if blind is None else f"{100 * blind:.0f}",
            f"{100 / len(ANSWERS[name]):.0f}",
            "left out: below 95" if out else "counts",
        ]


def losses(accuracy: Any, kind: Kind) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what each method loses at each budget, those that lose least at the first budget first."""
    cases = [case for case in measured_cases(accuracy, kind)]
    keeps = budgets(cases)
    found = {(named(case), case["config"]["keep"]): case["metrics"] for case in cases}
    names = sorted(
        dict.fromkeys(map(named, cases)),
        key=lambda name: [
            found.get((name, keep), {}).get("lost_all", {"value": 2})["value"] for keep in keeps
        ],
    )
    rows = [
        [f"`{name}`", METHODS[name].place, METHODS[name].kind]
        + [percent(found[name, keep]["lost_all"]) if (name, keep) in found else "-" for keep in keeps]
        for name in names
    ]
    return [f"{kind}: points lost", "acts", "redundancy", *(f"keep {keep:g}" for keep in keeps)], rows


def random_loses(accuracy: Any, kind: Kind) -> str:
    """What random loses at the least budget, by type."""
    cases = [case for case in measured_cases(accuracy, kind) if named(case) == "random"]
    least = min(cases, key=lambda case: case["config"]["keep"])
    lost = [f"{name} {percent(least['metrics'][f'lost_{name}'])}" for name in TYPES[kind]]
    return f"Random loses at keep {least['config']['keep']:g} of {kind}s: {', '.join(lost)} points."


def costs_of(costs: Any, kind: Kind) -> list[list[str]]:
    """A row a method: milliseconds and memory at batch 1 and 8."""
    rows: dict[str, list[str]] = {}
    for case in cases_of(costs, kind):
        values = case["metrics"]
        parts = ("tower", "selection", "prefill", "decode", "total", "memory")
        rows.setdefault(named(case), []).extend(
            f"{values[part]['value'] / (1e6 if part == 'memory' else 1e-3):.1f}" for part in parts
        )
    return [[f"`{name}`" if name in METHODS else name, *cells] for name, cells in rows.items()]


def revisions(accuracy: Any, kinds: list[Kind]) -> str:
    """With what each kind was measured: a case kept of an earlier run names its own."""
    facts = [(kind, cases_of(accuracy, kind)[0].get("facts", {})) for kind in kinds]
    return "Revision " + ", ".join(
        f"{known.get('revision', accuracy['revision'])[:12]} ({kind}s)" for kind, known in facts
    )


def benchmark(_: str) -> str:
    """All of it, as Markdown."""
    accuracy, costs, joint = (
        read_result(RESULTS / f"{name}.json") for name in ("accuracy", "costs", "joint")
    )
    kinds: list[Kind] = [kind for kind in TYPES if cases_of(accuracy, kind)]
    config = accuracy["config"]
    asked = config["conversations"] * len(config["seeds"])
    parts = [
        f"{asked} test conversations of {config['turns']} turns over {len(config['seeds'])} seeds "
        f"({asked * config['turns']} questions), for {' and '.join(f'{kind}s' for kind in kinds)}; percent and points "
        f"with 95% intervals, paired with the unreduced model. {revisions(accuracy, kinds)}.",
        markdown(
            ["right answers, %", "unreduced", "black pictures", "trained blind", "chance", "in verdicts"],
            [row for kind in kinds for row in unreduced(accuracy, kind)],
        ),
        *(random_loses(accuracy, kind) for kind in kinds),
        *(markdown(*losses(accuracy, kind)) for kind in kinds),
        "A dash: the method cannot keep so little (a budget below what its first layers, or whole frames, cost). No "
        "interval: measured before intervals of equal answers were Wilson's, and the bootstrap saw one value only. A "
        f"loss of 0 is then a loss that was not seen; by the rule of three it may be up to {300 / asked:.0f} points.",
    ]
    for number, (finding, figure) in enumerate(zip(findings(accuracy, joint), FIGURES, strict=True), 1):
        parts.append(f"**{number}. {finding.claim}: {finding.verdict}.** " + " ".join(finding.why))
        parts.append(f"![{finding.claim}](images/{figure})")
    for kind in kinds:
        parts.append(
            f"<details><summary>What it costs at a quarter of the tokens ({kind}s), ms and MB, batch 1 and then "
            f"batch 8; {costs['protocol']['times']}: here the medians. `decode` is one pass, of which an answer "
            "takes several.</summary>"
        )
        names = ["tower", "selection", "prefill", "decode", "total", "MB"]
        head = ["", *names, *(f"{name}, 8" for name in names)]
        parts += [markdown(head, costs_of(costs, kind)), "</details>"]
    return "\n\n".join(parts)


if __name__ == "__main__":
    accuracy, joint = (read_result(RESULTS / f"{name}.json") for name in ("accuracy", "joint"))
    drawn = (redundancy_figure(accuracy), turns_figure(accuracy), joint_figure(joint))
    for name, svg in zip(FIGURES, drawn, strict=True):
        (IMAGES / name).write_text(svg)
        print(f"docs/images/{name}")
