"""Fewer tokens and fewer bits together. Bits are simulated: they say what accuracy is left, and save no byte here."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from megavrc.progress import progress
from megavrc.quantization.layers import linear_layers
from megavrc.quantization.simulate import simulate_quantization
from megavrc.results import case, metric
from megavrc.vlm.accuracy import WHOLE, asked
from megavrc.vlm.asking import Reduced, TooLarge
from megavrc.vlm.questions import Conversation

STORED = 16
"""Bits of a weight that nothing is done to."""
HEAD = ("lm_head",)
GROUP = 32  # inputs with one scale


def joint_cases(
    subject: Any,
    sets: Mapping[int, Sequence[Conversation]],
    methods: Iterable[str],
    keeps: Sequence[float],
    formats: Iterable[str],
    turns: int,
    batch: int,
) -> list[dict[str, Any]]:
    """A case for each method (and none) with each number format (and none), paired with the model as it is."""
    kind = next(iter(sets.values()))[0].kind
    model, whole = subject.model, asked(subject, sets, Reduced(), turns, batch)
    cells = [Reduced(), *(Reduced(name, keep) for name in methods for keep in keeps)]
    grid = [(number_format, cell) for number_format in ("none", *formats) for cell in cells]
    found: list[dict[str, Any]] = []
    done: dict[str, tuple[Any, float]] = {}
    try:
        for number_format, cell in progress(grid, f"{kind}: tokens x bits"):
            method = cell.method or WHOLE
            label = f"{kind}: {method} {cell.keep:g} simulated {number_format}"
            how: dict[str, Any] = dict(kind=kind, method=method, keep=cell.keep, simulated=number_format)
            try:
                if number_format not in done:
                    done.clear()
                    subject.model = model  # so that the copy before is gone
                    done[number_format] = rounded(model, number_format)
                subject.model, bits = done[number_format]
                unchanged = number_format == "none" and cell.method is None
                answers = whole if unchanged else asked(subject, sets, cell, turns, batch)
            except (torch.OutOfMemoryError, TooLarge):  # the copy with rounded weights is a second model
                found.append(case(label, {}, {"refused": "a second model does not fit into memory"}, **how))
                continue
            except ValueError as error:  # a budget out of the method's reach
                found.append(case(label, {}, {"refused": str(error)}, **how))
                continue
            metrics = answers.metrics(whole)
            metrics["bits"] = metric(bits)
            metrics["compression"] = metric(STORED / bits / metrics["budget"]["value"])
            found.append(case(label, metrics, **how))
    finally:
        subject.model = model
    return found


def rounded(model: Any, number_format: str) -> tuple[Any, float]:
    """A copy of the model whose linear layers compute with rounded weights, and the bits a weight; the head stays.

    Layers that groups of GROUP do not divide have the largest groups below that do.
    """
    if number_format == "none":
        return model, float(STORED)
    other = copy.deepcopy(model)
    layers = linear_layers(other, HEAD)
    sizes = {
        name: max(size for size in range(1, GROUP + 1) if layer.in_features % size == 0)
        for name, layer in layers.items()
    }
    total = 0.0
    for size in dict.fromkeys(sizes.values()):
        rest = [name for name, its in sizes.items() if its != size]
        done = simulate_quantization(other, "rtn", number_format, group_size=size, skip=[*HEAD, *rest])
        total += (done.bits or STORED) * sum(layers[name].weight.numel() for name in done.layers)
    return other, total / sum(layer.weight.numel() for layer in layers.values())
