"""Conversion of a folder in Hugging Face format to the start of a new run: stage 2, another dataset, other classes.

OUT/checkpoints/step-*   the generator as a checkpoint of our own: what `init_from` of a run takes, and to-hf
OUT/video_tokenizer/     for tokenizing the videos of the new run
OUT/text_tokenizer/tokenizer.model
OUT/run.json, complete.json   as of a finished run, so that no run takes OUT for its own folder
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavrc import checkpoint
from megavrc.errors import UserError
from megavrc.files import read_json, write_json
from megavrc.generation.folder import SAMPLING, TEXT_TOKENIZER, Folder, load_folder
from megavrc.generation.folder_format import read_config
from megavrc.model import ModelConfig
from megavrc.model.vrc import INIT_STD
from megavrc.processes import appearing

from .convert import refuse_existing

CLASS_TABLE = "condition.table.weight"


def from_hf(folder: Path, out: Path, classes: int | None = None, seed: int = 0) -> None:
    """Make the start of a run of a converted folder, all bits kept (bfloat16 weights become the same float32 values).

    Args:
        folder: in Hugging Face format.
        out: new folder.
        classes: of the new run's dataset, for a class-conditioned model: their embeddings are fresh, the null class
            and everything else are kept.
        seed: of the fresh embeddings.

    Raises:
        UserError: not such a folder, or a damaged one; nothing is left behind.
    """
    refuse_existing(out)
    training = read_config(folder)["training"]
    source = load_folder(folder)
    config = source.model.config
    parameters = {name: tensor.detach().float() for name, tensor in source.model.named_parameters()}
    if classes is not None:
        config, parameters[CLASS_TABLE] = _with_classes(config, parameters, classes, seed, folder)
        facts = {name: value for name, value in training.get("facts", {}).items() if name != "classes"}
        training = {**training, "facts": facts}
    stage = "video" if config.frames else "image"
    identity = {"stage": stage, "model": config.to_dict(), "converted_from": source.identity()}
    state = {"identity": identity, "facts": _facts(source, training, stage), "training": training}
    if (folder / SAMPLING).is_file():
        state["sampling"] = read_json(folder / SAMPLING)  # which `load_folder` has checked
    with appearing(out) as partial:
        source.video_tokenizer.save(partial / "video_tokenizer")
        if source.text_tokenizer is not None:
            (partial / "text_tokenizer").mkdir()
            shutil.copyfile(source.text_tokenizer.path, partial / "text_tokenizer" / TEXT_TOKENIZER)
        groups = {"model": parameters, "buffers": dict(source.model.named_buffers())}
        checkpoint.write(partial / "checkpoints", training.get("step", 0), groups, state, keep=1)
        checkpoint.write_record(partial, identity, state["facts"], starts=[])
        write_json(partial / "complete.json", {"step": training.get("step", 0)})


def _with_classes(
    config: ModelConfig, parameters: dict[str, Tensor], classes: int, seed: int, folder: Path
) -> tuple[ModelConfig, Tensor]:
    """The configuration for another number of classes, and its table: fresh rows, then the null class as it was."""
    values = config.to_dict()
    if not config.condition.is_class or classes < 1:
        raise UserError(f"classes: {classes} for {folder}, a model conditioned on {config.condition.kind}")
    values["condition"]["classes"] = classes
    null = parameters[CLASS_TABLE][-1:]
    fresh = torch.randn(classes, config.width, generator=torch.Generator().manual_seed(seed)) * INIT_STD
    return ModelConfig.from_dict(values), torch.cat([fresh, null])


def _facts(source: Folder, training: dict[str, Any], stage: str) -> dict[str, Any]:
    """What `init_from` compares: hashes of the tokenizers, and where stage-1 images were taken from."""
    if stage == "image" and not training:
        raise UserError(
            f"{source.path}/config.json: format version 1 does not say how the images were tokenized: "
            "convert the run again"
        )
    text = source.text_tokenizer
    mine = {
        "video_tokenizer": source.video_tokenizer.sha256,
        "text_tokenizer": text.sha256 if text else None,
    }
    # Its tokenizers as they are now: those of a packed folder were rounded after training.
    known = {name: value for name, value in mine.items() if value is not None}
    return {**mine, "image_source": None} | training.get("facts", {}) | known
