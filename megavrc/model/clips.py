"""From a condition to pixels: the generator and the video tokenizer together.

Shared by the transformers wrapper and by the loader that needs no transformers, so that both give the same clips.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .condition import BEGIN, PAD, Condition
from .config import ConditionConfig
from .generate import generate
from .omnitokenizer import OmniTokenizerNet
from .sampling import Sampling, SamplingSettings
from .vrc import VRC

SAMPLING = ("temperature", "top_k", "top_p")
PARTS = ("first", "later")
WHOLE = ("guidance", "speculative", "draft")
SAMPLING_OPTIONS = (*WHOLE, *SAMPLING, *(f"{part}_{name}" for part in PARTS for name in SAMPLING))


def sampling_settings(*layers: Mapping[str, Any]) -> SamplingSettings:
    """Settings from named values; a later layer overrides an earlier one, None says nothing.

    Args:
        layers: `guidance`, `speculative`, `draft`; `temperature`, `top_k`, `top_p` for the whole clip; these three
            with `first_` or `later_` before them for the first frame or the frames after it.

    Raises:
        ValueError: an unknown name or an impossible value.
    """
    chosen: dict[str, Any] = {}
    for layer in layers:
        given = {name: value for name, value in layer.items() if value is not None}
        for name in SAMPLING:
            if name in given:
                value = given.pop(name)
                given = {f"{part}_{name}": value for part in PARTS} | given
        chosen |= given
    parts = {
        part: {name: chosen.pop(f"{part}_{name}") for name in SAMPLING if f"{part}_{name}" in chosen}
        for part in PARTS
    }
    whole = {name: chosen.pop(name) for name in WHOLE if name in chosen}
    if chosen:
        raise ValueError(f"unknown sampling option {', '.join(chosen)}")
    return SamplingSettings(Sampling(**parts["first"]), Sampling(**parts["later"]), **whole)


def text_condition(tokens: Sequence[Sequence[int]], config: ConditionConfig) -> Condition:
    """The condition of text ids without special tokens: left-padded, begin-video in the last slot.

    Raises:
        ValueError: more text than the model has slots for.
    """
    longest = max(map(len, tokens))
    if longest > config.slots - 1:
        raise ValueError(
            f"the prompt has {longest} text tokens, the model takes at most {config.slots - 1}: shorten it"
        )
    rows = [[PAD] * (config.slots - 1 - len(ids)) + [*ids, BEGIN] for ids in tokens]
    return Condition(torch.tensor(rows))


def label_condition(label: int | Sequence[int], config: ConditionConfig) -> Condition:
    """The condition of one class or B classes; ValueError for a label outside them."""
    labels = [label] if isinstance(label, int) else list(label)
    wrong = [label for label in labels if not 0 <= label < config.classes]
    if wrong:
        raise ValueError(f"label {wrong[0]} is not one of the model's classes 0..{config.classes - 1}")
    return Condition(torch.tensor(labels))


def generate_clips(
    vrc: VRC,
    tokenizer: OmniTokenizerNet,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    given_BTHWC: Tensor | None = None,
    frames: int | None = None,
    on_frame: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Generate the ids of one clip per seed.

    Args:
        vrc, tokenizer: on one device.
        condition: of B samples, on any device, as for `VRC.forward`.
        seeds: B integers.
        settings: sampling and guidance.
        given_BTHWC: uint8 [B, 1 + 4k, H, W, 3], the clip's beginning (one frame: image to video).
        frames: frames of the whole clip (default: what the model was trained for, which is also the most).
        on_frame: called with (index, ids [B, g, g]) after each finished latent frame.

    Returns:
        long [B, T, g, g] with T latent frames.

    Raises:
        ValueError: a size that the model cannot take, with the rule.
    """
    config = vrc.config
    latent = 1 + config.frames if frames is None else tokenizer.config.latent_frames(frames)
    if latent > 1 + config.frames:
        most = 1 + config.frames * tokenizer.config.temporal_patch
        raise ValueError(f"frames: {frames} asked for, the model generates at most {most}")
    prefix = None if given_BTHWC is None else encode_beginning(vrc, tokenizer, given_BTHWC, latent)
    device = vrc.tokens.weight.device
    return generate(vrc, condition.to(device), settings, seeds, prefix, latent - 1, on_frame)


def encode_beginning(vrc: VRC, tokenizer: OmniTokenizerNet, given_BTHWC: Tensor, latent: int) -> Tensor:
    """Ids of the first frames of a clip of `latent` latent frames, long [B, K, g, g]; ValueError if they do not fit."""
    given_BTHWC = given_BTHWC.to(vrc.tokens.weight.device)
    side = vrc.config.grid * tokenizer.config.patch
    if (
        given_BTHWC.dim() != 5
        or tuple(given_BTHWC.shape[2:]) != (side, side, 3)
        or given_BTHWC.dtype != torch.uint8
    ):
        raise ValueError(
            f"given frames: {given_BTHWC.dtype} {list(given_BTHWC.shape)}, expected uint8 [B, T, {side}, {side}, 3]"
        )
    known = tokenizer.config.latent_frames(given_BTHWC.shape[1])
    if known > latent:
        raise ValueError(f"given frames: {given_BTHWC.shape[1]} are more than the clip to generate")
    if (
        tokenizer.config.temporal_peg == "original"
    ):  # its ids depend on later frames, so it sees a clip of full length
        missing = (latent - known) * tokenizer.config.temporal_patch
        given_BTHWC = torch.cat([given_BTHWC, given_BTHWC[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    return encode_clips(tokenizer, given_BTHWC)[:, :known]


@torch.no_grad()
def encode_clips(tokenizer: OmniTokenizerNet, clips_BTHWC: Tensor, bf16: bool = False) -> Tensor:
    """uint8 pixels [B, T, H, W, 3] to ids, long [B, t, h, w]; `bf16` is for the encoder alone, not for distances."""
    device = clips_BTHWC.device.type
    with torch.autocast(device, torch.bfloat16, enabled=bf16):  # near ties, ids depend on the last bits
        z_BTHWC = tokenizer.to_latents(clips_BTHWC.permute(0, 4, 1, 2, 3).float() / 255 - 0.5)
    with torch.autocast(device, enabled=False):
        return tokenizer.codebook.nearest(z_BTHWC)


@torch.no_grad()
def decode_clips(tokenizer: OmniTokenizerNet, ids_BTHW: Tensor) -> Tensor:
    """Ids to pixels, uint8 [B, T, H, W, 3]."""
    with torch.autocast(ids_BTHW.device.type, enabled=False):
        pixels_BCTHW = tokenizer.decode(ids_BTHW)
    return (
        ((pixels_BCTHW + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
    )
