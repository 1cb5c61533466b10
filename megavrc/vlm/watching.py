"""Probes inside a model while it answers, by hooks: positions in its layers, seconds of its parts."""

import contextlib
import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megavrc.hardware import peak_memory, reset_peak_memory
from megavrc.measure import Clock, clock
from megavrc.vlm.asking import Reduced, Subject
from megavrc.vlm.mini import VISUAL
from megavrc.vlm.questions import Conversation, Kind
from megavrc.vlm.tower import tower_of

DECODED = 4
"""Tokens after the first whose time is taken."""

ANSWER: dict[str, Any] = {
    "max_new_tokens": 1 + DECODED,
    "min_new_tokens": 1 + DECODED,  # a model that is done after one word is timed over as many
    "do_sample": False,
}


@contextmanager
def layer_positions(model: Any) -> Iterator[list[Tensor]]:
    """Positions [B, S] that each layer of the LLM sees, call by call; to be entered within a block of `reduce`.

    They are read off the rotations that a layer is given, which is what it sees of them.
    """
    seen: list[Tensor] = []
    longest = torch.arange(model.config.get_text_config().max_position_embeddings)[None]

    def look(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        known, given = (
            torch.cat(rotation, dim=-1)
            for rotation in (
                model.model.language_model.rotary_emb(hidden, longest),
                kwargs["position_embeddings"],
            )
        )
        seen.append(torch.cdist(given, known.expand(len(given), -1, -1)).argmin(-1))

    hooks = [
        layer.register_forward_pre_hook(look, with_kwargs=True) for layer in model.model.language_model.layers
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def kept_places(subject: Subject, conversations: Sequence[Conversation], reduced: Reduced) -> Tensor:
    """[L, B, N] bool: which visual tokens each layer of a mini-VLM sees, the newline of a clip left out."""
    total = visual_tokens(conversations[0].kind)
    with reduced.applied(subject.model), layer_positions(subject.model) as seen:
        subject.model.generate(**subject.inputs(conversations, 0), max_new_tokens=1, do_sample=False)
    kept = torch.zeros(len(seen), len(conversations), total, dtype=torch.bool)
    for layer, positions in enumerate(seen):
        for row, found in enumerate(positions.expand(len(conversations), -1)):
            places = found[(found >= 1) & (found <= total)] - 1  # 0 is the start
            kept[layer, row, places] = True
    return kept


def visual_tokens(kind: Kind) -> int:
    """Tokens of one picture or clip of a mini-VLM that a method may leave out."""
    return VISUAL[kind] - (kind == "video")


@dataclass
class Spent:
    """Seconds of one answer of `1 + DECODED` tokens."""

    tower: float = 0.0
    llm: list[float] = field(default_factory=list)
    "of each call of the LLM: the first is the prefill"
    total: float = 0.0

    @property
    def rest(self) -> float:
        """Selection, projector, embedding and what `generate` does besides."""
        return self.total - self.tower - sum(self.llm)


def work_clock(device: torch.device) -> Clock:
    """Seconds that a model works: of the process on a CPU, which others on the machine do not lengthen."""
    return time.process_time if device.type == "cpu" else clock(device)


@contextmanager
def timed(module: Any, spent: list[float], now: Clock) -> Iterator[None]:
    """Append the seconds of each call of a module."""
    starts: list[float] = []
    before = module.register_forward_pre_hook(lambda *_: starts.append(now()))
    after = module.register_forward_hook(lambda *_: spent.append(now() - starts.pop()))
    try:
        yield
    finally:
        before.remove()
        after.remove()


@torch.no_grad()
def spend(subject: Subject, conversations: Sequence[Conversation], reduced: Reduced) -> Spent:
    """Answer the first question of a batch once, and say what it took. The prompt is made beforehand."""
    seer = tower_of(subject.model, conversations[0].kind).model
    inputs, now = subject.inputs(conversations, 0), work_clock(subject.model.device)
    found = Spent()
    tower: list[float] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(reduced.applied(subject.model))
        stack.enter_context(timed(seer, tower, now))
        stack.enter_context(timed(subject.model.model.language_model, found.llm, now))
        start = now()
        subject.model.generate(**inputs, **ANSWER)
        found.total = now() - start
    found.tower = sum(tower)
    return found


@torch.no_grad()
def peak_of(subject: Subject, conversations: Sequence[Conversation], reduced: Reduced) -> int | None:
    """Bytes that the same answer takes at most, above those in use before; None where a peak cannot be forgotten.

    Not timed: on a CPU, free memory goes back to the system first, or what was in use once would hide the peak.
    """
    inputs, device = subject.inputs(conversations, 0), subject.model.device
    with reduced.applied(subject.model):
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        if (before := reset_peak_memory(device)) is None:
            return None
        subject.model.generate(**inputs, **ANSWER)
        return peak_memory(device) - before
