import json
from pathlib import Path

import pytest

from megavrc.benchmarks.tokenize import tokenize
from megavrc.config import run_command


@pytest.mark.slow
def test_tokenization_is_measured(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"tokenizer": tokenizer, "size": 32, "seconds": 3, "repeats": 1, "json": tmp_path / "b.json"}
    words = ["tokenize", *(f"--{name}={value}" for name, value in options.items())]
    assert run_command({"tokenize": tokenize}, words) == 0
    printed, result = capsys.readouterr().out, json.loads((tmp_path / "b.json").read_text())
    assert "clips/s" in printed
    smooth, noisy = result["decode"]["smooth"], result["decode"]["noisy"]
    assert noisy["bytes"] > smooth["bytes"]
    assert sum(smooth["shares"].values()) == pytest.approx(1)
    assert min(result["seconds_per_video"].values()) > 0
    assert run_command({"tokenize": tokenize}, ["tokenize", "--seconds=1"]) == 2
