"""A run starts from the weights of another: what is loaded, what is fresh, what is checked.

Stage 2 from stage 1: loaded are all weights that both models have: trunk, embeddings, type rows, condition, head.
Compressor and decompressor, which the image model lacks, are fresh. A run of the same stage, on other data, loads all
weights. What refines is fresh where the other run had no refinement. Optimizer, schedule and data position are fresh
always.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavrc.checkpoint import read_weights
from megavrc.data.blend import other_class
from megavrc.errors import UserError
from megavrc.files import check_fields
from megavrc.model import VRC

log = logging.getLogger("megavrc")

# Fields that may differ: what only stage 2 has, and what does not change the meaning of a weight.
FREE = {
    "preset",
    "frames",
    "compression",
    "decompressor_head",
    "prediction",
    "keep_first_frame",
    "segment_attention",
    "feedback",
    "refine",
    "refine_layer",
    "context_noise",
    "dropout",
    "loss_reduction",
    "frame_loss_weight",
}
FRESH = ("compressor", "decompressor", "decompressor_head", "partial")
REFINES = ("partial", "row_partial")  # fresh where the other run had no refinement
SEGMENT_FIELDS = {"compression", "decompressor_head", "prediction"}  # not free where their weights are loaded


@torch.no_grad()
def start_from(model: VRC, facts: dict[str, Any], source: str | Path) -> dict[str, list[str]]:
    """Load the weights of stage 1 into a fresh stage-2 model, or those of a run of the same stage.

    Args:
        model: with random weights.
        facts: of this run: hashes of the tokenizers, image_source.
        source: run folder of a finished run, or one of its checkpoints, or what from-hf made of a converted folder.

    Returns:
        Names of the parameters by what became of them: {"loaded": [...], "fresh": [...]}.

    Raises:
        UserError: that run is unfinished, or does not fit; the first reason is named.
    """
    path = Path(source)
    weights, state = starting_weights(path)
    next_stage = _check(model, facts, state, path)
    mine = model.state_dict()
    parts = {name.partition(".")[0] for name in weights}
    if not model.config.refine and parts & set(REFINES):
        raise UserError(f"init_from: model.refine was True in {path}, it is False here")
    new = set(FRESH if next_stage else ()) | {part for part in REFINES if part not in parts}
    fresh = sorted(name for name in mine if name.partition(".")[0] in new)
    expected = mine.keys() - set(fresh)
    if expected != weights.keys():
        odd = sorted(expected ^ weights.keys())[0]
        raise UserError(f"init_from: {path} and this model do not have the same weights, for example {odd}")
    for name in sorted(expected):
        if mine[name].shape != weights[name].shape:
            raise UserError(
                f"init_from: {name} has shape {tuple(weights[name].shape)} in {path}, {tuple(mine[name].shape)} here"
            )
        mine[name].copy_(weights[name])
    if next_stage:
        model.init_segments()
    _show(path, state, model, {name.partition(".")[0] for name in fresh})
    return {"loaded": sorted(expected), "fresh": fresh}


def starting_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state.json of what `init_from` names; UserError where that is a run that is not finished."""
    if (path / "run.json").is_file() and not (path / "complete.json").is_file():
        raise UserError(f"init_from: {path} is not finished; finish it, or name one of its checkpoints")
    return read_weights(path)


def check_model_fields(path: Path, theirs: dict[str, Any], mine: dict[str, Any], free: set[str]) -> None:
    """UserError for the first field of the model, but the `free` ones, that was another in the run at `path`."""
    for key in sorted(mine.keys() - free):
        if theirs[key] != mine[key]:
            raise UserError(f"init_from: model.{key} was {theirs[key]!r} in {path}, it is {mine[key]!r} here")


def _check(model: VRC, facts: dict[str, Any], state: dict[str, Any], path: Path) -> bool:
    """Whether stage 2 starts from stage 1; UserError if weights of `state` cannot be loaded into `model`."""
    where = f"init_from: {path}: state.json"
    check_fields(where, state, {"identity": dict, "facts": dict})
    check_fields(f"{where}: identity", state["identity"], {"model": dict})
    theirs_stage, my_stage = state["identity"].get("stage"), "video" if model.config.frames else "image"
    if theirs_stage not in ("image", my_stage):
        raise UserError(f"init_from: {path} is a run of stage {theirs_stage!r}, this is stage {my_stage}")
    free = FREE if theirs_stage == "image" else FREE - SEGMENT_FIELDS
    theirs, mine = dict(state["identity"]["model"]), model.config.to_dict()
    for config in (theirs, mine):
        config["condition"] = {key: value for key, value in config["condition"].items() if key != "drop"}
    check_model_fields(path, theirs, mine, free)
    for key, what in (
        ("video_tokenizer", "images were tokenized by another video tokenizer"),
        ("text_tokenizer", "captions were read with another text tokenizer"),
        ("text_encoder", "text features were made by another encoder"),
        ("image_source", "images were tokenized from another image_source"),
    ):
        if key == "image_source" and theirs_stage == "video":  # its data are clips
            continue
        theirs_here, mine_here = state["facts"].get(key), facts.get(key)
        if theirs_here != mine_here:
            raise UserError(f"init_from: in {path} {what} ({theirs_here}) than here ({mine_here})")
    if odd := other_class(state["facts"].get("classes"), facts.get("classes")):
        raise UserError(
            f"init_from: {odd}, in {path} and here: number them alike, or make fresh ones (convert_checkpoint from-hf "
            "--classes)"
        )
    return theirs_stage != my_stage


def _show(path: Path, state: dict[str, Any], model: VRC, fresh: set[str]) -> None:
    log.info("the run starts from %s, step %d:", path, state["step"])
    for name, child in model.named_children():
        count = sum(parameter.numel() for parameter in child.parameters())
        if count:
            log.info(
                "  %-18s %12s parameters  %s",
                name,
                f"{count:,}",
                "fresh" if name in fresh else "loaded",
            )
    log.info("  %-18s %12s             fresh", "optimizer", "")
    log.info("  checked: video tokenizer, text tokenizer, grid, image source, model fields")
