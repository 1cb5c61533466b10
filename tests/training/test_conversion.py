"""Conversion of what several ranks and ZeRO stages have left, through the real commands."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_tasks import make_tokens, text_tokenizer
from worlds import ROOT, environment, run_world

from megavrc.checkpoint import read_weights
from megavrc.config import dump_yaml
from megavrc.generation.keymap import from_folder
from megavrc.model import CompressionConfig, ConditionConfig, ModelConfig
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer
from megavrc.training.tasks.vrc_config import RunConfig, TokenDataConfig

pytestmark = pytest.mark.slow


def train(root: Path, name: str, sha256: str, ranks: int, zero: int) -> Path:
    """Four steps that do not depend on the number of ranks; a checkpoint, with an average, every second one."""
    tokens = root / "video"
    if not tokens.exists():
        make_tokens(tokens, 5, sha256)
    model = ModelConfig(
        frames=4,
        layers=1,
        dropout=0.0,
        condition=ConditionConfig(vocab=64),
        compression=CompressionConfig(norm="rms"),
    )
    config = RunConfig(
        run_dir=str(root / name),
        stage="video",
        model=model,
        data=TokenDataConfig(str(tokens), text_tokenizer(root)),
    )
    settings = {"steps": 4, "global_batch": 4, "micro_batch": 4 // ranks, "save_every": 2, "log_every": 1}
    for key, value in {**settings, "zero": zero, "ema": 0.5}.items():
        setattr(config.train, key, value)
    config.optimizer.lr, config.optimizer.warmup = 1e-3, 1
    dump_yaml(config, root / f"{name}.yaml")
    done = run_world(ranks, ROOT / "pretrain" / "pretrain_vrc.py", "--config", root / f"{name}.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    return root / name


def to_hf(run: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    """Through the command and its gate; the generator's tensors."""
    parts = [
        "--video_tokenizer",
        run.parent / "tokenizer",
        "--text_tokenizer",
        run.parent / "tokenizer.model",
    ]
    command = [
        sys.executable,
        "tools/convert_checkpoint.py",
        "to-hf",
        "--run",
        run,
        "--out",
        out,
        *parts,
        *words,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return from_folder(load_file(out / "model.safetensors"))["vrc"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video tokenizer that fits the tokens, and the same run on one rank without ZeRO."""
    root = tmp_path_factory.mktemp("conversion")
    sizes = dict(width=16, heads=2, dim_head=8, patch=4, temporal_depth=1, window=2, codes=512, code_dim=4)
    torch.manual_seed(0)
    tokenizer = OmniTokenizer(OmniTokenizerNet(OmniTokenizerConfig(enc_block="t", dec_block="t", **sizes)))
    tokenizer.save(root / "tokenizer")
    train(root, "plain", tokenizer.sha256, 1, 0)
    return root


@pytest.mark.parametrize(("zero", "words"), [(2, ["--step", "2"]), (3, ["--weights", "ema"])])
def test_shards_of_two_ranks_become_one_folder(root: Path, zero: int, words: list[str]) -> None:
    """An older step, and the average of the weights, against the run on one rank."""
    sha256 = OmniTokenizer.from_checkpoint(root / "tokenizer").sha256
    run = train(root, f"zero{zero}", sha256, 2, zero)
    found = to_hf(run, root / f"hf{zero}", *words)
    step, group = (2, "model") if zero == 2 else (4, "ema")
    expected, _ = read_weights(root / f"plain/checkpoints/step-{step:08d}", group)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=1e-3, atol=2e-5), name
    card = (root / f"hf{zero}" / "README.md").read_text()
    assert f"| steps | {step} |" in card
    assert ("moving average" in card) == (group == "ema")
