"""`evaluate copying` on a tiny model: its bits are those of the training loss."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_source import CAPTIONS
from scripts import evaluate

from megavrc.generation.evaluate_clips import encoder
from megavrc.generation.evaluate_copying import token_bits
from megavrc.generation.folder import load_folder
from megavrc.results import read_result
from megavrc.video import write_mp4


def clip(seed: int) -> np.ndarray:
    """A bright cell that comes and goes over a still ground, 17 frames of 16x16."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 200, (1, 16, 16, 3)), 17, axis=0).astype(np.uint8)
    frames[6:12, :4, 4:8] = 255
    return frames


def test_bits_are_those_of_the_loss(folder: Path) -> None:
    loaded = load_folder(folder)
    ids = encoder(loaded.video_tokenizer)(clip(0))
    bits = token_bits(loaded, CAPTIONS[0], ids, ids)
    assert bits.shape == (4, 4, 4)
    with torch.no_grad():
        out = loaded.model(torch.from_numpy(ids[None]), loaded.condition(CAPTIONS[0]))
    assert bits.mean() * math.log(2) == pytest.approx(out.loss_later.item(), rel=1e-5)
    other = ids.copy()
    other[2] = (other[2] + 1) % 64
    moved = np.abs(token_bits(loaded, CAPTIONS[0], other, ids) - bits).max(axis=(1, 2)) > 1e-6
    assert moved.tolist() == [False, False, True, True]  # frames after the changed one, and no frame before


def test_copying_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = np.stack([clip(seed) for seed in range(3)])
    np.savez(tmp_path / "a.npz", clips=clips, prompts=np.array(CAPTIONS[:3]))
    np.savez(tmp_path / "mute.npz", clips=clips)
    np.savez(tmp_path / "short.npz", clips=clips[:, :9], prompts=np.array(CAPTIONS[:3]))
    (tmp_path / "bad").mkdir()
    write_mp4(tmp_path / "bad" / "a.mp4", clip(0))
    (tmp_path / "bad" / "b.mp4").write_bytes(b"no video")
    rows = [{"id": key, "path": f"{key}.mp4", "caption": CAPTIONS[0]} for key in "ab"]
    (tmp_path / "bad" / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate("copying", folder, tmp_path / "a.npz", "--json", tmp_path / "c.json") == 0
    (row,) = read_result(tmp_path / "c.json")["cases"]
    assert row["metrics"]["bits_changed"]["n"] == 3 and row["metrics"]["bits_changed"]["unit"] == "bits"
    slow = np.repeat(clips, 2, axis=1)
    np.savez(tmp_path / "slow.npz", clips=slow, prompts=np.array(CAPTIONS[:3]))
    assert (
        evaluate("copying", folder, tmp_path / "slow.npz", "--stride", 2, "--json", tmp_path / "s.json") == 0
    )
    again = read_result(tmp_path / "s.json")
    assert again["cases"][0]["metrics"] == row["metrics"] and again["protocol"]["stride"] == 2
    capsys.readouterr()
    for words, said in (
        ((folder, tmp_path / "mute.npz"), "no caption"),
        ((folder, tmp_path / "short.npz"), "0000 has 9 frames"),
        ((folder, tmp_path / "bad"), "b.mp4"),
        ((tmp_path, tmp_path / "a.npz"), "config.json"),
        ((folder, tmp_path / "a.npz", "--n", 0), "--n"),
    ):
        assert evaluate("copying", *words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and said in lines[0]
