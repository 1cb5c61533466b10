"""Listening to the attention of a model of transformers: its queries and keys, while its own code runs as ever.

Seam: transformers' `AttentionInterface`. Under a name of its own, the function that the model would call anyway is
called, and before it whoever listens to that module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from megavrc.errors import UserError

STOCK = ("sdpa", "eager")


@dataclass(frozen=True)
class Heard:
    """The arguments of one call of an attention module."""

    query: Tensor
    "[B, H, n, d], rotated"
    key: Tensor
    "[B, heads of keys, n, d], rotated"
    scaling: float

    def weights(self, sample: int, rows: Tensor, seen: Tensor | None = None) -> Tensor:
        """[rows, n] fp32: attention of some queries, after softmax over the keys that each sees [rows, n] bool."""
        key = self.key[sample].float().repeat_interleave(self.query.shape[1] // self.key.shape[1], 0)
        logits = self.query[sample][:, rows].float() @ key.transpose(1, 2) * self.scaling
        if seen is not None:
            logits = logits.masked_fill(~seen, -torch.inf)
        return logits.softmax(-1).mean(0)


Listener = Callable[[Heard], bool | None]  # True: that was all, the attention itself is not needed
LISTENERS: WeakKeyDictionary[nn.Module, Listener] = WeakKeyDictionary()


@contextmanager
def listening(model: Any) -> Iterator[None]:
    """Within the block the attention modules of `model` (a tower or an LLM of transformers) can be listened to."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = model.config._attn_implementation
    if before not in STOCK:
        raise UserError(f"attention {before} cannot be listened to: load the model with {' or '.join(STOCK)}")
    functions = {"sdpa": ALL_ATTENTION_FUNCTIONS["sdpa"], "eager": eager_attention}
    AttentionInterface.register(f"megavrc_{before}", heard_first(functions[before]))
    AttentionMaskInterface.register(f"megavrc_{before}", {"sdpa": sdpa_mask, "eager": eager_mask}[before])
    model.set_attn_implementation(f"megavrc_{before}")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def listener(module: nn.Module, hear: Listener) -> Iterator[None]:
    """Within the block `hear` gets what the attention module sees."""
    LISTENERS[module] = hear
    try:
        yield
    finally:
        del LISTENERS[module]


def heard_first(stock: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., Any]:
    """The attention function `stock`, with whoever listens to the module told before."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        hear = LISTENERS.get(module)
        if hear is not None and hear(Heard(query, key, kwargs["scaling"])):
            return query.transpose(1, 2), None
        return stock(module, query, key, value, attention_mask, **kwargs)

    return attention


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with its weights, as transformers' models have it each for themselves under the name eager."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    weights = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
