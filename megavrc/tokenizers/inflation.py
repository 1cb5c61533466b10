"""Inflation from images to clips: the video patch embedding and pixel head, made of those of the first frame.

Source: the original project's training (notes on its objective: "average" inflation).
"""

from typing import Literal

from torch import Tensor

from megavrc.model.omnitokenizer import OmniTokenizerConfig

Inflation = Literal["average", "still"]

EMBEDDING, HEAD = "encoder.to_patch_emb", "decoder.to_pixels"


def inflate(weights: dict[str, Tensor], config: OmniTokenizerConfig, how: Inflation) -> dict[str, Tensor]:
    """Weights of a tokenizer with its clip parts replaced by the image parts, repeated over temporal_patch frames.

    Args:
        weights: state dict of an OmniTokenizerNet, of any temporal_patch.
        config: of the network that gets the result.
        how: `average` divides all that is repeated (norm, embedding matrix, pixel head) by temporal_patch, as the
            original does. `still` divides the embedding matrix only: then a clip without motion has the embeddings
            of its image, and equal states give equal frames.

    Returns:
        Another state dict; nothing is changed in place.
    """
    frames, pixels = config.temporal_patch, config.patch**2
    # Slots of the embedding: 1 norm over the pixels (with patch_norm), 2 linear, 3 norm over the width.
    repeated = {"1.weight": 0, "1.bias": 0, "2.weight": 1}
    result = dict(weights)
    norm = ("1.weight", "1.bias") if config.patch_norm else ()
    for slot in (*norm, "2.weight", "2.bias", "3.weight", "3.bias"):
        image = weights[f"{EMBEDDING}_first_frame.{slot}"]
        if slot in repeated:
            image = _repeat(image, repeated[slot], frames, pixels)
            image = image / frames if how == "average" or slot == "2.weight" else image
        result[f"{EMBEDDING}.{slot}"] = image.clone()
    for slot in ("0.weight", "0.bias"):
        head = _repeat(weights[f"{HEAD}_first_frame.{slot}"], 0, frames, pixels)
        result[f"{HEAD}.{slot}"] = head / frames if how == "average" else head
    return result


def _repeat(tensor: Tensor, dim: int, frames: int, pixels: int) -> Tensor:
    """Repeat features (channel, row, column) of an axis to (channel, frame, row, column)."""
    planes = tensor.unflatten(dim, (3, 1, pixels))
    return planes.repeat_interleave(frames, dim + 1).flatten(dim, dim + 2)
