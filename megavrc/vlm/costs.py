"""Costs of a method: seconds of tower, selection, prefill and decoding, and memory, by batch size."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from megavrc.measure import turns
from megavrc.results import case, median_of, metric
from megavrc.vlm.accuracy import WHOLE
from megavrc.vlm.asking import Reduced, Subject, fitted
from megavrc.vlm.questions import Conversation
from megavrc.vlm.watching import Spent, peak_of, spend


def cost_cases(
    subject: Subject,
    conversations: Sequence[Conversation],
    others: Sequence[Conversation],
    methods: Iterable[str],
    keep: float,
    sizes: Sequence[int] = (1, 8),
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """A case for each method and batch size, and for the model as it is; all of them take turns.

    A size that there are too few conversations for has none.
    """
    kind = conversations[0].kind
    wanted = {WHOLE: Reduced()}
    for name in methods:
        with contextlib.suppress(ValueError):  # the budget is out of the method's reach: accuracy says so
            wanted[name] = fitted(subject, others, Reduced(name, keep))
    cells = [(name, size) for name in wanted for size in sizes if size <= len(conversations)]
    found: dict[tuple[str, int], list[Spent]] = {}
    memory: dict[tuple[str, int], int | None] = {}
    for turn, cell in turns(cells, rounds, 1, f"{kind}: time"):
        size, measured = cell[1], wanted[cell[0]]
        try:
            if turn < 0:
                memory[cell] = peak_of(subject, conversations[:size], measured)
            else:
                spent = spend(subject, conversations[:size], measured)
                found.setdefault(cell, []).append(spent)
        except (ValueError, torch.OutOfMemoryError):  # the same, shown by the prompt; or too large a batch
            continue
    return [
        case(
            f"{kind}: {name} {wanted[name].keep:g} batch {size}",
            cost_metrics(laps, memory.get((name, size))),
            kind=kind,
            method=name,
            keep=wanted[name].keep,
            batch=size,
        )
        for (name, size), laps in found.items()
    ]


def cost_metrics(spent: Sequence[Spent], memory: int | None) -> dict[str, Any]:
    """Medians over the rounds, with their range; the peak of one answer."""
    return {
        "tower": median_of([item.tower for item in spent], "s"),
        "selection": median_of([item.rest for item in spent], "s"),
        "prefill": median_of([item.llm[0] for item in spent], "s"),
        "decode": median_of([sum(item.llm[1:]) / len(item.llm[1:]) for item in spent], "s"),
        "total": median_of([item.total for item in spent], "s"),
        "memory": metric(memory, "B"),
    }
