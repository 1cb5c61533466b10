"""Small models of every kind, shared by the model tests."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megavrc.model import (
    VRC,
    ClipRequest,
    CompressionConfig,
    ConditionConfig,
    ModelConfig,
    SamplingSettings,
    VideoPipeline,
)
from megavrc.model.condition import Condition

VARIANTS = {
    "paper": {},
    "rate 1": {"compression": CompressionConfig(1)},
    "rate 16": {"compression": CompressionConfig(16, norm="rms")},
    "rate 64": {"compression": CompressionConfig(64, norm="group")},
    "identity": {"compression": CompressionConfig(1, "identity")},
    "avgpool": {"compression": CompressionConfig(4, "avgpool")},
    "strided": {"compression": CompressionConfig(4, "strided")},
    "space to depth": {"compression": CompressionConfig(16, "space_to_depth")},
    "own head": {"decompressor_head": "own"},
    "segments without x": {"keep_first_frame": False},
    "row": {"first_frame": "row"},
    "row without x": {"first_frame": "row", "keep_first_frame": False},
    "causal segments": {"segment_attention": "causal"},
    "token": {"prediction": "token"},
    "image": {"frames": 0},
    "row image": {"frames": 0, "first_frame": "row"},
    "class": {"condition": ConditionConfig(kind="class", classes=5)},
    "bidirectional text": {"condition": ConditionConfig(vocab=40, attention="bidirectional")},
    "features": {"condition": ConditionConfig(text="features", feature_dim=6)},
}


def build(variant: str = "paper", seed: int = 0, **changes: object) -> VRC:
    """A float64 model with random heads (fresh ones are zero and would hide everything), in eval mode."""
    torch.manual_seed(seed)
    settings = {"condition": ConditionConfig(vocab=40), "layers": 2, "width": 64, "frames": 2, "vocab": 50}
    model = VRC(ModelConfig(**{**settings, "dropout": 0.0, **VARIANTS[variant], **changes}))  # type: ignore[arg-type]
    torch.nn.init.normal_(model.head.weight, std=0.2)
    if model.config.decompressor_head == "own":
        torch.nn.init.normal_(model.decompressor_head.weight, std=0.2)
    return model.double().eval()


def refined(variant: str = "paper", **changes: object) -> VRC:
    """A model whose known cells add something, as a trained one's do."""
    model = build(variant, refine=True, **changes)
    for part in (model.get_submodule(name) for name in ("partial", "row_partial") if hasattr(model, name)):
        torch.nn.init.normal_(part.net[-1].weight, std=0.2)
        torch.nn.init.normal_(part.net[-1].bias, std=0.2)
    return model


def inputs(model: VRC, batch: int = 2, seed: int = 1):
    """Random ids [B, 1 + F, g, g] and a condition for the model."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    shape = (batch, 1 + config.frames, config.grid, config.grid)
    ids = torch.randint(config.vocab, shape, generator=generator)
    if config.condition.kind == "class":
        return ids, torch.randint(config.condition.classes, (batch,), generator=generator)
    slots = config.condition.slots
    if config.condition.text == "features":
        features = torch.randn(batch, slots - 1, config.condition.feature_dim, generator=generator)
        return ids, (features.double(), torch.arange(slots - 1).expand(batch, -1) >= 3)
    return ids, torch.randint(config.condition.vocab, (batch, slots), generator=generator)


def generate(
    model: VRC | VideoPipeline,
    condition,
    settings: SamplingSettings,
    seeds: Sequence[int],
    prefix: Tensor | None = None,
    frames: int | None = None,
    on_speculation: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Ids of clips, long [B, 1 + frames, g, g], from a pipeline or one of their own; `prefix`: ids they begin with."""
    pipeline = model if isinstance(model, VideoPipeline) else VideoPipeline(model)
    pipeline.on_speculation = on_speculation
    latent = None if frames is None else 1 + frames
    return pipeline.generate(ClipRequest(Condition.of(condition), seeds, settings, prefix, latent), "ids")
