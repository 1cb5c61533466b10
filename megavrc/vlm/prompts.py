"""Prompts with fewer placeholders: ids, mask and positions cut together, and what a cache of them holds."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.vlm.visual import PIXELS

MADE_FROM = ("image_grid_thw", "video_grid_thw", "image_sizes", "mm_token_type_ids", "second_per_grid_ts")
CACHES = ("cache", "past_key_values")  # what transformers calls it from 5.24 on, and what it called it before


@dataclass(frozen=True)
class Turn:
    """A prompt as it was given, and as the LLM has it in its cache (B rows)."""

    given: Tensor
    "[B, S]: ids with all placeholders"
    ids: Tensor
    "[B, K]: of what was left"
    mask: Tensor
    "[B, K]"
    positions: Tensor
    "[B, K], or with M-RoPE [4, B, K]"

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The inputs as the model takes them."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}

    @property
    def whole(self) -> bool:
        """Whether nothing was cut, of any row."""
        return self.ids.equal(self.given)

    def continued(self, inputs: dict[str, Any], placeholders: list[int]) -> "Turn":
        """A conversation that begins with it, given whole; UserError where it does not, or where pictures follow."""
        ids, mask, known = inputs["input_ids"], inputs.get("attention_mask"), self.given.shape[1]
        if ids.shape[0] != len(self.given) or not ids[:, :known].equal(self.given):
            raise UserError(
                "the cache holds another conversation: give this one from its first token, as it was given before"
            )
        after = ids[:, known:]
        if torch.isin(after, after.new_tensor(placeholders)).any():
            raise UserError("a new picture after a cache: give the whole conversation without a cache")
        seen = torch.ones_like(after) if mask is None else mask[:, known:]
        counted = self.positions[..., -1:] + seen.long().cumsum(-1)
        return Turn(
            ids,
            torch.cat([self.ids, after], 1),
            torch.cat([self.mask, seen], 1),
            torch.cat([self.positions, counted], -1),
        )

    def following(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Mask and positions of tokens after a cache that begins with it: `inputs` holds only the new ones."""
        new, mask = inputs["input_ids"], inputs.get("attention_mask")
        between = cache_of(inputs).get_seq_length() - self.ids.shape[1]
        seen = (
            new.new_ones(len(new), between + new.shape[1]) if mask is None else mask[:, self.given.shape[1] :]
        )
        counted = self.positions[..., -1:] + seen.long().cumsum(-1)
        return {
            "attention_mask": torch.cat([self.mask, seen], 1),
            "position_ids": counted[..., -new.shape[1] :],
        }


def cache_of(given: dict[str, Any]) -> Any:
    """The cache among the arguments of a call, by either name; None where there is none."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


def cache_in(output: Any) -> Any:
    """The cache in what a model returned, by either name; None where there is none."""
    named = (getattr(output, name, None) for name in CACHES)
    placed = (part for part in output if hasattr(part, "get_seq_length")) if isinstance(output, tuple) else ()
    return next((found for found in (*named, *placed) if found is not None), None)


def turn_of(cache: Any) -> Turn | None:
    """The prompt that a cache begins with, where `remember` wrote it down: on the cache, so that copies have it too."""
    return getattr(cache, "megavrc_turn", None)


def remember(cache: Any, turn: Turn) -> None:
    """Write the prompt down that the cache begins with, if there is a cache."""
    if cache is not None:
        cache.megavrc_turn = turn


def without_pixels(inputs: dict[str, Any]) -> dict[str, Any]:
    """All other inputs."""
    return {name: value for name, value in inputs.items() if name not in sum(PIXELS.values(), ())}


def with_turn(inputs: dict[str, Any], turn: Turn) -> dict[str, Any]:
    """The turn's ids, mask and positions for those of `inputs`, and for what the model would make them from."""
    return {name: value for name, value in inputs.items() if name not in MADE_FROM} | turn.inputs


def position_ids(model: Any, ids: Tensor, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
    """[R, B, S] of the whole prompt: one row, or with M-RoPE text, time, height and width.

    Padding behind a prompt has the position of its last token, since an answer counts on from the last column.
    """
    text = (mask.long().cumsum(-1) - 1).clamp(min=0)[None]
    if not hasattr(model.model, "get_rope_index"):
        return text
    wanted = inspect.signature(model.model.get_rope_index).parameters
    given = {name: inputs[name] for name in wanted if inputs.get(name) is not None}
    kinds = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
    given = {"mm_token_type_ids": kinds, **given, "attention_mask": mask}
    positions = torch.cat([text, model.model.get_rope_index(**given)[0]])
    column = torch.arange(ids.shape[1], device=ids.device)
    last = column.where(mask.bool(), 0).cummax(-1).values
    return positions.gather(-1, last.expand(len(positions), -1, -1))


def cut_prompt(ids: Tensor, mask: Tensor, positions: Tensor, stay: Tensor, policy: str) -> Turn:
    """Prompts [B, S] with the tokens of `stay` [B, S] bool alone, padded on the left; positions are [R, B, S]."""
    columns = [row.nonzero()[:, 0] for row in stay]
    return Turn(
        ids,
        left_padded([row[at] for row, at in zip(ids, columns, strict=True)]),
        left_padded([row[at] for row, at in zip(mask, columns, strict=True)]),
        cut_positions(positions, columns, policy),
    )


def cut_positions(positions: Tensor, columns: list[Tensor], policy: str) -> Tensor:
    """[B, K] or [4, B, K] at `columns`; the text row of M-RoPE counts anew (gaps in it would mean packed prompts)."""
    rows = []
    for sample, at in enumerate(columns):
        kept = positions[:, sample, at]
        if policy == "renumbered":  # the one row, or the three of M-RoPE
            kept = torch.cat([kept[:-3], renumbered(kept[-3:])])
        if len(kept) > 1:
            kept = torch.cat([torch.arange(len(at), device=at.device)[None], kept[1:]])
        rows.append(kept.T)
    padded = left_padded(rows).permute(2, 0, 1)
    return padded if len(padded) > 1 else padded[0]


def renumbered(positions: Tensor) -> Tensor:
    """Positions without gaps, in the order that they have: rows of M-RoPE together."""
    return torch.unique(positions, return_inverse=True)[1]


def left_padded(rows: list[Tensor]) -> Tensor:
    """[B, longest, ..], zeros on the left: ids, mask and positions of ragged prompts."""
    longest = max(map(len, rows))
    return torch.stack([torch.cat([row.new_zeros(longest - len(row), *row.shape[1:]), row]) for row in rows])


def keeping_its_mask(turn: Turn) -> Turn:
    """One column of padding before prompts whose positions have gaps and whose mask is all ones.

    `generate` drops a mask of ones; without mask and cache, transformers takes gaps for the seams of packed prompts.
    """
    if turn.positions.ndim != 2 or not turn.mask.all() or (turn.positions.diff() == 1).all():
        return turn
    ids, mask, positions = (torch.nn.functional.pad(x, (1, 0)) for x in (turn.ids, turn.mask, turn.positions))
    return Turn(turn.given, ids, mask, positions)


def with_prompt(answer: Any, turn: Turn) -> Any:
    """The output of `generate`, with the prompt as it was given in place of the reduced one."""
    sequences = answer if isinstance(answer, Tensor) else answer.sequences
    whole = turn.given.repeat_interleave(len(sequences) // len(turn.given), dim=0)
    whole = torch.cat([whole, sequences[:, turn.ids.shape[1] :]], dim=1)
    if isinstance(answer, Tensor):
        return whole
    answer.sequences = whole
    return answer
