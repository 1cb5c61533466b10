"""Generation (Algorithm 1 of the paper): the first frame token by token, then one pass per later frame."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .condition import Condition
from .decoder import Decoder
from .sampling import SamplingSettings, draw, probabilities, uniforms
from .speculation import numbers_shape, speculative_frame
from .vrc import VRC


@torch.no_grad()
def generate(
    model: VRC,
    condition: Condition,
    settings: SamplingSettings,
    seeds: list[int],
    prefix: Tensor | None = None,
    frames: int | None = None,
    on_frame: Callable[[int, Tensor], None] | None = None,
    on_speculation: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Generate the tokens of one clip per seed.

    Args:
        model: in eval mode (running statistics of BatchNorm, no dropout).
        condition: of B samples, as for `VRC.forward`.
        settings: sampling of the first frame and of the later ones, guidance.
        seeds: B integers; a sample depends on its own seed only.
        prefix: long [B, K, g, g], tokens of the first K frames to continue from (K = 1: image to video).
        frames: latent frames after the first to generate (default: the model's; at most that).
        on_frame: called with (index, ids [B, g, g]) after each finished frame.
        on_speculation: called with (index, passes [B]) after each frame drawn speculatively: N / passes is how many
            tokens of a sample were accepted a pass.

    Returns:
        long [B, 1 + frames, g, g].

    Raises:
        ValueError: more frames than the model was trained for, a prefix of the wrong shape, or speculation where no
            frame is drawn token by token.
    """
    config = model.config
    frames = config.frames if frames is None else frames
    if not 0 <= frames <= config.frames:
        raise ValueError(
            f"frames: {frames} asked for, the model generates 0..{config.frames} after the first"
        )
    known = _check_prefix(prefix, len(seeds), 1 + frames, config.grid)
    count = config.tokens_per_frame
    device = model.tokens.weight.device
    shape = numbers_shape(config, settings)
    plain = (1 + config.frames) * count
    numbers = uniforms(seeds, plain + math.prod(shape), device)
    uniform, extra = numbers[:, :plain].unflatten(1, (-1, count)), numbers[:, plain:].unflatten(1, shape)
    was_training = model.training
    model.eval()
    try:
        decoder = Decoder(model, condition, len(seeds), settings.guidance)
        sampler = _Sampler(decoder, settings, uniform, extra, known, on_frame, on_speculation)
        if config.prediction == "token":
            done = [sampler.token_frame(index) for index in range(1 + frames)]
        else:
            done = [sampler.row_frame() if config.first_frame == "row" else sampler.token_frame(0)]
            for index in range(1, 1 + frames):
                done.append(sampler.segment_frame(index, done[-1]))
    finally:
        model.train(was_training)
    return torch.stack(done, dim=1).unflatten(2, (config.grid, config.grid))


def _check_prefix(prefix: Tensor | None, batch: int, total: int, grid: int) -> list[Tensor]:
    """Known frames as a list of [B, N]."""
    if prefix is None:
        return []
    fits = prefix.dim() == 4 and len(prefix) == batch and 1 <= prefix.shape[1] <= total
    if not fits or tuple(prefix.shape[2:]) != (grid, grid):
        raise ValueError(
            f"prefix: shape {tuple(prefix.shape)}, expected ({batch}, 1..{total}, {grid}, {grid})"
        )
    return list(prefix.flatten(2).unbind(1))


class _Sampler:
    """Samples frames in order, or takes them from the known prefix; keeps the decoder's input up to date."""

    def __init__(
        self,
        decoder: Decoder,
        settings: SamplingSettings,
        uniform_BTN: Tensor,
        extra: Tensor,
        known: list[Tensor],
        on_frame: Callable[[int, Tensor], None] | None,
        on_speculation: Callable[[int, Tensor], None] | None,
    ) -> None:
        self.decoder, self.settings, self.uniform, self.known = decoder, settings, uniform_BTN, known
        self.extra, self.on_frame, self.on_speculation = extra, on_frame, on_speculation
        self.newest: Tensor | None = None  # frame
        self.features: Tensor | None = None  # of the newest sampled frame, when they are what is fed back

    def _finish(self, index: int, ids_BN: Tensor) -> Tensor:
        if self.on_frame:
            side = self.decoder.config.grid
            self.on_frame(index, ids_BN.unflatten(1, (side, side)))
        self.newest = ids_BN
        return ids_BN

    def token_frame(self, index: int) -> Tensor:
        """A frame token by token; the last token of the last frame that is read stays pending."""
        decoder = self.decoder
        if index < len(self.known):
            decoder.push_raw(self.known[index])
            return self._finish(index, self.known[index])
        sampling = self.settings.later if index else self.settings.first
        if self.settings.speculative:
            ids, passes = speculative_frame(
                decoder, sampling, self.settings.draft, self.extra[:, index], self.newest
            )
            if self.on_speculation:
                self.on_speculation(index, passes)
            return self._finish(index, ids)
        drawn = []
        for position in range(self.uniform.shape[2]):
            logits_BV = decoder.raw_logits()[:, 0]
            drawn.append(draw(probabilities(logits_BV, sampling), self.uniform[:, index, position]))
            decoder.push_raw(drawn[-1][:, None])
        return self._finish(index, torch.stack(drawn, dim=1))

    def row_frame(self) -> Tensor:
        """The first frame, one row of the grid a pass."""
        decoder, side = self.decoder, self.decoder.config.grid
        decoder.push(decoder.model.embed_start_row(decoder.batch))
        if self.known:
            decoder.push_raw(self.known[0])
            return self._finish(0, self.known[0])
        rows = []
        for row in range(side):
            probs = probabilities(decoder.raw_logits(side), self.settings.first)
            rows.append(draw(probs, self.uniform[:, 0, row * side : (row + 1) * side]))
            decoder.push_raw(rows[-1])
        return self._finish(0, torch.cat(rows, dim=1))

    def segment_frame(self, index: int, previous_BN: Tensor) -> Tensor:
        """A later frame in one pass, from the frame before it."""
        decoder = self.decoder
        features = decoder.model.tokens(previous_BN) if self.features is None else self.features
        self.features = None
        decoder.push_segment(features)
        if index < len(self.known):
            return self._finish(index, self.known[index])
        logits, decompressed = decoder.segment_logits()
        probs = probabilities(logits, self.settings.later)
        ids_BN = draw(probs, self.uniform[:, index])
        feedback = decoder.config.feedback
        if feedback == "soft":
            self.features = probs.to(decompressed.dtype) @ decoder.model.tokens.weight
        elif feedback == "features":
            self.features = decompressed
        return self._finish(index, ids_BN)
