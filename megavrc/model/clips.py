"""User input and output as tensors: sampling options, and the pixels of clips.

Shared by the transformers wrapper and by the loader that needs no transformers, so that both give the same clips.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .inputs import brief, check_types, several, unknown_name, whole_number
from .omnitokenizer import OmniTokenizerNet
from .sampling import Sampling, SamplingSettings

Label = int | str  # a class
SAMPLING = ("temperature", "top_k", "top_p")
PARTS = ("first", "later")
OPTIONS = ("prompt", "label", "condition", "first_frame", "clip", "frames", "overlap", "seed", "output")
WHOLE = (
    "guidance",
    "later_guidance",
    "plausibility",
    "speculative",
    "draft",
    "later_passes",
    "row_passes",
)
SAMPLING_OPTIONS = (*WHOLE, *SAMPLING, *(f"{part}_{name}" for part in PARTS for name in SAMPLING))


def sampling_settings(*layers: Mapping[str, Any]) -> SamplingSettings:
    """Settings from named values; a later layer overrides an earlier one, None says nothing.

    Args:
        layers: `guidance` of the whole clip, `later_guidance` of the frames after the first, `plausibility`,
            `speculative`, `draft`, `later_passes`, `row_passes`; `temperature`, `top_k`, `top_p` for the whole clip;
            these three with `first_` or `later_` before them for the first frame or the frames after it.

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
        given |= check_types({name: value for name, value in given.items() if name in SAMPLING_OPTIONS})
        if "guidance" in given:  # of the whole clip, as temperature is
            chosen.pop("later_guidance", None)
        chosen |= given
    parts = {
        part: {name: chosen.pop(f"{part}_{name}") for name in SAMPLING if f"{part}_{name}" in chosen}
        for part in PARTS
    }
    whole = {name: chosen.pop(name) for name in WHOLE if name in chosen}
    if chosen:
        name = next(iter(chosen))
        if name in OPTIONS:
            raise ValueError(f"{name}: not an option of this call; leave it out")
        raise ValueError(unknown_name("option", name, (*OPTIONS, *SAMPLING_OPTIONS)))
    return SamplingSettings(Sampling(**parts["first"]), Sampling(**parts["later"]), **whole)


def class_names(id2label: Mapping[Any, str] | None, classes: int) -> list[str]:
    """The names of classes by number, of a folder's config; the number where there is none."""
    known = {int(number): str(name) for number, name in (id2label or {}).items()}
    unnamed = {number: f"LABEL_{number}" for number in range(classes)}  # as transformers calls them
    return [str(i) if known.get(i, unnamed[i]) == unnamed[i] else known[i] for i in range(classes)]


def class_numbers(label: Label | Sequence[Label], classes: int, names: Sequence[str] = ()) -> list[int]:
    """The numbers of one class or B classes, each given as a number or one of `names`; ValueError for any other."""
    labels = several(label)
    if labels == []:
        raise ValueError("label: an empty list")
    given: list[Any] = [label] if labels is None else labels
    return [_class_number(one, classes, names) for one in given]


def _class_number(label: Label, classes: int, names: Sequence[str]) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    try:
        number = int(label) if isinstance(label, str) else whole_number(label)
    except (TypeError, ValueError):
        said = label if isinstance(label, str) else brief(label)
        raise ValueError(unknown_name("label", said, names or range(classes))) from None
    if not 0 <= number < classes:
        raise ValueError(f"label {brief(number)} is not one of the model's classes 0..{classes - 1}")
    return number


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
