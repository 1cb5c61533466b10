"""A run folder after an accident, a stranger or another job: one line, no line of metrics twice, never another run."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import toy_config
from worlds import world_results

from megavrc.distributed import Rank, same_error_on_all_ranks
from megavrc.errors import TransientError, UserError
from megavrc.files import append_line, read_lines_of_json
from megavrc.training.reporter import Reporter
from megavrc.training.run_folder import RunFolder
from megavrc.training.watchdog import Watchdog


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world_results(tmp_path_factory.mktemp("runs"), "broken_world.py")


@pytest.fixture(autouse=True)
def heard() -> None:
    logging.getLogger("megavrc").propagate = True


def test_a_job_whose_run_was_taken_over_writes_no_further_line(results: dict[str, Any]) -> None:
    [said, code], lines, files = results["stolen"]
    assert "taken over by process" in said and code == 2
    assert lines == [[1, step] for step in (1, 2, 3, 4)], "it was taken in the fifth step"
    assert not [name for name in files if "step-" in name or name == "complete.json"]


def test_lines_say_which_start_wrote_them(results: dict[str, Any]) -> None:
    assert results["starts"] == [[1, 1], [1, 2], [2, 3], [2, 4], [3, 5]], "a late one of start 1 is left out"


def test_identity_in_the_checkpoint_counts_without_run_json(results: dict[str, Any]) -> None:
    [said, code], untouched = results["identity"]
    assert "step-00000005: holds another run (name: 'toy' there, 'other' here)" in said and code == 2
    assert untouched, "nothing is written"
    assert results["without run.json"] == [4, 6], "its own goes on, as the next start"


@pytest.mark.parametrize(
    ("error", "part", "code"),
    [
        (errno.EIO, "lease", 85),
        (errno.ESTALE, "checkpoints", 85),
        (errno.EACCES, "checkpoints", 85),
        (errno.ESTALE, "run.json", 85),
        (errno.EACCES, "lease", 2),
        (errno.EACCES, "run.json", 2),
    ],
)
def test_a_drive_that_fails_is_tried_again_and_then_another_time(
    results: dict[str, Any], error: int, part: str, code: int
) -> None:
    [said, found], tries, untouched, then = results[f"{error} {part}"]
    assert os.strerror(error) in said and "\n" not in said and found == code
    assert (tries > 3) == (code == 85), "tried again"
    assert untouched, "not from step 0"
    assert then == ["", 0], "an error that passes is waited for"
    assert results["at last"] == [1, 2, 3, 4, 5, 6]


def test_what_the_system_says_of_a_file_is_one_line_on_all_ranks(alone: Rank) -> None:
    with pytest.raises(UserError, match="/no/video: No such file"), same_error_on_all_ranks(alone):
        open("/no/video")
    with pytest.raises(TransientError, match="x: Stale file handle"), same_error_on_all_ranks(alone):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "x")
    with pytest.raises(ConnectionResetError), same_error_on_all_ranks(alone):
        raise ConnectionResetError("names no file: a bug")


# --- small files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000),
        *(b'{"identity": 5, "starts": []}', b'{"identity": {}, "starts": [1]}'),
    ],
    ids=range(9),
)
def test_a_damaged_run_json_is_one_line(tmp_path: Path, alone: Rank, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json") as said:
        RunFolder(toy_config(tmp_path), {"name": "toy"}, {}, alone)
    assert "\n" not in str(said.value)


def test_pipes_and_folders_in_the_place_of_small_files(tmp_path: Path, alone: Rank) -> None:
    for make, remove in ((os.mkfifo, os.unlink), (os.mkdir, os.rmdir)):
        make(tmp_path / "run.json")
        with pytest.raises(UserError, match=r"run\.json: not a regular file"):
            RunFolder(toy_config(tmp_path), {"name": "toy"}, {}, alone)
        remove(tmp_path / "run.json")
        make(tmp_path / "metrics.jsonl")
        with pytest.raises(UserError, match=r"metrics\.jsonl: not a regular file"):
            Reporter(tmp_path, 0, 1)
        remove(tmp_path / "metrics.jsonl")


def test_heartbeats_of_the_wrong_shape_are_as_if_none_had_come(tmp_path: Path) -> None:
    with Watchdog(tmp_path, Rank(0, 2, 0, torch.device("cpu")), limit=100.0) as watchdog:
        for content in ("[]", "{}", '{"pulses": "x"}', "[" * 100_000, "9" * 5_000, "\x00"):
            (tmp_path / "heartbeats" / "rank-00001.json").write_text(content)
            assert watchdog._read().keys() == {0}


# --- lines of metrics ----------------------------------------------------------------------------------------------


def test_damaged_lines_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "metrics.jsonl"
    damage = [b"\xff\xfe", b"[1]", b"5", b"[" * 100_000, b"9" * 5_000, b'{"step": ']
    strange = [b'{"step": 1e999}', b'{"step": "3"}', b'{"step": null}', b"{}"]
    file.write_bytes(b"\n".join([b'{"step": 1}', *damage, *strange, b'{"step": 2}\n\n{"step": 3}']))
    Reporter(tmp_path, 2, 9).close()
    assert file.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert f"{file}: damaged lines are left out: 2, 3, 4, 5, 6 and 1 more" in caplog.text


def test_no_flipped_bit_stops_a_run(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        Reporter(tmp_path, step - 1, 9).write(step, {"loss": 0.5 / step, "lr": 1e-3}, {"rank_s": [0.1, 0.2]})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for at in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        (tmp_path / "metrics.jsonl").write_bytes(flipped)
        Reporter(tmp_path, 1, 9).close()
        assert all(line["step"] <= 1 for line in read_lines_of_json(tmp_path / "metrics.jsonl"))


def test_a_lost_run_json_costs_no_line(tmp_path: Path, alone: Rank) -> None:
    """It counts the starts; without it the lines say which one was the last."""
    written = {10: 1, 20: 3, 30: 3}
    lines = "".join(f'{{"step": {step}, "start": {start}}}\n' for step, start in written.items())
    (tmp_path / "metrics.jsonl").write_text(lines)
    run = RunFolder(toy_config(tmp_path), {"name": "toy"}, {}, alone)
    run.close()
    Reporter(tmp_path, 30, 99, run.start).write(40, {"loss": 0.5}, {})
    Reporter(tmp_path, 40, 99, run.start + 1).close()
    found = [(line["step"], line["start"]) for line in read_lines_of_json(tmp_path / "metrics.jsonl")]
    assert found == [*written.items(), (40, 4)]


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    for content in (b"", b'{"step": 1}\n', b'{"step": 1}\n{"st', b"\xff"):
        (tmp_path / "lines").write_bytes(content)
        append_line(tmp_path / "lines", '{"step": 2}')
        append_line(tmp_path / "lines", '{"step": 3}')
        assert read_lines_of_json(tmp_path / "lines")[-2:] == [{"step": 2}, {"step": 3}]
    assert (tmp_path / "lines").read_bytes() == b'\xff\n{"step": 2}\n{"step": 3}\n'
