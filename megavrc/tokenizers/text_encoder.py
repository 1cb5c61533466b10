"""A frozen text encoder (T5 and its kin) from a folder in Hugging Face format: captions to features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import sha256_file, sha256_json
from megavrc.pretrained import loading, whole_model

SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt"}  # of the files that decide the features
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TextEncoder:
    """A text encoder in use: no gradients; features of a text do not contain padding.

    Args:
        folder: config, weights and tokenizer, as transformers' save_pretrained writes them. The decoder of a whole
            encoder-decoder model is left out.
        device: where it runs.
        precision: of weights and computation. Not fp16: the activations of T5 exceed its range.

    Raises:
        UserError: no such folder, not a text encoder, weights or tokenizer missing.
    """

    def __init__(
        self, folder: Path, device: str | torch.device = "cpu", precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        _check(folder)
        self.folder, self.device = folder, torch.device(device)
        self._model, self._tokenizer = _load(folder, DTYPES[precision])
        self._model.to(device).eval().requires_grad_(False)
        vocabularies = sorted(set(self._tokenizer.vocab_files_names.values()))
        # Without one of these files transformers makes an empty tokenizer.
        if not any((folder / name).is_file() for name in vocabularies):
            raise UserError(f"{folder}: no tokenizer (expected one of {', '.join(vocabularies)})")
        if self._tokenizer.pad_token is None:
            raise UserError(f"{folder}: its tokenizer has no pad token")

    @property
    def width(self) -> int:
        """Columns of the features."""
        return int(self._model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], max_tokens: int) -> list[tuple[Tensor, bool]]:
        """Features [tokens, width] of each text, in float32 on the CPU, and whether it was cut.

        Args:
            max_tokens: longer texts are cut at their end; also to what the encoder itself takes.
        """
        max_tokens = min(max_tokens, self._tokenizer.model_max_length)
        whole = self._tokenizer(list(texts), verbose=False)["input_ids"]
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        ids_BL, mask_BL = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        features_BLF = self._model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state.float().cpu()
        kept_BL = mask_BL.bool().cpu()
        return [
            (features_BLF[row, kept_BL[row]], len(whole[row]) > int(kept_BL[row].sum()))
            for row in range(len(texts))
        ]


def encoder_identity(folder: Path) -> dict[str, Any]:
    """{"name", "sha256", "files" {name: sha256}} of an encoder's folder; UserError if there is none."""
    _check(folder)
    names = sorted(path.name for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())
    files = {name: sha256_file(folder / name) for name in names}
    return {"name": folder.resolve().name, "sha256": sha256_json(files), "files": files}


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no text encoder here (expected a folder with config.json and weights)")


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForTextEncoding, AutoTokenizer

    what = "text encoder"
    with loading(folder, what):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return whole_model(folder, what, dtype, AutoModelForTextEncoding, unused="pooler"), tokenizer
