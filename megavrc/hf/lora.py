"""LoRA fine-tuning of a converted folder with peft; the result is merged and published as a folder like any other."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from megavrc.data.dataset import TokenDataset
from megavrc.errors import UserError
from megavrc.generation.folder import Folder, load_folder
from megavrc.generation.folder_format import read_config
from megavrc.hardware import check_device
from megavrc.model.condition import Condition
from megavrc.model.modeling_vrc import VRCForVideoGeneration
from megavrc.progress import progress
from megavrc.tokenizers import OmniTokenizer

from .convert import publish, refuse_existing

TARGETS = r"vrc\.trunk\.layers\..*\.(qkv|out|gate_up|down)"  # the matrices of attention and feed-forward


@dataclass(frozen=True)
class LoraOptions:
    """How adapters are trained.

    Attributes:
        steps: of the optimiser.
        rank: of the adapters. alpha: they are scaled by alpha / rank.
        lr: constant learning rate of AdamW. batch_size: clips of a step.
        seed: of adapters, data order and condition dropout.
    """

    steps: int = 500
    rank: int = 8
    alpha: float = 16.0
    lr: float = 1e-3
    batch_size: int = 8
    seed: int = 0


def finetune(
    folder: Path, data: Path, out: Path, options: LoraOptions, device: str = "cpu", split: str = "train"
) -> list[float]:
    """Train adapters on the trunk, merge them and publish the result through the gate of to-hf.

    Weights are float32 from here on. The model stays in eval mode: no dropout, and batch norms keep their statistics.

    Args:
        folder: in Hugging Face format.
        data: finished token dataset, made by the folder's video tokenizer.
        out: new folder.
        options: of the training.
        device: to train on.
        split: of the dataset.

    Returns:
        The loss of every step.

    Raises:
        UserError: folder, dataset, options or device do not fit; `out` exists.
    """
    refuse_existing(out)
    where = check_device(device)
    if min(options.steps, options.rank, options.batch_size) < 1:
        raise UserError("steps, rank and batch_size must be positive")
    training = read_config(folder)["training"]
    parts = load_folder(folder)
    dataset = TokenDataset(data, parts.video_tokenizer.sha256, split=split)
    _check_shape(parts, dataset)
    torch.manual_seed(options.seed)
    logging.disable_progress_bar()
    model = VRCForVideoGeneration.from_pretrained(folder, dtype=torch.float32)
    adapted = add_adapters(model, options).to(where)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=options.lr)
    losses: list[float] = []
    batches = _batches(parts, dataset, options)
    steps = progress(range(options.steps), "fine-tune", options.steps, lambda: f"loss {losses[-1]:.4f}")
    for _ in steps:
        ids, condition, drop = (part.to(where) for part in next(batches))
        loss = adapted(ids=ids, condition=condition, drop=drop, logits=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    merged = adapted.merge_and_unload().to("cpu")
    summary = [*training.get("summary", ()), ["fine-tuned", _note(options, dataset, losses)]]
    record = training | {"summary": summary}
    publish(out, merged.vrc, OmniTokenizer(merged.video_tokenizer), parts.text_tokenizer, record)
    return losses


def add_adapters(model: VRCForVideoGeneration, options: LoraOptions) -> Any:
    """The model as peft wraps it, in eval mode; only adapters of the trunk's matrices are trainable."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=TARGETS)
    return get_peft_model(model, config).eval()


def _check_shape(folder: Folder, dataset: TokenDataset) -> None:
    config = folder.model.config
    expected = (1 + config.frames, config.grid, config.grid)
    if dataset.shape != expected:
        raise UserError(f"{dataset.folder}: samples of {dataset.shape} tokens, the model takes {expected}")
    if config.condition.features:
        raise UserError(
            f"{folder.path}: a model of text features cannot be fine-tuned here, only text and classes"
        )


def _batches(
    folder: Folder, dataset: TokenDataset, options: LoraOptions
) -> Iterator[tuple[Tensor, Condition, Tensor]]:
    """Endless batches of random samples: ids, condition, and where it is dropped."""
    config = folder.model.config.condition
    generator = torch.Generator().manual_seed(options.seed)
    while True:
        picks = torch.randint(len(dataset), (options.batch_size,), generator=generator).tolist()
        items = [dataset[index] for index in picks]
        key = "label" if folder.text_tokenizer is None else "caption"
        missing = [item["key"] for item in items if item[key] is None]
        if missing:
            raise UserError(f"{dataset.folder}: sample {missing[0]} has no {key}, which the model needs")
        if folder.text_tokenizer is None:
            condition = folder.condition(None, [item["label"] for item in items])
        else:
            encode = folder.text_tokenizer.encode
            rows = [encode(item["caption"], config.slots, truncate=True) for item in items]
            condition = Condition(torch.tensor(rows))
        drop = torch.rand(options.batch_size, generator=generator) < config.drop
        yield torch.stack([item["ids"] for item in items]), condition, drop


def _note(options: LoraOptions, dataset: TokenDataset, losses: list[float]) -> str:
    last = losses[-10:]
    return (
        f"LoRA of rank {options.rank}, {options.steps} steps of {options.batch_size} clips, {len(dataset)} samples, "
        f"loss {sum(last) / len(last):.4f}"
    )
