"""Stages 1 and 2: VRC on tokenized images and clips."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megavrc.data.order import InOrder
from megavrc.data.shards import DataError
from megavrc.errors import UserError
from megavrc.model import VRC, ClipRequest, Sampling, SamplingSettings, VideoPipeline
from megavrc.model.condition import Condition, kind_of
from megavrc.model.flops import training_flops
from megavrc.tokenizers import OmniTokenizer, TextTokenizer
from megavrc.training.previews import warn_of_drift, write_preview
from megavrc.training.stages import start_from
from megavrc.training.tasks.base import Samples
from megavrc.training.tasks.conditions import check_conditions, conditions_of, has_checkpoints
from megavrc.training.tasks.draws import training_draws
from megavrc.training.tasks.tokens import open_training, open_validation, order_identity
from megavrc.training.tasks.vrc_config import RunConfig

log = logging.getLogger("megavrc")


class VRCTask:
    """Trains VRC; see `Task` for the parts.

    Raises:
        UserError: dataset, model and tokenizers do not fit together; all that does not is named.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        data, model = config.data, config.model
        self.video_tokenizer = None
        if data.video_tokenizer:
            self.video_tokenizer = OmniTokenizer.from_checkpoint(data.video_tokenizer)
        expected = self.video_tokenizer.sha256 if self.video_tokenizer else None
        self.source, self.order = open_training(data, config.seed, model.condition, expected)
        self.validation = open_validation(data, self.source, model.condition)
        self.max_damaged = data.max_damaged if data.on_damage == "replace" else 0
        self.text = TextTokenizer(data.text_tokenizer) if model.condition.learned_text else None
        if problems := list(self._problems()):
            raise UserError(f"{self.source.address}: " + "; ".join(problems))
        most = 1.0 if has_checkpoints(config.run_dir) else data.max_incomplete
        incomplete = check_conditions(self.source, model.condition, self.text, most)
        self.tokens = (1 + model.frames) * model.tokens_per_frame
        self.flops = training_flops(model)
        self.facts = {
            "video_tokenizer": self.source.info["tokenizer"]["sha256"],
            "text_tokenizer": self.text.sha256 if self.text else None,
            "text_encoder": self.source.text_encoder,
            "image_source": self.source.info["image_source"],
        }
        self.class_names = self.source.info.get("classes") if model.condition.is_class else None
        if self.class_names:
            self.facts["classes"] = self.class_names
        if incomplete.share:
            self.facts["incomplete"] = incomplete.in_words(model.condition)
        self.evaluate_every, self.evaluation = config.evaluation.every, None
        if self.evaluate_every:
            from megavrc.training.tasks.evaluation import open_evaluation  # a second of imports

            trained_on = Samples(self.source, InOrder(len(self.source)), len(self.source))
            samples = next(iter(self.validation.values()), trained_on)
            self.evaluation = open_evaluation(
                config.evaluation, model, samples, self.video_tokenizer, bool(self.max_damaged)
            )
        self.identity = {
            "stage": config.stage,
            "seed": config.seed,
            "model": model.to_dict(),
            "data": self.source.identity,
            "order": order_identity(data),
            "global_batch": config.train.global_batch,
            "text_tokenizer": self.facts["text_tokenizer"],
            "text_encoder": self.facts["text_encoder"],
            "text_features": self.source.text_features,
            "starts_from_stage_1": bool(config.init_from),
        }

    def _problems(self) -> Iterator[str]:
        """What does not fit together in dataset, model and text tokenizer."""
        model, info, shape = self.config.model, self.source.info, self.source.shape
        condition, stage = model.condition, self.config.stage
        kind, frames = ("image", 1) if stage == "image" else ("video", 1 + model.frames)
        classes, width = len(info.get("classes") or []), self.source.feature_width
        if info["kind"] != kind:
            yield f"stage {stage} trains on {kind} tokens, this dataset has {info['kind']}s"
        if shape[0] != frames:
            yield f"model.frames: samples have {shape[0]} latent frames, the model takes {frames}"
        if shape[1:] != (model.grid, model.grid):
            yield f"model.grid: samples are {shape[1]}x{shape[2]}, the model's grid is {model.grid}"
        if self.source.vocab != model.vocab:
            yield f"model.vocab: is {model.vocab}, the samples' ids are below {self.source.vocab}"
        if self.text and self.text.vocab > condition.vocab:
            yield f"model.condition.vocab: is {condition.vocab}, the text tokenizer has {self.text.vocab} ids"
        if condition.is_class and classes > condition.classes:
            yield f"model.condition.classes: is {condition.classes}, the dataset has {classes} classes"
        if self.source.text_encoder and width != condition.feature_dim:
            yield f"model.condition.feature_dim: is {condition.feature_dim}, the text features have {width} columns"

    def build(self) -> VRC:
        return VRC(self.config.model)

    def initialise(self, module: VRC) -> None:
        if self.config.init_from:
            start_from(module, self.facts, self.config.init_from)

    def blocks(self, module: VRC) -> list[nn.Module]:
        return list(module.trunk.layers)

    def condition(self, items: list[dict[str, Any]]) -> Condition:
        """See `conditions_of`."""
        return conditions_of(items, self.config.model.condition, self.text)

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "ids": torch.stack([item["ids"] for item in items]),
            "condition": self.condition(items),
            "draws": training_draws(items, self.config.model, self.config.seed),
        }

    def loss(self, module: VRC, batch: dict[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        draws = batch["draws"] if module.training else {}
        out = module(batch["ids"], batch["condition"], backend=self.config.train.attention, **draws)
        if self.config.stage == "image":
            return out.loss, {"first": out.loss_first}
        frames = {f"frame_{index}": loss for index, loss in enumerate(out.loss_frames) if index}
        return out.loss, {"first": out.loss_first, "later": out.loss_later, **frames}

    def preview(self, module: VRC, folder: Path, step: int) -> None:
        count = min(self.config.preview.count, len(self.source))
        if self.video_tokenizer is None or not count:
            return
        items = self._preview_items(count)
        if not items:
            log.warning("step %d: no preview, there is no whole sample for it", step)
            return
        ids = self._generate(VideoPipeline(module), items, range(count))
        clips = self.video_tokenizer.decode(ids.cpu()).numpy()
        write_preview(folder, step, list(zip(map(self._label, items), clips, strict=True)))
        warn_of_drift(step, list(clips), "preview")

    def evaluate(self, module: VRC, step: int) -> dict[str, float]:
        assert self.evaluation is not None
        items, batch, pipeline = self.evaluation.items, self.config.train.micro_batch, VideoPipeline(module)
        parts = [range(start, min(start + batch, len(items))) for start in range(0, len(items), batch)]
        ids = [self._generate(pipeline, [items[index] for index in part], part) for part in parts]
        return self.evaluation.measure(step, torch.cat(ids))

    def _generate(self, pipeline: VideoPipeline, items: list[dict[str, Any]], seeds: range) -> Tensor:
        """Ids [B, t, h, w] from the conditions of samples; the pipeline's memory goes with it, which training needs."""
        preview = self.config.preview
        settings = SamplingSettings(Sampling(preview.first_temperature), Sampling(preview.later_temperature))
        return pipeline.generate(ClipRequest(self.condition(items), seeds, settings), "ids")

    def _preview_items(self, count: int) -> list[dict[str, Any]]:
        """Samples with different conditions, as far as the first few hundred of the dataset have them.

        Where damaged ones may be replaced, they are left out; so there may be none.
        """
        chosen: dict[str, dict[str, Any]] = {}
        damaged: list[DataError] = []
        for index in range(min(len(self.source), 50 * count)):
            try:
                item = self.source[index]
            except DataError as error:
                if not self.max_damaged:
                    raise
                damaged.append(error)
                continue
            chosen.setdefault(self._label(item), item)
            if len(chosen) == count:
                break
        if damaged:
            log.warning(
                "preview: %d damaged samples left out, the first because: %s", len(damaged), damaged[0]
            )
        return [list(chosen.values())[index % len(chosen)] for index in range(count if chosen else 0)]

    def _label(self, item: dict[str, Any]) -> str:
        if kind_of(self.config.model.condition).reads != "label":
            return item["caption"] or "no caption"
        label, names = item["label"], self.class_names or ()
        return "no class" if label is None else f"class {names[label] if label < len(names) else label}"

    def finish(self, module: VRC, run_dir: Path) -> dict[str, Any]:
        return {}
