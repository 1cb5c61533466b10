"""Inputs and outputs of generation: pictures, seeds, names of options, pixels in other forms."""

import difflib
import importlib
import math
import numbers
import operator
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .condition import BEGIN, PAD, UNKNOWN

OUTPUTS = ("uint8", "ids", "pil", "np", "pt")
SEEDS = 2**64
LARGEST = 2**63  # of whole numbers
SHOWN = 50  # names in an error
# What diffusers calls our options.
OTHER_NAMES = {
    "num_frames": "frames",
    "video_length": "frames",
    "guidance_scale": "guidance",
    "generator": "seed",
    "output_type": "output",
    "image": "first_frame",
    "images": "first_frame",
    "video": "clip",
    "class_labels": "label",
    "prompt_embeds": "condition",
}
LAYOUTS = "[H, W, 3], [3, H, W] or one more in front for the clips"


def brief(value: Any) -> str:
    """The beginning of a value, on one line, for an error."""
    try:
        return repr(value).replace("\n", " ")[:60]
    except ValueError:  # Python writes no integers of thousands of digits
        return f"{type(value).__name__} of thousands of digits"


def several(given: Any) -> list[Any] | None:
    """The items of a list, an array or an iterator; None of one thing: a text, a mapping, an array of no dimensions."""
    if isinstance(given, (str, bytes, Mapping)):
        return None
    try:
        return list(given)
    except TypeError:
        return None


def unknown_name(what: str, name: str, known: Iterable[Any]) -> str:
    """The error of an option or a class that there is not, with the nearest there is, and the others."""
    names = [str(one) for one in known]
    near = [OTHER_NAMES.get(name, "")] + difflib.get_close_matches(name, names, n=1)
    meant = next((f", did you mean {other}?" for other in near if other in names), ".")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"unknown {what} {name:.60}{meant} There are {', '.join(names[:SHOWN])}{more}"


def seed_list(seed: Any, clips: int) -> list[int]:
    """One seed a clip, 0 to 2**64 - 1.

    Args:
        seed: an integer of any library, for clip i seed + i; `clips` integers; a torch.Generator, or one a clip, of
            which seeds are drawn; None for a random one, which a warning tells.
        clips: how many.

    Raises:
        ValueError: another number of seeds, or one that is not such an integer.
    """
    if seed is None:
        seed = secrets.randbelow(2**32)
        warnings.warn(f"seed: {seed} was chosen; seed={seed} makes the same again", stacklevel=2)
    if isinstance(seed, torch.Generator):
        seeds = torch.randint(2**63 - 1, (clips,), generator=seed, device=seed.device).tolist()
    else:
        try:
            seeds = [whole_number(seed) + index for index in range(clips)]
        except TypeError:
            given = several(seed)
            if given is None:
                raise ValueError(
                    f"seed: {brief(seed)} is neither an integer, a list of them, a torch.Generator nor None"
                ) from None
            seeds = [seed_list(one, 1)[0] for one in given]
    if len(seeds) != clips:
        raise ValueError(f"seed: {len(seeds)} for {clips} clips")
    wrong = [one for one in seeds if not 0 <= one < SEEDS]
    if wrong:
        raise ValueError(f"seed: {brief(wrong[0])} is not between 0 and 2**64 - 1")
    return seeds


def whole_number(given: Any) -> int:
    """An integer of any library; TypeError for others, True and False among them."""
    if isinstance(given, bool) or (isinstance(given, Tensor) and given.dtype == torch.bool):
        raise TypeError("a bool")
    return operator.index(given)


def prompt_list(prompt: Any) -> list[str]:
    """One prompt or several as a list; ValueError for none, and for what is no text."""
    given = several(prompt)
    prompts = [prompt] if given is None else given
    wrong = [one for one in prompts if not isinstance(one, str)]
    if wrong or not prompts:
        raise ValueError(f"prompt: {brief(wrong[0])} is not a text" if wrong else "prompt: an empty list")
    for text in prompts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"prompt {text!a:.60}: holds half a character; correct the text") from None
    return prompts


