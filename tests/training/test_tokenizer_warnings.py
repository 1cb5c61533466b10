"""What a run of the video tokenizer says of windows that never come and of a codebook that has collapsed."""

import logging
from pathlib import Path

import pytest
import torch
from videos import make_videos

from megavrc.distributed import Rank
from megavrc.model.omnitokenizer import OmniTokenizerConfig
from megavrc.tokenizers import OmniTokenizer
from megavrc.tokenizers.objective import TokenizerObjective
from megavrc.training.tasks.tokenizer import TokenizerTask
from megavrc.training.tasks.tokenizer_config import ClipDataConfig, TokenizerRunConfig

NETWORK = OmniTokenizerConfig(
    width=32, heads=2, dim_head=16, enc_block="t", dec_block="t", temporal_depth=1, codes=512
)


@pytest.fixture
def task(tmp_path: Path, alone: Rank, caplog: pytest.LogCaptureFixture) -> TokenizerTask:
    logging.getLogger("megavrc").propagate = True
    manifest = make_videos(tmp_path / "videos", count=1, broken=False)
    data = ClipDataConfig(str(manifest), frames_schedule={0: 9, 100: 17, 1500: 17})
    config = TokenizerRunConfig(run_dir=str(tmp_path / "run"), model=NETWORK, data=data)
    config.preview.count = 0
    return TokenizerTask(config, alone)


def test_windows_that_never_come_are_said(task: TokenizerTask, caplog: pytest.LogCaptureFixture) -> None:
    said = [record.getMessage() for record in caplog.get_records("setup")]
    assert "data.frames_schedule: step 1500 never comes, train.steps is 1000" in said


def test_a_collapsed_codebook_is_said(
    task: TokenizerTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = task.build()
    assert isinstance(module, TokenizerObjective)
    book = module.net.codebook
    for seeded, used, rest, said in (
        (True, 3, 0.0, True),  # three codes stand for everything
        (False, 3, 0.0, False),  # not in use yet
        (True, 300, 0.0, False),
        (True, 1, 0.001, False),  # a still background, and many codes for what moves
    ):
        module.seeded.fill_(seeded)
        book.N.fill_(rest)
        book.N[:used] = 100.0
        book.codebook_usage.copy_((book.N > 0).float())
        caplog.clear()
        task.preview(module, tmp_path, 1)
        assert ("the codebook has collapsed" in caplog.text) == said
        assert not said or "1% of its 512 codes are in use, and tell as much as 3.0 would" in caplog.text


def test_a_finished_tokenizer_knows_its_size(task: TokenizerTask, tmp_path: Path) -> None:
    module = task.build()
    task.finish(module, tmp_path)
    loaded = OmniTokenizer.from_checkpoint(tmp_path / "model")
    assert loaded.size == 64
    assert loaded.sha256 == OmniTokenizer(loaded.net).sha256  # which it does not decide
    assert torch.equal(loaded.net.codebook.embeddings, module.net.codebook.embeddings)
