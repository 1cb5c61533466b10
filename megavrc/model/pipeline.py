"""Generation: the one way from a condition to the tokens and the pixels of clips, shared by all who generate.

A video longer than the model was trained for is made in windows: the last frames of the pixels so far are encoded anew
and become the beginning of the next window. Keys and values are not reused.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .clips import decode_clips, encode_clips, sampling_settings
from .condition import Condition, ConditionLike
from .cuda_graphs import Workspace
from .decoder import Decoder
from .generate import OnSpeculation, Sampler
from .inputs import as_tensor, check_types, first_frames, seed_list
from .omnitokenizer import OmniTokenizerNet
from .refinement import frame_passes, orders
from .sampling import SamplingSettings, uniforms
from .speculation import numbers_shape
from .vrc import VRC

# Of each model the samplers that are open, and the mode before them.
_OPEN: WeakKeyDictionary[VRC, tuple[int, bool]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class ClipRequest:
    """B clips to generate. Frames are frames of pixels, or latent ones for a pipeline without a video tokenizer.

    Attributes:
        condition: of B samples, on any device; the same in every window.
        seeds: B integers; a sample depends on its own seed only.
        settings: sampling of the first frame and of the later ones, guidance, speculation.
        beginning: first frames of each clip, uint8 [B, 1 + 4k, H, W, 3] (one frame: image to video), or their ids,
            long [B, K, g, g].
        frames: length of the clips, 1 + 4k (default: what the model was trained for; more are made in windows).
        overlap: frames that a window takes over from the one before, 1 + 4k (default: about half a window).
    """

    condition: Condition
    seeds: Sequence[int]
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    beginning: Tensor | None = None
    frames: int | None = None
    overlap: int | None = None

    @classmethod
    def of(
        cls,
        condition: ConditionLike,
        defaults: Mapping[str, Any],
        side: int | None = None,
        /,
        seed: Any = 0,
        first_frame: Any = None,
        clip: Tensor | None = None,
        frames: int | None = None,
        overlap: int | None = None,
        settings: SamplingSettings | None = None,
        **sampling: Any,
    ) -> "ClipRequest":
        """A request from the arguments of `generate_video` (see there) and the defaults of their sampling options.

        `settings` replaces both; pictures are fitted to `side` (see `VideoPipeline.side`). Raises
        ValueError for a wrong number of seeds, two beginnings, impossible sampling.
        """
        if first_frame is not None and clip is not None:
            raise ValueError("give first_frame or clip, not both")
        rows = Condition.of(condition)
        features = rows.values if rows.real is None else rows.values[rows.real.to(rows.values.device)]
        if not features.isfinite().all():
            raise ValueError("condition: text features that are NaN or infinite; encode the texts again")
        if first_frame is not None:
            clip = first_frames(first_frame, len(rows), side)
        elif clip is not None:
            form = "uint8 [B, 1 + 4k, H, W, 3]"
            clip = as_tensor(clip, "clip", f"clip: give an array or a tensor, {form}")
            if clip.shape[:1] != (len(rows),):
                raise ValueError(f"clip: shape {list(clip.shape)} for {len(rows)} clips, expected {form}")
        check_types({name: n for name, n in (("frames", frames), ("overlap", overlap)) if n is not None})
        seeds = seed_list(seed, len(rows))
        chosen = sampling_settings(defaults, sampling)
        if settings is None:
            settings = chosen
        elif not hasattr(settings, "later_passes"):  # perhaps of the class in another copy of its file
            raise ValueError(f"settings: a {type(settings).__name__} is no SamplingSettings")
        elif sampling:
            raise ValueError(f"give settings or {', '.join(sampling)}, not both")
        return cls(rows, seeds, settings, clip, frames, overlap)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, clips: slice) -> "ClipRequest":
        beginning = None if self.beginning is None else self.beginning[clips]
        return replace(self, condition=self.condition[clips], seeds=self.seeds[clips], beginning=beginning)


class VideoPipeline:
    """Generates clips with a model, and owns what that takes on the device; all of it goes when the pipeline goes.

    On CUDA, the buffers and captured graphs of its last job are kept for a next one of the same batch size, sampling
    and weights. A copy of a pipeline, or one from a pickle, starts without any.

    Attributes:
        vrc: generates in eval mode (running statistics of BatchNorm, no dropout), whatever mode it is in.
        video_tokenizer: on the same device; None where neither pixels are wanted nor given.
        on_speculation: called with (index, passes [B]) after each latent frame drawn speculatively: N / passes tokens
            of a sample were accepted a pass.
    """

    def __init__(
        self,
        vrc: VRC,
        video_tokenizer: OmniTokenizerNet | None = None,
        on_speculation: OnSpeculation | None = None,
    ) -> None:
        self.vrc, self.video_tokenizer, self.on_speculation = vrc, video_tokenizer, on_speculation
        self._kept: dict[Hashable, Workspace] = {}  # at most one: its cache may be large

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoPipeline, (self.vrc, self.video_tokenizer)

    def generate(self, request: ClipRequest, output: str = "uint8") -> Tensor:
        """The whole clips: uint8 [B, T, H, W, 3] or, for `output` "ids", long [B, t, g, g]; see `stream`."""
        return torch.cat(list(self.stream(request, output, by_frame=False)), dim=1)

    def stream(self, request: ClipRequest, output: str = "uint8", by_frame: bool = True) -> Iterator[Tensor]:
        """Generate clips and yield their frames when they are ready.

        Args:
            request: what to generate.
            output: `uint8` for pixels, `ids` for the tokens of a latent frame each, up to the trained length.
            by_frame: yield pixels after each latent frame, which decodes a window several times; else once a window. A
                video tokenizer whose pixels depend on later ids (`temporal_peg: original`) always does the latter.

        Yields:
            uint8 [B, t, H, W, 3] or long [B, 1, g, g]; together all frames, those of the beginning included.

        Raises:
            ValueError: what does not fit the model, with the rule; where only a pass can tell, at the first frame.
        """
        if output not in ("uint8", "ids") or (output == "uint8" and self.video_tokenizer is None):
            raise ValueError(f"output: {output!r} is neither ids nor (with a video tokenizer) uint8")
        config, patch = self.vrc.config, self._patch
        window = 1 + config.frames * patch
        frames = window if request.frames is None else request.frames
        self._latent(frames)
        if frames < 1:
            raise ValueError(f"frames: {frames} is not a positive number")
        if frames > window and (output == "ids" or window == 1):
            longer = ": longer videos are pixels alone (stream; not output ids or on_frame)"
            hint = longer if self.video_tokenizer is not None and window > 1 else ""
            raise ValueError(f"frames: {frames} asked for, the model generates at most {window}{hint}")
        overlap = 1 + config.frames // 2 * patch if request.overlap is None else request.overlap
        if not 1 <= overlap < max(window, 2) or (overlap - 1) % patch:
            raise ValueError(f"overlap: {overlap}, expected 1 + {patch}k frames, fewer than {window}")
        frame_passes(config, request.settings)
        first = request.beginning
        given = 0 if first is None else first.shape[1] if first.dim() == 5 else 1  # others are checked later
        if given > min(window, frames):
            raise ValueError(
                f"given frames: {given} of a video of {frames}, more than the clip to generate or than the model "
                f"continues from, at most {window}: give the last"
            )
        return self._windows(request, frames, overlap, output, by_frame and not self._looks_ahead)

    @contextmanager
    def sampler(self, request: ClipRequest, window: int = 0) -> Iterator[Sampler]:
        """The sampler of a request, at the beginning of its clips: for `stream`, and for measurements of single passes.

        Each window of a rollout draws with the next numbers of its samples' seeds. Used where gradients are off.
        """
        vrc, settings = self.vrc, request.settings
        shape = numbers_shape(vrc.config, settings)
        with self._workspace(len(request), settings) as space, _eval_mode(vrc):
            device = space.ids_BTN.device
            count, more = space.uniform_BTN[0].numel(), math.prod(shape)
            ordered = count if max(frame_passes(vrc.config, settings)) > 1 else 0
            total = count + more + ordered
            numbers = uniforms(list(request.seeds), (window + 1) * total, "cpu")[:, -total:]
            drawn, speculated, places = numbers.split([count, more, ordered], dim=1)
            _send(drawn, space.uniform_BTN)
            if ordered:
                _send(orders(vrc.config, places.reshape(space.order_BTN.shape)), space.order_BTN)
            speculation = speculated.unflatten(1, shape).to(device)
            with torch.autocast(device.type, enabled=False):
                condition = request.condition.to(device)
                decoder = Decoder(vrc, condition, len(request), settings.guidance, space.memory)
            yield Sampler(decoder, settings, space, speculation, self.on_speculation)

    @torch.no_grad()
    def _windows(
        self, request: ClipRequest, frames: int, overlap: int, output: str, by_frame: bool
    ) -> Iterator[Tensor]:
        """The frames of one window after the other."""
        longest = 1 + self.vrc.config.frames * self._patch
        shown = number = seen = 0  # seen: frames of the window that the one before has shown
        while shown < frames:
            latent = self._latent(min(longest, frames - shown + seen))
            ids: list[Tensor] = []
            for ids_BHW in self._window(request, latent, number):
                ids.append(ids_BHW)
                ready = 1 + (len(ids) - 1) * self._patch
                if output == "ids":
                    yield ids_BHW[:, None]
                    shown = ready
                elif ready > seen and (by_frame or len(ids) == latent):
                    assert self.video_tokenizer is not None
                    pixels_BTHWC = decode_clips(self.video_tokenizer, torch.stack(ids, dim=1))
                    yield pixels_BTHWC[:, seen:]
                    shown, seen = shown + ready - seen, ready
            if shown < frames:
                request = replace(request, beginning=pixels_BTHWC[:, -overlap:])
            number, seen = number + 1, overlap

    def _window(self, request: ClipRequest, latent: int, number: int) -> Iterator[Tensor]:
        """The latent frames of one window in order, long [B, g, g]; those of its beginning are part of it."""
        known_BKN = self._known(request, latent)
        # Passes compute in the dtype of their cache.
        plain = torch.autocast(self.vrc.tokens.weight.device.type, enabled=False)
        with self.sampler(request, number) as sampler:
            with plain:
                sampler.take(known_BKN)
            for index in range(latent):
                if index >= sampler.known:
                    with plain:
                        sampler.frame(index)
                yield sampler.ids(index)

    @contextmanager
    def _workspace(self, batch: int, settings: SamplingSettings) -> Iterator[Workspace]:
        """The static tensors of a job: on CUDA those of the last one, when it was of this kind.

        Nobody else has them meanwhile, so that a clip that is begun before this one is finished gets its own.
        """
        # Graphs read the weights where these were at capture, so their addresses are part of what they depend on.
        tensors = (*self.vrc.parameters(), *self.vrc.buffers())
        places = tuple((t.dtype, t.data_ptr() if type(t.data) is Tensor else id(t)) for t in tensors)
        job = batch, str(settings), places, self.vrc.trunk.cache_rounding
        space = self._kept.pop(job, None)
        if space is None:
            self._kept.clear()  # gone before its successor takes memory
            space = Workspace(self.vrc, batch, settings.copies)
        try:
            yield space
        finally:
            if space.steps == "graph":
                self._kept = {job: space}

    # --- pixels, which the video tokenizer makes of ids, and ids of pixels ---------------------------------------

    @property
    def side(self) -> int | None:
        """Height and width of a frame in pixels."""
        return (
            None if self.video_tokenizer is None else self.vrc.config.grid * self.video_tokenizer.config.patch
        )

    @property
    def _patch(self) -> int:
        """Frames that one latent frame stands for."""
        return 1 if self.video_tokenizer is None else self.video_tokenizer.config.temporal_patch

    @property
    def _looks_ahead(self) -> bool:
        """Pixels depend on later ids, and ids on later pixels."""
        return self.video_tokenizer is None or self.video_tokenizer.config.temporal_peg == "original"

    def _latent(self, frames: int) -> int:
        return frames if self.video_tokenizer is None else self.video_tokenizer.config.latent_frames(frames)

    def _known(self, request: ClipRequest, latent: int) -> Tensor | None:
        """Ids of the beginning of a window of so many latent frames, long [B, K, N]."""
        if request.beginning is None:
            return None
        given = request.beginning.to(self.vrc.tokens.weight.device)
        ids_BKHW = given if given.dtype == torch.long else self._encode(given, latent)
        grid, batch, shape = self.vrc.config.grid, len(request), tuple(ids_BKHW.shape)
        if shape not in [(batch, known, grid, grid) for known in range(1, 1 + latent)]:
            raise ValueError(f"beginning: ids {shape}, expected ({batch}, 1..{latent}, {grid}, {grid})")
        if ids_BKHW is given and not 0 <= int(given.min()) <= int(given.max()) < self.vrc.config.vocab:
            raise ValueError(f"beginning: ids that are not from 0 to {self.vrc.config.vocab - 1}")
        return ids_BKHW.flatten(2)

    def _encode(self, given_BTHWC: Tensor, latent: int) -> Tensor:
        """Ids of given frames of pixels, long [B, K, g, g]."""
        net = self.video_tokenizer
        if net is None:
            raise ValueError("a beginning of pixels needs a video tokenizer")
        side, shape = self.vrc.config.grid * net.config.patch, tuple(given_BTHWC.shape)
        if len(shape) != 5 or shape[2:] != (side, side, 3) or given_BTHWC.dtype != torch.uint8:
            raise ValueError(
                f"given frames: {given_BTHWC.dtype} {list(shape)}, expected uint8 [B, T, {side}, {side}, 3]"
            )
        known = net.config.latent_frames(shape[1])
        if self._looks_ahead:  # so it sees a clip of full length
            missing = (latent - known) * net.config.temporal_patch
            given_BTHWC = torch.cat([given_BTHWC, given_BTHWC[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return encode_clips(net, given_BTHWC)[:, :known]


@contextmanager
def _eval_mode(vrc: VRC) -> Iterator[None]:
    """Eval mode while a sampler is open; the last open one of a model gives back the mode before them."""
    count, mode = _OPEN.get(vrc, (0, False))
    _OPEN[vrc] = count + 1, mode or vrc.training  # also where somebody trains while a stream waits
    vrc.eval()
    try:
        yield
    finally:
        count, mode = _OPEN.pop(vrc)
        if count > 1:
            _OPEN[vrc] = count - 1, mode
        else:
            vrc.train(mode)


def _send(numbers: Tensor, place: Tensor) -> None:
    """Copy from the host into a static tensor without waiting."""
    numbers = numbers.reshape(place.shape)
    place.copy_(numbers.pin_memory() if place.is_cuda else numbers, non_blocking=True)
