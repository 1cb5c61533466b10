"""Tables of the study beside those of the paper: what was measured of them, and else the command that would.

Pure functions of result files; any runs may be missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megavrc.evaluation.statistics import share_metric
from megavrc.files import check_fields
from megavrc.paper.study_claims import AGAIN, MAIN, Spread, again, crossed
from megavrc.paper.study_runs import Array, Cell, StudyRun, paired, values
from megavrc.results import Metric, Result, case, metric, read_result

Runs = dict[str, list[StudyRun]]
Found = dict[int, tuple[Array, str]]

PRESETS = ("b", "l")  # of hypothesis 5
SPEED = "megavrc benchmark generate --preset {preset} --json FILE"
RATES = {1: "scenes-rate1", 4: "scenes-rate4", 16: "scenes-rate16", 64: "scenes-rate64"}  # group norm in all
CHECKS = (  # of rules 4 and 5: label, a run and what it is compared with, without the name of their set
    ("the token model with VRC's parameters minus the token model", "token-160", "token"),
    ("the loss as a mean over all tokens minus over terms, the token model", "token-loss", "token"),
    ("half the learning rate minus the whole, the token model", "token-lr", "token"),
    ("half the learning rate minus the whole, VRC", "vrc-lr", "vrc"),
)
IDENTITY = "rate 1 without convolutions minus rate 1"


class Row(NamedTuple):
    """A model of a table: its run at a step, and the priority of the run in the matrix."""

    label: str
    run: str
    step: int
    priority: int
    passes: str = ""  # " refined"

    def missing(self, options: str) -> str:
        """What is told where a number is not there: options of the study's runner."""
        return f"`--priority {self.priority}{options}`"

    def anew(self) -> "Row":
        """The row of the run on the tokenizer that was made anew."""
        name = self.run.replace(MAIN, AGAIN)
        return self._replace(label=f"{self.label}, tokenizer made anew", run=name, priority=1)


TOKEN = Row("token model", "scenes-token", 4000, 0)
CHEAP = TOKEN._replace(label="token model, VRC's FLOPs", step=2250)
VRC = Row("VRC", "scenes-vrc", 4000, 0)
REFINED = Row("VRC with refinement, passes 8, 1, 1, 1", "scenes-refine", 4000, 0, " refined")
LONG = (  # of one seed, and of the main set alone
    Row("VRC, four times the steps", "scenes-vrc-long", 16000, 1),
    Row("VRC with refinement, four times the steps", "scenes-refine-long", 16000, 1, " refined"),
)
TABLE1 = (
    TOKEN,
    CHEAP,
    Row("token model, VRC's parameters", "scenes-token-160", 4000, 1),
    Row("token model, mean over all tokens", "scenes-token-loss", 4000, 1),
    VRC,
    REFINED,
    *LONG,
)
STAGES = (
    VRC._replace(label="with stage 1"),
    Row("without, equal FLOPs", "scenes-without-stage1", 9000, 1),
    Row("without, equal steps", "scenes-without-stage1", 4000, 1),
)
TABLE4 = (*STAGES, *(row.anew() for row in STAGES))
SCORES = {  # column -> kind, score
    "sound_from_text_1_1": ("free{}", "all"),
    "sound_from_text": ("free{} tuned", "all"),
    "first_frame": ("free{} tuned", "first_frame"),
    "whole_given_1_1": ("given{}", "whole"),
    "whole_given": ("given{} tuned", "whole"),
    "sound_given": ("given{} tuned", "all"),
    "modes": ("modes{} tuned", "modes"),
}
PROBES = {  # column -> step, score
    "gap_at_1000": (1000, "gap"),
    **{name: (4000, name) for name in ("changed", "unchanged", "noise", "frozen_history", "other_history")},
}


def checkpoints(runs: Sequence[StudyRun], kind: str) -> list[int]:
    """At which steps a kind of clips (see `Cell`) was measured."""
    rows = [row for run in runs for row in run.content["cases"]]
    steps = {row["config"]["checkpoint"] for row in rows}
    return sorted(steps & {step for step in steps for row in rows if row["name"] == f"{kind} {step}"})


def apart_by_seed(runs: Runs, first: Cell, second: Cell) -> Found:
    """`paired`, as `values` gives it."""
    return {seed: (clips, "") for seed, clips in paired(runs, first, second).items()}


