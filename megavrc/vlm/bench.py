"""`megavrc compress_vlm bench`: accuracy, cost and tokens x bits of every method, as result files, and their report."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megavrc.errors import UserError, check_keep, check_least
from megavrc.files import write_atomic
from megavrc.hardware import check_device
from megavrc.reduction import METHODS
from megavrc.results import Result, case, read_result, result, write_result
from megavrc.vlm.accuracy import DRAWS, GOAL, WHOLE, accuracy_cases, asked
from megavrc.vlm.asking import (
    OTHERS,
    MiniSubject,
    Reduced,
    Subject,
    fitted,
    known_method,
    refuse_without_place,
    set_apart,
    turns_of,
)
from megavrc.vlm.checkpoint import CheckpointSubject, read_questions
from megavrc.vlm.costs import cost_cases
from megavrc.vlm.hosts import refusal_of
from megavrc.vlm.joint import GROUP, joint_cases
from megavrc.vlm.mini import FOLDER, trained_kinds
from megavrc.vlm.questions import TURNS, TYPES, Conversation, Kind, conversation
from megavrc.vlm.report import COMMAND, write_llmc_report
from megavrc.vlm.watching import kept_places

KEEPS = (0.5, 0.25, 0.1)
JOINT_KEEPS = (0.5, 0.25)
FORMATS = ("int8", "int4", "int3")
JOINT = ("pool", "divprune", "fastv", "pyramiddrop", "dycoke")
"""Methods of the grid tokens x bits, by default those of these that the family has."""

FILES = ("accuracy", "costs", "joint", "kept")
Sets = Mapping[int, Sequence[Conversation]]
Tested = tuple[Subject, Sets, Sequence[Conversation]]


@dataclass(frozen=True)
class BenchPlan:
    """The plan of a benchmark.

    Attributes:
        methods: names of the methods. keeps: budgets. conversations: of each seed. seeds: of test conversations.
        turns: of a conversation, at most. rounds: of timing. batch: conversations at a time.
    """

    methods: Sequence[str]
    keeps: Sequence[float]
    conversations: int
    seeds: Sequence[int]
    turns: int = TURNS
    rounds: int = 5
    batch: int = 75


def bench(
    out: Path = Path("runs/llmc"),
    mini: Path | None = None,
    checkpoint: Path | None = None,
    questions: Path | None = None,
    kinds: list[Kind] | None = None,
    methods: list[str] | None = None,
    keep: list[float] | None = None,
    conversations: int | None = None,
    seeds: list[int] | None = None,
    frames: int = 8,
    batch: int = 75,
    quick: bool = False,
    device: str = "auto",
) -> None:
    """Measure token reduction on the mini-VLM, or on a checkpoint with questions of yours, and write a report.

    Accuracies of the mini-VLM are those of a tiny model on drawn pictures: they compare methods, and say nothing of a
    real checkpoint's scores.

    Args:
        out: folder for result files (accuracy, costs, joint, kept), pareto.csv and report.html.
        mini: folder of the trained mini-VLMs (default: those in examples/mini_vlm).
        checkpoint: folder of transformers with a processor, instead of the mini-VLM.
        questions: JSON lines with its questions, in the format of docs/llmc.md.
        kinds: kinds to measure (default: those with a trained mini-VLM, or with questions). `out` keeps cases
            of the other kind that were measured in the same way.
        methods: names of the methods (default: all that the family has).
        keep: budgets, as shares of layer-weighted visual tokens (default: 0.5 0.25 0.1).
        conversations: conversations of each seed and kind (default: 100, quick: 24); of `questions`, the first so many
            of each kind (default: all, quick: 24).
        seeds: seeds of the mini-VLM's test conversations (default: 1 2 3).
        frames: frames of each clip of `questions`.
        batch: conversations asked at a time.
        quick: fewer conversations and rounds: minutes on two cores.
        device: `cpu` or `cuda`, for a checkpoint; the mini-VLM runs on the CPU.
    """
    check_least(
        frames=(frames, 1), batch=(batch, 1), conversations=(1 if conversations is None else conversations, 1)
    )
    check_keep(*keep or ())
    if (checkpoint is None) != (questions is None):
        raise UserError("--checkpoint and --questions go together: a model, and what it is asked")
    if checkpoint is not None and (mini or seeds):
        raise UserError("--mini and --seeds are of the mini-VLM: leave them out with --checkpoint")
    named = [known_method(name).name for name in methods or ()]
    known = read_questions(questions, frames) if questions else []
    plan = BenchPlan(
        named or [*METHODS],
        keep or KEEPS,
        conversations or (24 if quick else len(known) or 100),
        (0,) if known else seeds or (1, 2, 3),
        rounds=3 if quick else 7,
        batch=batch,
    )
    tested: Iterable[Tested]
    if checkpoint is None:
        tested = of_mini(mini or FOLDER, plan, kinds)
    else:
        brought = CheckpointSubject(checkpoint, str(check_device(device)))
        refuse_without_place(brought, named)
        tested = of_checkpoint(brought, known, kinds, plan.conversations)
    config = json.loads(
        json.dumps({"mini": checkpoint is None, "questions": questions and questions.name} | vars(plan))
    )
    files = {name: others_of(out / f"{name}.json", config, kinds) for name in FILES}
    out.mkdir(parents=True, exist_ok=True)
    for subject, sets, others in tested:
        for name, cases in kind_cases(subject, sets, others, plan):
            files[name] += cases
            write_result(out / f"{name}.json", recorded(files[name], config))
    for name, cases in files.items():  # those too that nothing was measured for
        write_result(out / f"{name}.json", recorded(cases, config))
    write_atomic(out / "pareto.csv", pareto(read_result(out / "accuracy.json")).encode())
    print(write_llmc_report(out))


def others_of(path: Path, config: dict[str, Any], kinds: Sequence[Kind] | None) -> list[dict[str, Any]]:
    """Cases of kinds that are not measured now, with their revision, from a file that was measured in the same way."""
    if not kinds or not path.is_file() or (known := read_result(path))["config"] != config:
        return []
    others = [row for row in known["cases"] if row["config"]["kind"] not in kinds]
    return [row | {"facts": {"revision": known["revision"]} | row.get("facts", {})} for row in others]


def of_mini(folder: Path, plan: BenchPlan, kinds: Sequence[Kind] | None) -> Iterator[Tested]:
    """The plan for the mini-VLM, with conversations of the test split; others are of the training's. By default the
    kinds that are trained.
    """
    for kind in kinds or trained_kinds(folder) or TYPES:
        draw = partial(conversation, kind, "test")
        sets: Sets = {seed: [draw(seed, i) for i in range(plan.conversations)] for seed in plan.seeds}
        yield MiniSubject(folder, kind), sets, [conversation(kind, "train", 0, i) for i in range(OTHERS)]


def of_checkpoint(
    subject: Subject,
    conversations: Sequence[Conversation],
    kinds: Sequence[Kind] | None,
    most: int | None = None,
) -> list[Tested]:
    """The kinds that there are questions for, `most` conversations of each; others are as `set_apart` has them."""
    found: list[Tested] = []
    for kind in kinds or TYPES:
        chosen = [item for item in conversations if item.kind == kind]
        others, asked_about = set_apart(chosen)
        if asked_about:
            found.append((subject, {0: asked_about[:most]}, others))
        elif chosen or kinds:
            raise UserError(
                f"{len(chosen)} conversations about {len(others)} {kind}s: two {kind}s are the least, as every tenth "
                "is kept for thresholds"
            )
    return found


def kind_cases(
    subject: Subject, sets: Sets, others: Sequence[Conversation], plan: BenchPlan
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(file, cases) of one model and one kind, each as soon as it is measured."""
    first = next(iter(sets.values()))
    kind, turns = first[0].kind, turns_of(first, plan.turns)
    methods = [name for name in plan.methods if not refused(subject, name, kind)]
    guided = [name for name in methods if METHODS[name].guided]
    joint = [name for name in JOINT if name in methods]
    ask = partial(accuracy_cases, subject, sets, others, keeps=plan.keeps, turns=turns, batch=plan.batch)
    yield "accuracy", [*ask(methods=methods), blind_case(subject, sets, turns, plan.batch)]
    if turns > 1 and guided:
        yield "accuracy", ask(methods=guided, selection="frozen")[1:]
    yield "costs", cost_cases(subject, first, others, methods, keep=0.25, rounds=plan.rounds)
    if isinstance(subject, MiniSubject):
        yield "kept", kept_cases(subject, first, others, methods, keep=0.25)
    yield "joint", joint_cases(subject, sets, joint, JOINT_KEEPS, FORMATS, turns, plan.batch)


