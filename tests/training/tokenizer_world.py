"""Run by test_tokenizer_run.py on two ranks and on one: an image stage, and joint stages that start from it."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from megavrc.checkpoint import read
from megavrc.config import load_config
from megavrc.distributed import Rank, connect
from megavrc.errors import UserError
from megavrc.training.loop import train
from megavrc.training.tasks.tokenizer import TokenizerTask
from megavrc.training.tasks.tokenizer_config import TokenizerRunConfig

SIZES = [
    "--model.width=16",
    "--model.heads=2",
    "--model.dim_head=8",
    "--model.enc_block=w",
    "--model.window=2",
]
SIZES += ["--model.dec_block=t", "--model.temporal_depth=1", "--model.codes=16", "--data.size=32"]
TERMS = ["--objective.gan_frame=0.3", "--objective.feature_matching=0.5", "--objective.gan_width=4"]
TERMS += ["--objective.restart=true", "--objective.scales=[0.5,1.0]", "--objective.perceptual=0.5"]
LOOP = ["--train.global_batch=4", "--train.log_every=1", "--train.keep=9", "--optimizer.schedule=constant"]
IMAGE = ["--objective.warmup_steps=1", '--data.frames_schedule={"0": 1}', "--data.images_per_clip=2"]
JOINT = ["--objective.warmup_steps=0", '--data.frames_schedule={"0": [5, 1]}', "--objective.gan_clip=0.2"]


def run(root: Path, name: str, steps: int, rank: Rank, *words: str) -> Path:
    fixed = [f"--run_dir={root / name}", f"--train.steps={steps}", f"--data.path={root / 'manifest.jsonl'}"]
    fixed += [f"--train.micro_batch={4 // rank.world_size}", f"--objective.vgg={root / 'vgg.pth'}"]
    config = load_config(TokenizerRunConfig, fixed + SIZES + TERMS + LOOP + list(words))
    train(config, TokenizerTask(config, rank), rank)
    return root / name / "checkpoints" / f"step-{steps:08d}"


def different(a: Path, b: Path) -> list[str]:
    """Names of the tensors that two checkpoints do not share to the bit."""
    groups = ("model", "exp_avg", "exp_avg_sq", "buffers")
    pairs = [(group, read(a).tensors(group), read(b).tensors(group)) for group in groups]
    return [f"{group}/{key}" for group, x, y in pairs for key in x if not torch.equal(x[key], y[key])]


def runs(root: Path, rank: Rank) -> dict[str, Any]:
    refused = []
    image = run(root, "image", 2, rank, *IMAGE)
    zero = ["--train.zero=0"] if rank.world_size == 1 else ["--train.zero=1"]
    joint = [*JOINT, *zero, f"--init_from={root / 'image'}"]
    whole = run(root, "whole", 5, rank, *joint)
    run(root, "parts", 3, rank, *joint)
    parts = run(root, "parts", 5, rank, *joint)
    for other in ("--model.codes=32", "--objective.vgg=nothing.pth", "--model.patch_norm=false"):
        try:
            run(root, f"refused{len(refused)}", 1, rank, *joint, other)
        except UserError as error:
            refused.append(str(error))
    return {
        "image": str(image),
        "whole": str(whole),
        "different": different(whole, parts),
        "refused": refused,
    }


if __name__ == "__main__":
    with connect() as rank:
        root = Path(sys.argv[1])
        result = runs(root, rank)
        if rank.main:
            (root / "result.json").write_text(json.dumps(result))
