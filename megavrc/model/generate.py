"""The draws of one clip (Algorithm 1 of the paper): the first frame token by token, then one pass per later frame.

With refinement, a later frame (or a row of the first one) takes several passes: each draws some of its cells from what
it predicts of them, given those that are drawn already.
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from .cuda_graphs import Workspace
from .decoder import Decoder, Known
from .refinement import frame_passes, kept_cells
from .sampling import Sampling, SamplingSettings, draw, probabilities
from .speculation import speculative_frame

log = logging.getLogger("megavrc.speculation")

OnSpeculation = Callable[[int, Tensor], None]


class Sampler:
    """Draws the frames of a clip in order into `space.ids_BTN`. Each pass first adds what was drawn last."""

    def __init__(
        self,
        decoder: Decoder,
        settings: SamplingSettings,
        space: Workspace,
        speculation: Tensor | None = None,
        on_speculation: OnSpeculation | None = None,
    ) -> None:
        """`speculation`: [B, *numbers_shape], when drafts are verified."""
        self.decoder, self.settings, self.space = decoder, settings, space
        self.speculation, self.on_speculation = speculation, on_speculation
        self.config = decoder.config
        self.ids_BS = space.ids_BTN.flatten(1)  # of all frames in a row
        self.uniform_BS = space.uniform_BTN.flatten(1)
        self.order_BS = space.order_BTN.flatten(1)
        self.passes_T = frame_passes(self.config, settings)
        self.known = 0
        self._guide(0)

    def _guide(self, index: int) -> None:
        """The logits to come are of this frame."""
        self.decoder.guidance = self.settings.guidance_of(index)
        self.decoder.plausibility = self.settings.plausibility

    def take(self, known_BKN: Tensor | None) -> None:
        """Known frames become the beginning of the clip; they are run together with the first unknown one."""
        if self.config.first_frame == "row":
            self.decoder.push(self.decoder.model.embed_start_row(self.decoder.batch))
        if known_BKN is None:
            return
        self.known = known_BKN.shape[1]
        self.space.ids_BTN[:, : self.known] = known_BKN
        if self.config.prediction == "token":
            self.decoder.push_raw(self.ids_BS[:, : self.known * self.config.tokens_per_frame - 1])
            return
        unread = self.config.grid if self.config.first_frame == "row" else 1
        self.decoder.push_raw(known_BKN[:, 0, :-unread])
        for index in range(1, self.known):
            self._push_segment(index)

    def ids(self, index: int) -> Tensor:
        """The tokens of a frame that is there, long [B, g, g]."""
        return self.space.ids_BTN[:, index].unflatten(1, (self.config.grid, -1)).clone()

    def prefill(self) -> None:
        """Run the condition in a pass of its own, which drawing does together with the first token's: to measure it."""
        self.decoder.raw_logits()

    def seek(self, token: int) -> None:
        """Go on as if the tokens before this one were drawn, whatever they are: to measure a pass anywhere."""
        self.decoder.cache.truncate(self.config.condition.slots + token - 1)

    def frame(self, index: int) -> None:
        """Draw a frame; those before it are there."""
        self._guide(index)
        if self.config.prediction == "token" or (index == 0 and self.config.first_frame == "token"):
            self._token_frame(index)
        elif index == 0:
            for row in range(self.config.grid):
                self._in_passes(("row", row), self.config.grid, 0, functools.partial(self._row, row))
        else:
            count = self.config.tokens_per_frame
            self._in_passes(("segment", index), count, index, functools.partial(self._segment, index))

    def _in_passes(
        self, key: tuple[str, int], count: int, index: int, one_pass: Callable[[int, int], None]
    ) -> None:
        """Draw cells that are predicted together, with the passes of their frame."""
        before = 0
        for upto in kept_cells(count, self.passes_T[index]):
            run = functools.partial(one_pass, before, upto)
            self.space.run((*key, before), self.decoder, run)
            before = upto

    def _token_frame(self, index: int) -> None:
        sampling = self.settings.later if index else self.settings.first
        start = index * self.config.tokens_per_frame
        stop = start + self.config.tokens_per_frame
        if self.settings.speculative:
            self._speculate(index, sampling)
            return
        self.token(start, sampling)
        if self.space.steps == "host":
            for token in range(start + 1, stop):
                self.token(token, sampling)
            return
        slots = self.config.condition.slots
        self.space.index.fill_(start + 1)
        for token in range(start + 1, stop):
            keys = self.space.keys_for(slots + token)
            key = "token", keys, index > 0
            self.space.run(key, self.decoder, lambda keys=keys: self._token_on_device(keys, sampling))  # type: ignore[misc]
            self.decoder.cache.length = slots + token

    def _speculate(self, index: int, sampling: Sampling) -> None:
        """A frame in fewer passes than it has tokens."""
        assert self.speculation is not None
        before = self.space.ids_BTN[:, index - 1] if index else None
        if before is not None:
            self.decoder.push_raw(before[:, -1:])
        ids, passes = speculative_frame(
            self.decoder, sampling, self.settings.draft, self.speculation[:, index], before
        )
        self.space.ids_BTN[:, index] = ids
        log.info("frame %d: %.2f tokens accepted a pass", index, ids.numel() / passes.sum().item())
        if self.on_speculation:
            self.on_speculation(index, passes)

    def token(self, index: int, sampling: Sampling) -> None:
        """One pass for a token, of all frames in a row, from the one before it."""
        if index:
            self.decoder.push_raw(self.ids_BS[:, index - 1 : index])
        probs = probabilities(self.decoder.raw_logits()[:, 0], sampling)
        self.ids_BS[:, index] = draw(probs, self.uniform_BS[:, index])

    def _token_on_device(self, keys: int, sampling: Sampling) -> None:
        """The same for a token at the position in `space.index`, which moves on: the body of a CUDA graph."""
        index = self.space.index
        before = self.ids_BS.index_select(1, index - 1)
        position = index + (self.config.condition.slots - 1)
        probs = probabilities(self.decoder.device_step(before, position, keys), sampling)
        drawn = draw(probs, self.uniform_BS.index_select(1, index)[:, 0])
        self.ids_BS.index_copy_(1, index, drawn[:, None])
        index.add_(1)

    def _row(self, row: int, before: int, upto: int) -> None:
        """A pass for a row of the first frame, from the row before it; see `_known`."""
        side = self.config.grid
        start, stop = row * side, (row + 1) * side
        if row and not before:
            self.decoder.push_raw(self.ids_BS[:, start - side : start])
        known, cells = self._known(start, stop, before, upto)
        probs = probabilities(self.decoder.row_logits(known, cells), self.settings.first)
        self._put(start, stop, cells, probs)

    def _segment(self, index: int, before: int, upto: int) -> None:
        """A pass for a later frame, from the frame before it; see `_known`."""
        if not before:
            self._push_segment(index)
        start = index * self.config.tokens_per_frame
        stop = start + self.config.tokens_per_frame
        known, cells = self._known(start, stop, before, upto)
        probs = probabilities(self.decoder.segment_logits(known, cells), self.settings.later)
        self._put(start, stop, cells, probs)
        if self.config.feedback == "soft":
            weight = self.decoder.model.tokens.weight
            soft_BKD = probs.to(weight.dtype) @ weight
            _write(self.space.features_TBND[index], cells, soft_BKD)

    def _known(self, start: int, stop: int, before: int, upto: int) -> tuple[Known | None, Tensor | None]:
        """Of the cells [start, stop), drawn in their order: which are known, and which a pass draws.

        Args:
            start, stop: tokens of all frames in a row.
            before, upto: places in the order; the pass draws those from `before` on.

        Returns:
            None where none is known; None where all are drawn, else long [B, K].
        """
        if upto - before == stop - start:
            return None, None
        order, ids = self.order_BS[:, start:stop], self.ids_BS[:, start:stop]
        known = None
        if before:
            nothing = torch.zeros_like(ids, dtype=torch.bool)
            known = ids, nothing.scatter(1, order[:, :before], True)
        return known, order[:, before:upto]

    def _put(self, start: int, stop: int, cells: Tensor | None, probs: Tensor) -> None:
        uniform = self.uniform_BS[:, start:stop]
        drawn = draw(probs, uniform if cells is None else uniform.gather(1, cells))
        _write(self.ids_BS[:, start:stop], cells, drawn)

    def _push_segment(self, index: int) -> None:
        """Add the frame before `index` to the input, after what is unread of the first frame."""
        if index == 1:
            unread = self.config.grid if self.config.first_frame == "row" else 1
            self.decoder.push_raw(self.space.ids_BTN[:, 0, -unread:])
        drawn_as_segment = index > max(1, self.known)
        if self.config.feedback != "tokens" and drawn_as_segment:
            features = self.space.features_TBND[index - 1]
        else:
            features = self.decoder.model.tokens(self.space.ids_BTN[:, index - 1])
        self.decoder.push_segment(features)


def _write(target: Tensor, cells: Tensor | None, values: Tensor) -> None:
    """Values [B, K, ..] of some cells into those of all, [B, N, ..]."""
    if cells is None:
        target.copy_(values)
        return
    places = cells if values.dim() == 2 else cells[..., None].expand_as(values)
    target.scatter_(1, places, values)
