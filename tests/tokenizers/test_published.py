"""Published checkpoints: read without running anything, understood from shapes, refused in one line."""

import argparse
import collections
import logging
import os
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.hf.commands import import_omnitokenizer
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer
from megavrc.tokenizers.published import config_from_weights

ROOT = Path(__file__).resolve().parents[2]
ORACLE = ROOT.parent / "shared" / "oracle"
needs_oracle = pytest.mark.skipif(
    not ORACLE.is_dir(), reason="the original's outputs (../shared/oracle) are not here"
)
SIZES = dict(
    width=32, heads=2, dim_head=16, enc_block="wt", dec_block="t", temporal_depth=1, window=2, codes=64
)
ARGS = dict(
    embedding_dim=32,
    n_codes=64,
    codebook_dim=8,
    patch_size=8,
    temporal_patch_size=4,
    enc_block="wt",
    dec_block="t",
    twod_window_size=2,
    temporal_depth=1,
    heads=2,
    dim_head=16,
    ff_mult=4.0,
    l2_code=True,
    spatial_pos="rope",
    q_strides="1111",
    use_checkpoint=False,
    gen_upscale=None,
)


def small() -> OmniTokenizer:
    torch.manual_seed(0)
    return OmniTokenizer(OmniTokenizerNet(OmniTokenizerConfig(**SIZES, temporal_peg="original")))  # type: ignore[arg-type]


def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 9, 32, 32, 3), dtype=torch.uint8, generator=generator)


def weights(**changes: object) -> dict[str, object]:
    return {**small().net.state_dict(), **changes}


def hyper_parameters(spelling: str = "casual", **changes: object) -> dict[str, argparse.Namespace]:
    flags = {f"{spelling}_in_temporal_transformer": True, f"{spelling}_in_peg": True}
    return {"args": argparse.Namespace(**{**ARGS, **flags, **changes})}


