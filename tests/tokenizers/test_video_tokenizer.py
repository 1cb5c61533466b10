"""The video tokenizer's files and its uint8 API."""

import json
from pathlib import Path

import pytest
import torch

from megavrc.errors import UserError
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer


def small(**changes: object) -> OmniTokenizer:
    torch.manual_seed(0)
    sizes = dict(
        width=32, heads=2, dim_head=16, enc_block="wt", dec_block="t", temporal_depth=1, window=2, codes=64
    )
    return OmniTokenizer(OmniTokenizerNet(OmniTokenizerConfig(**{**sizes, **changes})))  # type: ignore[arg-type]


def frames(count: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, count, 32, 32, 3), dtype=torch.uint8, generator=generator)


def test_folder_round_trip(tmp_path: Path) -> None:
    tokenizer = small()
    tokenizer.save(tmp_path / "t")
    loaded = OmniTokenizer.from_checkpoint(tmp_path / "t")
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.config == tokenizer.config and loaded.sha256 == tokenizer.sha256
    ids_BTHW = loaded.encode(frames())
    assert torch.equal(ids_BTHW, tokenizer.encode(frames()))
    assert ids_BTHW.dtype == torch.int64 and ids_BTHW.shape == (2, 3, 4, 4)
    pixels = loaded.decode(ids_BTHW)
    assert pixels.dtype == torch.uint8 and pixels.shape == (2, 9, 32, 32, 3)
    assert loaded.grid(32, 32) == (4, 4)


