"""The one map between the names of our parts and the tensor names of a converted folder, used both ways."""

from collections.abc import Mapping

from torch import Tensor

PREFIXES = {"vrc": "vrc.", "video_tokenizer": "video_tokenizer."}

Parts = dict[str, dict[str, Tensor]]


def to_folder(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """State dicts of the parts (`vrc`, `video_tokenizer`) as the tensors of one folder."""
    return {
        f"{PREFIXES[part]}{name}": tensor for part, state in parts.items() for name, tensor in state.items()
    }


def from_folder(tensors: Mapping[str, Tensor]) -> Parts:
    """The inverse of `to_folder`; ValueError for a tensor that belongs to no part."""
    parts: Parts = {part: {} for part in PREFIXES}
    for name, tensor in tensors.items():
        part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if part is None:
            raise ValueError(f"tensor {name} belongs neither to {' nor to '.join(PREFIXES)}")
        parts[part][name.removeprefix(PREFIXES[part])] = tensor
    return parts
