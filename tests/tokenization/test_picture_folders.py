"""Folders of pictures through the whole offline job."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from trees import frames

from megavrc.data.dataset import TokenDataset
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer

TOOLS = Path(__file__).resolve().parents[2] / "tools"
CONFIG = OmniTokenizerConfig(
    width=16,
    heads=2,
    dim_head=8,
    enc_block="t",
    dec_block="t",
    temporal_depth=1,
    window=2,
    codes=32,
    code_dim=4,
)


def test_folders_of_pictures_become_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(tool: str, *options: object) -> None:
        monkeypatch.setattr(sys, "argv", [tool, *map(str, options)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(TOOLS / tool), run_name="__main__")
        assert not exit_.value.code

    for name, count in (("sky_train/a/a_1", 12), ("sky_train/a/a_2", 4), ("sky_test/b/b_1", 9)):
        frames(tmp_path / name, count, "frames_{:08d}.jpg")
    torch.manual_seed(0)
    OmniTokenizer(OmniTokenizerNet(CONFIG)).save(tmp_path / "tokenizer")
    manifest, out = tmp_path / "m.jsonl", tmp_path / "tokens"
    run("prepare_dataset.py", "skytimelapse", "--folder", tmp_path, "--out", manifest, "--fps", 25)
    plan = ["--tokenizer", tmp_path / "tokenizer", "--size", 32, "--frames", 9, "--splits", "[train,test]"]
    run("tokenize_videos.py", "plan", "--manifest", manifest, "--out", out, *plan)
    run("tokenize_videos.py", "run", "--out", out)
    run("tokenize_videos.py", "finalize", "--out", out)
    samples = [TokenDataset(out / "video", split=split).read(0)[1] for split in ("train", "test")]
    assert [(sample["source"], sample["label"]) for sample in samples] == [
        ("sky_train/a/a_1", 0),
        ("sky_test/b/b_1", 0),
    ]
    failures = "".join(path.read_text() for path in (out / "failures").iterdir())
    assert "sky_train/a/a_2" in failures and "4 frames, a clip needs 9" in failures
