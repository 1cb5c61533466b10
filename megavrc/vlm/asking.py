"""Questions asked of a model, with or without reduction: which of its answers are right.

The same way for the mini-VLM and for a checkpoint that a user brings: `generate`, through the host. Earlier turns hold
the right answers, so that a mistake in one turn costs nothing in the next.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megavrc.errors import UserError
from megavrc.reduction import METHODS, Method, find_method
from megavrc.vlm.hosts import calibrated, family_of, reduce, refusal_of, request_of
from megavrc.vlm.mini import WORDS, dialogue, load_mini, pixel_inputs, pixels
from megavrc.vlm.questions import Conversation, Kind

OTHERS = 16
"""Conversations that thresholds are set on, and nothing is asked of."""


class TooLarge(UserError):
    """A batch does not fit into memory."""


class Subject(Protocol):
    """A model that can be asked.

    Attributes:
        name: what it is called in results.
        model: of transformers.
        longest: tokens of an answer, at most.
    """

    name: str
    model: Any
    longest: int

    def inputs(self, conversations: Sequence[Conversation], turn: int) -> dict[str, Tensor]:
        """The inputs of `generate` for one batch: the conversations up to the question of `turn`, counted from 0."""

    def words(self, ids: Tensor) -> list[str]:
        """The answers [B] that new ids [B, n] stand for."""


class MiniSubject:
    """A trained mini-VLM of one kind, from a folder that holds a folder for each kind."""

    longest = 1

    def __init__(self, folder: Any, kind: Kind) -> None:
        self.name, self.kind, self.model = f"mini-VLM ({kind}s)", kind, load_mini(folder, kind)

    def inputs(self, conversations: Sequence[Conversation], turn: int) -> dict[str, Tensor]:
        rows = [dialogue(self.kind, item.questions[: turn + 1])[:-1] for item in conversations]
        ids = torch.tensor(rows)
        shown = pixel_inputs(pixels([item.frames for item in conversations]))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown}

    def words(self, ids: Tensor) -> list[str]:
        return [WORDS[row[0]] for row in ids.tolist()]


@dataclass(frozen=True)
class Reduced:
    """A method and its budget, or with no method the model as it is; `options` are those of `reduce`."""

    method: str | None = None
    keep: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def applied(self, model: Any) -> AbstractContextManager[Any]:
        """A block of `reduce`, which yields the count of visual tokens; without a method, None."""
        if self.method is None:
            return nullcontext()
        return reduce(model, self.method, keep=self.keep, **self.options)


def checked_reduction(method: str | None, keep: float, options: dict[str, Any]) -> Reduced:
    """What is asked for, refused as far as that goes without a model: UserError."""
    if method is None:
        given = ["keep"] * (keep != 1) + [*options]
        if given:
            raise UserError(f"{given[0]} is of a method, and none is given: add method, or leave it out")
        return Reduced()
    known_method(method)
    try:
        request_of(method, keep, **options)
    except ValueError as error:
        raise UserError(str(error)) from None
    return Reduced(method, keep, options)


def at_least_one(name: str, value: int | str) -> int:
    """The number that is written; lmms-eval knows `auto` besides, for a batch that it finds itself."""
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"{name}: {value!s:.60}, give a whole number of at least 1")
    return int(value)


def known_method(name: str) -> Method:
    """The method of that name; UserError names those near it."""
    try:
        return find_method(name)
    except ValueError as error:
        raise UserError(f"--method: {error}") from None


def refuse_without_place(subject: Subject, named: Sequence[str] = ()) -> None:
    """UserError for a method that the model has no place for, or, where none is named, for a model without any."""
    why = {name: refusal_of(subject.model, find_method(name)) for name in named or METHODS}
    name, reason = next(((name, reason) for name, reason in why.items() if reason), ("", ""))
    if reason and (named or all(why.values())):
        raise UserError(f"{subject.name} ({family_of(subject.model)}) has no place for {name}: {reason}")


@torch.no_grad()
def ask(
    subject: Subject, conversations: Sequence[Conversation], reduced: Reduced, turns: int, batch: int
) -> tuple[NDArray[np.bool_], list[tuple[float, int]]]:
    """[N, turns]: whether each answer is right; of each batch the layer-weighted share of visual tokens, and of how
    many.

    One block of `reduce` for each batch, turn after turn in it.
    """
    found, budgets = [], []
    for part in in_batches(conversations, batch):
        with reduced.applied(subject.model) as seen:
            columns = []
            for turn in range(turns):
                inputs = subject.inputs(part, turn)
                try:
                    ids = subject.model.generate(**inputs, max_new_tokens=subject.longest, do_sample=False)
                except torch.OutOfMemoryError:
                    raise TooLarge(
                        f"{len(part)} conversations at a time need too much memory: lower --batch"
                    ) from None
                said = subject.words(ids[:, inputs["input_ids"].shape[1] :])
                wanted = [item.questions[turn].answer for item in part]
                columns.append([plain(a) == plain(b) for a, b in zip(said, wanted, strict=True)])
            found.append(np.array(columns, dtype=bool).T)
            budgets.append((1.0, 1) if seen is None else (seen.keep, seen.unreduced))
    return np.concatenate(found), budgets


def set_apart(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """A conversation about each of every tenth picture, up to OTHERS, for thresholds; and those about all others."""
    sources = [item.source or number for number, item in enumerate(conversations)]
    first = dict(zip(reversed(sources), reversed(conversations), strict=True))
    apart = list(dict.fromkeys(sources))[::10][:OTHERS]
    asked = [item for source, item in zip(sources, conversations, strict=True) if source not in apart]
    return [first[source] for source in apart], asked


def fitted(subject: Subject, others: Sequence[Conversation], reduced: Reduced) -> Reduced:
    """The options with the threshold of a method whose count follows the content, set on conversations that are not
    measured.
    """
    if reduced.method is None:
        return reduced
    inputs = (subject.inputs(part, 0) for part in in_batches(others, 8))
    return replace(
        reduced, options=reduced.options | calibrated(subject.model, reduced.method, reduced.keep, inputs)
    )


def turns_of(conversations: Sequence[Conversation], most: int) -> int:
    """Turns that all of them have, up to `most`; a warning says where some have more."""
    counts = [min(most, len(item.questions)) for item in conversations]
    if min(counts) < max(counts):
        warnings.warn(
            f"a conversation has {min(counts)} of {max(counts)} turns: of each the first {min(counts)} are asked; "
            "put shorter ones into a file of their own",
            stacklevel=2,
        )
    return min(counts)


def in_batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Runs of up to `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def plain(answer: str) -> str:
    """Lower case, without articles and punctuation, as VQA scores compare answers; where nothing else stands (the
    letter A of a choice, a plus) they count."""
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words) or answer.strip()
