"""pretrain/two_stage.sh: what it decides by itself, seen by a launcher that notes its words and starts nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from worlds import ROOT, environment

LAUNCHER = '#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/words"\nexit 7\n'


def first_stage(folder: Path, launcher: str, **model: object) -> list[str]:
    """The words after the launcher's own option, for a stage 1 of such a model beside a manifest with captions."""
    (folder / "run/data").mkdir(parents=True)
    rows = [{"caption": f"a {colour} square", "split": "train"} for colour in ("red", "green", "blue")]
    (folder / "run/data/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "image.yaml").write_text(yaml.safe_dump({"stage": "image", "model": {"frames": 0, **model}}))
    (folder / launcher).write_text(LAUNCHER)
    (folder / launcher).chmod(0o755)
    settings = {
        "RUN": str(folder / "run"),
        "IMAGE_CONFIG": str(folder / "image.yaml"),
        "PYTHON": sys.executable,
    }
    done = subprocess.run(
        ["bash", "pretrain/two_stage.sh"],
        cwd=ROOT,
        env=environment() | settings | {"LAUNCH": f"{folder / launcher} -n"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    return (folder / "words").read_text().splitlines()[1:]


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
