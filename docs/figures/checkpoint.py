"""Draw who writes what of a checkpoint, with the files that two ranks would write: docs/images/checkpoint.svg."""

import torch
from canvas import Canvas

from megavrc.checkpoint.shards import plan_shards
from megavrc.model import VRC, ModelConfig
from megavrc.model.config import ConditionConfig
from megavrc.training.state import MOMENTS

RANKS = 2


def drawing() -> str:
    """The figure as SVG: files and owners are those of `plan_shards` for preset l."""
    with torch.device("meta"):
        model = VRC(ModelConfig("l", condition=ConditionConfig(vocab=1)))
    weights = dict(model.named_parameters())
    groups = {"model": weights, **dict.fromkeys(MOMENTS, weights), "buffers": dict(model.named_buffers())}
    shards = plan_shards(groups, RANKS)
    size = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
    canvas = Canvas(382, "Who writes what of a checkpoint")
    canvas.title(
        20,
        26,
        "step-00001000",
        f"preset l on {RANKS} ranks: {len(shards)} files, {size / 1e9:.1f} GB; time runs to the right",
    )
    for rank in range(RANKS):
        _lane(canvas, 44 + 156 * rank, rank, [shard.file for shard in shards if shard.owner == rank])
    canvas.title(
        20,
        362,
        "never half a checkpoint:",
        "a reader sees the renamed folder or none; a write that fails is undone, and training goes on",
    )
    return canvas.svg()


def _lane(canvas: Canvas, y: float, rank: int, files: list[str]) -> None:
    canvas.text(20, y + 20, f"rank {rank}", "bold")
    canvas.text(20, y + 36, "training", "small quiet")
    canvas.text(20, y + 84, "writer", "small quiet")
    canvas.text(20, y + 98, "(a thread)", "small quiet")
    canvas.box(92, y + 6, 78, 38, "compressed", "copy", "its share")
    canvas.box(174, y + 6, 330, 38, "raw", "training goes on", "steps")
    canvas.box(508, y + 6, 96, 38, "compressed", "agree", "all written?")
    canvas.box(608, y + 6, 232, 38, "raw", "training goes on", "steps")
    canvas.arrow((131, y + 44), (131, y + 60))
    canvas.box(92, y + 62, 412, 66, "plain")
    for number, file in enumerate(files[:10]):
        column, row = divmod(number, 4)
        canvas.text(102 + column * 196, y + 78 + 15 * row, file.removesuffix(".safetensors"), "code")
    if len(files) > 8:
        canvas.text(298, y + 122, f"and {len(files) - 7} more", "small quiet")
    canvas.arrow((504, y + 95), (556, y + 95), (556, y + 45))
    if rank == 0:
        canvas.arrow((590, y + 44), (590, y + 95), (607, y + 95))
        canvas.box(
            608,
            y + 62,
            232,
            66,
            "good",
            "commit",
            "state.json, manifest.json (hashes),",
            "rename the folder, then latest",
        )
    else:
        canvas.text(608, y + 99, "hashes of its files go to rank 0", "small quiet")
