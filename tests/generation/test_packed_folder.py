"""The examples of the small model: a converted folder packed small, clips of one, and what a mistake says."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from megavrc.generation.folder import load_folder
from megavrc.generation.folder_format import check_sums
from megavrc.hf.convert import verify

ROOT = Path(__file__).parents[2]


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    try:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    except SystemExit as ended:  # as a command ends
        assert ended.code == 0


def test_a_packed_folder_stores_half_and_computes_the_same_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Matrices in bfloat16, computed with in the type that config.json says; the video tokenizer in float32."""
    run_example(monkeypatch, "pack_model.py", folder, tmp_path / "packed")
    check_sums(tmp_path / "packed")
    whole, packed = load_folder(folder), load_folder(tmp_path / "packed")
    assert not list((tmp_path / "packed").glob("*.py"))
    verify(tmp_path / "packed")
    assert "it carries no code, so transformers alone cannot load it" in capsys.readouterr().out
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["examples/generate.py", "nowhere", "a red square"],
            "nowhere: no converted folder: it has no config.json",
        ),
        (["examples/generate.py", "{}", "a red square", "--seed=-1"], "seed"),
        (["examples/generate.py", "{}", "a red square", "--out=no/clip.gif"], "no/clip.gif"),
        (["examples/generate.py", "{}", "a red square", "--out=clip.mp3"], "unknown file extension: .mp3"),
        (["examples/pack_model.py", "nowhere", "packed"], "nowhere: no such folder"),
        (["examples/pack_model.py", "{}", "there"], "there: File exists"),
        (["examples/try.py", "--out=there/clips.gif"], "there"),
        (["docs/figures/moving.py"], "required: run"),
        (["docs/figures/moving.py", "there"], "there/data/manifest.jsonl: no such file"),
        (["examples/try.py", "--output=clips.gif"], "unknown option --output (did you mean --out?)"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "there").write_text("a file of somebody")
    monkeypatch.chdir(tmp_path)
    script = ROOT / words[0]
    monkeypatch.setattr(
        sys, "argv", [str(script), *(word.format(ROOT / "examples/scenes") for word in words[1:])]
    )
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert end.value.code == 2 and line.startswith("error: ") and said in line
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
