"""The models that `benchmark generate` compares: a trained or random one, and others that share its weights."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from megavrc.errors import UserError
from megavrc.generation.folder import cast, load_folder
from megavrc.model import VRC, ClipRequest, CompressionConfig, ConditionConfig, ModelConfig, SamplingSettings
from megavrc.model.clips import sampling_settings
from megavrc.model.condition import Condition
from megavrc.model.decoder import store_for_generation
from megavrc.model.omnitokenizer import OmniTokenizerNet
from megavrc.quantization.quantize import Format, quantize_generator

Variant = Literal["vrc-1", "vrc-4", "vrc-16", "vrc-64", "token", "row", "refine", "refine-late"]
FRAMES = {"prediction": "segment", "first_frame": "token"}
CHANGES: dict[Variant, dict[str, Any]] = {
    "vrc-4": FRAMES | {"compression": CompressionConfig(4)},
    "vrc-1": FRAMES | {"compression": CompressionConfig(1)},
    "vrc-16": FRAMES | {"compression": CompressionConfig(16)},
    "vrc-64": FRAMES | {"compression": CompressionConfig(64)},
    "token": {"prediction": "token", "first_frame": "token", "keep_first_frame": True},
    "row": {"prediction": "segment", "first_frame": "row"},
    "refine": FRAMES | {"compression": CompressionConfig(4), "refine": True},
    "refine-late": FRAMES
    | {"compression": CompressionConfig(4), "refine": True},  # by the last third of the layers
}


@dataclass(frozen=True, eq=False)
class Case:
    """One line of the table."""

    name: str
    model: VRC
    settings: SamplingSettings
    condition: Condition  # of the whole batch
    batch: int
    trained: bool = False
    quantize: Format | None = None

    def request(self, number: int) -> ClipRequest:
        """The batch of a round, each with seeds of its own."""
        return ClipRequest(
            self.condition, range(number * self.batch, (number + 1) * self.batch), self.settings
        )


def random_model(preset: str, frames: int, device: str, dtype: torch.dtype) -> VRC:
    """The paper's model with random weights."""
    condition = ConditionConfig(kind="class", classes=101)
    torch.manual_seed(0)
    model = VRC(ModelConfig(preset=preset, condition=condition, frames=frames))  # type: ignore[arg-type]
    cast(model.to(device).eval().requires_grad_(False), dtype)
    store_for_generation(model)
    return model


def variants_of(base: VRC, names: list[Variant]) -> dict[str, VRC]:
    """Models of the size of one, that share all weights with it that they can."""
    models: dict[str, VRC] = {}
    for name in names:
        changes = {"refine": False, "refine_layer": 0} | CHANGES[name]
        if name == "refine-late":
            changes["refine_layer"] = base.config.layers * 2 // 3
        try:
            config = dataclasses.replace(base.config, **changes)
        except ValueError as error:
            raise UserError(f"--variants: {name}: {error}") from None
        models[name] = base if config == base.config else _relative(base, config)
    return models


def _relative(base: VRC, config: ModelConfig) -> VRC:
    """A model of another kind with the base's trunk, embeddings and head; what it has of its own is fresh."""
    with torch.device("meta"):
        model = VRC(config)
    like = base.tokens.weight
    for name, part in model.named_children():
        if name in ("compressor", "decompressor", "decompressor_head", "partial"):
            part.to_empty(device=like.device)
        else:
            setattr(model, name, getattr(base, name))
    if config.first_frame == "row":
        model.start_row = nn.Parameter(like.new_zeros(config.grid, config.width))
    model.init_segments()
    cast(model.eval().requires_grad_(False), like.dtype)
    store_for_generation(model)
    return model


def quantized_cases(cases: list[Case], formats: list[Format]) -> list[Case]:
    """The same cases with matrices in other formats."""
    made = []
    for number_format in formats:
        models: dict[int, VRC] = {}  # by the id of the model that each is a copy of
        for case in cases:
            if id(case.model) not in models:
                model = models[id(case.model)] = copy.deepcopy(case.model)
                try:
                    quantize_generator(model, number_format)
                except ValueError as error:
                    raise UserError(str(error)) from None
            name = f"{case.name} {number_format}"
            made.append(
                dataclasses.replace(case, name=name, model=models[id(case.model)], quantize=number_format)
            )
    return made


def default_variants(trained: list[Case]) -> list[Variant]:
    """All; next to trained models the baseline, when none of them is one."""
    if not trained:
        return list(CHANGES)
    return [] if any(case.name == "token" for case in trained) else ["token"]


def random_cases(
    models: dict[str, VRC], batches: list[int], scales: list[float], drafts: list[int], passes: list[int]
) -> list[Case]:
    """Cases of models with random weights; those that refine draw the first later frame in each number of `passes`."""
    cells = [model.config.tokens_per_frame for model in models.values() if model.config.refine]
    if cells and not 1 <= min(passes) <= max(passes) <= cells[0]:
        raise UserError(f"--refine_passes: {passes}, expected 1 to {cells[0]}, the cells of a frame")
    return [
        Case(
            f"{name}, {number} passes" if number and len(passes) > 1 else name,
            model,
            SamplingSettings(guidance=scale, speculative=count, later_passes=[number] if number else 1),
            model.null_condition(batch),
            batch,
        )
        for batch in batches
        for name, model in models.items()
        for scale in scales
        for count in _possible(drafts, model)
        for number in (passes if model.config.refine else [0])
    ]


def _possible(drafts: list[int], model: VRC) -> list[int]:
    """Speculation is for frames that are drawn token by token."""
    return drafts if model.config.first_frame == "token" else [0]


def trained_cases(
    folders: list[Path],
    prompts: list[str] | None,
    batches: list[int],
    scales: list[float],
    drafts: list[int],
    device: str,
    dtype: torch.dtype,
) -> tuple[list[Case], OmniTokenizerNet | None]:
    """The folders' cases, and a video tokenizer, if there is a folder."""
    cases, net = [], None
    for path in folders:
        folder = load_folder(path, device, "bf16" if dtype == torch.bfloat16 else "fp32")
        model, net = folder.model, folder.video_tokenizer.net
        name = "token" if model.config.prediction == "token" else str(path)
        for batch in batches:
            condition = model.null_condition(batch)
            if prompts:
                given = folder.condition([prompts[i % len(prompts)] for i in range(batch)], None)
                condition = given.to(model.tokens.weight.device)
            for scale in scales:
                for count in _possible(drafts, model):
                    chosen = {"guidance": scale, "speculative": count}
                    settings = sampling_settings(folder.sampling, chosen)
                    cases.append(Case(name, model, settings, condition, batch, trained=True))
    return cases, net
