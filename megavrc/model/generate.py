"""Generation (Algorithm 1 of the paper): the first frame token by token, then one pass per later frame."""

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .condition import Condition
from .cuda_graphs import Workspace, keep, workspace
from .decoder import Decoder
from .sampling import Sampling, SamplingSettings, draw, probabilities, uniforms
from .speculation import numbers_shape, speculative_frame
from .vrc import VRC

log = logging.getLogger("megavrc.speculation")

OnSpeculation = Callable[[int, Tensor], None]


def generate(
    model: VRC,
    condition: Condition,
    settings: SamplingSettings,
    seeds: list[int],
    prefix: Tensor | None = None,
    frames: int | None = None,
    on_frame: Callable[[int, Tensor], None] | None = None,
    window: int = 0,
    on_speculation: OnSpeculation | None = None,
) -> Tensor:
    """Generate the tokens of one clip per seed.

    Args:
        model: generates in eval mode (running statistics of BatchNorm, no dropout), whatever mode it is in.
        condition: of B samples, as for `VRC.forward`.
        settings: sampling of the first frame and of the later ones, guidance.
        seeds: B integers; a sample depends on its own seed only.
        prefix: long [B, K, g, g], tokens of the first K frames to continue from (K = 1: image to video).
        frames: latent frames after the first to generate (default: the model's; at most that).
        on_frame: called with (index, ids [B, g, g]) after each finished frame.
        window: of a rollout: each draws with the next numbers of its samples' seeds.
        on_speculation: called with (index, passes [B]) after each frame drawn speculatively: N / passes tokens of a
            sample were accepted a pass.

    Returns:
        long [B, 1 + frames, g, g].

    Raises:
        ValueError: more frames than the model was trained for, a prefix of the wrong shape, or speculation where no
            frame is drawn token by token.
    """
    done: list[Tensor] = []
    for ids_BHW in generate_frames(model, condition, settings, seeds, prefix, frames, window, on_speculation):
        if on_frame:
            on_frame(len(done), ids_BHW)
        done.append(ids_BHW)
    return torch.stack(done, dim=1)


def generate_frames(
    model: VRC,
    condition: Condition,
    settings: SamplingSettings,
    seeds: list[int],
    prefix: Tensor | None = None,
    frames: int | None = None,
    window: int = 0,
    on_speculation: OnSpeculation | None = None,
) -> Iterator[Tensor]:
    """As `generate`, frame by frame: yields long [B, g, g] as soon as a frame is ready, given ones included."""
    config = model.config
    frames = config.frames if frames is None else frames
    if not 0 <= frames <= config.frames:
        raise ValueError(
            f"frames: {frames} asked for, the model generates 0..{config.frames} after the first"
        )
    known = _check_prefix(prefix, len(seeds), 1 + frames, config.grid)
    shape = numbers_shape(config, settings)
    return _run(model, condition, settings, seeds, known, frames, window, shape, on_speculation)


def _check_prefix(prefix: Tensor | None, batch: int, total: int, grid: int) -> Tensor | None:
    """Known frames as [B, K, N]."""
    if prefix is None:
        return None
    fits = prefix.dim() == 4 and len(prefix) == batch and 1 <= prefix.shape[1] <= total
    if not fits or tuple(prefix.shape[2:]) != (grid, grid):
        raise ValueError(
            f"prefix: shape {tuple(prefix.shape)}, expected ({batch}, 1..{total}, {grid}, {grid})"
        )
    return prefix.flatten(2)


@torch.no_grad()
def _run(
    model: VRC,
    condition: Condition,
    settings: SamplingSettings,
    seeds: list[int],
    known_BKN: Tensor | None,
    frames: int,
    window: int,
    shape: tuple[int, ...],
    on_speculation: OnSpeculation | None,
) -> Iterator[Tensor]:
    """The frames in order; the model is in eval mode until the last one is out."""
    job = str(settings)
    space = workspace(model, len(seeds), job, settings.guidance)
    # Passes compute in the dtype of their cache.
    plain = torch.autocast(space.ids_BTN.device.type, enabled=False)
    count, more = space.uniform_BTN[0].numel(), math.prod(shape)
    numbers = uniforms(seeds, (window + 1) * (count + more), "cpu")[:, -count - more :]
    drawn = numbers[:, :count].view_as(space.uniform_BTN)
    space.uniform_BTN.copy_(drawn.pin_memory() if space.ids_BTN.is_cuda else drawn, non_blocking=True)
    was_training = model.training
    model.eval()
    try:
        speculation = numbers[:, count:].unflatten(1, shape).to(space.ids_BTN.device)
        with plain:
            decoder = Decoder(model, condition, len(seeds), settings.guidance, space.memory)
            sampler = Sampler(decoder, settings, space, speculation, on_speculation)
            sampler.take(known_BKN)
        for index in range(1 + frames):
            if known_BKN is None or index >= known_BKN.shape[1]:
                with plain:
                    sampler.frame(index)
            yield space.ids_BTN[:, index].unflatten(1, (model.config.grid, -1)).clone()
    finally:
        model.train(was_training)
        keep(model, len(seeds), job, space)


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

    def frame(self, index: int) -> None:
        """Draw a frame; those before it are there."""
        run, decoder = self.space.run, self.decoder
        if self.config.prediction == "token" or (index == 0 and self.config.first_frame == "token"):
            self._token_frame(index)
        elif index == 0:
            for row in range(self.config.grid):
                run(("row", row), decoder, lambda row=row: self._row(row))  # type: ignore[misc]
        else:
            run(("segment", index), decoder, lambda: self._segment(index))

    def _token_frame(self, index: int) -> None:
        sampling = self.settings.later if index else self.settings.first
        start = index * self.config.tokens_per_frame
        stop = start + self.config.tokens_per_frame
        if self.settings.speculative:
            self._speculate(index, sampling)
            return
        self._token(start, sampling)
        if self.space.steps == "host":
            for token in range(start + 1, stop):
                self._token(token, sampling)
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

    def _token(self, token: int, sampling: Sampling) -> None:
        """One pass for one token at a position that the host knows."""
        if token:
            self.decoder.push_raw(self.ids_BS[:, token - 1 : token])
        probs = probabilities(self.decoder.raw_logits()[:, 0], sampling)
        self.ids_BS[:, token] = draw(probs, self.uniform_BS[:, token])

    def _token_on_device(self, keys: int, sampling: Sampling) -> None:
        """The same at the position in `space.index`, which moves on: the body of a CUDA graph."""
        index = self.space.index
        before = self.ids_BS.index_select(1, index - 1)
        position = index + (self.config.condition.slots - 1)
        probs = probabilities(self.decoder.device_step(before, position, keys), sampling)
        drawn = draw(probs, self.uniform_BS.index_select(1, index)[:, 0])
        self.ids_BS.index_copy_(1, index, drawn[:, None])
        index.add_(1)

    def _row(self, row: int) -> None:
        """One pass for one row of the first frame."""
        side = self.config.grid
        if row:
            self.decoder.push_raw(self.ids_BS[:, (row - 1) * side : row * side])
        cells = slice(row * side, (row + 1) * side)
        probs = probabilities(self.decoder.raw_logits(side), self.settings.first)
        self.ids_BS[:, cells] = draw(probs, self.uniform_BS[:, cells])

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
