"""Runs of the video tokenizer with all terms: image stage, joint stage from it, resume; on one rank and on two."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from videos import make_videos
from worlds import run_world

from megavrc.checkpoint import read
from megavrc.tokenizers import OmniTokenizer
from megavrc.tokenizers.perceptual import STAGES


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("runs") / "videos"
    make_videos(root, broken=False)
    numbers = [number for stage in STAGES for number in stage]
    generator = torch.Generator().manual_seed(0)
    vgg = {f"features.{n}.weight": torch.randn(4, 4, 3, 3, generator=generator) for n in numbers}
    vgg["features.0.weight"] = vgg["features.0.weight"][:, :3].clone()
    torch.save(vgg | {f"features.{n}.bias": torch.zeros(4) for n in numbers}, root / "vgg.pth")
    done = run_world(request.param, "tokenizer_world.py", root)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"root": root, **json.loads((root / "result.json").read_text())}


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on_bit_exactly(world: dict[str, Any]) -> None:
    assert world["different"] == []
    whole, parts = (lines(world["root"] / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in parts]


def test_every_term_is_logged_in_the_steps_that_have_it(world: dict[str, Any]) -> None:
    for line in lines(world["root"] / "whole"):
        frame = {"adversarial_frame", "matching_frame", "discriminator_frame", "perceptual", "psnr", "ssim"}
        clip = {"adversarial_clip", "matching_clip", "discriminator_clip"}
        assert frame <= line.keys() and (clip <= line.keys()) == (line["step"] % 2 == 1)
        grids = {4, 16}  # by the two scales
        of_a_clip = {2 * cells for cells in grids} if line["step"] % 2 else grids
        assert round(line["tokens/s"] / line["clips/s"], 3) in of_a_clip
    for line in lines(world["root"] / "image"):  # two images of each clip
        assert round(line["tokens/s"] / line["clips/s"], 3) in {8, 32}


def test_features_are_not_in_the_checkpoint_and_discriminators_are(world: dict[str, Any]) -> None:
    checkpoint = read(Path(world["whole"]))
    names = {name for group in ("model", "buffers") for name in checkpoint.tensors(group)}
    assert not [name for name in names if "features" in name or "perceptual" in name]
    assert {name.partition(".")[0] for name in names} == {"net", "discriminators", "pool", "pooled", "seeded"}
    for name, moment in checkpoint.tensors("exp_avg").items():
        assert moment.abs().sum() > 0 or not name.startswith("discriminators"), name


def test_the_joint_stage_starts_from_the_image_stage(world: dict[str, Any]) -> None:
    image, first = (read(Path(world[key])).tensors("model") for key in ("image", "whole"))
    key = "net.encoder.to_patch_emb{}.2.weight"
    for made in (
        first[key.format("")].view(16, 3, 4, 64)[:, :, 2].flatten(1) * 4,
        first[key.format("_first_frame")],
    ):
        assert (made - image[key.format("_first_frame")]).abs().max() < 0.02, "five small steps away"
    assert "model.codes was 16" in world["refused"][0] and "nothing.pth" in world["refused"][1]
    assert "model.patch_norm was True" in world["refused"][2]
    tokenizer = OmniTokenizer.from_checkpoint(world["root"] / "whole" / "model")
    assert tokenizer.encode(torch.zeros(1, 5, 32, 32, 3, dtype=torch.uint8)).shape == (1, 2, 4, 4)
