"""The draws of one clip (Algorithm 1 of the paper): the first frame token by token, then one pass per later frame."""

import logging
from collections.abc import Callable

from torch import Tensor

from .cuda_graphs import Workspace
from .decoder import Decoder
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
        run, decoder = self.space.run, self.decoder
        self._guide(index)
        if self.config.prediction == "token" or (index == 0 and self.config.first_frame == "token"):
            self._token_frame(index)
        elif index == 0:
            side, sampling = self.config.grid, self.settings.first
            for row in range(side):
                start, stop = row * side, (row + 1) * side
                run(("row", row), decoder, lambda start=start, stop=stop: self.cells(start, stop, sampling))  # type: ignore[misc]
        else:
            run(("segment", index), decoder, lambda: self._segment(index))

    def _token_frame(self, index: int) -> None:
        sampling = self.settings.later if index else self.settings.first
        start = index * self.config.tokens_per_frame
        stop = start + self.config.tokens_per_frame
        if self.settings.speculative:
            self._speculate(index, sampling)
            return
        self.cells(start, start + 1, sampling)
        if self.space.steps == "host":
            for token in range(start + 1, stop):
                self.cells(token, token + 1, sampling)
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

    def cells(self, start: int, stop: int, sampling: Sampling) -> None:
        """One pass for a token, or for a row of the first frame, from as many cells before it."""
        if start:
            self.decoder.push_raw(self.ids_BS[:, 2 * start - stop : start])
        probs = probabilities(self.decoder.raw_logits(stop - start), sampling)
        self.ids_BS[:, start:stop] = draw(probs, self.uniform_BS[:, start:stop])

    def _token_on_device(self, keys: int, sampling: Sampling) -> None:
        """The same for a token at the position in `space.index`, which moves on: the body of a CUDA graph."""
        index = self.space.index
        before = self.ids_BS.index_select(1, index - 1)
        position = index + (self.config.condition.slots - 1)
        probs = probabilities(self.decoder.device_step(before, position, keys), sampling)
        drawn = draw(probs, self.uniform_BS.index_select(1, index)[:, 0])
        self.ids_BS.index_copy_(1, index, drawn[:, None])
        index.add_(1)

    def _segment(self, index: int) -> None:
        """One pass for a later frame, from the frame before it."""
        self._push_segment(index)
        logits, features_BND = self.decoder.segment_logits()
        probs = probabilities(logits, self.settings.later)
        self.space.ids_BTN[:, index] = draw(probs, self.space.uniform_BTN[:, index])
        if self.config.feedback == "soft":
            features_BND = probs.to(features_BND.dtype) @ self.decoder.model.tokens.weight
        if self.config.feedback != "tokens":
            self.space.features_TBND[index] = features_BND

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