def refused(subject: Subject, name: str, kind: Kind) -> bool:
    """Whether the family has no place for the method, or pictures no frames."""
    method = METHODS[name]
    return bool(refusal_of(subject.model, method)) or (kind == "image" and method.kind == "temporal")


def blind_case(subject: Subject, sets: Sets, turns: int, batch: int) -> dict[str, Any]:
    """The same questions about black pictures: what can be guessed."""
    black = {
        seed: [replace(item, show=partial(darkened, item)) for item in conversations]
        for seed, conversations in sets.items()
    }
    kind = next(iter(sets.values()))[0].kind
    whole, answers = (asked(subject, chosen, Reduced(), turns, batch) for chosen in (sets, black))
    return case(f"{kind}: black pictures", answers.metrics(whole), kind=kind, method="black", keep=1.0)


def darkened(item: Conversation) -> NDArray[np.uint8]:
    """Black, in the shape of the item's frames."""
    return np.zeros_like(item.frames)


def kept_cases(
    subject: Subject,
    conversations: Sequence[Conversation],
    others: Sequence[Conversation],
    methods: Sequence[str],
    keep: float,
) -> list[dict[str, Any]]:
    """The tokens of the first conversation that each method leaves to the last layer, as numbers."""
    kind, found = conversations[0].kind, []
    for name in methods:
        try:
            reduced = fitted(subject, others, Reduced(name, keep))
            kept = kept_places(subject, conversations[:1], reduced)[-1, 0]
        except ValueError:  # the budget is out of the method's reach: accuracy says so
            continue
        places = {"kept": kept.nonzero()[:, 0].tolist()}
        found.append(case(f"{kind}: {name} {keep:g}", {}, places, kind=kind, method=name, keep=keep))
    return found


