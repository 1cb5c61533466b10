"""Saving on real ranks: a kill at every point of a write, full and slow disks, and a run that another job has taken."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import world_results

from megavrc.errors import UserError
from megavrc.training.saving import check_space


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world_results(tmp_path_factory.mktemp("stores"), "saving_world.py")


def test_a_kill_at_any_point_of_a_write_leaves_the_checkpoint_before_or_the_whole_new_one(
    results: dict[str, Any],
) -> None:
    assert len(results["killed"]) == 3 * 2 + 4
    for fault, seen in results["killed"].items():
        point, rank = fault.split(":")
        assert seen["codes"][int(rank)] == -9 and seen["codes"][1 - int(rank)] > 0, fault
        after = seen["after"]
        assert after["step"] == 2 and after["values"] == [2.0], f"{fault}: latest names a whole checkpoint"
        assert after["torn"] == [], fault
        assert after["steps"] == ([1, 2, 3] if point in ("after_rename", "before_latest") else [1, 2]), fault


def test_a_killed_run_goes_on_and_clears_up(results: dict[str, Any]) -> None:
    for fault, seen in results["killed"].items():
        assert seen["again"] == [0, 0], fault
        assert seen["then"] == {"step": 4, "values": [4.0], "torn": [], "steps": [1, 2, 3, 4], "left": []}, (
            fault
        )


def test_a_full_disk_on_one_rank_is_loud_and_training_goes_on(results: dict[str, Any]) -> None:
    full = results["full"]
    assert full["codes"] == [0, 0]
    assert [failures for failures, _ in full["ranks"]] == [1, 1], "both ranks know"
    assert full["ranks"][0][1] == ["latest", "step-00000001"], "what was written of it is gone"
    assert full["after"]["steps"] == [1, 3] and full["after"]["step"] == 3
    assert "CHECKPOINT OF STEP 2 NOT WRITTEN, rank 1: OSError(27, 'File too large')" in results["stdout"]


def test_a_file_system_that_is_full(results: dict[str, Any]) -> None:
    small = results["small"]
    if small is None:
        pytest.skip("no right to mount a small disk")
    assert small["codes"] == [0, 0]
    assert small["ranks"][0] == [1, ["latest", "step-00000001", "step-00000002"]]
    assert small["after"] == {"step": 4, "values": [4.0], "torn": [], "steps": [1, 2, 4], "left": []}
    assert "CHECKPOINT OF STEP 3 NOT WRITTEN" in results["stdout"]
    assert "No space left on device" in results["stdout"]


def test_a_writer_that_dies_shows_at_the_next_save(results: dict[str, Any]) -> None:
    assert results["raised"]["codes"] == [0, 0, 0] and results["raised"]["failures"] == [1, 1, 1]
    assert results["raised"]["after"] == {
        "step": 4,
        "values": [4.0],
        "torn": [],
        "steps": [1, 3, 4],
        "left": [],
    }


def test_a_slow_disk_holds_up_the_next_save_only(results: dict[str, Any]) -> None:
    for rank in results["slow"]["ranks"]:
        assert rank == {"during": None, "after": 1, "unfinished": 1}, "one write at a time"
    assert results["slow"]["after"]["step"] == 3


def test_without_a_background_save_returns_when_all_is_written(results: dict[str, Any]) -> None:
    assert results["foreground"]["failures"] == [0, 0, 0]
    assert results["foreground"]["after"]["steps"] == [1, 2, 3, 4]


def test_the_last_checkpoint_is_tried_again_and_its_loss_is_an_error(results: dict[str, Any]) -> None:
    for rank in results["never"]["ranks"]:
        assert "the last checkpoint could not be written" in rank[0] and rank[1] == 3
    assert results["never"]["after"]["step"] == 1


def test_all_ranks_stop_when_another_job_has_taken_the_run(results: dict[str, Any]) -> None:
    assert results["taken"]["ranks"] == ["taken over by another job"] * 2
    assert results["taken"]["after"]["step"] == 1


class Sizes:
    """A state of 4 MB."""

    like = {"model": {"w": torch.empty(1_000_000, device="meta")}}


def test_a_disk_that_is_too_small_is_found_before_the_first_step(tmp_path: Path) -> None:
    check_space(tmp_path / "new" / "checkpoints", Sizes(), 4)  # type: ignore[arg-type]
    assert list((tmp_path / "new" / "checkpoints").iterdir()) == []
    many = shutil.disk_usage(tmp_path).free // 4_000_000 + 1000
    with pytest.raises(UserError, match=rf"GB are free, .* needed for {many} checkpoints of 0.00 GB"):
        check_space(tmp_path, Sizes(), many)  # type: ignore[arg-type]
    unfinished = tmp_path / ".unfinished-step-00000003-1234"
    unfinished.mkdir()
    with open(unfinished / "model-00001.safetensors", "wb") as file:
        file.truncate(2000 * 4_000_000)  # of a killed job; the next save makes room
    check_space(tmp_path, Sizes(), many)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="checkpoints cannot be written"):
        check_space(tmp_path / "file", Sizes(), 4)  # type: ignore[arg-type]
