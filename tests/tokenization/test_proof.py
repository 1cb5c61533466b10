"""A cache whose ids are not those of its videos is found; that of a weak tokenizer passes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jobs import SMALL, make_tokenizer

from megavrc.errors import UserError
from megavrc.files import read_json
from megavrc.model import ConditionConfig
from megavrc.tokenization import encode as encoding
from megavrc.tokenization.inspect import inspect
from megavrc.tokenization.job import plan, run
from megavrc.tokenization.plan import encode
from megavrc.tokenization.proof import Compared, problems
from megavrc.tokenization.result import finalize, verify
from megavrc.tokenizers import OmniTokenizer
from megavrc.training.tasks.tokens import open_training
from megavrc.training.tasks.vrc_config import TokenDataConfig
from megavrc.video import write_mp4
from megavrc.video.listing import list_folder
from megavrc.video.manifest import write_manifest

Frames = np.ndarray
MISTAKES: dict[str, tuple[str, Callable[[Frames], Frames]]] = {  # [B, T, H, W, 3] before the encoder
    "swapped": ("red and blue", lambda frames: frames[..., ::-1]),
    "mirrored": ("mirrored", lambda frames: frames[:, :, :, ::-1]),
    "upside down": ("upside down", lambda frames: frames[:, :, ::-1]),
    "late": ("latent frame later", lambda frames: np.roll(frames, -4, axis=1)),
    "another": ("its ids are found again", lambda frames: np.roll(frames, 1, axis=0)),
}


def bar(number: int) -> Frames:
    clip = np.full((17, 32, 32, 3), 90, np.uint8)
    for index in range(17):
        left = index + number
        colour = [(220, 40, 30), (30, 60, 220), (240, 200, 30)][number % 3]
        clip[index, 4 + number : 16 + number, left : left + 9] = colour
    return clip


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six coloured bars that move, and one video that stands still and is grey."""
    folder = tmp_path_factory.mktemp("moving")
    for number in range(6):
        write_mp4(folder / f"{number}.mp4", bar(number))
    write_mp4(folder / "6.mp4", np.full((17, 32, 32, 3), 90, np.uint8))
    write_manifest(folder / "manifest.jsonl", list_folder(folder, folder / "manifest.jsonl").entries)
    return folder / "manifest.jsonl"


def tokenized(manifest: Path, tokenizer: Path, out: Path) -> Path:
    plan(manifest, out, tokenizer, **SMALL)
    run(out)
    return out


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_kind_of_wrong_cache_is_found(
    mistake: str,
    moving: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, change = MISTAKES[mistake]
    with monkeypatch.context() as patch:
        patch.setattr(
            encoding, "encode", lambda net, frames: encode(net, np.ascontiguousarray(change(frames)))
        )
        out = tokenized(moving, tokenizer, tmp_path)
    with pytest.raises(UserError, match="the ids are not those of the videos"):
        finalize(out)
    assert words in capsys.readouterr().err
    assert not (out / "video" / "manifest.json").exists()
    finalize(out, samples=0)
    assert read_json(out / "video" / "dataset.json")["proof"] == {"samples": 0, "not_done": "not asked for"}
    with pytest.raises(UserError, match="problems"):
        verify(out)
    assert words in capsys.readouterr().err
    with pytest.raises(UserError, match="problems"):
        inspect(out / "video", tokenizer=tokenizer, sheet=tmp_path / "sheet.png")


def test_a_right_cache_of_an_untrained_tokenizer_passes(
    moving: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tokenized(moving, tokenizer, tmp_path)
    finalize(out, samples=4)
    verify(out)
    said = capsys.readouterr().out
    assert f"{out}/video: 4 samples compared with their videos, 0 problems" in said
    assert f"{out}/image: 8 samples compared with their videos, 0 problems" in said
    assert read_json(out / "video" / "dataset.json")["proof"] == {"samples": 4}


def test_what_is_not_at_hand_is_said_and_kept(
    moving: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Training says so too. The identity of the dataset is the same with proof and without."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer", seed=0)
    out = tokenized(moving, tokenizer, tmp_path / "out")
    finalize(out)
    known = read_json(out / "video" / "manifest.json")
    tokenizer.rename(tmp_path / "elsewhere")
    finalize(out)
    assert "not compared with its videos" in capsys.readouterr().out
    assert str(tokenizer) in read_json(out / "video" / "dataset.json")["proof"]["not_done"]
    assert read_json(out / "video" / "manifest.json") == known
    finalize(out, tokenizer=tmp_path / "elsewhere")
    assert read_json(out / "video" / "dataset.json")["proof"] == {"samples": 7}
    open_training(TokenDataConfig(path=str(out / "video")), 0, ConditionConfig())
    assert not caplog.records
    root = moving.parent.rename(moving.parent.with_name("gone"))
    try:
        finalize(out, tokenizer=tmp_path / "elsewhere")
    finally:
        root.rename(moving.parent)
    assert "the videos are not at" in read_json(out / "video" / "dataset.json")["proof"]["not_done"]
    open_training(TokenDataConfig(path=str(out / "video")), 0, ConditionConfig())
    assert "not compared with its videos: the videos are not at" in caplog.text


def compared(swapped: bool, noise: float) -> list[Compared]:
    """Samples whose ids are found again, by an encoder that sees what it saw: only decoding can tell."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(4):
        clip = bar(number)
        seen = clip[..., ::-1] if swapped else clip
        decoded = np.clip(seen + rng.normal(0, noise, clip.shape), 0, 255).astype(np.uint8)
        made.append(Compared(str(number), "", np.zeros((5, 4, 4), np.int64), decoded, clip, same=1.0))
    return made


def test_what_the_ids_decode_to_counts_too(tokenizer: Path) -> None:
    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    assert problems(compared(False, 60), loaded) == []
    (problem,) = problems(compared(True, 20), loaded)
    assert "red and blue" in problem