def recorded(cases: list[dict[str, Any]], config: dict[str, Any]) -> Result:
    """A result file of the benchmark."""
    protocol = {
        "answers": "first words of greedy decoding; earlier turns hold the right answers",
        "paired": f"lost_* is the accuracy of the {WHOLE} model less the method's, question by question",
        "left_out": f"types that the {WHOLE} model answers below {GOAL:.0%} count in no sum",
        "interval": f"95%, bootstrap of conversations, {DRAWS} draws; as wide as Wilson's where all are alike; "
        "by_seed: one value a seed",
        "times": "CPU seconds (on a GPU: of its clock, waited for), median and range of rounds in turn",
        "bits": f"simulated: weights rounded to nearest, groups of {GROUP} (the largest below that divide a layer), "
        "the head untouched; no byte is saved",
    }
    return result(COMMAND, config, cases, protocol=protocol)


def pareto(accuracy: Result) -> str:
    """CSV of budget and accuracy, and whether no other method of the kind has more accuracy for as few tokens."""
    rows = [
        (row["config"], row["metrics"]["budget"]["value"], row["metrics"]["all"]["value"])
        for row in accuracy["cases"]
        if "all" in row["metrics"] and row["config"].get("selection", "fresh") == "fresh"
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "method", "keep", "budget", "accuracy", "front"])
    for config, budget, right in rows:
        better = (
            other["kind"] == config["kind"]
            and less <= budget
            and more >= right
            and (less, more) != (budget, right)
            for other, less, more in rows
        )
        front = int(not any(better))
        writer.writerow(
            [config["kind"], config["method"], config["keep"], f"{budget:.4f}", f"{right:.4f}", front]
        )
    return text.getvalue()
