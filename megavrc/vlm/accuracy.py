"""Accuracy of answers when tokens go: every method at every budget, paired with the model as it is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megavrc.evaluation.statistics import clustered_share
from megavrc.progress import progress
from megavrc.reduction import METHODS
from megavrc.results import Metric, case, metric
from megavrc.vlm.asking import Reduced, Subject, ask, fitted
from megavrc.vlm.questions import DETAIL, Conversation

DRAWS = 500  # of the bootstrap
WHOLE = "unreduced"
GOAL = 0.95
"""Types of questions that the unreduced model answers less well are left out of verdicts."""
OWN = re.compile(r"(?s)all|bits|budget|compression|detail|gist|turn_\d+|lost_.*")
"""Names of metrics, here and in `joint`, that no type of question can have besides."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Asked:
    """Answers of one model to the conversations of all seeds, in order.

    Attributes:
        right: [N, turns] bool. types: [N, turns] of questions. seeds: [N].
        budgets: layer-weighted share of visual tokens of each batch, and how many it is of.
    """

    right: Array
    types: Array
    seeds: Array
    budgets: list[tuple[float, int]]

    def share(self, values: Array, chosen: Array, least: float = 0.0) -> Metric | None:
        """Mean of `values` [N, turns], `least` to 1, where `chosen`, its 95% interval (bootstrap of conversations),
        each seed's.
        """
        if not chosen.any():
            return None
        rows = np.broadcast_to(np.arange(len(values))[:, None], values.shape)
        groups = [str(row) for row in rows[chosen]]
        found = clustered_share(values[chosen], groups, DRAWS, least=least)
        of_seeds = [self.seeds == seed for seed in dict.fromkeys(self.seeds.tolist())]
        by_seed = [float(values[own][chosen[own]].mean()) for own in of_seeds if chosen[own].any()]
        return found | {"by_seed": by_seed}

    def metrics(self, whole: "Asked") -> dict[str, Metric]:
        """Accuracy as a whole, by turn, of detail and gist, of each type; what is lost against `whole`, paired.

        All but the types themselves without the types that `whole` answers below the goal. Of `whole` itself nothing
        is lost, and that has no interval.
        """
        turns = np.broadcast_to(np.arange(self.right.shape[1]), self.right.shape)
        judged = ~np.isin(self.types, whole.left_out())
        detail = np.isin(self.types, DETAIL)
        parts: dict[str, Array] = {"all": judged}
        parts |= {f"turn_{turn + 1}": judged & (turns == turn) for turn in range(self.right.shape[1])}
        parts |= {"detail": judged & detail, "gist": judged & ~detail}
        parts |= {name: self.types == name for name in self.names}
        lost = whole.right.astype(float) - self.right
        found = {name: self.share(self.right, chosen) for name, chosen in parts.items()}
        for name, chosen in parts.items():
            found[f"lost_{name}"] = loss = self.share(lost, chosen, -1.0)
            if loss and self is whole:
                del loss["low"], loss["high"]
        shares, tokens = zip(*self.budgets, strict=True)
        seen = float(np.average(shares, weights=tokens))
        budget = metric(seen, "share", len(shares), min(shares), max(shares))
        return {"budget": budget, **{name: value for name, value in found.items() if value is not None}}

    @property
    def names(self) -> list[str]:
        """The types of questions, in order."""
        return list(dict.fromkeys(self.types.flatten().tolist()))

    def left_out(self) -> list[str]:
        """Types below the goal."""
        return [name for name in self.names if self.right[self.types == name].mean() < GOAL]


def asked(
    subject: Subject,
    sets: Mapping[int, Sequence[Conversation]],
    reduced: Reduced,
    turns: int,
    batch: int,
) -> Asked:
    """The conversations of all seeds; a method with a `seed` of its own is given that of each set."""
    seeded = reduced.method is not None and "seed" in METHODS[reduced.method].options
    parts = [(reduced, [item for conversations in sets.values() for item in conversations])]
    if seeded:
        parts = [
            (replace(reduced, options=reduced.options | {"seed": seed}), list(conversations))
            for seed, conversations in sets.items()
        ]
    answers = [ask(subject, conversations, how, turns, batch) for how, conversations in parts]
    return Asked(
        np.concatenate([right for right, _ in answers]),
        np.array(
            [[question.type for question in item.questions[:turns]] for _, part in parts for item in part]
        ),
        np.array([seed for seed, conversations in sets.items() for _ in conversations]),
        [share for _, shares in answers for share in shares],
    )


def accuracy_cases(
    subject: Subject,
    sets: Mapping[int, Sequence[Conversation]],
    others: Sequence[Conversation],
    methods: Iterable[str],
    keeps: Sequence[float],
    turns: int,
    batch: int,
    **options: Any,
) -> list[dict[str, Any]]:
    """A case for the model as it is, and one for each method and budget; `options` are those of `reduce`.

    Thresholds are set on `others`, of which nothing is asked.
    """
    kind = next(iter(sets.values()))[0].kind
    whole = asked(subject, sets, Reduced(), turns, batch)
    found = [
        case(
            f"{kind}: {WHOLE}",
            whole.metrics(whole),
            {"left_out_of_verdicts": whole.left_out()},
            kind=kind,
            method=WHOLE,
            keep=1.0,
        )
    ]
    wanted = [(name, keep) for name in methods for keep in keeps]
    for name, keep in progress(wanted, f"{kind}: accuracy"):
        label, how = f"{kind}: {name} {keep:g}", {"kind": kind, "method": name, "keep": keep, **options}
        try:
            reduced = fitted(subject, others, Reduced(name, keep, options))
            answers = asked(subject, sets, reduced, turns, batch)
        except ValueError as error:  # a budget out of the method's reach
            found.append(case(label, {}, {"refused": str(error)}, **how))
        else:
            found.append(case(label, answers.metrics(whole), **how))
    return found
