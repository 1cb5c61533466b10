from pathlib import Path

import pytest

from megavrc.benchmarks.loader import loader, ours, theirs, write_dataset
from megavrc.config import run_command
from megavrc.results import read_result


def test_both_deliver_the_same_samples(tmp_path: Path) -> None:
    """Our reader and the webdataset library, on the same shards: ids and captions, all of them, in other orders."""
    folder = write_dataset(tmp_path, 24, 3)

    def delivered(run: object) -> list[tuple[str, int, int]]:
        return [
            (caption, int(ids.sum()), int(ids[0, 0, 0]))
            for batch, captions in run()  # type: ignore[operator]
            for ids, caption in zip(batch, captions, strict=True)
        ]

    one, other = delivered(ours(folder, 4, 0)), delivered(theirs(folder, 4, 0))
    assert one != other
    assert sorted(one) == sorted(other) and len(set(one)) == 24


def test_the_loader_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"samples": 40, "shards": 2, "batch": 4, "rounds": 1, "json": tmp_path / "b.json"}
    words = ["loader", *(f"--{name}={value}" for name, value in options.items())]
    assert run_command({"loader": loader}, words) == 0
    result = read_result(tmp_path / "b.json")
    assert "megavrc / webdataset, one worker, warm" in capsys.readouterr().out
    assert len(result["cases"]) == len(result["metrics"]) == 8
    assert all(set(row["metrics"]) == {"rate", "cpu_rate"} for row in result["cases"])
    assert min(ratio["value"] for ratio in result["metrics"].values()) > 0
    assert run_command({"loader": loader}, ["loader", "--samples=7", "--shards=2"]) == 2
