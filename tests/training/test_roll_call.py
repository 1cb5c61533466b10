"""Ranks that are lost before training begins: the others name them and end, instead of waiting for a timeout."""

from typing import Any

import pytest
from worlds import world_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world_results(tmp_path_factory.mktemp("runs"), "roll_call_world.py")


@pytest.mark.parametrize("case", ["meet:1:0:kill", "meet:1:0:stop", "data:1:0:kill", "data:2:0:stop"])
def test_a_rank_lost_before_training_begins(results: dict[str, Any], case: str) -> None:
    """Before there is a process group, and while data are opened."""
    lost = int(case.split(":")[1])
    for rank, (code, said) in enumerate(results[case]):
        assert code == -9 if rank == lost else code == 85
        assert rank == lost or f"error: rank {lost} gave no sign of life" in said


@pytest.mark.parametrize("case", ["meet:0:0:kill", "meet:0:0:stop"])
def test_the_first_rank_is_lost(results: dict[str, Any], case: str) -> None:
    for code, said in results[case][1:]:
        assert code == 85 and "rank 0 is gone or does not answer" in said


def test_a_rank_that_never_came(results: dict[str, Any]) -> None:
    first, _, third = results["never:1:0:kill"]
    assert first[0] == third[0] == 85 and "error: rank 1 of 3 did not start" in first[1]
    assert "waiting for rank 1 of 3" in first[1], "named long before the end"


def test_an_error_of_one_rank_is_its_own(results: dict[str, Any]) -> None:
    first, second, third = results["data:1:0:raise"]
    assert second[0] == 1 and "FaultError" in second[1]
    assert first[0] == 1 and "sign of life" not in first[1]
    assert third[0] in (1, 85)


def test_nothing_happens_to_a_whole_world_nor_in_training(results: dict[str, Any]) -> None:
    assert results["none"] == [[0, ""]] * 3
