"""The forward passes of generation, with cached keys and values; what is drawn from their logits is decided elsewhere.

`generate` samples with it, speculation verifies drafts with it, and tests drive it with known tokens and compare its
logits with the training forward pass.
"""

import torch
from torch import Tensor

from .cache import KVCache
from .condition import Condition
from .vrc import VRC


class Decoder:
    """The forward passes of one batch of clips, in order; with guidance the unconditional copies ride in the batch.

    Attributes:
        passes: trunk passes made so far.
    """

    def __init__(self, model: VRC, condition: Condition, batch: int, guidance: float = 1.0) -> None:
        self.model, self.config = model, model.config
        self.batch, self.guidance = batch, guidance
        self.part = "all" if self.config.keep_first_frame else "first"
        self.passes = 0
        rows = [model.embed_condition(condition)]
        if guidance != 1.0:
            rows.append(model.embed_condition(model.null_condition(batch)))
        self._pending = torch.cat(rows)  # rows not yet seen by the trunk, [B or 2B, L, D]
        capacity = max(model.plan(part)[0].length for part in ("all", "first", "later"))
        config = self.config
        self.cache = KVCache(
            config.layers, len(self._pending), config.heads, capacity, config.head_dim, like=self._pending
        )

    def push(self, rows_BLD: Tensor) -> None:
        """Add input rows for the next pass (the same for the unconditional copies)."""
        copies = len(self._pending) // self.batch
        self._pending = torch.cat([self._pending, rows_BLD.repeat(copies, 1, 1)], dim=1)

    def step(self, count: int) -> Tensor:
        """One trunk pass over the pending rows; returns the normed states of its last `count` rows."""
        layout, table, _ = self.model.plan(self.part)
        start, stop = self.cache.length, self.cache.length + self._pending.shape[1]
        mask = layout.mask(start, stop)
        states = self.model.trunk(self._pending, table[:, start:stop], mask, cache=self.cache)
        self._pending = self._pending[:, :0]
        self.passes += 1
        return states[:, -count:]

    def guide(self, logits: Tensor) -> Tensor:
        """Classifier-free guidance over the two halves of the batch: u + s (c - u)."""
        if self.guidance == 1.0:
            return logits
        conditional, unconditional = logits.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def raw_logits(self, count: int = 1) -> Tensor:
        """Run the pending rows and predict the next `count` raw tokens, [B, count, V]."""
        return self.guide(self.model.head(self.step(count)))

    def push_raw(self, ids_BL: Tensor) -> None:
        """Add raw tokens as input."""
        self.push(self.model.embed_raw(ids_BL))

    def push_segment(self, features_BND: Tensor) -> None:
        """Compress the representations of the newest frame and add its segment as input.

        With `keep_first_frame: false` the first segment takes the place of the raw rows: their keys are dropped.
        """
        side = self.config.grid
        if not self.config.keep_first_frame and self.part == "first":
            slots = self.config.condition.slots
            if self.cache.length == 0:  # a known first frame: the condition has not been run yet
                self._pending = self._pending[:, :slots]
                self.step(1)
            self.part = "later"
            self.cache.truncate(slots)
            self._pending = self._pending[:, :0]
        self.push(self.model.compress(features_BND.unflatten(1, (side, side))))

    def segment_logits(self) -> tuple[Tensor, Tensor]:
        """Run the pending rows and predict the next frame: logits [B, N, V] and representations [B, N, D]."""
        features = self.model.decompress(self.step(self.config.segment_length))
        return self.guide(self.model.segment_logits(features)), features[: self.batch]
