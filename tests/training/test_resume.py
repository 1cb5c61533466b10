"""Resuming on real ranks: other numbers of ranks and ZeRO stages, many times in one epoch, after kills while saving,
and from checkpoints that DeepSpeed wrote.
"""

from typing import Any

import pytest
from worlds import world_results


def run(part: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world_results(tmp_path_factory.mktemp(part), "resume_world.py", part)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("resumed", tmp_path_factory)


@pytest.fixture(scope="module")
def often(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Slow, beside test_loop.py, which resumes bit-exactly, and test_saving.py, which kills at every point."""
    return run("often", tmp_path_factory)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("native", tmp_path_factory)


def test_other_world_sizes_and_zero_stages_resume_bit_exactly(results: dict[str, Any]) -> None:
    for part in results["chain"]:
        assert part["groups"] == ["buffers", "exp_avg", "exp_avg_sq", "model"]
        assert all(part["exact"]), "every rank finds what the other world has written"


def test_other_world_sizes_and_zero_stages_see_the_same_samples(results: dict[str, Any]) -> None:
    samples = [step for part in results["chain"] for step in part["samples"]]
    assert samples == results["whole"]["samples"]
    assert len(samples) == 12 and all(len(set(step)) == 12 for step in samples)


def test_other_world_sizes_and_zero_stages_keep_the_losses(results: dict[str, Any]) -> None:
    lines = [line for part in results["chain"] for line in part["lines"]]
    for (loss, norm), (expected, expected_norm) in zip(lines, results["whole"]["lines"], strict=True):
        assert loss == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)
    assert lines[-1][0] != pytest.approx(lines[0][0], rel=1e-2), "and they move"


@pytest.mark.slow
def test_five_resumes_in_one_epoch_are_exact(often: dict[str, Any]) -> None:
    assert often["five"] == {"samples": True, "distinct": 36, "same": True}


@pytest.mark.slow
def test_a_run_killed_while_saving_ends_as_if_it_had_not_been(often: dict[str, Any]) -> None:
    killed = often["killed"]
    assert [codes.count(-9) for codes in killed["codes"]] == [1, 1, 0]
    assert killed["found"] == [3, 6, 10]
    assert killed["same"]
    assert killed["steps"] == list(range(1, 11)), "no line of metrics is lost or doubled"
    assert {4, 7, 10} <= set(killed["stalls"]), "how long training waited is in the metrics"


@pytest.mark.slow
def test_native_deepspeed_checkpoints_of_all_stages_are_read_bit_exactly(native: dict[str, Any]) -> None:
    for zero, stage in native["stages"].items():
        assert stage["codes"] == [0, 0], zero
        assert stage["same"], f"stage {zero}: parameters, moments, buffers"
        assert stage["state"] == {"step": 4, "updates": 4, "skipped": 0}
        assert stage["name"] == "step-00000004"
        assert "holds a run already" in stage["again"]


@pytest.mark.slow
def test_an_imported_run_goes_on(native: dict[str, Any]) -> None:
    assert native["resumed"] and native["lines"] == 2
