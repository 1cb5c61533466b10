"""Random draws of training for a sample: from the seed and its position alone, so that a run resumes exactly."""

from typing import Any

import torch
from torch import Tensor

from megavrc.distributed import seed_for
from megavrc.model import ModelConfig
from megavrc.model.refinement import draw_known, noisy_context


def training_draws(items: list[dict[str, Any]], model: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Arguments of `VRC.forward` by name: whether to `drop` the condition and, where the model has them, which cells
    are `known` and the noisy `context`.

    Args:
        items: samples with their position.
        model: whose training it is.
        seed: of the run.
    """
    places = [item["position"] for item in items]
    drop = [seed_for(seed, "drop", place) / 2**63 < model.condition.drop for place in places]
    draws = {"drop": torch.tensor(drop)}
    if model.refine:
        known = [draw_known(model, seed_for(seed, "known", place)) for place in places]
        draws["known"] = torch.stack(known)
    if model.context_noise and model.frames:
        ids = zip(items, places, strict=True)
        noisy = [noisy_context(model, item["ids"], seed_for(seed, "noise", place)) for item, place in ids]
        draws["context"] = torch.stack(noisy)
    return draws
