"""Ranks that are lost before training begins: the others name them and end, instead of waiting for a timeout."""

from typing import Any

import pytest
from worlds import world_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world_results(tmp_path_factory.mktemp("runs"), "roll_call_world.py", "meet:1:0:stop", "none")


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cases = ["meet:1:0:kill", "meet:0:0:kill", "meet:0:0:stop", "data:1:0:kill", "data:2:0:stop"]
    cases += ["data:1:0:raise", "never:1:0:kill"]
    found: dict[str, Any] = {}
    for case in cases:  # one after the other: their clocks are short
        found |= world_results(tmp_path_factory.mktemp("runs"), "roll_call_world.py", case)
    return found


def check_named(ranks: list[tuple[int, str]], lost: int) -> None:
    for rank, (code, said) in enumerate(ranks):
        assert code == -9 if rank == lost else code == 85
        if rank == 0:  # the others hear it from this one; on a busy machine it may be gone before
            assert f"error: rank {lost} gave no sign of life" in said


def test_a_rank_lost_before_there_is_a_process_group(results: dict[str, Any]) -> None:
    check_named(results["meet:1:0:stop"], 1)


def test_nothing_happens_to_a_whole_world_nor_in_training(results: dict[str, Any]) -> None:
    for code, said in results["none"]:
        assert code == 0 and "error: " not in said


@pytest.mark.slow
@pytest.mark.parametrize("case", ["meet:1:0:kill", "data:1:0:kill", "data:2:0:stop"])
def test_a_rank_lost_later_too(more: dict[str, Any], case: str) -> None:
    """While data are opened."""
    check_named(more[case], int(case.split(":")[1]))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["meet:0:0:kill", "meet:0:0:stop"])
def test_the_first_rank_is_lost(more: dict[str, Any], case: str) -> None:
    for code, said in more[case][1:]:
        assert code == 85 and "rank 0 is gone or does not answer" in said


@pytest.mark.slow
def test_a_rank_that_never_came(more: dict[str, Any]) -> None:
    first, _, third = more["never:1:0:kill"]
    assert first[0] == third[0] == 85 and "error: rank 1 of 3 did not start" in first[1]
    assert "waiting for rank 1 of 3" in first[1], "named long before the end"


@pytest.mark.slow
def test_an_error_of_one_rank_has_its_traceback(more: dict[str, Any]) -> None:
    first, second, third = more["data:1:0:raise"]
    assert second[0] == 1 and "FaultError" in second[1]
    assert first[0] in (1, 85) and third[0] in (1, 85)
