"""`megavrc evaluate redundancy --tokens`: clips through a folder's tokenizer, its embeddings and its compressor."""

from pathlib import Path

import numpy as np
import pytest

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.evaluation.clip_source import wholes
from megavrc.generation.clip_sources import open_source
from megavrc.generation.evaluate_clips import redundancy
from megavrc.generation.evaluate_tokens import report_tokens, token_grids
from megavrc.generation.folder import load_folder
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


def test_clips_of_any_size_are_measured_at_the_models(folder: Path, clips: Path, tmp_path: Path) -> None:
    """Clips twice as large are those of the model's size; maps are not fitted on a video that is measured."""
    small = np.load(clips)["clips"]
    keys = [f"v{number // 2}#{number}" for number in range(8)]
    loaded = load_folder(folder)
    grids = []
    for name, frames in (("small", small), ("large", small.repeat(2, axis=2).repeat(2, axis=3))):
        np.savez(tmp_path / f"{name}.npz", clips=frames, keys=np.array(keys))
        source = open_source(tmp_path / f"{name}.npz")
        grids.append(token_grids(source, loaded, 17, 1))
    assert grids[0].shape == grids[1].shape == (8, 5, 4, 4)
    report = report_tokens(loaded, grids[0], wholes(source), [0.5], 20, 0)
    ids = grids[0][[2, 3, 6, 7]]  # of v1 and v3
    equal = (ids[:, 1:] == ids[:, :-1]).double().mean()
    assert report.metrics["equal_to_the_one_before"]["value"] == pytest.approx(float(equal))
    with pytest.raises(UserError, match="of one video or prompt"):
        report_tokens(loaded, grids[0], ["v0"] * 8, [0.5], 20, 0)


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
