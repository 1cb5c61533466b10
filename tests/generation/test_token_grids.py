"""`megavrc evaluate redundancy --tokens`: clips through a folder's tokenizer, its embeddings and its compressor."""

from pathlib import Path

import numpy as np
import pytest

from megavrc.config import run_command
from megavrc.generation.evaluate_clips import redundancy
from megavrc.results import read_result


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "noise.npz"
    np.savez(path, clips=np.random.default_rng(0).integers(0, 256, (8, 17, 16, 16, 3), np.uint8))
    return path


def test_the_command(folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same numbers twice, for every method that a grid is enough for and for the model's compressor."""
    for name in ("first", "again"):
        words = [clips, "--tokens", folder, "--frames", 17, "--keep", 0.5, "--json", tmp_path / name]
        assert run_command(redundancy, [str(word) for word in words]) == 0
    first, again = (read_result(tmp_path / name) for name in ("first", "again"))
    assert first["cases"] == again["cases"] and first["metrics"] == again["metrics"]
    names = [row["name"] for row in first["cases"]]
    assert {"pool 0.5", "evs 0.5", "tome 0.5"} <= set(names)
    assert any(name.startswith("the model's conv") for name in names)
    assert first["protocol"]["clips"] == first["protocol"]["fitted_on"] == 4
    assert "| pool 0.5 |" in capsys.readouterr().out


def test_mistakes_are_one_line(
    folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.npz"
    np.savez(few, clips=np.load(clips)["clips"][:3])
    for words, wrong in (
        ([clips, "--frames", 16], "--frames: 16"),
        ([clips, "--frames", 21], "has 17 frames, 21 are needed"),
        ([clips, "--frames", 17, "--keep", 0], "--keep"),
        ([few, "--frames", 17], "3 clips"),
    ):
        assert run_command(redundancy, [str(word) for word in [*words, "--tokens", folder]]) == 2
        assert wrong in capsys.readouterr().err