def published(path: Path, zipped: bool = True, **changes: object) -> Path:
    """A checkpoint file as Lightning wrote them."""
    content = {
        "epoch": 3,
        "global_step": 500000,
        "pytorch-lightning_version": "1.5.4",
        "state_dict": collections.OrderedDict(
            weights(
                **{
                    "image_discriminator.model0.0.bias": torch.zeros(3),
                    "perceptual_model.net.slice1.0.weight": torch.zeros(4, 3),
                    "teacher.encoder.to_patch_emb.2.bias": torch.zeros(2),
                }
            )
        ),
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters(),
        **changes,
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture
def stranger() -> Iterator[types.ModuleType]:
    """A module that is there while a file is written and gone when it is read."""
    module = types.ModuleType("strangers")
    code = """
import enum, torch
class Callback:
    def __init__(self): self.best = torch.zeros(2); self.append = None
class Mode(enum.Enum): MIN = "min"
class Items(list): pass
class Table(dict): pass
class Quantized(torch.Tensor): pass
"""
    exec(code, module.__dict__)
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == "builtins":
            value.__module__ = "strangers"
    sys.modules["strangers"] = module
    yield module
    sys.modules.pop("strangers", None)


@pytest.mark.parametrize("spelling", ["casual", "causal"])
@pytest.mark.parametrize("zipped", [True, False])
def test_published_file(tmp_path: Path, spelling: str, zipped: bool) -> None:
    path = published(tmp_path / "x.ckpt", zipped, hyper_parameters=hyper_parameters(spelling))
    loaded, expected = OmniTokenizer.from_checkpoint(path), small()
    assert loaded.config == expected.config and loaded.sha256 == expected.sha256
    assert torch.equal(loaded.encode(frames()), expected.encode(frames()))


def test_without_hyper_parameters(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "plain.pt")
    parameters = {
        name: torch.nn.Parameter(t) for name, t in small().net.state_dict().items() if t.is_floating_point()
    }
    torch.save({"state_dict": weights(**parameters)}, tmp_path / "parameters.pt")
    for name in ("plain.pt", "parameters.pt"):
        assert OmniTokenizer.from_checkpoint(tmp_path / name).sha256 == small().sha256


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


def test_unknown_classes_are_listed_and_left(
    tmp_path: Path, stranger: types.ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    quantized = torch.zeros(2).as_subclass(stranger.Quantized)
    strange = {
        "callbacks": {stranger.Callback: stranger.Callback(), "b": collections.Counter("aab")},
        "optimizer_states": [
            {"state": {0: {"step": 3, "exp_avg": quantized}}, "param_groups": stranger.Items([{"lr": 0.1}])},
            {"state": torch.nn.Parameter(quantized), "raw": torch.zeros(4).untyped_storage()},
        ],
        "lr_schedulers": [stranger.Table(a=1), stranger.Mode.MIN, torch.device("cpu"), torch.float16],
    }
    path = published(tmp_path / "x.ckpt", **strange)
    del sys.modules["strangers"]
    with caplog.at_level(logging.WARNING, "megavrc"):
        loaded = OmniTokenizer.from_checkpoint(path)
    assert loaded.sha256 == small().sha256
    (message,) = caplog.messages
    assert message.startswith(f"{path}: not loaded, no weight needs them: ")
    listed = message.partition("them: ")[2].split(", ")
    assert {f"strangers.{name}" for name in ("Callback", "Mode", "Items", "Table", "Quantized")} <= set(
        listed
    )
    assert "collections.Counter" in listed and "argparse.Namespace" not in listed
    caplog.clear()
    OmniTokenizer.from_checkpoint(published(tmp_path / "plain.ckpt"))
    assert caplog.messages == []


def test_weights_of_an_unknown_class_are_refused(tmp_path: Path, stranger: types.ModuleType) -> None:
    name = "encoder.to_patch_emb.2.weight"
    quantized = small().net.state_dict()[name].as_subclass(stranger.Quantized)
    paths = [published(tmp_path / "a.ckpt", state_dict=weights(**{name: quantized}))]
    paths.append(published(tmp_path / "b.ckpt", state_dict=stranger.Table(weights())))
    paths.append(published(tmp_path / "c.ckpt", state_dict=weights(**{name: 3})))
    del sys.modules["strangers"]
    messages = []
    for path in paths:
        with pytest.raises(UserError) as raised:
            OmniTokenizer.from_checkpoint(path)
        messages.append(str(raised.value))
    function = "torch._tensor._rebuild_from_type_v2"
    assert messages == [
        f"{paths[0]}: weight {name} is of class {function} of strangers.Quantized, only plain tensors are loaded",
        f"{paths[1]}: its weights are of class strangers.Table, which is not loaded",
        f"{paths[2]}: weight {name} is of class int, only plain tensors are loaded",
    ]


class _Hostile:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["callbacks", "optimizer_states", "hyper_parameters"])
def test_a_checkpoint_runs_nothing(
    tmp_path: Path, zipped: bool, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "was_run"
    path = published(tmp_path / "x.ckpt", zipped, **{place: {"a": [_Hostile(str(marker))]}})
    assert OmniTokenizer.from_checkpoint(path).sha256 == small().sha256
    assert f"{os.mkdir.__module__}.mkdir" in caplog.text
    assert not marker.exists()


def test_a_torchscript_archive_is_not_run(tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = 1

        @torch.jit.export
        def __getstate__(self) -> tuple[int, bool]:
            return self.x, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[int, bool]) -> None:
            raise AssertionError("was run")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Module()).save(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt: not a readable checkpoint \(a TorchScript archive\)"):
        OmniTokenizer.from_checkpoint(tmp_path / "x.ckpt")


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    whole = published(tmp_path / "x.ckpt").read_bytes()
    broken = whole.replace(b"state_dict", b"state\xff\xff\xff\xff\xff", 1)
    pickled = pickle.dumps(_Hostile(str(tmp_path / "was_run")))
    for number, content in enumerate(
        [b"", b"PK\x03\x04", b"text", whole[: len(whole) // 2], broken, pickled]
    ):
        path = tmp_path / f"{number}.ckpt"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{number}\.ckpt: not a"):
            OmniTokenizer.from_checkpoint(path)
    assert not (tmp_path / "was_run").exists()


def _vae(weights: dict[str, torch.Tensor]) -> None:
    weights["pre_vq_conv.1.weight"] = torch.zeros(16, 32)


def _image_only(weights: dict[str, torch.Tensor]) -> None:
    weights["encoder.enc_spatial_transformer.layers.1.1.spatial_rel_pos_bias.net.2.bias"] = torch.zeros(2)


def _other(weights: dict[str, torch.Tensor]) -> None:
    weights.clear()


def _incomplete(weights: dict[str, torch.Tensor]) -> None:
    del weights["decoder.to_pixels.0.bias"]


def _misshapen(weights: dict[str, torch.Tensor]) -> None:
    weights["codebook.embeddings"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_vae, "VAE"),
        (_image_only, "image-only"),
        (_other, "not an OmniTokenizer checkpoint"),
        (_incomplete, r"decoder\.to_pixels\.0\.bias is missing"),
        (_misshapen, r"codebook\.embeddings has shape \[3\]"),
    ],
)
def test_other_checkpoints_are_refused_in_one_line(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    changed = weights()
    change(changed)
    with pytest.raises(UserError, match=message) as raised:
        OmniTokenizer.from_checkpoint(published(tmp_path / "x.ckpt", state_dict=changed))
    assert str(raised.value).startswith(f"{tmp_path / 'x.ckpt'}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"casual_in_peg": False}, ["causal_in_peg False is not supported, only True"]),
        (
            {"n_codes": 128, "heads": 4, "enc_block": "tt"},
            [
                "heads 4, the weights have 2",
                "enc_block tt, the weights have wt",
                "n_codes 128, the weights have 64",
            ],
        ),
        ({"ff_mult": 3}, ["ff_mult 3, the weights have 4.0"]),
        (
            {"use_vae": True, "spatial_pos": "rel"},
            ["spatial_pos rel is not supported, only rope", "use_vae True"],
        ),
        ({"defer_temporal_pool": True, "l2_code": False}, ["l2_code False", "defer_temporal_pool True"]),
    ],
)
def test_contradictions_are_named(tmp_path: Path, changes: dict[str, object], messages: list[str]) -> None:
    path = published(tmp_path / "x.ckpt", hyper_parameters=hyper_parameters(**changes))
    with pytest.raises(UserError, match=r"x\.ckpt: hyper-parameters do not fit: ") as raised:
        OmniTokenizer.from_checkpoint(path)
    assert [message for message in messages if message not in str(raised.value)] == []


def test_defaults_of_the_original_are_no_contradiction(tmp_path: Path) -> None:
    path = published(tmp_path / "x.ckpt", hyper_parameters=hyper_parameters(codebook_dim=None, ff_mult=4))
    assert OmniTokenizer.from_checkpoint(path).sha256 == small().sha256


def test_import_makes_our_folder(
    tmp_path: Path,
    stranger: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = published(tmp_path / "x.ckpt", callbacks=[stranger.Callback()])
    del sys.modules["strangers"]
    argv = ["--checkpoint", str(path), "--out", str(tmp_path / "t")]
    assert run_command(import_omnitokenizer, argv) == 0
    assert small().sha256 in capsys.readouterr().out
    assert "strangers.Callback" in caplog.text
    assert OmniTokenizer.from_checkpoint(tmp_path / "t").sha256 == small().sha256
    assert run_command(import_omnitokenizer, argv) == 2
    assert "exists; choose another folder" in capsys.readouterr().err
