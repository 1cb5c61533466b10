"""Prompts of a model of text features: through the frozen text encoder that it was trained with."""

from pathlib import Path

import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.model import ConditionConfig
from megavrc.tokenizers.text_encoder import TextEncoder, encoder_identity


def open_encoder(
    path: Path, condition: ConditionConfig, trained_with: str | None, device: torch.device
) -> TextEncoder:
    """The text encoder that a model was trained with (its SHA-256, if known); UserError for another one."""
    if not condition.features:
        raise UserError(f"text_encoder: {path}: this model is not conditioned on text features")
    if trained_with not in (None, encoder_identity(path)["sha256"]):
        raise UserError(
            f"text_encoder: {path}: not the one that the model was trained with (another SHA-256)"
        )
    encoder = TextEncoder(path, device)
    if encoder.width != condition.feature_dim:
        raise UserError(
            f"text_encoder: {path}: {encoder.width} columns, the model takes {condition.feature_dim}"
        )
    return encoder


def prompt_features(encoder: TextEncoder, prompt: str, slots: int) -> Tensor:
    """Features [tokens, width] of one prompt, in float16 as they are stored for training; none of an empty prompt.

    Encoded alone, so that they do not depend on other prompts.
    """
    if not prompt:
        return torch.zeros(0, encoder.width)
    ((features_LF, was_cut),) = encoder.encode([prompt], slots)
    if was_cut:
        raise UserError(
            f"the prompt has more than {slots} text tokens, which is what the model takes: shorten it"
        )
    return features_LF.half()
