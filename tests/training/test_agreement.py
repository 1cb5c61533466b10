"""Two ranks of which one is unlike the other: all end, and all say why."""

from typing import Any

import pytest
from worlds import world_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world_results(tmp_path_factory.mktemp("runs"), "agreement_world.py")


def test_a_mistake_that_one_rank_meets_is_that_of_all(results: dict[str, Any]) -> None:
    assert results["nothing"] == [[0, 0], ["", ""]]
    codes, [first, second] = results["one"]
    assert codes == [0, 0] and first == second
    assert first.startswith("NetworkError: rank 1 on ") and first.endswith(": no answer")
    assert results["both"] == [[0, 0], ["UserError: here"] * 2], "one of them, and the same"


def test_another_error_has_its_traceback_and_no_rank_waits(results: dict[str, Any]) -> None:
    assert results["traceback"][0] == [1, 1]
    assert "KeyError: 'a bug'" in results["stderr"]


def test_ranks_that_would_train_different_runs_do_not_begin(results: dict[str, Any]) -> None:
    for name, difference in (
        ("data", "identity.data.0.samples: 11 there, 12 here"),
        ("steps", "configuration.train.steps: 7 there, 10 here"),
    ):
        codes, ranks = results[name]
        assert codes == [0, 0] and ranks[0] == ranks[1], "every rank says the same, and nothing is written"
        message, written = ranks[0]
        assert f"rank 1 would train another run than rank 0 ({difference})" in message and not written
    assert results["cache"] == [[0, 0], [["", True]] * 2], "each machine has a disk of its own"
