"""One map between our names and the folder's, both ways."""

import pytest
import torch
from safetensors.torch import load_file

from megavrc.generation.keymap import from_folder, to_folder


def test_every_parameter_and_buffer_is_named(source, folder) -> None:
    """Bit-exact, buffers included: none is non-persistent, none is left out."""
    modules = {"vrc": source.model, "video_tokenizer": source.video.net}
    parts = {
        name: dict(module.named_parameters()) | dict(module.named_buffers())
        for name, module in modules.items()
    }
    tensors = load_file(folder / "model.safetensors")
    back = from_folder(tensors)
    assert {part: set(state) for part, state in back.items()} == {
        part: set(state) for part, state in parts.items()
    }
    for part, state in parts.items():
        for name, tensor in state.items():
            assert back[part][name].dtype == tensor.dtype
            assert torch.equal(back[part][name], tensor), name
    assert to_folder(back).keys() == tensors.keys()


def test_foreign_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        from_folder({"lm_head.weight": torch.zeros(1)})
