"""What a model's encoder returns, as images and clips: tokens, their grid, and the separators between them.

Separators (newlines between rows of tiles or after a clip, the CLS token of a frame) always stay and are outside the
budget: they hold places, not pictures.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TILED = ("llava_next_video", "llava_onevision")
FAMILIES = ("llava", *TILED, "video_llava", *QWEN, "internvl")


@dataclass(frozen=True)
class Visual:
    """One image or clip as the encoder returns it."""

    features: Tensor
    "[N, D], separators among them"
    separator: Tensor
    "[N] bool"
    grid: tuple[int, int, int] | None
    "(T, H, W) of the tokens that are no separators; None for an image in tiles"


def encoded(model: Any, modality: str, inputs: dict[str, Any]) -> Any:
    """The output of `get_image_features` or `get_video_features` for the pixels in `inputs`; None without pixels."""
    names = PIXELS[modality]
    if all(inputs.get(name) is None for name in names) or not hasattr(
        model.model, f"get_{modality}_features"
    ):
        return None
    function = getattr(model.model, f"get_{modality}_features")
    wanted = inspect.signature(function).parameters
    given = {name: inputs[name] for name in wanted if inputs.get(name) is not None and name != "kwargs"}
    return function(**given, return_dict=True)


def visuals(model: Any, modality: str, output: Any, inputs: dict[str, Any]) -> list[Visual]:
    """The images or clips of an encoder's output, in the order of their placeholders."""
    family = model.config.model_type
    features = list(output.pooler_output)
    if family == "video_llava" and modality == "video":  # frames, each behind its CLS token
        clips, frames = inputs["pixel_values_videos"].shape[:2]
        features = list(output.pooler_output.reshape(clips, -1, output.pooler_output.shape[-1]))
        separator = torch.zeros(frames, len(features[0]) // frames, dtype=torch.bool)
        separator[:, 0] = True
        return [visual(clip, separator.flatten(), frames) for clip in features]
    if family in QWEN:
        merge = model.config.vision_config.spatial_merge_size
        grids = [(t, h // merge, w // merge) for t, h, w in inputs[f"{modality}_grid_thw"].tolist()]
        none = [torch.zeros(len(part), dtype=torch.bool) for part in features]
        return [Visual(*parts) for parts in zip(features, none, grids, strict=True)]
    newline = getattr(model.model, "image_newline", None)
    found = []
    for part in features:
        separator = torch.zeros(len(part), dtype=torch.bool)
        if newline is not None:
            separator = (part == newline.to(part)).all(-1).cpu()
        if modality == "image" and family in TILED:
            found.append(Visual(part, separator, None))
        else:
            frames = inputs["pixel_values_videos"].shape[1] if modality == "video" else 1
            found.append(visual(part, separator, frames))
    return found


def visual(features: Tensor, separator: Tensor, frames: int) -> Visual:
    """Square frames, and separators."""
    area = int((~separator).sum()) // frames
    side = round(area**0.5)
    return Visual(features, separator, (frames, side, side) if side * side == area else None)