def test_folders_that_people_take_for_a_tokenizer(tmp_path: Path) -> None:
    run, converted, empty = tmp_path / "run", tmp_path / "hf", tmp_path / "empty"
    for folder in (run, converted, empty):
        folder.mkdir()
    (run / "run.json").write_text("{}")
    (converted / "config.json").write_text('{"model_type": "vrc", "vrc": {}}')
    for folder, message in (
        (
            run,
            "run: the folder of a run, with no video tokenizer in it: one of pretrain_tokenizer has model/ when",
        ),
        (
            converted,
            r"hf: a model of type vrc; megavrc convert_checkpoint from-hf --model .*/hf --out NEW writes",
        ),
        (empty, "empty: no video tokenizer here .a folder of one has config.json and model.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            OmniTokenizer.from_checkpoint(folder)
    for inside in ("video_tokenizer", "model"):
        small().save(run / inside)
        with pytest.raises(
            UserError, match=f"run: the folder of a run; its video tokenizer is {run / inside}$"
        ):
            OmniTokenizer.from_checkpoint(run)


def test_hash_tells_tokenizers_apart() -> None:
    tokenizer, other = small(), small()
    other.net.codebook.embeddings[0, 0] += 1
    assert len({tokenizer.sha256, other.sha256, small(temporal_peg="original").sha256}) == 3


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no video tokenizer here"):
        OmniTokenizer.from_checkpoint(tmp_path / "none")
    small().save(tmp_path / "t")
    weights = tmp_path / "t" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        OmniTokenizer.from_checkpoint(tmp_path / "t")
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    for content, message in (
        ({"widht": 3}, "unknown keys widht"),
        ({**config, "width": "32"}, "width must be int, got '32'"),
        ([], "config.json: "),
    ):
        (tmp_path / "t" / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            OmniTokenizer.from_checkpoint(tmp_path / "t")
    small().save(tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text(json.dumps({**config, "codes": 32}))
    with pytest.raises(
        UserError, match=r"embeddings has shape \[64, 8\], expected \[32, 8\]; .* and 1 more$"
    ):
        OmniTokenizer.from_checkpoint(tmp_path / "t")


def test_weights_that_share_a_storage_are_saved(tmp_path: Path) -> None:
    tokenizer = small()
    tokenizer.net.codebook.z_avg = tokenizer.net.codebook.embeddings
    tokenizer.save(tmp_path / "t")
    assert OmniTokenizer.from_checkpoint(tmp_path / "t").sha256 == tokenizer.sha256


@pytest.mark.parametrize("wrong", [frames().float(), frames()[0], frames().permute(0, 4, 1, 2, 3)])
def test_only_uint8_clips_are_encoded(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 frames \[B, T, H, W, 3\]"):
        small().encode(wrong)


def test_a_batch_gives_the_ids_of_its_clips() -> None:
    tokenizer = small()
    assert torch.equal(
        tokenizer.encode(frames()), torch.cat([tokenizer.encode(frames()[i : i + 1]) for i in range(2)])
    )


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((1, 9, 32, 64, 3), "square with a side that is a multiple of 16, got 32x64"),
        ((1, 9, 8, 8, 3), "multiple of 16, got 8x8"),
        ((1, 8, 32, 32, 3), r"1 \+ 4k frames, got 8"),
        ((1, 0, 32, 32, 3), r"1 \+ 4k frames, got 0"),
    ],
)
def test_sizes_that_do_not_fit_say_the_rule(shape: tuple[int, ...], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        small().encode(torch.zeros(shape, dtype=torch.uint8))


def test_causal_through_a_full_encode() -> None:
    tokenizer, clip = small(), frames(17)
    changed = clip.clone()
    changed[:, 9:] = 255 - changed[:, 9:]
    ids, ids_changed = tokenizer.encode(clip), tokenizer.encode(changed)
    assert torch.equal(ids[:, :3], ids_changed[:, :3])
    assert not torch.equal(ids[:, 3:], ids_changed[:, 3:])
    assert torch.equal(tokenizer.encode(clip[:, :1]), ids[:, :1])  # an image has the ids of a first frame


def test_training_mode_changes_nothing() -> None:
    tokenizer = small()
    before, ids = tokenizer.sha256, tokenizer.encode(frames())
    tokenizer.net.train()
    assert torch.equal(tokenizer.encode(frames()), ids)
    assert OmniTokenizer(tokenizer.net).sha256 == before


def test_encoding_in_bf16_is_an_option() -> None:
    """Few ids change; the caller's autocast changes none; the weights stay as they are."""
    tokenizer = small()
    rounded = OmniTokenizer(tokenizer.net, precision="bf16")
    before, ids = tokenizer.sha256, tokenizer.encode(frames())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(frames()), ids)
        bf16 = rounded.encode(frames())
    assert torch.equal(rounded.encode(frames()), bf16)
    assert bf16.dtype == torch.int64 and 0 < (bf16 != ids).float().mean() < 0.3
    assert OmniTokenizer(tokenizer.net).sha256 == before
    with pytest.raises(ValueError, match="fp32 or bf16, got 'fp16'"):
        OmniTokenizer(tokenizer.net, "fp16")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("peg", ["original", "causal"])
def test_released_size(peg: str, tmp_path: Path) -> None:
    """Encode and decode of 256x256 clips and images with random weights of the published size."""
    torch.manual_seed(0)
    OmniTokenizer(OmniTokenizerNet(OmniTokenizerConfig(temporal_peg=peg))).save(tmp_path / "t")
    tokenizer = OmniTokenizer.from_checkpoint(tmp_path / "t")
    clip = torch.randint(0, 256, (1, 17, 256, 256, 3), dtype=torch.uint8)
    ids, image_ids = tokenizer.encode(clip), tokenizer.encode(clip[:, :1])
    assert ids.shape == (1, 5, 32, 32) and image_ids.shape == (1, 1, 32, 32)
    assert ids.min() >= 0 and ids.max() < 8192 and len(ids.unique()) > 100
    agreement = (ids[:, :1] == image_ids).float().mean()
    assert agreement == 1 if peg == "causal" else agreement < 0.05
    for given, count in ((ids, 17), (image_ids, 1)):
        pixels = tokenizer.decode(given)
        assert pixels.shape == (1, count, 256, 256, 3) and pixels.dtype == torch.uint8
        assert pixels.float().std() > 0
