from pathlib import Path

import pytest

from megavrc.benchmarks.tokenize import tokenize
from megavrc.config import run_command
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.results import read_result
from megavrc.tokenizers import OmniTokenizer


@pytest.mark.slow
def test_tokenization_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"width": 16, "heads": 2, "dim_head": 8, "enc_block": "t", "dec_block": "t", "temporal_depth": 1}
    config = OmniTokenizerConfig(**sizes, codes=32, code_dim=4)  # type: ignore[arg-type]
    OmniTokenizer(OmniTokenizerNet(config).eval()).save(tmp_path / "tokenizer")
    options = {
        "tokenizer": tmp_path / "tokenizer",
        "size": 32,
        "seconds": 3,
        "repeats": 1,
        "json": tmp_path / "b.json",
    }
    words = ["tokenize", *(f"--{name}={value}" for name, value in options.items())]
    assert run_command({"tokenize": tokenize}, words) == 0
    printed, result = capsys.readouterr().out, read_result(tmp_path / "b.json")
    assert "clips/s" in printed
    smooth, noisy = result["cases"]
    assert noisy["config"]["bytes"] > smooth["config"]["bytes"]
    shares = [smooth["metrics"][part]["value"] for part in ("opening", "decoding", "resizing")]
    assert sum(shares) == pytest.approx(1)
    assert min(found["value"] for found in result["metrics"].values()) > 0
    assert run_command({"tokenize": tokenize}, ["tokenize", "--seconds=1"]) == 2
