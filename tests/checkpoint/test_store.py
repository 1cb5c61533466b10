"""Checkpoints: exact round trip, atomic commits, detection of damage, fallback, retention."""

import json
import logging
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megavrc.checkpoint import DamagedCheckpoint, Retention, newest_good, read, read_weights, verify, write
from megavrc.checkpoint.shards import plan_shards, write_shard
from megavrc.config import run_command
from megavrc.errors import UserError

GROUPS = ("model", "exp_avg", "exp_avg_sq", "buffers")


def groups(value: float) -> dict[str, dict[str, Tensor]]:
    weight = torch.full((3, 5), value)
    return {
        "model": {"a.weight": weight, "a.bias": weight[0].clone()},
        "exp_avg": {"a.weight": weight * 2, "a.bias": weight[1] * 2},
        "exp_avg_sq": {"a.weight": weight * 3, "a.bias": weight[1] * 3},
        "buffers": {
            "count": torch.tensor(7),
            "half": weight.bfloat16(),
            "view": weight.clone().t()[1:3],
            "flags": torch.tensor([True, False]),
            "none": torch.empty(0, 4),
        },
    }


def commit(store: Path, step: int, keep: int = 3) -> Path:
    return write(store, step, groups(float(step)), {"updates": step}, keep)


def steps(store: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in store.glob("step-*"))


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- one checkpoint --------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = commit(tmp_path, 4)
    checkpoint = read(folder)
    assert checkpoint.step == 4 and checkpoint.state["updates"] == 4
    assert checkpoint.groups.keys() == set(GROUPS)
    for group in GROUPS:
        library = load_file(folder / f"{group}-00001.safetensors")
        assert library.keys() == checkpoint.tensors(group).keys() == groups(4.0)[group].keys()
        for name, tensor in groups(4.0)[group].items():
            for found in (checkpoint.tensors(group)[name], library[name]):
                assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_tensors_are_divided_over_files_and_ranks() -> None:
    sizes = {
        "model": {f"m{i}": torch.empty(100, device="meta") for i in range(10)},
        "buffers": {"large": torch.empty(1000, device="meta"), "small": torch.empty(1, device="meta")},
        "none": {},
    }
    shards = plan_shards(sizes, ranks=3, limit=1200)
    for group, tensors in sizes.items():
        assert [name for shard in shards if shard.group == group for name in shard.tensors] == list(tensors)
    assert len({shard.file for shard in shards}) == len(shards)
    bytes_of = {shard.file: sum(sizes[shard.group][n].nbytes for n in shard.tensors) for shard in shards}
    assert all(bytes_of[s.file] <= 1200 or s.tensors == ("large",) for s in shards)
    loads = [sum(bytes_of[s.file] for s in shards if s.owner == rank) for rank in range(3)]
    assert sum(loads) == 8004 and min(loads) > 0 and max(loads) <= 4000
    assert plan_shards(sizes, ranks=3, limit=1200) == shards, "all ranks come to the same plan"
    many = plan_shards(sizes, ranks=10**9)
    assert sorted(shard.owner for shard in many) == list(range(12)), "one each, however many ranks have none"
    assert [shard.tensors for shard in plan_shards({"model": sizes["model"]})] == [tuple(sizes["model"])]


def test_a_group_may_be_empty(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, {"model": {"w": torch.ones(2)}, "buffers": {}}, {}, keep=1)
    assert dict(read(folder).tensors("buffers")) == {}
    assert read_weights(folder)[0].keys() == {"w"}


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = commit(tmp_path, 1)
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == len(GROUPS) + 2
    for name in files:
        size = (folder / name).stat().st_size
        for place in {0, 9, size // 3, size // 2, size - 3}:
            flip(folder / name, place)
            with pytest.raises(DamagedCheckpoint, match=name):
                verify(folder)
            flip(folder / name, place)
    verify(folder)


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    folder = commit(tmp_path, 1)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert listed.keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}


def test_another_version_s_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = commit(tmp_path, 1)
    (folder / "manifest.json").write_text('{"format": "megavrc-checkpoint v1", "files": {}}')
    with pytest.raises(UserError, match=r"written by another version of megavrc \(megavrc-checkpoint v1"):
        newest_good(tmp_path)


def test_no_older_checkpoint_is_taken_in_the_place_of_one_of_a_newer_format(tmp_path: Path) -> None:
    commit(tmp_path, 1)
    manifest = commit(tmp_path, 2) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("megavrc-checkpoint v2", "megavrc-checkpoint v3"))
    with pytest.raises(UserError, match=r"made by a newer megavrc \(format 3, this one reads up to 2\)"):
        newest_good(tmp_path)
    manifest.write_text(manifest.read_text().replace("megavrc-checkpoint v3", "megavrc-checkpoint w3"))
    found = newest_good(tmp_path)  # that is no format: damage
    assert found is not None and found.step == 1