def spread_of(found: Found) -> Spread:
    """Over the seeds that say something."""
    return crossed([clips for clips, _ in found.values() if not np.isnan(clips).all()])


def says(found: Found) -> bool:
    """Whether any clip of any seed has something to say."""
    return any(not np.isnan(clips).all() for clips, _ in found.values())


def spread_metric(found: Found, unit: str = "") -> Metric:
    """The mean over seeds and clips that say something as a metric, with its interval: of none or all, Wilson's."""
    spread = spread_of(found)
    said = [int(np.sum(~np.isnan(clips))) for clips, _ in found.values()]
    low, high = spread.low, spread.high
    if not unit and spread.value in (0, 1):
        share = share_metric(np.full(min(filter(None, said)), spread.value))
        low, high = share["low"], share["high"]
    return metric(spread.value, unit, sum(said), low, high)


def seeds_of(counts: Sequence[int]) -> str:
    """How many seeds the numbers of a row are of: "1 to 3" where they differ; those that are not there do not count."""
    there = sorted({count for count in counts if count})
    return f"{there[0]} to {there[-1]}" if len(there) > 1 else "".join(map(str, there))


def small_table1(runs: Runs) -> Iterator[dict[str, Any]]:
    """VRC and the token model: clips at each model's best temperatures, bits of a clip."""
    for row in TABLE1:
        cells = {
            column: Cell(row.run, row.step, kind.format(row.passes), score)
            for column, (kind, score) in SCORES.items()
        }
        found = _row(runs, row, cells, ("later", "total"))
        # Modes and judge are of the last step alone.
        missing = row.missing(" --tune") if row.step >= VRC.step else ""
        if "modes" not in found["metrics"]:
            found["facts"]["modes"] = missing
        kind = f"judge given{row.passes} tuned"
        drawn, real = (Cell(row.run, row.step, kind, score) for score in ("drawn", "real"))
        if judged := apart_by_seed(runs, drawn, real):
            found["metrics"]["judge"] = spread_metric(judged, "bits")
        else:
            found["facts"]["judge"] = missing
        yield found


def small_table4(runs: Runs) -> Iterator[dict[str, Any]]:
    """With and without pretraining on images."""
    columns = ("sound_from_text", "sound_given")
    for row in TABLE4:
        cells = {column: Cell(row.run, row.step, SCORES[column][0].format(""), "all") for column in columns}
        yield _row(runs, row, cells, ("first", "later"))


def _row(runs: Runs, row: Row, cells: dict[str, Cell], parts: Sequence[str]) -> dict[str, Any]:
    """A row of scores and of bits; a number that is not there names the options that make it."""
    metrics: dict[str, Metric] = {}
    facts: dict[str, Any] = {}
    seeds = []
    for column, cell in cells.items():
        found = values(runs, cell)
        seeds.append(len(found))
        if says(found):
            metrics[column] = spread_metric(found)
        else:
            facts[column] = row.missing(" --samples" if "tuned" not in cell.kind else " --tune")
    for part in parts:
        found = values(runs, Cell(row.run, row.step, f"bits val{row.passes}", part))
        seeds.append(len(found))
        if found:
            metrics[f"bits_{part}"] = spread_metric(found, "bits")
        else:
            facts[f"bits_{part}"] = row.missing("")
    return case(row.label, metrics, facts | {"seeds": seeds_of(seeds)})


def probes(runs: Runs) -> Iterator[dict[str, Any]]:
    """Bits of a cell of the later frames, teacher-forced, by cells and with disturbed histories."""
    rates = [Row(f"rate {rate}, group norm", run, 4000, 1) for rate, run in RATES.items()]
    anew = (row.anew() for row in rates[:2])
    for row in (TOKEN, VRC, REFINED._replace(label="VRC with refinement, one pass"), *rates, *anew):
        metrics: dict[str, Metric] = {}
        facts: dict[str, Any] = {}
        seeds = []
        for column, (step, score) in PROBES.items():
            found = values(runs, Cell(row.run, step, "probes val", score))
            seeds.append(len(found))
            if says(found):
                metrics[column] = spread_metric(found, "bits")
            else:
                facts[column] = row.missing("")
        yield case(row.label, metrics, facts | {"seeds": seeds_of(seeds)})


# --- what independence costs and compression loses ------------------------------------------------------------------


