"""Pixels as they are generated: frame by frame, and beyond the length that the model was trained for.

A longer video is made in windows: the last frames of the pixels so far are encoded anew and become the given beginning
of the next window. Keys and values are not reused.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .clips import decode_clips, encode_beginning
from .condition import Condition
from .generate import generate_frames
from .omnitokenizer import OmniTokenizerNet
from .sampling import SamplingSettings
from .vrc import VRC


def stream_clips(
    vrc: VRC,
    tokenizer: OmniTokenizerNet,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    given_BTHWC: Tensor | None = None,
    frames: int | None = None,
    overlap: int | None = None,
    by_frame: bool = True,
) -> Iterator[Tensor]:
    """Generate video of any length and yield its frames when they are ready.

    Args:
        vrc, tokenizer: on one device.
        condition: of B samples, on any device, as for `VRC.forward`; the same in every window.
        seeds: B integers.
        settings: sampling and guidance.
        given_BTHWC: uint8 [B, 1 + 4k, H, W, 3], the beginning: one frame, or at most as many as the model generates.
        frames: frames of the whole video, 1 + 4k (default: what the model was trained for).
        overlap: frames that a window takes over from the one before, 1 + 4k (default: about half a window).
        by_frame: yield after each latent frame, which decodes a window several times; else once a window. A video
            tokenizer whose pixels depend on later ids (`temporal_peg: original`) always yields once a window.

    Yields:
        uint8 [B, t, H, W, 3]; together, all frames, the given ones included.

    Raises:
        ValueError: frames, overlap or given frames that do not fit, with the rule.
    """
    patch = tokenizer.config.temporal_patch
    window = 1 + vrc.config.frames * patch
    frames = window if frames is None else frames
    overlap = 1 + vrc.config.frames // 2 * patch if overlap is None else overlap
    tokenizer.config.latent_frames(frames)
    if frames > window and window == 1:
        raise ValueError(f"frames: {frames} asked for, an image model generates 1")
    if not 1 <= overlap < max(window, 2) or (overlap - 1) % patch:
        raise ValueError(f"overlap: {overlap}, expected 1 + {patch}k frames, fewer than {window}")
    given = 0 if given_BTHWC is None else given_BTHWC.shape[1] if given_BTHWC.dim() == 5 else 1
    if given > min(window, frames):
        raise ValueError(
            f"given frames: {given} of a video of {frames}; the model continues from at most {window}: give the last"
        )
    by_frame = by_frame and tokenizer.config.temporal_peg == "causal"
    condition = condition.to(vrc.tokens.weight.device)
    return _windows(
        vrc, tokenizer, condition, seeds, settings, given_BTHWC, frames, window, overlap, by_frame
    )


@torch.no_grad()
def _windows(
    vrc: VRC,
    tokenizer: OmniTokenizerNet,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    beginning: Tensor | None,
    frames: int,
    window: int,
    overlap: int,
    by_frame: bool,
) -> Iterator[Tensor]:
    """The frames of one window after the other."""
    config = tokenizer.config
    shown = number = seen = 0  # seen: frames of the window that the one before has shown
    while shown < frames:
        latent = config.latent_frames(min(window, frames - shown + seen))
        prefix = None if beginning is None else encode_beginning(vrc, tokenizer, beginning, latent)
        ids: list[Tensor] = []
        for ids_BHW in generate_frames(vrc, condition, settings, seeds, prefix, latent - 1, number):
            ids.append(ids_BHW)
            ready = 1 + (len(ids) - 1) * config.temporal_patch
            if ready > seen and (by_frame or len(ids) == latent):
                pixels_BTHWC = decode_clips(tokenizer, torch.stack(ids, dim=1))
                yield pixels_BTHWC[:, seen:]
                shown, seen = shown + ready - seen, ready
        beginning = pixels_BTHWC[:, -overlap:]
        number, seen = number + 1, overlap
