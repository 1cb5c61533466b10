"""The small trained model in examples/scenes, as a newcomer meets it."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parsing import parsed
from PIL import Image

from megavrc.generation.folder import load_folder
from megavrc.generation.folder_format import check_sums

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "scenes"


def test_it_draws_its_sample_again() -> None:
    """sample.png: the frames of one clip side by side. Another kind of processor may round a few pixels otherwise."""
    check_sums(FOLDER)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6e6 and not list(FOLDER.glob("*.py"))
    sample = np.asarray(Image.open(FOLDER / "sample.png")).reshape(64, 17, 64, 3).swapaxes(0, 1)
    loaded = load_folder(FOLDER)
    prompt = "a yellow square. the yellow square moves right fast"
    [frames] = loaded.generate(prompt, seed=0)[1].numpy()
    assert np.mean(np.abs(frames.astype(int) - sample) > 2) < 0.01
    [other] = loaded.generate(prompt, seed=0, later_passes=1)[1].numpy()
    assert np.array_equal(other[0], frames[0]) and not np.array_equal(other, frames)  # refined by default


def test_make_try(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "try.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(tmp_path / "runs" / "try" / "clips.gif") as picture:
        assert picture.n_frames == 17


def test_the_script_of_the_readme_draws_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, out = str(ROOT / "examples" / "generate.py"), tmp_path / "clip.gif"
    monkeypatch.setattr(sys, "argv", [script, str(FOLDER), "a red square", "--seed=3", f"--out={out}"])
    runpy.run_path(script, run_name="__main__")
    with Image.open(out) as picture:
        assert picture.n_frames == 17 and picture.size == (64, 64)


@pytest.mark.parametrize(
    "words",
    [
        ["tools/generate.py", "--model=m", "--out=o", "--prompt=a"],
        ["tools/evaluate.py", "alignment"],
        ["tools/evaluate.py", "scenes", "--manifest=m"],
    ],
)
def test_one_number_of_passes_is_of_all_frames(words: list[str]) -> None:
    for given, expected in ((["8"], 8), (["8", "1"], [8, 1])):
        assert parsed(words[0], [*words[1:], "--later_passes", *given])["later_passes"] == expected
