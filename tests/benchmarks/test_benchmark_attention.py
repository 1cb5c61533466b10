"""`tools/benchmark.py attention` on small sequences."""

import json
from pathlib import Path

import pytest

from megavrc.benchmarks.attention import attention
from megavrc.errors import UserError


def test_the_table_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "attention.json"
    attention(shapes=[(1, 1)], text=[8], frames=[1], backends=["rects"], rounds=1, json=path)
    result = json.loads(path.read_text())
    assert result["machine"]["device"] == "cpu" and result["machine"]["cpu"]
    (case,) = result["cases"]
    rows = 8 + 1024 + 256
    assert case["rows"] == rows
    assert case["visible"] == pytest.approx((1032 * 1033 / 2 + 256 * rows) / rows**2)
    assert set(case["backends"]) == {"masked", "causal", "rects"}
    part = case["backends"]["rects"]["forward"]
    flops = 4 * 64 * case["visible"] * rows**2
    assert part["tflops_per_second"] == pytest.approx(flops / part["ms"] / 1e9)
    assert part["of_masked"] == pytest.approx(part["ms"] / case["backends"]["masked"]["forward"]["ms"])
    best = min(("masked", "rects"), key=lambda name: case["backends"][name]["both"]["ms"])
    assert case["fastest"] == best and result["auto"] == "rects"
    assert f"{best} in 1 of 1; auto takes rects" in capsys.readouterr().out


def test_a_backend_that_was_asked_for_must_run() -> None:
    with pytest.raises(UserError, match=r"flex.*cannot run on cpu"):
        attention(backends=["flex"])
    with pytest.raises(UserError, match="--rounds"):
        attention(rounds=0)
