"""A converted folder packed small by examples/pack_model.py."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from megavrc.generation.folder import load_folder
from megavrc.generation.folder_format import check_sums

ROOT = Path(__file__).parents[2]


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_a_packed_folder_stores_half_and_computes_the_same_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Matrices in bfloat16, computed with in the type that config.json says; the video tokenizer in float32."""
    run_example(monkeypatch, "pack_model.py", folder, tmp_path / "packed")
    check_sums(tmp_path / "packed")
    whole, packed = load_folder(folder), load_folder(tmp_path / "packed")
    assert not list((tmp_path / "packed").glob("*.py"))
    run_example(
        monkeypatch, "generate.py", tmp_path / "packed", "a red square", "--out", tmp_path / "clip.gif"
    )
    assert "clip.gif: 17 frames" in capsys.readouterr().out
    for name in ("model", "video_tokenizer"):
        a, b = (getattr(loaded, name) for loaded in (whole, packed))
        a, b = (part.net if name == "video_tokenizer" else part for part in (a, b))
        for (key, exact), rounded in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert rounded.dtype == exact.dtype, key
            if exact.dim() > 1:
                assert torch.equal(rounded, exact.bfloat16().to(exact.dtype)), key


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_another_type_is_taken_if_asked_for(folder: Path, dtype: str) -> None:
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert load_folder(folder, dtype=dtype).model.tokens.weight.dtype == wanted
