"""pretrain/two_stage.sh: what it decides by itself, seen by a launcher that notes its words and starts nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from worlds import ROOT, environment

LAUNCHER = '#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/words"\nexit 7\n'


def stage_words(folder: Path, name: str, program: str, how: dict[str, str], **model: object) -> list[str]:
    """The words that a program, which notes them, is started with for a stage 1 of such a model beside captions."""
    (folder / "run/data").mkdir(parents=True)
    rows = [{"caption": f"a {colour} square", "split": "train"} for colour in ("red", "green", "blue")]
    (folder / "run/data/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "image.yaml").write_text(yaml.safe_dump({"stage": "image", "model": {"frames": 0, **model}}))
    (folder / name).write_text(program)
    (folder / name).chmod(0o755)
    settings = {
        "RUN": str(folder / "run"),
        "IMAGE_CONFIG": str(folder / "image.yaml"),
        "PYTHON": sys.executable,
    }
    done = subprocess.run(
        ["bash", "pretrain/two_stage.sh"],
        cwd=ROOT,
        env=environment() | settings | how,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    return (folder / "words").read_text().splitlines()


def first_stage(folder: Path, launcher: str, **model: object) -> list[str]:
    """The words after the launcher's own option."""
    return stage_words(folder, launcher, LAUNCHER, {"LAUNCH": f"{folder / launcher} -n"}, **model)[1:]


def test_a_python_in_a_folder_with_a_space_is_one_word(tmp_path: Path) -> None:
    """That of the environment that make puts into the checkout."""
    folder = tmp_path / "my models"
    program = LAUNCHER.replace(
        "\n", f'\n[ "$2" = megavrc.distributed.torchrun ] || exec {sys.executable} "$@"\n', 1
    )
    words = stage_words(
        folder,
        "python",
        program,
        {"PYTHON": str(folder / "python")},
        condition={"kind": "class", "classes": 2},
    )
    assert words[:2] == ["-m", "megavrc.distributed.torchrun"] and "pretrain/pretrain_vrc.py" in words


@pytest.mark.parametrize("launcher", ["deepspeed", "srun"])
def test_launchers_that_start_python_are_not_given_it(tmp_path: Path, launcher: str) -> None:
    words = first_stage(tmp_path, launcher, condition={"kind": "class", "classes": 2})
    assert not (tmp_path / "run/text").exists()
    assert words[: len(words) - words[::-1].index("pretrain/pretrain_vrc.py")] == [
        *([sys.executable] if launcher == "srun" else []),
        "pretrain/pretrain_vrc.py",
    ]


@pytest.mark.parametrize("text", ["learned", "features"])
def test_only_a_model_that_learns_text_gets_a_text_tokenizer(tmp_path: Path, text: str) -> None:
    words = first_stage(tmp_path, "srun", condition={"text": text, "vocab": 128, "feature_dim": 16})
    made = tmp_path / "run/text/tokenizer.model"
    assert made.is_file() == (text == "learned")
    assert (f"--data.text_tokenizer={made}" in words) == (text == "learned")