def price(runs: Runs) -> Iterator[dict[str, Any]]:
    """Bits of the later frames, taken apart: what independence within a frame costs, and what compression loses."""
    bits = {rate: Cell(run, 4000, "bits val", "later") for rate, run in RATES.items()}
    token, refined = (Cell(row.run, 4000, f"bits val{row.passes}", "later") for row in (TOKEN, REFINED))
    plain, vrc = (Cell(run, 4000, "bits val", "later") for run in (REFINED.run, VRC.run))
    first = "given a frame's earlier tokens: the token model"
    yield _bits(runs, first, 0, token)
    yield _bits(runs, "+ independence within a frame: rate 1 minus the token model", 1, bits[1], token)
    yield _bits(runs, "independence, tokenizer made anew", 1, again(bits[1]), again(token))
    for rate in list(RATES)[1:]:
        yield _bits(runs, f"+ compression: rate {rate} minus rate 1", 1, bits[rate], bits[1])
        if rate == 4:
            yield _bits(runs, "rate 4 minus rate 1, tokenizer made anew", 1, again(bits[4]), again(bits[1]))
    yield _bits(runs, "with compression, in the paper's one pass: VRC minus the token model", 0, vrc, token)
    yield _bits(runs, "VRC minus the token model, tokenizer made anew", 1, again(vrc), again(token))
    yield _bits(runs, "a model trained for passes, in one: refinement minus VRC", 0, plain, vrc)
    yield _bits(runs, "the same in passes 8, 1, 1, 1, minus VRC", 0, refined, vrc)


def checks(runs: Runs) -> Iterator[dict[str, Any]]:
    """What the checks of rules 4 and 5 change, on the tokenizer that was made anew: bits, and shares of clips."""
    columns = {
        "bits_first": ("bits val", "first", "bits"),
        "bits_later": ("bits val", "later", "bits"),
        "whole_given": ("given tuned", "whole", ""),
        "sound_given": ("given tuned", "all", ""),
    }
    for label, run, usual in (*CHECKS, (IDENTITY, "rate1-identity", "rate1")):
        row = Row(label, f"{AGAIN}{run}", VRC.step, 1)
        metrics, facts, seeds = {}, {}, []
        for column, (kind, score, unit) in columns.items():
            cell = Cell(row.run, row.step, kind, score)
            found = apart_by_seed(runs, cell, replace(cell, run=f"{AGAIN}{usual}"))
            seeds.append(len(found))
            if found:
                metrics[column] = spread_metric(found, unit)
            else:
                facts[column] = row.missing("" if unit else " --tune")
        yield case(row.label, metrics, facts | {"seeds": seeds_of(seeds)})


def gameplay(runs: Runs) -> Iterator[dict[str, Any]]:
    """Bits of the later frames of clips of a game: whether what `scenes` shows carries over."""

    def of(name: str, step: int = 1000, kind: str = "bits val") -> Cell:
        return Cell(f"gameplay-{name}", step, kind, "later")

    token, vrc, large = of("token"), of("vrc"), of("vrc-192")
    token_500, vrc_500, rate1_500, rate4 = of("token", 500), of("vrc", 500), of("rate1", 500), of("rate4")
    rows: list[tuple[str, Cell, Cell | None]] = [
        ("the token model", token, None),
        ("VRC minus the token model", vrc, token),
        ("against the token model at step 500, 1.2 times VRC's FLOPs", vrc, token_500),
        ("VRC minus the token model, both at step 500", vrc_500, token_500),
        ("of it, independence within a frame: rate 1 minus the token model", rate1_500, token_500),
        ("of it, compression: VRC, rate 4, minus rate 1", vrc_500, rate1_500),
        ("a model trained for passes, in one: refinement minus VRC", of("refine"), vrc),
        ("the same in passes 8, 1, 1, 1, minus VRC", of("refine", kind="bits val refined"), vrc),
        ("the same in passes 8, 8, 8, 8, minus VRC", of("refine", kind="bits val refined everywhere"), vrc),
        ("VRC with stage 1 minus without, equal steps", vrc, of("without-stage1")),
        ("against 1500 steps without, 1.14 times the FLOPs", vrc, of("without-stage1", 1500)),
        ("VRC of width 64 minus width 128", of("vrc-64"), vrc),
        ("VRC of width 192 and 6 layers minus width 128 and 4", large, vrc),
        (f"{IDENTITY}, step 500", of("rate1-identity", 500), rate1_500),
        *((label, of(run), of(usual)) for label, run, usual in CHECKS),
        ("the loss as a mean over all tokens minus over terms, VRC", of("vrc-loss"), vrc),
        ("half the learning rate minus the whole, VRC of width 192", of("vrc-192-lr"), large),
        ("group norm minus BatchNorm, rate 4", rate4, vrc),
        ("rate 16 minus rate 4, group norm", of("rate16"), rate4),
        ("rate 64 minus rate 4, group norm", of("rate64"), rate4),
    ]
    for label, cell, minus in rows:
        yield _bits(runs, label, 2, cell, minus)


