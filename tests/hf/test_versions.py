"""The lower end of the tested range of transformers; the upper end is what the other tests run with."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_folders import save_clip
from hub import assert_names_no_machine, push
from safetensors.torch import load_file

from megavrc.generation.folder import load_folder

# The lower bound in requirements.txt, and the oldest huggingface-hub that it takes: the newest is too new for it.
OLD = ("transformers==5.17.0", "huggingface-hub==1.5.0")


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the installed packages, but for those of OLD."""
    root = tmp_path_factory.mktemp("old")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    python = root / "venv" / "bin" / "python"
    packages = next((root / "venv" / "lib").glob("python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    install = subprocess.run([*pip, "--target", packages, *OLD], capture_output=True, text=True)
    if install.returncode:
        pytest.skip(f"pip cannot get {OLD[0]} here: {install.stderr.strip().splitlines()[-1]}")
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib"))  # searched after `packages`
    return python


def test_a_folder_in_the_oldest_transformers(old_python, folder, tmp_path) -> None:
    """Everything that test_transformers.py does in the newest, with the same bits."""
    command = [old_python, "-I", Path(__file__).with_name("fresh.py"), folder, tmp_path]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == OLD[0].replace("==", " ")
    _, frames = load_folder(folder).generate(["a red square moves left", "a blue dog"], seed=[5, 6])
    assert torch.equal(load_file(tmp_path / "results.safetensors")["default"], frames)


def test_the_oldest_transformers_pushes_nothing_of_this_machine(old_python, folder, tmp_path) -> None:
    pushed = push(old_python, folder, tmp_path)
    assert {path.name for path in pushed.iterdir()} >= {path.name for path in folder.iterdir()} - {
        "SHA256SUMS"
    }
    assert_names_no_machine(pushed, folder, tmp_path)


CLIP = """
import sys
from pathlib import Path
import numpy as np
import transformers
from megavrc.evaluation.clip_model import ClipModel
from megavrc.user_files import UserFile
model = ClipModel(UserFile(Path(sys.argv[1])))
pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
captions = model.captions(["a red square moves left", "red " * 30])
np.savez(sys.argv[2], frames=model.frames(pictures), captions=captions.embeddings, cut=captions.cut)
print(transformers.__version__)
"""


@pytest.mark.slow
def test_clip_embeds_alike_at_both_ends(old_python, tmp_path) -> None:
    """What CLIPSIM is made of: pictures (resized and cut), captions, and which of these were cut."""
    folder, found = save_clip(tmp_path / "clip"), []
    # an editable installation is none of the packages that `old_python` sees
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for python in (old_python, sys.executable):
        words = [python, "-c", CLIP, folder, tmp_path / "found.npz"]
        run = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        found.append((run.stdout.strip(), dict(np.load(tmp_path / "found.npz"))))
    (old, one), (new, other) = found
    assert OLD[0].endswith(old) and old != new
    assert one["cut"].tolist() == [False, True]
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-6)


def test_the_ends_of_the_range_are_those_of_the_requirements() -> None:
    import transformers

    line = next(
        line
        for line in (Path(__file__).parents[2] / "requirements.txt").read_text().splitlines()
        if line.startswith("transformers")
    )
    installed = ".".join(transformers.__version__.split(".")[:2])
    tested = re.findall(r"\d+\.\d+\.\d+", line.partition("# tested ")[2])
    assert tested[-1] == OLD[0].partition("==")[2]
    assert installed in [version.rpartition(".")[0] for version in tested]
    major, minor, _ = map(int, tested[0].split("."))
    assert line.startswith(f"transformers>={tested[-1]},<{major}.{minor + 1} ")
