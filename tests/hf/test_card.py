"""The model card's example, run as it is written by somebody who has no megavrc."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from hf_source import CAPTIONS, Source, make_tokens
from PIL import Image
from programs import programs_of

from megavrc.generation.folder_format import read_config
from megavrc.hf.captions import example_prompt, frame_rate
from megavrc.hf.card import training_rows
from megavrc.hf.convert import build, read_run, to_hf, write_folder
from megavrc.model.configuration_vrc import VRCConfig


def test_the_example_of_the_card_makes_a_file(source: Source, tmp_path: Path) -> None:
    make_tokens(source.run.parent / "tokens" / "video", source.video.sha256)
    out = tmp_path / "vrc"
    try:
        to_hf(source.run, source.run.parent / "video", source.text.path, out)
    finally:
        shutil.rmtree(source.run.parent / "tokens")
    [code] = programs_of(out / "README.md")
    assert f'generate_video("{CAPTIONS[0]}", ' in code, "a caption of the training data"
    assert read_config(out)["training"]["example"] == CAPTIONS[0]
    script = 'import sys; sys.modules["megavrc"] = None\n' + code.replace("path/to/this/folder", str(out))
    run = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "clip.gif") as clip:
        assert clip.n_frames > 1 and clip.size == (16, 16)


def test_the_example_fits_the_slots(source: Source) -> None:
    longest = len(source.text.ids(CAPTIONS[0])) + 1
    assert example_prompt(["", *CAPTIONS], source.text, longest) == CAPTIONS[0]
    assert len(source.text.ids(example_prompt(CAPTIONS, source.text, 4))) < 4


def test_the_card_of_a_folder_without_a_record_has_a_prompt_that_fits(source: Source, tmp_path: Path) -> None:
    write_folder(
        tmp_path, build(read_run(source.run), torch.float32), source.video, source.text, {"fps": 12.5}, "4GB"
    )
    card = (tmp_path / "README.md").read_text()
    assert 'generate_video("a", ' in card and "| frames a second | 12.5 |" in card
    assert VRCConfig.from_pretrained(tmp_path).fps == 12.5 and VRCConfig().fps == 8


def test_the_card_counts_the_samples_that_were_trained_on(tmp_path: Path) -> None:
    """Not those of other splits, which the manifest counts too."""
    data = make_tokens(tmp_path / "a", "0" * 64)
    config = {"stage": "video", "train": {"global_batch": 8}, "seed": 0}
    one = {"config": config | {"data": {"path": str(data)}}, "step": 1, "identity": {"data": {"samples": 3}}}
    assert training_rows(one, tmp_path)["data"] == "3 samples (video) of 5 x 4 x 4 tokens"
    blend = {"blend": [{"path": str(data)}, {"path": str(tmp_path / "gone")}]}
    two = one | {
        "config": config | {"data": blend},
        "identity": {"data": {"0": {"samples": 2}, "1": {"samples": 9}}},
    }
    assert training_rows(two, tmp_path)["data"] == "2 samples (video) of 5 x 4 x 4 tokens; gone"


def test_the_frame_rate_is_that_of_the_data(tmp_path: Path) -> None:
    assert frame_rate({"config": {"data": {"path": str(make_tokens(tmp_path / "a", "0" * 64))}}}) is None
    data = make_tokens(tmp_path / "b", "0" * 64, extra={"fps": 24.0, "stride": 3})
    assert frame_rate({"config": {"data": {"path": str(data)}}}) == 8.0
    assert frame_rate({}) is None