def test_a_file_that_may_not_grow_is_an_error_of_the_system(tmp_path: Path) -> None:
    program = """if True:
        import resource, sys, torch
        from pathlib import Path
        from megavrc.checkpoint import write
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        write(Path(sys.argv[1]), 2, {"model": {"w": torch.ones(100_000)}, "buffers": {}}, {}, keep=3)
    """
    commit(tmp_path, 1)
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert "File too large" in done.stderr and done.returncode == 1
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    commit(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001", "step-00000002"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000


def test_a_write_passes_its_points_in_order(tmp_path: Path) -> None:
    points: list[str] = []
    write_shard(tmp_path / "a.safetensors", {"w": torch.ones(3)}, points.append)
    assert points == ["before_shard", "mid_shard", "after_shard"]


# --- the store -------------------------------------------------------------------------------------------------------


def test_damage_falls_back_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3, 4, 5):
        commit(tmp_path, step, keep=9)
    (tmp_path / "step-00000005" / "manifest.json").write_text("{")
    (tmp_path / "step-00000004" / "exp_avg-00001.safetensors").unlink()
    with open(tmp_path / "step-00000003" / "model-00001.safetensors", "r+b") as file:
        file.truncate(70)
    shutil.rmtree(tmp_path / "step-00000002")
    (tmp_path / "step-00000002").mkdir()
    logging.getLogger("megavrc").propagate = True
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    assert caplog.text.count("DAMAGED CHECKPOINT") == 4
    for named in ("not valid JSON", "exp_avg-00001.safetensors: missing", "70 bytes", "no such file"):
        assert named in caplog.text
    flip(tmp_path / "step-00000001" / "model-00001.safetensors")
    with pytest.raises(UserError, match="all 5 checkpoints are damaged"):
        newest_good(tmp_path)


def test_latest_can_be_set_back_by_hand(tmp_path: Path) -> None:
    for step in (1, 2):
        commit(tmp_path, step)
    (tmp_path / "latest").write_text("step-00000001\n")
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    for torn in (
        b"",
        b"step-0000",
        b"\xff\xfe\x00",
        b"step-00000009",
    ):  # what a full disk or a bad one leaves
        (tmp_path / "latest").write_bytes(torn)
        found = newest_good(tmp_path)
        assert found is not None and found.step == 2
    found = newest_good(tmp_path, until=1)
    assert found is not None and found.step == 1


def test_damage_after_going_back_does_not_lead_into_the_future_that_was_left(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        commit(tmp_path, step, keep=9)
    (tmp_path / "latest").write_text("step-00000002\n")
    for step, next_one in ((2, 1), (1, 4)):  # nothing before it is whole: better a later one than none
        flip(tmp_path / f"step-0000000{step}" / "model-00001.safetensors")
        found = newest_good(tmp_path)
        assert found is not None and found.step == next_one


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "checkpoints") is None


def test_weights_of_a_run_or_of_one_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        commit(tmp_path / "checkpoints", step)
    first = tmp_path / "checkpoints" / "step-00000001"
    for path, step in ((tmp_path, 2), (first, 1)):
        weights, state = read_weights(path)
        assert state["step"] == step
        assert weights.keys() == {"a.weight", "a.bias", *groups(1.0)["buffers"]}
        assert torch.equal(weights["a.weight"], torch.full((3, 5), float(step)))
    assert torch.equal(read_weights(first, "exp_avg")[0]["a.weight"], torch.full((3, 5), 2.0))
    with pytest.raises(UserError, match="has no 'ema', only buffers, exp_avg, exp_avg_sq, model"):
        read_weights(first, "ema")
    with pytest.raises(UserError, match="no checkpoints there"):
        read_weights(tmp_path / "elsewhere")
    flip(first / "model-00001.safetensors")
    with pytest.raises(UserError, match="damaged checkpoint"):
        read_weights(first)


def test_the_command_verifies_a_run_or_one_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        commit(tmp_path / "checkpoints", step)

    def verified(folder: Path) -> tuple[int, str, str]:
        code = run_command("megavrc.hf.commands:verify", ["--model", str(folder)])
        return code, *capsys.readouterr()

    assert verified(tmp_path)[1].count(": whole") == 2
    flip(tmp_path / "checkpoints" / "step-00000001" / "exp_avg-00001.safetensors")
    code, out, error = verified(tmp_path)
    assert code == 2 and "step-00000002: whole" in out
    assert "error: 1 damaged:" in error and "exp_avg-00001.safetensors: its bytes" in error
    assert verified(tmp_path / "checkpoints" / "step-00000002")[0] == 0


