"""`megavrc compress_vlm list | describe | run | report`; `bench` is in the module of its name."""

from pathlib import Path
from typing import Literal

from megavrc.errors import UserError, check_keep, check_least
from megavrc.hardware import check_device
from megavrc.reduction import METHODS
from megavrc.results import case, markdown, publish_tables, result
from megavrc.vlm.accuracy import asked
from megavrc.vlm.asking import (
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
from megavrc.vlm.hosts import refusal
from megavrc.vlm.mini import FOLDER
from megavrc.vlm.questions import conversation
from megavrc.vlm.report import write_llmc_report
from megavrc.vlm.visual import FAMILIES


def list_methods(family: str | None = None) -> None:
    """The methods, and which families have a place for each.

    Args:
        family: model type of transformers, such as qwen2_vl: only its methods, and why others are refused.
    """
    if family is not None and family not in FAMILIES:
        raise UserError(f"no family {family!r}: {', '.join(FAMILIES)}")
    rows = []
    for name, method in METHODS.items():
        why = {other: refusal(other, method) for other in ([family] if family else FAMILIES)}
        able = sum(not reason for reason in why.values())
        where = (why[family] or "yes") if family else f"{able} of {len(FAMILIES)}"
        rows.append([name, method.paper, method.place, method.kind, "yes" if method.guided else "", where])
    print(markdown(["method", "paper", "place", "redundancy", "prompt", family or "families"], rows))


def describe_method(method: str) -> None:
    """Everything to know about one method.

    Args:
        method: name of the method (`list` has all).
    """
    print(known_method(method).describe())


def run_method(
    method: str,
    keep: float = 0.25,
    kind: Literal["image", "video"] = "image",
    checkpoint: Path | None = None,
    questions: Path | None = None,
    n: int = 50,
    turns: int = 1,
    positions: Literal["kept", "renumbered"] = "kept",
    selection: Literal["fresh", "frozen"] = "fresh",
    frames: int = 8,
    batch: int = 75,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Ask one model the same questions with and without one method.

    Args:
        method: name of the method (`list` has all).
        keep: share of layer-weighted visual tokens.
        kind: kind of the mini-VLM and its conversations, or of the questions that are asked.
        checkpoint: folder of transformers with a processor, instead of the mini-VLM.
        questions: JSON lines with its questions.
        n: largest number of conversations.
        turns: largest number of turns of a conversation.
        positions: positions of the tokens that stay: their own, or renumbered without gaps.
        selection: selection in later turns: made afresh, or frozen as the first turn made it.
        frames: frames of each clip of `questions`.
        batch: conversations asked at a time.
        device: `cpu` or `cuda`, for a checkpoint.
        json: file to write the result to.
    """
    known_method(method)
    check_keep(keep)
    check_least(n=(n, 1), turns=(turns, 1), frames=(frames, 1), batch=(batch, 1))
    if (checkpoint is None) != (questions is None):
        raise UserError("--checkpoint and --questions go together: a model, and what it is asked")
    subject: Subject
    if checkpoint is None or questions is None:
        subject, chosen = MiniSubject(FOLDER, kind), [conversation(kind, "test", 0, i) for i in range(n)]
    else:
        subject = CheckpointSubject(checkpoint, str(check_device(device)))
        refuse_without_place(subject, [method])
        chosen = [item for item in read_questions(questions, frames) if item.kind == kind][:n]
    if not chosen:
        raise UserError(f"no conversations about a {kind} there")
    others, chosen = set_apart(chosen)
    if not chosen:
        raise UserError(f"one {kind} is too few: every tenth is kept for thresholds, and not asked about")
    turns = turns_of(chosen, turns)
    whole = asked(subject, {0: chosen}, Reduced(), turns, batch)
    try:
        how = fitted(subject, others, Reduced(method, keep, {"positions": positions, "selection": selection}))
        answers = asked(subject, {0: chosen}, how, turns, batch)
    except ValueError as error:  # a budget out of the method's reach
        raise UserError(str(error)) from None
    cases = [case("unreduced", whole.metrics(whole)), case(f"{method} {keep:g}", answers.metrics(whole))]
    config = {"model": subject.name, "method": method, "keep": keep, "n": len(chosen), **how.options}
    publish_tables(result("megavrc compress_vlm run", config, cases), json)


def report(folder: Path = Path("runs/llmc")) -> None:
    """Write `report.html` anew from the result files of `bench`.

    Args:
        folder: folder that `bench` wrote to.
    """
    print(write_llmc_report(folder))
