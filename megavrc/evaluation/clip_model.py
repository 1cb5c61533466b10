"""A CLIP model that the user brings, as a folder in Hugging Face format: embeddings of frames and of captions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.hardware import check_device
from megavrc.pretrained import loading, whole_model
from megavrc.user_files import UserFile

Embeddings = NDArray[np.float32]  # [N, d], of length 1


class Captions(NamedTuple):
    """Embeddings of captions, and which were longer than what the model reads."""

    embeddings: Embeddings
    cut: list[bool]


class ClipModel:
    """CLIP in use, in float32.

    Args:
        file: the folder: config, weights, tokenizer and preprocessor as transformers' save_pretrained writes them.
        device: where it runs.

    Raises:
        UserError: no CLIP model that transformers loads, or parts of it are missing.
    """

    def __init__(self, file: UserFile, device: str = "cpu") -> None:
        self.path, self.device = file.path, check_device(device)
        self._model, self._tokenizer, self._pictures = _load(file)
        self._model.to(self.device).eval().requires_grad_(False)
        vision = self._model.config.vision_config
        self.facts: dict[str, Any] = {
            "sha256": file.sha256,
            "patch": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
        }

    @torch.inference_mode()
    def frames(self, frames_NHWC: NDArray[np.uint8]) -> Embeddings:
        """Embeddings of pictures, uint8 [N, H, W, 3]: resized (bicubic) and cut as the folder's preprocessor says."""
        pixels = self._pictures(images=list(frames_NHWC), return_tensors="pt")["pixel_values"]
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self.device)))

    @torch.inference_mode()
    def captions(self, texts: Sequence[str], batch: int = 64) -> Captions:
        """Embeddings of texts; longer ones are cut at their end."""
        longest = self._model.config.text_config.max_position_embeddings
        whole = self._tokenizer(list(texts), verbose=False)["input_ids"]
        found = []
        for start in range(0, len(texts), batch):
            tokens = self._tokenizer(
                list(texts[start : start + batch]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            given = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
            found.append(_unit(self._model.get_text_features(**given)))
        return Captions(np.concatenate(found), [len(ids) > longest for ids in whole])


def _unit(found: Any) -> Embeddings:
    features = getattr(found, "pooler_output", found)  # a tensor, or (transformers 5) an output that holds it
    unit: Embeddings = (features / features.norm(dim=-1, keepdim=True)).float().cpu().numpy()
    if not np.isfinite(unit).all():
        raise UserError("the CLIP model gives embeddings that are not finite")
    return unit


def _load(file: UserFile) -> tuple[Any, Any, Any]:
    import transformers

    # Without torchvision this is what the other class falls back on: one preprocessing everywhere.
    pictures = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    what = "CLIP model"
    with loading(file.path, what):
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.path, local_files_only=True)
        preprocessor = pictures.from_pretrained(file.path, local_files_only=True)
    if tokenizer.pad_token is None:
        raise UserError(f"{file.path}: its tokenizer has no pad token")
    return whole_model(file.path, what, torch.float32, transformers.CLIPModel), tokenizer, preprocessor