def warn_of_prompts(prompts: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
    """Warn of prompts that say nothing to the model: empty ones, and characters that its tokenizer does not know."""
    for prompt, ids in zip(prompts, tokens, strict=True):
        said = [token for token in ids if token not in (PAD, BEGIN)]
        if not said:
            warnings.warn(f"prompt {prompt!r} is empty: the clip shows anything", stacklevel=2)
        elif UNKNOWN in said:
            warnings.warn(
                f"prompt {prompt[:40]!r} has characters that the model does not know: they are not in its training "
                "captions",
                stacklevel=2,
            )


def first_frames(given: Any, clips: int, side: int | None) -> Tensor:
    """Pictures as uint8 [B, 1, side, side, 3]: scaled so that the shorter side fits, and cut to the middle.

    Args:
        given: a picture (for all clips) or B of them: paths, PIL images, arrays or tensors, [H, W, 3] or [3, H, W],
            uint8 or floating point from 0 to 1.
        clips: B.
        side: in pixels; None leaves the size.

    Raises:
        ValueError: not such a picture, or another number of them.
    """
    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError("first_frame: an empty list")
        pictures = [picture for one in given for picture in _pictures(one)]
    else:
        pictures = _pictures(given)
    if len(pictures) not in (1, clips):
        raise ValueError(f"first_frame: {len(pictures)} pictures for {clips} clips")
    fitted = [picture if side is None else fit_picture(picture, side) for picture in pictures]
    if len({picture.shape for picture in fitted}) > 1:
        raise ValueError("first_frame: pictures of several sizes")
    return torch.stack(fitted)[:, None].expand(clips, -1, -1, -1, -1)


def _pictures(given: Any) -> list[Tensor]:
    """One picture or a batch of them as uint8 [H, W, 3] each."""
    if isinstance(given, (str, Path)) or hasattr(given, "getbands"):  # PIL
        given = _from_pil(given)
    tensor = as_tensor(given, "first_frame", "picture: give a path, a PIL image, an array or a tensor")
    shape = list(tensor.shape)
    if tensor.dim() not in (3, 4) or 3 not in (shape[-1], shape[-3]) or 0 in shape:
        raise ValueError(f"first_frame: shape {shape}, expected {LAYOUTS}")
    if shape[-1] != 3:
        tensor = tensor.movedim(-3, -1)
    if tensor.is_floating_point():
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise ValueError("first_frame: floating-point pixels are from 0 to 1, these are not")
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise ValueError(f"first_frame: {tensor.dtype}, expected uint8, or floating point from 0 to 1")
    return list(tensor if tensor.dim() == 4 else tensor[None])


def as_tensor(given: Any, name: str, what: str) -> Tensor:
    """An array of any library as a tensor; ValueError with `name` and what it is not."""
    if hasattr(given, "__array_interface__"):
        # NumPy's may run backward, as BGR read as RGB does, or be read-only.
        given = given.copy()
    try:
        return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: a {type(given).__name__} is no {what}") from None


def _from_pil(given: Any) -> Tensor:
    """A file or a PIL image as a viewer shows it: turned as its EXIF says, transparent parts white."""
    pillow, turned = (importlib.import_module(f"PIL.{name}") for name in ("Image", "ImageOps"))
    try:
        image = pillow.open(given) if isinstance(given, (str, Path)) else given
        if image.mode[0] in "IF":  # converting would clip them
            raise ValueError(f"not 8 bits a channel: mode {image.mode}")
        shown = turned.exif_transpose(image).convert("RGBA")
    except Exception as error:  # the readers of damaged files raise anything
        raise ValueError(f"first_frame: {given}: not a picture that can be read ({error})") from None
    shown = pillow.alpha_composite(pillow.new("RGBA", shown.size, "white"), shown).convert("RGB")
    return torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(shown.height, shown.width, 3)


def fit_picture(picture_HWC: Tensor, side: int) -> Tensor:
    """A picture, scaled so that the shorter side fits, and cut to the middle, uint8 [side, side, 3]."""
    height, width, _ = picture_HWC.shape
    if (height, width) == (side, side):
        return picture_HWC
    scale = side / min(height, width)
    size = [max(side, round(height * scale)), max(side, round(width * scale))]
    pixels = picture_HWC.movedim(-1, 0)[None].float()
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = pixels[0, :, top : top + side, left : left + side].movedim(0, -1)
    return square.round().clamp(0, 255).to(torch.uint8)


def check_types(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with numbers of any library as Python's.

    Raises:
        ValueError: naming the first that is no number of its kind (`draft`: no text).
    """
    checked = dict(options)
    for name, value in options.items():
        kind: Any = numbers.Real
        if name == "later_passes":  # a number or several: `SamplingSettings` looks at them
            continue
        if name.endswith("top_k") or name in ("speculative", "row_passes", "frames", "overlap"):
            kind = numbers.Integral
        elif name == "draft":
            kind = str
        if not isinstance(value, kind) or isinstance(value, bool):
            said = {numbers.Real: "a number", numbers.Integral: "a whole number", str: "a text"}[kind]
            raise ValueError(f"{name}: {brief(value)} is not {said}")
        if kind is numbers.Real:
            checked[name] = _finite(name, value)
        elif kind is numbers.Integral:
            checked[name] = int(value)
            if abs(checked[name]) >= LARGEST:
                raise ValueError(f"{name}: {brief(value)} is not a number below 2**63")
    return checked


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: {brief(value)} is not a finite number")
    return number


def check_numbers(weights: Mapping[str, Tensor]) -> None:
    """ValueError naming the first tensor that holds NaN or infinity, with which tokens cannot be drawn."""
    for name, tensor in weights.items():
        # A sum holds what its parts hold, and needs no memory. Tensors that are elsewhere are on the meta device.
        if (
            tensor.is_floating_point()
            and not tensor.is_meta
            and not tensor.sum(dtype=torch.float32).isfinite()
        ):
            raise ValueError(
                f"{name} holds NaN or infinite numbers: its training failed, or the file is damaged"
            )


def as_output(pixels_BTHWC: Tensor, output: str) -> Any:
    """uint8 pixels in the form that was asked for; see `OUTPUTS`."""
    if output == "pt":
        return pixels_BTHWC.movedim(-1, 2).float() / 255
    if output == "np":
        return (pixels_BTHWC.float() / 255).cpu().numpy()
    if output == "pil":
        image = importlib.import_module("PIL.Image")
        return [[image.fromarray(frame) for frame in clip] for clip in pixels_BTHWC.cpu().numpy()]
    return pixels_BTHWC
