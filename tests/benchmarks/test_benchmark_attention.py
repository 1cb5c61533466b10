"""`tools/benchmark.py attention` on small sequences."""

from pathlib import Path

import pytest

from megavrc.benchmarks.attention import attention
from megavrc.errors import UserError
from megavrc.results import read_result


def test_the_table_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "attention.json"
    attention(shapes=[(1, 1)], text=[8], frames=[1], backends=["rects"], rounds=1, json=path)
    result = read_result(path)
    assert result["machine"]["device"] == "cpu" and result["machine"]["cpu"]
    cases = {case["config"]["backend"]: case for case in result["cases"]}
    rows = 8 + 1024 + 256
    visible = (1032 * 1033 / 2 + 256 * rows) / rows**2
    assert cases["rects"]["config"]["rows"] == rows
    assert cases["rects"]["config"]["visible"] == pytest.approx(visible)
    assert set(cases) == {"masked", "causal", "rects"}
    found, masked = (
        {key: x["value"] for key, x in cases[name]["metrics"].items()} for name in ("rects", "masked")
    )
    flops = 4 * 64 * visible * rows**2
    assert found["forward_rate"] == pytest.approx(flops / found["forward"] / 1e12)
    assert found["forward_of_masked"] == pytest.approx(found["forward"] / masked["forward"])
    best = "masked" if masked["both"] < found["both"] else "rects"
    assert result["protocol"]["fastest_forward_and_backward"] == {best: 1}
    assert result["protocol"]["auto"] == "rects"
    assert f"{best} in 1 of 1; auto takes rects" in capsys.readouterr().out


def test_a_backend_that_was_asked_for_must_run() -> None:
    with pytest.raises(UserError, match=r"flex.*cannot run on cpu"):
        attention(backends=["flex"])
    with pytest.raises(UserError, match="--rounds"):
        attention(rounds=0)
