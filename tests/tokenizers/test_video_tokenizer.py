"""The video tokenizer's files and its uint8 API."""

import argparse
import collections
import os
import pickle
from pathlib import Path

import pytest
import torch

from megavrc.config import UserError
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer
from megavrc.tokenizers.published import config_from_weights

ORACLE = Path(__file__).resolve().parents[3] / "shared" / "oracle"
needs_oracle = pytest.mark.skipif(
    not ORACLE.is_dir(), reason="the original's outputs (../shared/oracle) are not here"
)


def small(**changes: object) -> OmniTokenizer:
    torch.manual_seed(0)
    sizes = dict(
        width=32, heads=2, dim_head=16, enc_block="wt", dec_block="t", temporal_depth=1, window=2, codes=64
    )
    return OmniTokenizer(OmniTokenizerNet(OmniTokenizerConfig(**{**sizes, **changes})))  # type: ignore[arg-type]


def frames(count: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, count, 32, 32, 3), dtype=torch.uint8, generator=generator)


def published(path: Path, **changes: object) -> Path:
    """A checkpoint file as Lightning wrote them."""
    weights = small(temporal_peg="original").net.state_dict()
    args = argparse.Namespace(casual_in_temporal_transformer=True, casual_in_peg=True)
    content = {
        "state_dict": {**weights, "image_discriminator.model0.0.bias": torch.zeros(3)},
        "hyper_parameters": {"args": args},
        **changes,
    }
    torch.save(content, path)
    return path


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


def test_hash_tells_tokenizers_apart() -> None:
    tokenizer, other = small(), small()
    other.net.codebook.embeddings[0, 0] += 1
    assert len({tokenizer.sha256, other.sha256, small(temporal_peg="original").sha256}) == 3


def test_published_file(tmp_path: Path) -> None:
    loaded = OmniTokenizer.from_checkpoint(published(tmp_path / "x.ckpt"))
    expected = small(temporal_peg="original")
    assert loaded.config == expected.config
    assert torch.equal(loaded.encode(frames()), expected.encode(frames()))


@needs_oracle
def test_file_in_the_format_of_the_original() -> None:
    loaded = OmniTokenizer.from_checkpoint(ORACLE / "fake_lightning_tiny.ckpt")
    expected = torch.load(ORACLE / "tiny.pt", weights_only=True)
    ids_BTHW = loaded.encode(expected["input_u8"].permute(0, 2, 3, 4, 1))
    assert torch.equal(ids_BTHW, expected["video"]["codes"].long())
    assert loaded.config == OmniTokenizerConfig(
        width=64, heads=4, dim_head=16, window=4, codes=512, temporal_peg="original"
    )


def test_config_comes_from_shapes_alone() -> None:
    for config in (
        OmniTokenizerConfig(temporal_peg="original"),
        OmniTokenizerConfig(
            width=96, heads=3, dim_head=16, patch=4, temporal_patch=2, ff_mult=2.5, temporal_peg="original"
        ),
    ):
        with torch.device("meta"):
            weights = OmniTokenizerNet(config).state_dict()
        inferred = config_from_weights(weights)
        assert {**inferred.to_dict(), "ff_mult": 0} == {**config.to_dict(), "ff_mult": 0}
        with torch.device("meta"):
            assert OmniTokenizerNet(inferred).load_state_dict(weights, assign=True)


class _Hostile:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "was_run", tmp_path / "x.ckpt"
    if zipped:
        published(path, callbacks={"a": _Hostile(str(marker)), "b": collections.Counter("aab")})
        OmniTokenizer.from_checkpoint(path)
    else:
        path.write_bytes(pickle.dumps(_Hostile(str(marker))))
        with pytest.raises(UserError, match=r"x\.ckpt: not a readable checkpoint"):
            OmniTokenizer.from_checkpoint(path)
    assert not marker.exists()


def _vae(weights: dict[str, torch.Tensor]) -> None:
    weights["pre_vq_conv.1.weight"] = torch.zeros(16, 32)


def _image_only(weights: dict[str, torch.Tensor]) -> None:
    weights["encoder.enc_spatial_transformer.layers.1.1.spatial_rel_pos_bias.net.2.bias"] = torch.zeros(2)


def _other(weights: dict[str, torch.Tensor]) -> None:
    weights.clear()


def _incomplete(weights: dict[str, torch.Tensor]) -> None:
    del weights["decoder.to_pixels.0.bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_vae, "VAE"),
        (_image_only, "image-only"),
        (_other, "not an OmniTokenizer checkpoint"),
        (_incomplete, r"decoder\.to_pixels\.0\.bias"),
    ],
)
def test_other_checkpoints_are_refused_in_one_line(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    weights = small(temporal_peg="original").net.state_dict()
    change(weights)
    with pytest.raises(UserError, match=message) as raised:
        OmniTokenizer.from_checkpoint(published(tmp_path / "x.ckpt", state_dict=weights))
    assert str(raised.value).startswith(f"{tmp_path / 'x.ckpt'}: ")


def test_causal_flags_that_are_off_are_refused(tmp_path: Path) -> None:
    args = argparse.Namespace(casual_in_temporal_transformer=True, casual_in_peg=False)
    with pytest.raises(UserError, match="causal_in_peg is off"):
        OmniTokenizer.from_checkpoint(published(tmp_path / "x.ckpt", hyper_parameters={"args": args}))


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no video tokenizer here"):
        OmniTokenizer.from_checkpoint(tmp_path / "none")
    small().save(tmp_path / "t")
    weights = tmp_path / "t" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        OmniTokenizer.from_checkpoint(tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text('{"widht": 3}')
    with pytest.raises(UserError, match="unknown keys widht"):
        OmniTokenizer.from_checkpoint(tmp_path / "t")


@pytest.mark.parametrize("wrong", [frames().float(), frames()[0], frames().permute(0, 4, 1, 2, 3)])
def test_only_uint8_clips_are_encoded(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 frames \[B, T, H, W, 3\]"):
        small().encode(wrong)


def test_a_batch_gives_the_ids_of_its_clips() -> None:
    tokenizer = small()
    assert torch.equal(
        tokenizer.encode(frames()), torch.cat([tokenizer.encode(frames()[i : i + 1]) for i in range(2)])
    )
