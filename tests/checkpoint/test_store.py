"""Checkpoints: exact round trip, atomic commits, detection of damage, fallback, retention."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megavrc.checkpoint import DamagedCheckpoint, newest_good, read, read_weights, verify, write
from megavrc.config import UserError

GROUPS = ("model", "exp_avg", "exp_avg_sq", "buffers")


def groups(value: float) -> dict[str, dict[str, Tensor]]:
    weight = torch.full((3, 5), value)
    return {
        "model": {"a.weight": weight, "a.bias": weight[0].clone()},
        "exp_avg": {"a.weight": weight * 2, "a.bias": weight[1] * 2},
        "exp_avg_sq": {"a.weight": weight * 3, "a.bias": weight[1] * 3},
        "buffers": {"count": torch.tensor(7), "half": weight.bfloat16(), "view": weight.clone().t()[1:3]},
    }


def commit(store: Path, step: int, keep: int = 3) -> Path:
    return write(store, step, groups(float(step)), {"updates": step}, keep)


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoint = read(commit(tmp_path, 4))
    assert checkpoint.step == 4 and checkpoint.state["updates"] == 4
    for group in GROUPS:
        for name, tensor in groups(4.0)[group].items():
            found = checkpoint.tensors(group)[name]
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 11):
        commit(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000003", "step-00000011"]
    assert (tmp_path / "latest").read_text() == "step-00000011"


def test_an_unfinished_write_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path, 1)

    def die(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("megavrc.checkpoint.store.os.rename", die)
        with pytest.raises(OSError, match="disk full"):
            commit(tmp_path, 2)
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    commit(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001", "step-00000002"]


@pytest.mark.parametrize("name", [*(f"{group}.safetensors" for group in GROUPS), "state.json"])
def test_every_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    folder = commit(tmp_path, 1)
    for place in (0, 9, -1):
        flip(folder / name, place)
        with pytest.raises(DamagedCheckpoint, match=name):
            verify(folder)
        flip(folder / name, place)
    verify(folder)


def test_damage_falls_back_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        commit(tmp_path, step)
    (tmp_path / "step-00000003" / "manifest.json").write_text("{")
    (tmp_path / "step-00000002" / "exp_avg.safetensors").unlink()
    logging.getLogger("megavrc").propagate = True
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    assert caplog.text.count("DAMAGED CHECKPOINT") == 2
    flip(tmp_path / "step-00000001" / "model.safetensors")
    with pytest.raises(UserError, match="all 3 checkpoints are damaged"):
        newest_good(tmp_path)


def test_latest_can_be_set_back_by_hand(tmp_path: Path) -> None:
    for step in (1, 2):
        commit(tmp_path, step)
    (tmp_path / "latest").write_text("step-00000001\n")
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    (tmp_path / "latest").write_text("")  # what a full disk leaves
    found = newest_good(tmp_path)
    assert found is not None and found.step == 2


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "checkpoints") is None


def test_weights_of_a_run_or_of_one_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        commit(tmp_path / "checkpoints", step)
    for path, step in ((tmp_path, 2), (tmp_path / "checkpoints" / "step-00000001", 1)):
        weights, state = read_weights(path)
        assert state["step"] == step
        assert weights.keys() == {"a.weight", "a.bias", "count", "half", "view"}
        assert torch.equal(weights["a.weight"], torch.full((3, 5), float(step)))
    with pytest.raises(UserError, match="no checkpoints there"):
        read_weights(tmp_path / "elsewhere")
    flip(tmp_path / "checkpoints" / "step-00000001" / "model.safetensors")
    with pytest.raises(UserError, match="damaged checkpoint"):
        read_weights(tmp_path / "checkpoints" / "step-00000001")


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    folder = commit(tmp_path, 1)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert listed.keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}
