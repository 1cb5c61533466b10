"""Scores as shares of what reconstructed clips get: by objects, paired, and what is said where a number is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_files import write_cases, write_run

from megavrc.errors import UserError
from megavrc.paper.study_claims import share_of
from megavrc.paper.study_runs import read_study
from megavrc.paper.study_shares import ceiling_shares, told_apart

REFINED = "scenes: VRC with refinement, passes 8, 1, 1, 1"


def write_shares(folder: Path, drawn: str, objects: str, keys: str = "k") -> None:
    """All reconstructed clips of one object are whole, a third of those of two."""
    real = {"whole": "1 1 1 0 1 0", "all": "1 1 1 0 1 0", "objects": objects}
    cases: dict[str, Any] = {"reconstructed 4000": real}
    write_cases(folder, "scenes-vrc", 0, cases, keys)
    write_cases(folder, "corner-vrc", 0, {"reconstructed 4000": {**real, "objects": "1 1 1 1 1 1"}})
    for seed in (0, 1):
        kinds = {"given 4000": {"whole": "0 0 0 0 0 0"}, "given refined 4000": {"whole": drawn}}
        refine = {kind: {"objects": objects, "all": "0 0 0 0 0 0", **lines} for kind, lines in kinds.items()}
        write_cases(folder, "scenes-refine", seed, refine)


def test_scores_are_shares_of_what_reconstructed_clips_get_by_objects(tmp_path: Path) -> None:
    write_shares(tmp_path, "1 1 0 0 1 0", "1 2 1 2 1 2")
    rows = {row["name"]: row for row in ceiling_shares(read_study(tmp_path))}
    most = rows["scenes: reconstructed clips"]["metrics"]
    assert most["whole_given_one"]["value"] == 1 and most["whole_given_two"]["value"] == pytest.approx(1 / 3)
    refined = rows[REFINED]
    assert refined["metrics"]["whole_given_1_1_one"]["value"] == pytest.approx(2 / 3), "of one object"
    two = refined["metrics"]["whole_given_1_1_two"]
    assert two["value"] == two["low"] == two["high"] == 1, (
        "whole where the reconstructed one is: draws are paired"
    )
    assert refined["facts"] == {"seeds": "2"} | {
        f"{column}_{label}": "`--priority 0 --tune`"
        for column in ("whole_given", "sound_given", "sound_from_text")
        for label in ("one", "two")
    }
    assert rows["scenes: token model"]["facts"]["whole_given_1_1_two"] == "`--priority 0 --samples`"
    corner = rows["corner: VRC"]["facts"]
    assert corner["whole_given_1_1_one"] == "`--priority 3 --samples`" and "whole_given_1_1_two" not in corner


def test_shares_of_other_clips_are_refused(tmp_path: Path) -> None:
    write_shares(tmp_path, "1 1 0 0 1 0", "1 2 1 2 1 2", keys="others")
    with pytest.raises(UserError, match="scenes-refine, given refined: drawn for other prompts"):
        list(ceiling_shares(read_study(tmp_path)))


def test_where_no_reconstructed_clip_is_whole_there_is_no_share(tmp_path: Path) -> None:
    """As in a trial of a few steps."""
    write_shares(tmp_path, "1 1 0 0 1 0", "1 2 1 2 1 2")
    real = {"whole": "0 1 0 1 0 1", "all": "0 0 0 0 0 0", "objects": "1 2 1 2 1 2"}
    write_cases(tmp_path, "scenes-vrc", 0, {"reconstructed 4000": real})
    refined = {row["name"]: row for row in ceiling_shares(read_study(tmp_path))}[REFINED]
    assert "whole_given_1_1_one" not in refined["metrics"] | refined["facts"]
    assert refined["metrics"]["whole_given_1_1_two"]["value"] == pytest.approx(1 / 3)


def test_shares_without_any_reconstructed_clips_say_what_makes_them(tmp_path: Path) -> None:
    write_run(tmp_path, "scenes-refine", 0, np.ones(4))
    rows = list(ceiling_shares(read_study(tmp_path)))
    assert all(
        row["metrics"] == {} and row["facts"]["whole_given_1_1_one"].endswith("--samples`") for row in rows
    )


def test_a_share_has_the_interval_of_both_means() -> None:
    """By hand: 200 clips, 0.4 over 0.8; independent of each other, their errors add up."""
    rng = np.random.default_rng(0)
    drawn, most = (rng.random(200) < 0.4).astype(float), (rng.random(200) < 0.8).astype(float)
    value, low, high = share_of([drawn, drawn], most)
    error = value * np.hypot(drawn.std() / drawn.mean(), most.std() / most.mean()) / np.sqrt(200)
    assert value == drawn.mean() / most.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_prompts_that_tell_a_motion_and_those_that_tell_none_are_told_apart(tmp_path: Path) -> None:
    """A clip whose told object was not found has no direction, but its prompt tells one: what counts is the prompt."""
    prompts = {"whole": "1 1 1 1 1 1", "all": "1 1 1 1 1 1", "direction": "1 1 1 - - -"}
    drawn = {"scenes-vrc": "1 1 0 0 0 0", "scenes-token": "1 0 0 1 1 0"}
    for name, sound in drawn.items():
        cases = {"given tuned 4000": {"all": sound, "direction": "1 - - - - -"}}
        if name == "scenes-vrc":
            cases["reconstructed 4000"] = prompts
        write_cases(tmp_path, name, 0, cases)
    rows = {row["name"]: row for row in told_apart(read_study(tmp_path))}
    values = {
        name: [rows[name]["metrics"][f"sound_given_{kind}"]["value"] for kind in ("told", "untold")]
        for name in ("VRC", "token model", "VRC minus the token model")
    }
    assert values["VRC"] == pytest.approx([2 / 3, 0]) and values["token model"] == pytest.approx(
        [1 / 3, 2 / 3]
    )
    assert values["VRC minus the token model"] == pytest.approx([1 / 3, -2 / 3])
    assert (
        rows["VRC"]["facts"]["whole_given_told"] == "`--priority 0 --tune`"
        and rows["VRC"]["facts"]["seeds"] == "1"
    )


def test_without_reconstructed_clips_nobody_knows_what_was_told(tmp_path: Path) -> None:
    write_cases(tmp_path, "scenes-vrc", 0, {"given tuned 4000": {"all": "1 0", "direction": "1 -"}})
    assert not any(row["metrics"] for row in told_apart(read_study(tmp_path)))


def test_prompts_of_other_clips_are_not_told_apart(tmp_path: Path) -> None:
    write_cases(tmp_path, "scenes-vrc", 0, {"reconstructed 4000": {"direction": "1 -"}}, "others")
    write_cases(tmp_path, "scenes-token", 0, {"given tuned 4000": {"all": "1 0"}})
    with pytest.raises(UserError, match="scenes-token, given tuned: drawn for other prompts"):
        list(told_apart(read_study(tmp_path)))


def test_the_second_tokenizer_has_the_same_prompts(tmp_path: Path) -> None:
    write_cases(tmp_path, "scenes-vrc", 0, {"reconstructed 4000": {"direction": "1 -"}})
    for name, sound in {"again-vrc": "1 0", "again-token": "0 1"}.items():
        write_cases(tmp_path, name, 1, {"given tuned 4000": {"all": sound}}, tokenizer="second")
    rows = {row["name"]: row for row in told_apart(read_study(tmp_path))}
    metrics = rows["VRC minus the token model, tokenizer made anew"]["metrics"]
    assert [metrics[f"sound_given_{kind}"]["value"] for kind in ("told", "untold")] == [1, -1]
    write_cases(tmp_path, "again-vrc", 1, {"given tuned 4000": {"all": "1 0"}}, "others", "second")
    with pytest.raises(UserError, match="again-vrc, given tuned: drawn for other prompts"):
        list(told_apart(read_study(tmp_path)))
