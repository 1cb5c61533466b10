"""Published OmniTokenizer checkpoints (Lightning `.ckpt`): safe reading, and the configuration from their shapes.

Source: github.com/FoundationVision/OmniTokenizer, checkpoints of huggingface.co/Daniel0724/OmniTokenizer.
"""

import argparse
import collections
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavrc.config import UserError
from megavrc.model.omnitokenizer import OmniTokenizerConfig

TOKENIZER_KEYS = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook.")
ENCODER_SPATIAL = "encoder.enc_spatial_transformer"
ENCODER_TEMPORAL = "encoder.enc_temporal_transformer"
DECODER_SPATIAL = "decoder.dec_spatial_transformer"
ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
CAUSAL_FLAGS = ("causal_in_temporal_transformer", "causal_in_peg")  # older files spell them `casual_`


def read_published(path: Path) -> tuple[OmniTokenizerConfig, dict[str, Tensor]]:
    """Configuration and tokenizer weights of a published video VQ checkpoint; discriminators and the like are left.

    Raises:
        UserError: not such a file, or a VAE or an image-only (`rel` position bias) model, which are not supported.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_RestrictedPickle)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error})") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = state if isinstance(state, dict) else {}
    weights = {k: v for k, v in state.items() if isinstance(k, str) and k.startswith(TOKENIZER_KEYS)}
    try:
        config = config_from_weights(weights)
    except KeyError as error:
        raise UserError(f"{path}: not an OmniTokenizer checkpoint (no weights named {error})") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    _check_flags(path, content)
    return config, weights


def config_from_weights(weights: dict[str, Tensor]) -> OmniTokenizerConfig:
    """The configuration that shapes and keys imply.

    Raises:
        KeyError: a key that every tokenizer has is missing.
        ValueError: a VAE or an image-only model.
    """
    width, features = weights["encoder.to_patch_emb_first_frame.2.weight"].shape
    codes, code_dim = weights["codebook.embeddings"].shape
    if len(weights["pre_vq_conv.1.weight"]) == 2 * code_dim:
        raise ValueError("a VAE checkpoint has no ids; use a VQ checkpoint of the video models")
    spatial = re.compile(r"(enc|dec)_spatial_transformer\.layers\.\d+\.1\.spatial_rel_pos_bias")
    if any(spatial.search(key) for key in weights):
        raise ValueError(
            "an image-only checkpoint (`rel` position bias) is not supported; use a video VQ checkpoint"
        )
    temporal = f"{ENCODER_TEMPORAL}.layers.0"
    dim_head = len(weights[f"{temporal}.1.q_scale"])
    tables = [v for k, v in weights.items() if k.endswith("relative_position_bias_table")]
    hidden = weights[f"{temporal}.3.4.weight"].shape[1]
    return OmniTokenizerConfig(
        width=width,
        heads=len(weights[f"{temporal}.1.to_q.weight"]) // dim_head,
        dim_head=dim_head,
        patch=round((features / 3) ** 0.5),
        temporal_patch=weights["encoder.to_patch_emb.2.weight"].shape[1] // features,
        enc_block=_letters(weights, ENCODER_SPATIAL),
        dec_block=_letters(weights, DECODER_SPATIAL),
        temporal_depth=len(_letters(weights, ENCODER_TEMPORAL)),
        window=(round(len(tables[0]) ** 0.5) + 1) // 2 if tables else 1,
        codes=codes,
        code_dim=code_dim,
        ff_mult=_ff_mult(width, hidden),
        temporal_peg="original",
    )


def _letters(weights: dict[str, Tensor], prefix: str) -> str:
    layers = {int(m[1]) for k in weights if (m := re.match(re.escape(prefix) + r"\.layers\.(\d+)\.", k))}
    return "".join(
        "w" if f"{prefix}.layers.{i}.1.relative_position_bias_table" in weights else "t"
        for i in sorted(layers)
    )


def _ff_mult(width: int, hidden: int) -> float:
    """A factor with int(factor * 2/3 * width) == hidden; whole numbers first."""
    candidates = [float(n) for n in range(1, 17)] + [(hidden + 0.5) / width * 1.5]
    return next(m for m in candidates if int(m * (2 / 3) * width) == hidden)


def _check_flags(path: Path, content: dict[str, Any]) -> None:
    """Refuse what shapes do not show: models that are not causal in time (no published one)."""
    recorded = content.get("hyper_parameters")
    args = recorded.get("args") if isinstance(recorded, dict) else None
    options = vars(args) if isinstance(args, argparse.Namespace) else {}
    for flag in CAUSAL_FLAGS:
        if not options.get(flag, options.get(flag.replace("causal", "casual"), True)):
            raise UserError(f"{path}: its {flag} is off, which is not supported")


class _Inert:
    """Stands in for every class and function that is not on the list: accepts everything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; nothing that a checkpoint names is ever run."""

    def find_class(self, module: str, name: str) -> Any:
        return ALLOWED.get((module, name), _Inert)


class _RestrictedPickle:
    """What `torch.load` asks of a pickle module; `load` reads the header of files older than torch 1.6."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()
