"""Token reduction inside the LLM: hooks before its layers cut hidden states, mask, positions and cache together.

A layer that reduces sees all columns of the prompt and hands fewer on, so each later layer caches fewer. Scores come
from the attention of the layer before (or of its own, on its input); what is cut depends on the prompt alone, so it is
the same with a cache, without one, and for each beam.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from megavrc.errors import UserError
from megavrc.reduction import Method, Reduction, Tokens, reduce_tokens, score
from megavrc.vlm.attention import Heard, listener, listening
from megavrc.vlm.prompts import cache_of, left_padded, renumbered
from megavrc.vlm.visual import Selection


@dataclass(frozen=True)
class Picture:
    """An image or a clip in a prompt."""

    columns: Tensor
    "[N]: where its tokens are; separators are none of them"
    counts: dict[int, int]
    "{layer: tokens from there on}"


@dataclass(frozen=True)
class InnerPlan:
    """The columns to cut from a batch of B prompts of S columns."""

    pictures: list[list[Picture]]
    "[B]"
    words: list[Tensor]
    "[B]: columns of text"
    mask: Tensor
    "[B, S] bool"


@dataclass
class Columns:
    """The columns that the layers at hand see: what is left of a prompt, and whatever follows it."""

    prompt: Tensor
    "[B, n]: columns of the whole prompt, ascending; -1 is padding"
    positions: Tensor
    "[B, n], or with M-RoPE [3, B, n]"
    rotation: tuple[Tensor, Tensor]
    "cosines and sines of `positions`, [B, n, d]"
    sizes: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    "of the tokens of picture (row, number)"

    @property
    def present(self) -> Tensor:
        """[B, n] bool: no padding."""
        return self.prompt >= 0

    def at(self, row: int, columns: Tensor) -> Tensor:
        """The present places of columns of the prompt; those that are gone are left out."""
        return torch.isin(self.prompt[row], columns).nonzero()[:, 0]


@dataclass
class CachedColumns:
    """The columns of a prompt of `length` that the layers of a cache hold, {layer: ..} for each layer that reduces."""

    length: int
    present: dict[int, Tensor] = field(default_factory=dict)
    "[B, K] bool: columns of the prompt in the cache that are no padding"
    shift: dict[int, Tensor] = field(default_factory=dict)
    "[B, 1]: by how much positions after the prompt are lower than without reduction"


class Inner:
    """The hooks of one method in the LLM of one model."""

    def __init__(
        self,
        model: Any,
        method: Method,
        positions: str,
        options: dict[str, Any],
        selection: Selection,
    ) -> None:
        self.llm = model.model.language_model
        self.depth = len(self.llm.layers)
        self.method, self.policy, self.options = method, positions, options
        self.stages = method.layers_of(self.depth, earliest(model))
        config = self.llm.config
        windows = getattr(config, "layer_types", None) or [getattr(config, "sliding_window", None)]
        if any(kind not in (None, "full_attention") for kind in windows):
            raise UserError(f"{method.name} acts inside the LLM, and layers of this one see a sliding window")
        self.plan: InnerPlan | None = None
        self.selection = selection
        self.heard: Heard | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block the LLM has the hooks."""
        with ExitStack() as stack:
            stack.enter_context(listening(self.llm))
            if set(self.method.needs) & {"last_row", "rater_rows", "keys"}:
                for layer in self.stages:
                    stack.enter_context(listener(self.llm.layers[layer - 1].self_attn, self.hear))
            hooks = [self.llm.register_forward_pre_hook(self.begin, with_kwargs=True)]
            for number in range(self.stages[0], self.depth):
                enter = partial(self.enter, number)
                hooks.append(self.llm.layers[number].register_forward_pre_hook(enter, with_kwargs=True))
            for hook in hooks:
                stack.callback(hook.remove)
            yield

    def hear(self, heard: Heard) -> None:
        """Keep queries and keys of a layer for the next one."""
        self.heard = heard

    def hear_only(self, heard: Heard) -> bool:
        """The same, where the attention itself is not needed."""
        self.heard = heard
        return True

    def begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the LLM: what the layers need of the whole batch."""
        self.embeddings: Tensor = kwargs["inputs_embeds"]
        self.mask: Tensor | None = kwargs.get("attention_mask")
        positions: Tensor | None = kwargs.get("position_ids")
        self.positions = positions if positions is None or positions.ndim == 2 else positions[-3:]
        self.now: Columns | None = None
        self.given: dict[int, dict[str, Any]] = {}
        if getattr(cache_of(kwargs), "is_compileable", False):
            raise UserError(f"{self.method.name} needs a cache that grows, not a static one")

    def enter(self, number: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a layer: cut, and hand on the mask and the rotations that go with fewer columns."""
        hidden, cache = args[0], cache_of(kwargs)
        past = cache.get_seq_length(number) if cache is not None else 0
        stage = max(first for first in self.stages if first <= number)
        if not past and self.plan is not None and number == stage:
            hidden = self.reduced(number, layer, hidden, kwargs)
            if cache is not None:
                self.remember(cache, number)
        elif past and stage not in self.given and (known := columns_of(cache)):
            self.given[stage] = self.following(known, stage, hidden, past)
        if stage not in self.given:
            return None
        return (hidden, *args[1:]), {**kwargs, **self.given[stage]}

    def reduced(self, stage: int, layer: Any, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """[B, n', D]: hidden states of the columns that stay, padded on the left."""
        plan, rows = self.plan, len(hidden)
        assert plan is not None and self.positions is not None
        now = self.now or self.all_columns(plan, rows, kwargs)
        if "own_row" in self.method.needs:
            with listener(layer.self_attn, self.hear_only):
                layer.self_attn(
                    hidden_states=layer.input_layernorm(hidden),
                    attention_mask=None,
                    position_embeddings=now.rotation,
                )
        hidden, stay = hidden.clone(), now.present
        for row in range(rows):
            prompt = row // (rows // len(plan.pictures))  # beams share one
            for number, picture in enumerate(plan.pictures[prompt]):
                here = now.at(row, picture.columns)
                select = partial(self.select, stage, now, hidden, row, picture, number)
                found = self.selection.of(prompt, number, stage, select)
                hidden[row, here[found.index]] = found.features
                now.sizes[row, number] = found.size
                stay[row, here] = False
                stay[row, here[found.index]] = True
        columns = [row.nonzero()[:, 0] for row in stay]
        self.heard, self.now = None, self.fewer(now, columns, hidden)
        hidden = left_padded([part[at] for part, at in zip(hidden, columns, strict=True)])
        self.given[stage] = {
            "attention_mask": self.seen(self.now.present, hidden, 0),
            "position_embeddings": self.now.rotation,
            "position_ids": self.now.positions if self.now.positions.ndim == 2 else None,
        }
        return hidden

    def all_columns(self, plan: InnerPlan, rows: int, kwargs: dict[str, Any]) -> Columns:
        """The columns of the whole prompt, and of the answer so far, where there is no cache."""
        assert self.positions is not None
        length = self.embeddings.shape[1]
        mask = plan.mask.repeat_interleave(rows // len(plan.mask), 0)
        if length < mask.shape[1]:
            raise UserError(f"{self.method.name} acts inside the LLM and needs the prompt in one piece")
        present = pad(mask, (0, length - mask.shape[1]), value=True)
        columns = torch.arange(length, device=mask.device).expand(rows, -1).masked_fill(~present, -1)
        rotation = [x.expand(rows, -1, -1) for x in kwargs["position_embeddings"]]
        return Columns(columns, self.positions, (rotation[0], rotation[1]))

    def fewer(self, now: Columns, columns: list[Tensor], hidden: Tensor) -> Columns:
        """The columns at `columns`, a list of B; positions kept or renumbered."""
        prompt = left_padded([part[at] + 1 for part, at in zip(now.prompt, columns, strict=True)]) - 1
        parts = [now.positions[..., row, at] for row, at in enumerate(columns)]
        cosines, sines = (
            left_padded([x[at] for x, at in zip(half, columns, strict=True)]) for half in now.rotation
        )
        if self.policy == "renumbered":
            parts = [renumbered(part) for part in parts]
        positions = left_padded([part.movedim(-1, 0) for part in parts])
        positions = positions if positions.ndim == 2 else positions.permute(2, 0, 1)
        if self.policy == "renumbered":
            cosines, sines = self.llm.rotary_emb(hidden, positions)
        return Columns(prompt, positions, (cosines, sines), now.sizes)

    def select(
        self, stage: int, now: Columns, hidden: Tensor, row: int, picture: Picture, number: int
    ) -> Reduction:
        """The tokens left of one picture from layer `stage` on."""
        plan, heard, needs = self.plan, self.heard, self.method.needs
        assert plan is not None
        prompt = row // (len(hidden) // len(plan.pictures))
        words, here = plan.words[prompt], now.at(row, picture.columns)
        after = words[words > picture.columns[-1]]
        asked = after if len(after) else words
        if not len(asked):
            raise UserError(f"{self.method.name} is guided by the prompt, and this one has no words")
        text = now.at(row, asked)

        def attention(queries: Tensor) -> Tensor:
            assert heard is not None
            earlier = torch.arange(hidden.shape[1], device=queries.device) <= queries[:, None]
            return heard.weights(row, queries, earlier & now.present[row])[:, here]

        known: dict[str, Any] = {}
        for need in {"last_row", "own_row"}.intersection(needs):
            last = now.at(row, plan.mask[prompt].nonzero()[:, 0])[-1:]
            known[need] = attention(last)[0]
        if "rater_rows" in needs:
            looking = score.raters(self.embeddings[row, picture.columns], self.embeddings[row, asked])
            known["rater_rows"] = attention(text[looking])
        if "keys" in needs:
            assert heard is not None
            keys = heard.key[row].transpose(0, 1).flatten(1)
            known |= {"keys": keys[here], "text": hidden[row, text], "text_keys": keys[text]}
        tokens = Tokens(hidden[row, here], size=now.sizes.get((row, number)), **known)
        return reduce_tokens(tokens, self.method.name, picture.counts[stage], **self.options)

    def remember(self, cache: Any, stage: int) -> None:
        """Record the columns that the cache will hold from this layer on."""
        assert self.now is not None and self.positions is not None
        known = columns_of(cache) or CachedColumns(self.embeddings.shape[1])
        cache.megavrc_columns = known  # on the cache, so that copies have it too
        known.present[stage] = self.now.present
        lower = self.positions[..., -1:] - self.now.positions[..., -1:]
        known.shift[stage] = lower if lower.ndim == 2 else lower[0]

    def following(self, known: CachedColumns, stage: int, hidden: Tensor, past: int) -> dict[str, Any]:
        """The inputs that go with columns after a prompt in the cache."""
        if set(known.present) != set(self.stages):
            raise UserError("this cache was made by another method: continue it in a block of that one")
        present = known.present[stage]
        after = past + hidden.shape[1] - present.shape[1]
        if self.mask is None:
            present = pad(present, (0, after), value=True)
        else:
            present = torch.cat([present, self.mask[:, known.length :].bool()], 1)
        if present.shape[1] != past + hidden.shape[1]:
            raise UserError(f"{self.method.name} needs a cache as it was left: this one is longer or shorter")
        given: dict[str, Any] = {"attention_mask": self.seen(present, hidden, past)}
        if self.policy == "renumbered":
            assert self.positions is not None
            lower = self.positions - known.shift[stage]
            given["position_embeddings"] = self.llm.rotary_emb(hidden, lower)
        return given

    def seen(self, present: Tensor, hidden: Tensor, past: int) -> Tensor | None:
        """[B, 1, n, past + n]: which columns each of the last n sees, in the form of the attention that is used."""
        count, total = hidden.shape[1], present.shape[1]
        eager = self.llm.config._attn_implementation.endswith("eager")
        if not eager and present.all() and (not past or count == 1):
            return None  # as transformers: causal is the default
        place = torch.arange(total, device=hidden.device)
        seen = present[:, None] & (place <= place[past:, None])
        seen = (seen | (place == place[past:, None]))[:, None]  # padding sees itself, so that no row is empty
        if not eager:
            return seen
        return torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)


def columns_of(cache: Any) -> CachedColumns | None:
    """The columns of the layers of a cache, as far as they are known."""
    return getattr(cache, "megavrc_columns", None)


def earliest(model: Any) -> int:
    """The first layer of the LLM before which tokens may go: deepstack adds features after the first ones."""
    return max(1, len(getattr(model.config.vision_config, "deepstack_visual_indexes", ())))
