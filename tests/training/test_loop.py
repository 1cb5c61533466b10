"""The loop on real ranks: exact resume, signals, damage, other world sizes, refusals, skipped steps."""

import json
from typing import Any

import pytest
from worlds import run_world


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of two ranks, then of one rank that goes on with one of their runs."""
    root = tmp_path_factory.mktemp("runs")
    found: dict[str, Any] = {"root": root}
    for ranks in (2, 1):
        done = run_world(ranks, "loop_world.py", root)
        assert done.returncode == 0, done.stderr[-3000:]
        found |= {f"output{ranks}": done.stdout + done.stderr}
        found |= {
            f"{key}{ranks}": value
            for key, value in json.loads((root / f"result{ranks}.json").read_text()).items()
        }
    return found


def test_a_signal_on_one_rank_stops_all_after_saving(worlds: dict[str, Any]) -> None:
    assert worlds["stopped2"]["checkpoints"] == ["step-00000003", "step-00000006"]
    assert not worlds["stopped2"]["complete"]


def test_a_stopped_run_goes_on_bit_exactly(worlds: dict[str, Any]) -> None:
    assert worlds["same_after_stop2"]
    assert worlds["samples_after_stop2"]
    assert [line["step"] for line in worlds["parts2"]] == list(range(1, 11)), "no line is lost or doubled"
    assert [line["loss"] for line in worlds["parts2"]] == [line["loss"] for line in worlds["whole2"]]


def test_a_finished_run_does_nothing(worlds: dict[str, Any]) -> None:
    assert worlds["again2"] == [[], []]
    complete = json.loads((worlds["root"] / "parts" / "complete.json").read_text())
    assert complete["step"] == 10 and complete["exported"]
    record = json.loads((worlds["root"] / "parts" / "run.json").read_text())
    assert len(record["starts"]) == 2, "and leaves the record of those that trained"


def test_a_finished_run_continues_with_more_steps_and_is_unfinished_meanwhile(worlds: dict[str, Any]) -> None:
    assert not worlds["stopped2"]["complete_when_continued"]
    assert json.loads((worlds["root"] / "plain" / "complete.json").read_text())["step"] == 10


def test_a_run_killed_between_its_last_checkpoint_and_complete_json_only_finishes(
    worlds: dict[str, Any],
) -> None:
    assert (worlds["root"] / "whole" / "complete.json").is_file()
    assert [line["step"] for line in worlds["whole2"]] == list(range(1, 11))


def test_a_run_that_is_ended_before_its_last_checkpoint_says_how_far_it_was_trained(
    worlds: dict[str, Any],
) -> None:
    complete = json.loads((worlds["root"] / "alone" / "complete.json").read_text())
    assert complete["step"] == 10
    assert complete["metrics"]["loss"] == worlds["alone1"][-1]["loss"], (
        "the metrics of the line before its end"
    )
    assert [line["step"] for line in worlds["alone1"]] == list(range(1, 11))


def test_a_start_that_is_refused_leaves_a_finished_run_finished(worlds: dict[str, Any]) -> None:
    unknown, removed, misspelled = worlds["refused_to_go_on1"]
    assert unknown == (
        "deepspeed: DeepSpeed refuses zero_optimization: no_such_key: Extra inputs are not permitted"
    )
    assert removed.startswith("deepspeed: DeepSpeed refuses sparse_attention: ")
    assert misspelled == (
        "deepspeed.zero_optimisation: DeepSpeed has no such option, did you mean zero_optimization?"
    )
    assert (worlds["root"] / "alone" / "complete.json").is_file()


def test_the_first_line_after_a_rollback_is_of_its_own_steps(worlds: dict[str, Any]) -> None:
    line = worlds["after_rollback1"]
    assert line["clips/s"] > 8 / 500 and line["data_wait_%"] <= 100


def test_the_first_line_of_a_start_is_of_its_steps_alone(worlds: dict[str, Any]) -> None:
    assert worlds["after_a_slow_start1"]["clips/s"] > 8 / 500


def test_a_flipped_bit_falls_back_to_the_checkpoint_before(worlds: dict[str, Any]) -> None:
    assert worlds["same_after_damage2"]
    assert worlds["samples_after_damage2"] == [7 * 2, 7 * 2], "steps 3 to 9, two micro-batches each"


def test_another_run_in_the_folder_is_refused(worlds: dict[str, Any]) -> None:
    assert "holds another run" in worlds["refused2"]
    assert "name: 'toy' there, 'another' here" in worlds["refused2"]


def test_a_non_finite_step_is_skipped_and_counted(worlds: dict[str, Any]) -> None:
    steps = worlds["nan2"]
    assert [line["skipped"] for line in steps] == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert "loss" not in steps[2]
    assert all(line["loss"] < 10 for line in steps if line["step"] != 3)
    assert worlds["skipped_in_a_row1"] == {"6": 0, "3": 1}, "as starts from these steps count on"


def test_another_world_size_goes_on_with_the_same_samples(worlds: dict[str, Any]) -> None:
    two = [sample for sample in worlds["samples2"]]
    assert sorted(two) == sorted(worlds["samples1"])
    assert len(set(worlds["samples1"])) == 4 * 8
    for ours, theirs in zip(worlds["alone1"], worlds["plain2"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_the_folder_tells_what_ran(worlds: dict[str, Any]) -> None:
    folder = worlds["root"] / "plain"
    record = json.loads((folder / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0, 6, 8]
    assert record["starts"][0]["versions"].keys() >= {"torch", "deepspeed", "megavrc"}
    assert sorted(path.name for path in (folder / "previews").iterdir()) == ["10.txt", "6.txt"]
    assert "steps: 10" in (folder / "config.yaml").read_text()
    assert "step 10/10" in worlds["output2"], "progress as plain lines"
