"""Metrics of clips that a run generates while it trains: from the same conditions and seeds each time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.data.shards import DataError
from megavrc.errors import UserError
from megavrc.evaluation.alignment import SAID, measure_alignment
from megavrc.evaluation.clip_files import ArrayClips
from megavrc.evaluation.clip_model import ClipModel
from megavrc.evaluation.clip_source import PlannedClip
from megavrc.evaluation.clipsim import measure_clipsim
from megavrc.evaluation.distances import measure_distances
from megavrc.evaluation.drift import MIN_FRAMES, SHARES, measure_drift
from megavrc.evaluation.features import ClipNetwork
from megavrc.evaluation.networks import open_network
from megavrc.evaluation.protocols import protocol_of
from megavrc.evaluation.statistics import MetricReport
from megavrc.model import ModelConfig
from megavrc.progress import quiet
from megavrc.tokenizers import OmniTokenizer
from megavrc.training.previews import warn_of_drift
from megavrc.training.tasks.base import Samples
from megavrc.training.tasks.vrc_config import EvaluationConfig
from megavrc.user_files import resolve

FRAMES = 16  # of a clip that a network sees, as in FVD
DRAWS = 200  # of bootstraps


@dataclass
class ClipEvaluation:
    """The metrics of generated clips, and the real clips they are compared with. Networks are loaded when they are
    first needed, by one rank.

    Attributes:
        config: which metrics.
        items: samples whose conditions are generated from; their own clips, decoded, are the real ones.
        tokenizer: decodes both.
    """

    config: EvaluationConfig
    items: list[dict[str, Any]]
    tokenizer: OmniTokenizer
    real: ArrayClips | None = None
    network: ClipNetwork | None = None
    clip: ClipModel | None = None

    def measure(self, step: int, ids_BTHW: torch.Tensor) -> dict[str, float]:
        """Metrics of generated ids, one clip an item: NAME, and NAME_low and NAME_high, its interval."""
        with quiet():
            return {f"eval/{name}": value for name, value in self._measure(step, ids_BTHW).items()}

    def _measure(self, step: int, ids_BTHW: torch.Tensor) -> dict[str, float]:
        device = str(ids_BTHW.device)
        if self.real is None:
            self.real = self._clips("real", [item["ids"] for item in self.items])
        made = self._clips("generated", list(ids_BTHW))
        warn_of_drift(step, made.arrays, "evaluation")
        found: dict[str, float] = {}
        if len(made.arrays[0]) >= MIN_FRAMES:
            found |= _values(measure_drift(made, draws=DRAWS), SHARES)
        if all(clip.prompt in SAID for clip in made.clips):
            found |= _values(measure_alignment(made), ("colour", "shape", "direction", "all"))
        if self.config.clip:
            self.clip = self.clip or ClipModel(resolve("clip", self.config.clip), device)
            report = measure_clipsim(made, self.clip, frames=min(FRAMES, len(made.arrays[0])), draws=DRAWS)
            found |= _values(report, ("clipsim", "above_others"))
        if self.config.network:
            self.network = self.network or open_network(self.config.network, device=device)
            changes = ["place=start", f"frames={min(FRAMES, len(made.arrays[0]))}"]
            protocol = protocol_of("custom", changes=changes)
            report = measure_distances(
                "kvd", self.real, made, None, self.network, protocol, floor=False, draws=DRAWS
            )
            found |= _values(report, list(report.cases[0]["metrics"])[:1])
        return found

    def _clips(self, name: str, ids: Sequence[torch.Tensor]) -> ArrayClips:
        arrays: list[NDArray[np.uint8]] = [self.tokenizer.decode(one[None].cpu())[0].numpy() for one in ids]
        planned = [
            PlannedClip(str(number), item["caption"], item["label"]) for number, item in enumerate(self.items)
        ]
        return ArrayClips(name, planned, arrays)


def _values(report: MetricReport, names: Sequence[str]) -> dict[str, float]:
    metrics = report.cases[0]["metrics"]
    found: dict[str, float] = {}
    for name in [name for name in names if name in metrics]:
        found |= {f"{name}{end}": metrics[name][key] for end, key in ENDS.items() if key in metrics[name]}
    return found


ENDS = {"": "value", "_low": "low", "_high": "high"}


def open_evaluation(
    config: EvaluationConfig,
    model: ModelConfig,
    samples: Samples,
    tokenizer: OmniTokenizer | None,
    skip_damaged: bool,
) -> ClipEvaluation | None:
    """The evaluation that a configuration asks for, if any. Networks are tried, so that a run fails at once.

    Args:
        samples: the first of them are the prompts.
        skip_damaged: take the next for a damaged one.

    Raises:
        UserError: it cannot be measured.
    """
    if not config.every:
        return None
    if tokenizer is None:
        raise UserError("evaluation.every: clips are measured as pixels: data.video_tokenizer is needed")
    if config.clip and model.condition.is_class:
        raise UserError("evaluation.clip: this model has classes, not captions")
    items: list[dict[str, Any]] = []
    for position in range(samples.count):
        if len(items) == config.clips:
            break
        try:
            items.append(samples.source[samples.order.sample(position)])
        except DataError:
            if not skip_damaged:
                raise
    if len(items) < config.clips:
        raise UserError(f"evaluation.clips: {config.clips}, there are {len(items)} samples")
    if config.clip:
        ClipModel(resolve("clip", config.clip, "evaluation.clip"))
        if silent := sum(not item["caption"] for item in items):
            raise UserError(f"evaluation.clip: {silent} of {len(items)} samples have no caption")
    if config.network:
        seen = min(FRAMES, 1 + model.frames * tokenizer.config.temporal_patch)
        try:
            open_network(config.network)(np.zeros((1, seen, 64, 64, 3), np.uint8))
        except UserError as error:
            raise UserError(f"evaluation.network: {error}") from None
    return ClipEvaluation(config, items, tokenizer)