# --- retention -------------------------------------------------------------------------------------------------------


def scored(store: Path, losses: dict[int, float | None], retention: Retention) -> list[int]:
    """Steps that stay when checkpoints with these validation losses are written one after another."""
    for step, loss in losses.items():
        state = {} if loss is None else {"validation_loss": loss}
        retention.apply(write(store, step, {"model": {"w": torch.ones(1)}}, state, keep=99))
    return steps(store)


def test_the_best_is_the_best_on_the_validation_sets_of_the_newest(tmp_path: Path) -> None:
    losses = {1: (3.0, "a"), 2: (4.0, "a"), 3: (9.0, "b"), 4: (8.0, "b"), 5: (8.5, "b")}
    there = []
    for step, (loss, sets) in losses.items():
        state = {"validation_loss": loss, "validation_sets": sets}
        folder = write(tmp_path, step, {"model": {"w": torch.ones(1)}}, state, keep=99)
        Retention(last=1).apply(folder)
        there.append(steps(tmp_path))
    assert there == [[1], [1, 2], [3], [4], [4, 5]]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 11):
        commit(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000003", "step-00000011"]
    assert (tmp_path / "latest").read_text() == "step-00000011"


def test_every_so_many_and_the_best_are_kept(tmp_path: Path) -> None:
    losses = {1: None, 2: 5.0, 3: 4.0, 4: 4.5, 5: 4.2, 6: None, 7: 4.1, 8: 4.6}
    assert scored(tmp_path / "a", losses, Retention(last=1, every=4)) == [3, 4, 8]
    assert scored(tmp_path / "b", losses, Retention(last=2, best=False)) == [7, 8]
    diverged = {1: float("nan"), 2: 4.0, 3: 5.0, 4: float("nan")}
    assert scored(tmp_path / "d", diverged, Retention(last=1)) == [2, 4]
    assert scored(tmp_path / "c", {1: None, 2: None, 3: None}, Retention(last=1)) == [3]


@pytest.mark.parametrize(
    ("last", "every", "best", "saves"),
    [
        (3, 10, True, range(10, 101, 10)),  # every checkpoint stays for good
        (2, 4, False, range(1, 13)),
        (2, 4, True, range(1, 13)),
        (3, 20, True, [*range(10, 75, 10), 75]),
        (1, 0, True, range(0, 5)),
        (4, 0, False, [1, 2]),
        (2, 6, True, range(0, 40, 4)),
    ],
)
def test_how_many_are_there_at_once_is_known_before(
    tmp_path: Path, last: int, every: int, best: bool, saves: Sequence[int]
) -> None:
    """In a run whose first checkpoint that is not there for good stays the best one."""
    retention, most = Retention(last, every, best), 0
    for step in saves:
        loss = float(step) if every and step % every else float(1000 + step)
        folder = write(tmp_path, step, {"model": {"w": torch.ones(1)}}, {"validation_loss": loss}, keep=99)
        most = max(most, len(steps(tmp_path)))
        retention.apply(folder)
    assert retention.most(saves) == most


def test_nothing_is_removed_when_the_newest_cannot_be_read_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        commit(tmp_path, step)
    flip(tmp_path / "step-00000002" / "model-00001.safetensors")
    logging.getLogger("megavrc").propagate = True
    Retention(last=1).apply(tmp_path / "step-00000002")
    assert steps(tmp_path) == [1, 2] and "no older one is removed" in caplog.text


def test_checkpoints_of_a_future_that_was_left_do_not_push_out_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 8, 9):
        commit(tmp_path, step, keep=9)
    commit(tmp_path, 3, keep=2)  # after going back to step 2
    assert steps(tmp_path) == [2, 3, 8, 9]
    found = newest_good(tmp_path)
    assert found is not None and found.step == 3


def test_checkpoints_of_a_future_that_was_left_go_when_the_run_has_passed_them(tmp_path: Path) -> None:
    for step in (1, 2, 4, 6, 9):
        commit(tmp_path, step, keep=9)
    # After going back to step 2, now at 8.
    Retention(last=2, every=2).apply(commit(tmp_path, 8, keep=9), before=2)
    assert steps(tmp_path) == [2, 8, 9], (
        "2 is one of the newest two; 4 and 6 count neither as that nor for good"
    )
    flip(tmp_path / "step-00000008" / "model-00001.safetensors")
    found = newest_good(tmp_path)
    assert found is not None and found.step == 2