def _bits(runs: Runs, label: str, priority: int, cell: Cell, minus: Cell | None = None) -> dict[str, Any]:
    """Of all later frames, of the first of them, and of the others."""
    metrics, seeds = {}, 0
    for column, part in {"bits": "later", "first_later": "first_later", "others": "others"}.items():
        of, less = replace(cell, score=part), minus and replace(minus, score=part)
        found = apart_by_seed(runs, of, less) if less else values(runs, of)
        if found:
            metrics[column], seeds = spread_metric(found, "bits"), len(found)
    return case(label, metrics, {"seeds": seeds} | ({} if metrics else {"bits": f"`--priority {priority}`"}))


# --- speed and memory -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What a clip costs, by preset: the result files of a folder, as far as they are there."""

    folder: Path

    @property
    def files(self) -> list[Path]:
        names = [*(f"generate-{preset}.json" for preset in PRESETS), "memory.json", "train-study.json"]
        return [self.folder / name for name in names]

    def of(self, preset: str, model: str) -> dict[str, Metric]:
        """Metrics of one clip at batch 1 without guidance; {} if it was not measured."""
        content = _read(self.folder / f"generate-{preset}.json")
        name = f"{model}, batch 1, guidance 1"
        rows = [row["metrics"] for row in content["cases"] if row["name"] == name] if content else []
        # What could not be measured has no value.
        return {key: found for key, found in rows[0].items() if found["value"]} if rows else {}

    def ratio(self, preset: str) -> Metric | None:
        """Seconds of the token model over VRC's; low and high from the ranges of both."""
        token, vrc = (self.of(preset, model).get("seconds") for model in ("token", "vrc-4"))
        if not token or not vrc:
            return None
        return _quotient(token, vrc)

    def pace(self) -> Metric | None:
        """Clips a CPU second in training at the study's size: VRC's over the token model's; bounds as in `ratio`."""
        content = _read(self.folder / "train-study.json")
        if content is None:
            return None
        clips = {row["name"].rpartition(", ")[2]: row["metrics"].get("cpu_clips") for row in content["cases"]}
        vrc, token = clips.get("VRC"), clips.get("token")
        return _quotient(vrc, token) if vrc and token and vrc["value"] and token["value"] else None

    def memory(self) -> Result | None:
        """Of `megavrc evaluate memory`; UserError for one of another command."""
        path = self.folder / "memory.json"
        content = _read(path)
        for row in content["cases"] if content else ():
            where = f"{path}: case {row['name']}"
            check_fields(where, row["config"], {"preset": str, "prediction": str})
            check_fields(where, row["metrics"], {"training": dict, "inference": dict})
        return content


def small_table2(costs: Costs) -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of one clip, by preset."""
    names = {"token": "token model", "vrc-4": "VRC", "row": "VRC, first frame row by row"}
    for model, label in names.items():
        metrics, facts = {}, {}
        for preset in PRESETS:
            found = costs.of(preset, model)
            for column, key in ((preset, "seconds"), (f"{preset}_peak", "peak")):
                if key in found:
                    metrics[column] = found[key]
                else:
                    facts[column] = f"`{SPEED.format(preset=preset)}`" if key == "seconds" else ""
        yield case(label, metrics, facts)
    ratios = {preset: ratio for preset in PRESETS if (ratio := costs.ratio(preset))}
    yield case("token model / VRC", ratios)


def _quotient(over: Metric, under: Metric) -> Metric:
    """Low and high are those of the ranges of both."""
    (least, most), (low, high) = _range(over), _range(under)
    n = min(over.get("n", 1), under.get("n", 1))
    return metric(over["value"] / under["value"], "", n, least / high, most / low)


def _range(found: Metric) -> tuple[float, float]:
    low, high = found.get("low"), found.get("high")
    return found["value"] if low is None else low, found["value"] if high is None else high


def _read(path: Path) -> Result | None:
    return read_result(path) if path.exists() else None
